"""All that varies the features of an utterance from epoch to epoch: level, pauses, noise, SpecAugment."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from twopass_kd.config.schema import AugmentConfig
from twopass_kd.data.noise import ColouredNoise, NoiseSource, add_noise, energy
from twopass_kd.data.pauses import Pauses, word_begins
from twopass_kd.data.spec_augment import SpecAugmenter


class Augmenter:
    """Makes an utterance louder or quieter, puts pauses in, mixes noise into it, and masks it, in this order.

    In the domain of features, where they are loaded. What an utterance gets depends on the seed, the epoch and its id
    alone: not on the batch it is in, nor on what a worker did before, so that a resumed training goes on as it would
    have.

    Args:
      coloured: the noise of pauses.
      sources: of noise to mix in, each as often as the others.
      spec_augment: None: no SpecAugment.
    """

    def __init__(
        self,
        cfg: AugmentConfig,
        seed: int,
        epoch: int,
        coloured: ColouredNoise,
        sources: Sequence[NoiseSource],
        spec_augment: SpecAugmenter | None,
    ) -> None:
        self.cfg, self.seed, self.epoch = cfg, seed, epoch
        self.pauses = Pauses(cfg, seed, epoch)
        self.coloured, self.sources = coloured, sources
        self.spec_augment = spec_augment

    def __call__(self, features: Tensor, cut: Cut) -> Tensor:
        """(T, num_mel_bins) float32 log-mel -> (T + frames of pauses, num_mel_bins)."""
        rng = random.Random(f"{self.seed} {self.epoch} {cut.id} noise")
        x = features.numpy() + np.float32(rng.uniform(-self.cfg.gain, self.cfg.gain) * np.log(10) / 10)
        speech_energy = energy(x)
        x = self.pauses.insert(x, self.pauses.draw(cut.id), word_begins(cut), self.coloured, rng)
        if rng.random() < self.cfg.noise:
            noise = rng.choice(self.sources).draw(len(x), rng)
            x = add_noise(x, noise, rng.uniform(*self.cfg.snr), speech_energy)
        x = torch.from_numpy(x)
        return x if self.spec_augment is None else self.spec_augment(x, cut.id)
