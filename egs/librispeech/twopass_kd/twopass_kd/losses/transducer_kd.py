"""Distillation of a transducer over its (pruned) lattice.

Full KL: Dawalatabad et al. 2021, "Two-Pass End-to-End ASR Model Compression", arXiv 2201.02741. Collapsed to three
classes: Panchapagesan et al. 2020, "Efficient Knowledge Distillation for RNN-Transducer Models", arXiv 2011.06110.
"""

import torch
from torch import Tensor

from twopass_kd.losses.band import symbols_on_band, valid_nodes
from twopass_kd.losses.divergence import weighted_kl

KINDS = ("full", "collapsed")


def transducer_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    kind: str = "full",
    temperature: float = 1.0,
    node_weights: Tensor | None = None,
    blank_id: int = 0,
) -> Tensor:
    """Weighted mean over an utterance's nodes of temperature**2 * KL(teacher || student), times its T_b + S_b.

    T_b + S_b is the number of arcs on a path (of the regular topology), so the value is of the size of the utterance's
    transducer loss: a batch's sum divided by its frames is a KD loss per frame that moves with neither batch nor
    length. It depends on nothing but the utterance's own nodes, so an utterance has the same value alone and in any
    batch. With the teacher's `occupation` as weights, which sum to T_b + S_b (regular), it is the KL summed along a
    path, on average over the teacher's paths.

    Args:
      student_logits: (B, T, s_range, V) logits of the student's joiner on the band.
      teacher_logits: (B, T, s_range, V) logits of the teacher's joiner on the same band; never gets a gradient.
      symbols: (B, S) int64, padded with any token id.
      ranges: (B, T, s_range) of `prune_ranges`, the student's or the teacher's.
      boundary: (B, 4) of `make_boundary`.
      kind: "full" (all V tokens) | "collapsed" (next label, blank, rest; blank and rest after the last label).
      temperature: of both softmaxes.
      node_weights: (B, T, s_range) non-negative, e.g. `occupation` of the teacher; None: all nodes alike.
        Weights of nodes outside the utterance's lattice are not used.
      blank_id: id of the blank.
    Returns:
      (B,) float32 (or float64), in nats. An utterance whose weights are all 0 gives 0.
    Raises:
      ValueError: for an unknown kind, a temperature that is not positive, or shapes that do not match.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` ({kind}) must be one of {', '.join(KINDS)}")
    B, T, s_range, V = student_logits.shape
    _check_shape("ranges", ranges, (B, T, s_range))
    _check_shape("teacher_logits", teacher_logits, (B, T, s_range, V))
    end_symbol, end_frame = boundary[:, 2], boundary[:, 3]

    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    weights = valid_nodes(ranges, boundary).to(dtype)
    if node_weights is not None:
        _check_shape("node_weights", node_weights, (B, T, s_range))
        weights = node_weights.detach().to(dtype).masked_fill(weights == 0, 0)
    arcs = (end_symbol + end_frame).to(dtype)
    total_weight = weights.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    weights = weights / total_weight * arcs.reshape(B, 1, 1)

    labels = None
    if kind == "collapsed":
        # Position u emits symbols[u]; the blank stands for "no label" after an utterance's last one.
        labels = (
            symbols_on_band(symbols, ranges, blank_id)
            .masked_fill(ranges >= end_symbol.reshape(B, 1, 1), blank_id)
            .reshape(B, T * s_range)
        )
    return weighted_kl(
        student_logits.reshape(B, T * s_range, V),
        teacher_logits.reshape(B, T * s_range, V),
        weights.reshape(B, T * s_range),
        end_frame * s_range,
        temperature,
        labels,
        blank_id,
    )


def _check_shape(name: str, x: Tensor, shape: tuple) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(
            f"`{name}` {tuple(x.shape)} must have the shape {shape}, to match `student_logits`; "
            "give teacher and student the same frames, band and tokens"
        )
