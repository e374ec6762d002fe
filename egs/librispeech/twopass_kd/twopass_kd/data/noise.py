"""Noise as log-mel features: coloured noise, babble of other training utterances, and MUSAN."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lhotse import Fbank
from lhotse.features.mixer import FeatureMixer

from twopass_kd.config.log_mel import FRAME_SHIFT, mel_edges
from twopass_kd.config.schema import FeaturesConfig
from twopass_kd.data.cut_lines import manifest_lines, whole_cut
from twopass_kd.data.fbank import make_fbank
from twopass_kd.files.layout import musan_cuts_path

MIN_SECONDS, MAX_SECONDS = 5.0, 10.0  # of MUSAN's cuts
TALKERS = (3, 8)  # of babble, the least and the most
COLOURS = (-1.0, 2.0)  # a in a spectrum of 1 / f^a: from blue over white (0) and pink (1) to brown noise
LOG_MEL = Fbank()  # says how Lhotse mixes; none of its settings matters for that
_WHITE_SECONDS = 60


def find_musan(data_dir: Path) -> Path:
    """`musan_cuts_path`, if it is there.

    Raises:
      FileNotFoundError: it is not; names the stage that makes it.
    """
    path = musan_cuts_path(data_dir)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which `corpus.musan` (true) needs; stage 2 makes it: ./run.sh --stage 2"
            " --stop-stage 2; or say corpus.musan=false"
        )
    return path


def energy(features: np.ndarray) -> float:
    """Mean energy of a frame of log-mel features (T, F)."""
    return Fbank.compute_energy(features) / len(features)


def add_noise(features: np.ndarray, noise: np.ndarray, snr: float, speech_energy: float) -> np.ndarray:
    """Mix noise of as many frames into log-mel features (T, F), by Lhotse.

    Args:
      snr: dB.
      speech_energy: mean energy of a frame of the speech alone.
    """
    mixer = FeatureMixer(LOG_MEL, features, FRAME_SHIFT, reference_energy=speech_energy * len(features))
    mixer.add_to_mix(noise, sampling_rate=16000, snr=snr)
    return mixer.mixed_feats


class NoiseSource(ABC):
    """Something that gives noise of any length, by nothing but a random generator."""

    @abstractmethod
    def draw(self, num_frames: int, rng: random.Random) -> np.ndarray:
        """(num_frames, F) float32 log-mel features."""


class ColouredNoise(NoiseSource):
    """Gaussian noise with a spectrum of 1 / f^a.

    In log-mel features, colour and level are offsets of each bin. So white noise is computed once, and no audio for an
    utterance.
    """

    def __init__(self, features: FeaturesConfig) -> None:
        rate, bins = features.sampling_rate, features.num_mel_bins
        generator = torch.Generator().manual_seed(0)
        white = torch.randn(_WHITE_SECONDS * rate, generator=generator)
        self.white = np.asarray(
            make_fbank(features).extract(white.numpy(), rate), dtype=np.float32
        )  # at 0 dBFS: an RMS of 1
        self.hertz = 700 * np.expm1(mel_edges(bins, rate) / 1127)

    def of_colour(self, num_frames: int, exponent: float, level: float, rng: random.Random) -> np.ndarray:
        """Noise with a spectrum of 1 / f^exponent at `level` dBFS (its RMS), (num_frames, F)."""
        start = rng.randrange(len(self.white))
        rows = self.white[(start + np.arange(num_frames)) % len(self.white)]
        curve, widths = -exponent * np.log(self.hertz[1:-1]), self.hertz[2:] - self.hertz[:-2]
        curve -= np.log((widths * np.exp(curve)).sum() / widths.sum())
        return rows + (curve + level * np.log(10) / 10).astype(np.float32)

    def draw(self, num_frames: int, rng: random.Random) -> np.ndarray:
        return self.of_colour(num_frames, rng.uniform(*COLOURS), 0.0, rng)


class StoredNoise(NoiseSource):
    """Noise made of cuts of a manifest.

    Args:
      lines: of the manifest: 20 MB for 100 hours of MUSAN; as cuts ten times as much.
      data_dir: the manifest is from.
    """

    def __init__(self, lines: Sequence[bytes], data_dir: Path) -> None:
        self.lines, self.data_dir = lines, data_dir

    def load(self, rng: random.Random) -> np.ndarray:
        return whole_cut(rng.choice(self.lines), self.data_dir).load_features()


class Musan(StoredNoise):
    """Cuts of MUSAN, one after the other."""

    def draw(self, num_frames: int, rng: random.Random) -> np.ndarray:
        parts = [self.load(rng)]
        while sum(map(len, parts)) < num_frames:
            parts.append(self.load(rng))
        return np.concatenate(parts)[:num_frames]


class Babble(StoredNoise):
    """Several utterances at once, all equally loud, each from anywhere in it and over again."""

    def draw(self, num_frames: int, rng: random.Random) -> np.ndarray:
        voices = []
        for _ in range(rng.randint(*TALKERS)):
            voice = self.load(rng)
            voices.append(np.roll(voice, rng.randrange(len(voice)), axis=0)[np.arange(num_frames) % len(voice)])
        mixer = FeatureMixer(LOG_MEL, voices[0], FRAME_SHIFT)
        for voice in voices[1:]:
            mixer.add_to_mix(voice, sampling_rate=16000, snr=0.0)
        return mixer.mixed_feats


def musan(data_dir: Path) -> Musan:
    """
    Raises:
      FileNotFoundError: `data_dir` has none (`find_musan`).
    """
    return Musan(list(manifest_lines(find_musan(data_dir))), data_dir)
