"""The band of the lattice that the pruned transducer loss looks at: its choice, and what lies on it.

Section 3.2 of Kuang et al. 2022, arXiv 2206.13236, as k2 has it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.no_grad()
def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, prune_range: int) -> Tensor:
    """The band: for each frame the decoder positions that are kept (equals `k2.get_rnnt_prune_ranges`).

    Args:
      px_grad, py_grad: of `simple_transducer_loss`.
      boundary: (B, 4) of `make_boundary`.
      prune_range: positions wanted per frame, at least 2.
    Returns:
      ranges (B, T, s_range) int64, consecutive decoder positions; s_range = min(prune_range, S + 1), so read it off
      the shape. Positions beyond an utterance's own symbols, and frames beyond its own frames, are no lattice nodes.
    Raises:
      ValueError: if `prune_range` is below 2: no path could leave the first decoder position.
    """
    if prune_range < 2:
        raise ValueError(f"`prune_range` ({prune_range}) must be at least 2")
    (_, S, num_label_frames), T = px_grad.shape, py_grad.shape[2]
    s_range = min(prune_range, S + 1)
    # A band that begins at s holds the paths that leave its positions by a blank, but for those that come from below.
    held = py_grad.unfold(1, s_range, 1).sum(-1)  # (B, S + 2 - s_range, T)
    held[:, 1:] -= px_grad[:, : S + 1 - s_range, :T]
    last_begin = (boundary[:, 2:3] - s_range + 1).clamp(min=0)  # in the last frame the last symbol must be in it
    frames = torch.arange(T, device=py_grad.device)
    begin = torch.where(frames < boundary[:, 3:] - 1, held.argmax(1), last_begin)  # (B, T)
    # It never moves back, and never so far in a frame that no path could follow. It begins at 0.
    begin = _smallest_from_here_on(begin)
    furthest = frames * (1 if num_label_frames == T else s_range - 1)
    begin = furthest - _smallest_from_here_on(furthest - begin).clamp(min=0)
    return begin.unsqueeze(2) + torch.arange(s_range, device=begin.device)


def _smallest_from_here_on(x: Tensor) -> Tensor:
    return x.flip(1).cummin(1).values.flip(1)


def valid_nodes(ranges: Tensor, boundary: Tensor) -> Tensor:
    """(B, T, s_range) bool: which nodes of the band lie inside their utterance's lattice (t < T_b and u <= S_b)."""
    frames = torch.arange(ranges.shape[1], device=ranges.device).reshape(1, -1, 1)
    return (frames < boundary[:, 3].reshape(-1, 1, 1)) & (ranges <= boundary[:, 2].reshape(-1, 1, 1))


def select_band(decoder_out: Tensor, ranges: Tensor) -> Tensor:
    """The decoder's rows that each frame of the band needs.

    The second result of `k2.do_rnnt_pruning`, whose backward pass makes a tensor of the whole lattice's size
    (B, T, S + 1, C); this one does not. The first one is `encoder_out.unsqueeze(2)`, which broadcasts.

    Args:
      decoder_out: (B, S + 1, C), any float type.
      ranges: (B, T, s_range) of `prune_ranges`.
    Returns:
      (B, T, s_range, C), differentiable with respect to `decoder_out`.
    """
    B, U, C = decoder_out.shape
    offsets = torch.arange(B, device=ranges.device).reshape(B, 1, 1) * U
    return F.embedding(ranges + offsets, decoder_out.reshape(B * U, C))


def symbols_on_band(symbols: Tensor, ranges: Tensor, blank_id: int) -> Tensor:
    """(B, T, s_range) int64: the label that leaves each node of the band; after the last of (B, S), blank."""
    padded = F.pad(symbols, (0, 1), value=blank_id)
    return padded.unsqueeze(1).expand(-1, ranges.shape[1], -1).gather(2, ranges)


def band_arcs(
    logits: Tensor, symbols: Tensor, ranges: Tensor, boundary: Tensor, blank_id: int, rnnt_type: str
) -> tuple[Tensor, Tensor]:
    """Log-probs of the lattice's arcs, -inf outside the band (equals `k2.get_rnnt_logprobs_pruned`).

    k2's makes three tensors of the size of `logits` in its backward pass; this one makes the gradient only.

    Args:
      logits: (B, T, s_range, V) float32 or float64 of the joiner on the band; padding may be any finite number.
      symbols, ranges, boundary, blank_id, rnnt_type: as for `pruned_transducer_loss`.
    Returns:
      (px, py) for `transducer_recursion`: px (B, S, T), or (B, S, T + 1) for "regular", of the label arcs, and py
      (B, S + 1, T) of the blank arcs, differentiable once with respect to `logits`.
    """
    on_band = _LabelAndBlank.apply(logits, symbols_on_band(symbols, ranges, blank_id), blank_id)
    B, T, _ = ranges.shape
    outside = logits.new_full((B, T, symbols.shape[1] + 1), float("-inf"))
    px, py = (outside.scatter(2, ranges, x).transpose(1, 2) for x in on_band)
    px = px[:, :-1]
    return (end_labels(px, boundary) if rnnt_type == "regular" else px), py


def end_labels(px: Tensor, boundary: Tensor) -> Tensor:
    """The label arcs (B, S, T) as the regular topology has them, (B, S, T + 1): none after the last frame."""
    px = F.pad(px, (0, 1))
    after = torch.arange(px.shape[2], device=px.device) >= boundary[:, 3:]
    return px.masked_fill(after.unsqueeze(1), float("-inf"))


class _LabelAndBlank(torch.autograd.Function):
    """Log-probs of two tokens out of V: of each node's label, and of blank; each of the shape of `labels`."""

    @staticmethod
    def forward(ctx, logits, labels, blank_id):  # type: ignore[override]
        normalizers = logits.logsumexp(-1)
        ctx.save_for_backward(logits, labels, normalizers)
        ctx.blank_id = blank_id
        return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - normalizers, logits[..., blank_id] - normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx, label_grad, blank_grad):  # type: ignore[override]
        logits, labels, normalizers = ctx.saved_tensors
        grad = (logits - normalizers.unsqueeze(-1)).exp_().mul_(-(label_grad + blank_grad).unsqueeze(-1))
        grad.scatter_add_(-1, labels.unsqueeze(-1), label_grad.unsqueeze(-1))
        grad[..., ctx.blank_id] += blank_grad
        return grad, None, None
