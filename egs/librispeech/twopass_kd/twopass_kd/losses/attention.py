"""Cross-entropy of the attention decoder (the LAS second pass), teacher-forced on the reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from twopass_kd.losses.precision import at_least_float32, autocast_off

IGNORE_ID = -1  # pads targets


def make_attention_targets(y: Tensor, y_lens: Tensor, sos_id: int, eos_id: int) -> tuple[Tensor, Tensor]:
    """What the attention decoder reads and what it must say next.

    Args:
      y: (B, S) int64 tokens, padded with anything.
      y_lens: (B,) integer, tokens of each utterance.
      sos_id, eos_id: ids of start and end of sentence (may be the same).
    Returns:
      (inputs, targets), each (B, S + 1) int64: inputs = sos, y_1 ... y_S, padded with `eos_id`; targets =
      y_1 ... y_S, eos, padded with -1.
    """
    S = y.shape[1]
    positions = torch.arange(S + 1, device=y.device).unsqueeze(0)
    lens = y_lens.to(y.device).unsqueeze(1)
    inputs = F.pad(y, (1, 0), value=sos_id).masked_fill(positions > lens, eos_id)
    targets = F.pad(y, (0, 1), value=eos_id).masked_fill(positions == lens, eos_id)
    return inputs, targets.masked_fill(positions > lens, IGNORE_ID)


def attention_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over each utterance's tokens.

    Args:
      logits: (B, U, V) logits; padding may be any finite number.
      targets: (B, U) int64, padded with -1 (`make_attention_targets`).
      label_smoothing: probability spread evenly over all V tokens, in [0, 1).
    Returns:
      (B,) float32 (or float64), in nats.
    Raises:
      ValueError: if `label_smoothing` is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` ({label_smoothing}) must be in [0, 1)")
    B, U, V = logits.shape
    with autocast_off(logits):
        loss = F.cross_entropy(
            at_least_float32(logits).reshape(B * U, V),
            targets.reshape(B * U),
            ignore_index=IGNORE_ID,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    return loss.reshape(B, U).sum(1)
