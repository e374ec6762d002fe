"""Distillation of a transducer over its (pruned) lattice.

Dawalatabad et al. 2021, "Two-Pass End-to-End ASR Model Compression", arXiv 2201.02741.
"""

import torch
from torch import Tensor

from twopass_kd.losses.band import valid_nodes
from twopass_kd.losses.divergence import weighted_kl


def transducer_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, ranges: Tensor, boundary: Tensor, temperature: float = 1.0
) -> Tensor:
    """Mean over an utterance's nodes of temperature**2 * KL(teacher || student), times its T_b + S_b.

    T_b + S_b is the number of arcs on a path (of the regular topology), so the value is of the size of the utterance's
    transducer loss: a batch's sum divided by its frames is a KD loss per frame that moves with neither batch nor
    length. It depends on nothing but the utterance's own nodes, so an utterance has the same value alone and in any
    batch.

    Args:
      student_logits: (B, T, s_range, V) logits of the student's joiner on the band.
      teacher_logits: (B, T, s_range, V) logits of the teacher's joiner on the same band; never gets a gradient.
      ranges: (B, T, s_range) of `prune_ranges`, the student's or the teacher's.
      boundary: (B, 4) of `make_boundary`.
      temperature: of both softmaxes.
    Returns:
      (B,) float32 (or float64), in nats.
    Raises:
      ValueError: for a temperature that is not positive, or shapes that do not match.
    """
    B, T, s_range, V = student_logits.shape
    _check_shape("ranges", ranges, (B, T, s_range))
    _check_shape("teacher_logits", teacher_logits, (B, T, s_range, V))
    end_symbol, end_frame = boundary[:, 2], boundary[:, 3]

    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    valid = valid_nodes(ranges, boundary).to(dtype)
    arcs = (end_symbol + end_frame).to(dtype)
    weights = valid / valid.sum(dim=(1, 2), keepdim=True) * arcs.reshape(B, 1, 1)
    return weighted_kl(
        student_logits.reshape(B, T * s_range, V),
        teacher_logits.reshape(B, T * s_range, V),
        weights.reshape(B, T * s_range),
        end_frame * s_range,
        temperature,
    )


def _check_shape(name: str, x: Tensor, shape: tuple) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(
            f"`{name}` {tuple(x.shape)} must have the shape {shape}, to match `student_logits`; "
            "give teacher and student the same frames, band and tokens"
        )
