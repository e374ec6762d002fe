"""Stands in for torchaudio where it is not installed (0.13.1 has no wheel for Python 3.11): reading a file."""

import soundfile
import torch


def load(path: str) -> tuple[torch.Tensor, int]:
    """Samples (channels, num_samples) float32 in [-1, 1], and their rate."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T), rate
