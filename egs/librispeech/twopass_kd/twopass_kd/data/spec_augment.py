"""SpecAugment on the features that are trained on, utterance by utterance as they are loaded."""

import random

import numpy as np
import torch
from lhotse.dataset import SpecAugment
from torch import Tensor


class SpecAugmenter:
    """Warps time and masks bands of time and frequency (Park et al. 2019, arXiv 1904.08779), by Lhotse.

    It runs where features are loaded, so in worker processes where there are some, instead of in some 35 small kernels
    for each utterance on the GPU. Each utterance is on its own, so padding is never warped into speech. What it gets
    depends on the seed, the epoch and its id alone: a resumed training goes on as it would have.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        self.transform = SpecAugment(num_frame_masks=2, max_frames_mask_fraction=0.15)

    def __call__(self, features: Tensor, cut_id: str) -> Tensor:
        """(T, num_mel_bins) float32 -> the same shape. Seeds the draws of python, numpy and torch (CPU)."""
        rng = random.Random(f"{self.seed} {self.epoch} {cut_id} SpecAugment")
        random.seed(rng.getrandbits(63))
        np.random.seed(rng.getrandbits(32))
        torch.default_generator.manual_seed(rng.getrandbits(63))
        return self.transform(features.unsqueeze(0)).squeeze(0)
