"""CTC on the encoder: an auxiliary training loss that helps small corpora converge."""

import torch.nn.functional as F
from torch import Tensor

from twopass_kd.losses.precision import at_least_float32, autocast_off


def ctc_loss(log_probs: Tensor, x_lens: Tensor, y: Tensor, y_lens: Tensor, blank_id: int = 0) -> Tensor:
    """CTC loss of each utterance (Graves et al. 2006), by torch.

    Args:
      log_probs: (B, T, V) log-probs (after log_softmax), padding any finite number.
      x_lens: (B,) int64, frames of each utterance.
      y: (B, S) int64 tokens, padded with any token id.
      y_lens: (B,) int64, tokens of each utterance.
      blank_id: id of the blank.
    Returns:
      (B,) float32 (or float64), in nats; 0 without gradient for an utterance too short for its tokens: CTC needs a
      frame for each token and one more between equal neighbours.
    """
    with autocast_off(log_probs):
        return F.ctc_loss(
            at_least_float32(log_probs).transpose(0, 1),
            y,
            x_lens,
            y_lens,
            blank=blank_id,
            reduction="none",
            zero_infinity=True,
        )
