"""Stands in for kaldifeat where it is not installed: as icefall's jit_pretrained.py calls it."""

import kaldi_native_fbank
import numpy as np
import torch


class FbankOptions(kaldi_native_fbank.FbankOptions):
    device: torch.device


class Fbank:
    def __init__(self, options: FbankOptions) -> None:
        self.options = options

    def __call__(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """Waves, each (num_samples,) in [-1, 1], to features, each (num_frames, num_bins)."""
        return [self._features(wave) for wave in waves]

    def _features(self, wave: torch.Tensor) -> torch.Tensor:
        fbank = kaldi_native_fbank.OnlineFbank(self.options)
        fbank.accept_waveform(self.options.frame_opts.samp_freq, wave.tolist())
        fbank.input_finished()
        return torch.from_numpy(np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)]))
