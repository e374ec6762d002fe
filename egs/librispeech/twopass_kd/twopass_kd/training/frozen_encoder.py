"""An encoder that does not learn, run without a graph."""

import torch
from torch import Tensor, nn

from twopass_kd.data.asr_dataset import Batch
from twopass_kd.training.padded_rows import encode


class FrozenEncoder:
    """Maps a batch to encoder output (B, T, C) float32 and lengths (B,) int64, in frames after subsampling.

    Args:
      encoder: frozen; put into eval mode.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder.eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return encode(self.encoder, batch.feature, batch.feature_lens)
