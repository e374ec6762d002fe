"""The recursion over a transducer's lattice in plain torch: no compiler, any device, a few operations a step.

A step is a frame for the modified topology, where each arc takes one. For the regular one, whose label arcs stay on
their frame, it is an anti-diagonal t + s of the lattice: each of its arcs leads from one to the next, so that both are
the same recursion, on arcs that lie differently in memory. Frames would be fewer steps than anti-diagonals, but each
with a cumulative sum in the log domain over the labels, which is slower and loses what float32 holds of scores.
"""

import torch
from torch import Tensor


def recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`k2.mutual_information_recursion` with `return_grad`, without autograd; see `rnnt_backend.transducer_recursion`.

    Holds three times as much as `px` and `py` together while it runs, and once as much afterwards: its results.
    """
    (B, S, _), T = px.shape, py.shape[2]
    regular = px.shape[2] > T
    num_steps = T + S if regular else T
    begin_symbol, begin_frame, end_symbol, end_frame = boundary.unsqueeze(2).unbind(1)  # (B, 1) each
    begin_step, end_step = (begin_frame + begin_symbol, end_frame + end_symbol) if regular else (begin_frame, end_frame)

    # Scores of the arcs that leave position s at each step, blank and label; then their occupations.
    arcs = px.new_full((num_steps, 2, B, S + 1), float("-inf"))
    by_frame = [_by_frame(arcs[:, i], x.shape, skewed=regular) for i, x in enumerate((py, px))]
    ends = ((end_symbol + 1, end_frame), (end_symbol, end_frame + regular))
    for view, x, (symbols_end, frames_end) in zip(by_frame, (py, px), ends):
        symbols, frames = (
            _is_within(x.shape[1], begin_symbol, symbols_end),
            _is_within(x.shape[2], begin_frame, frames_end),
        )
        view.copy_(x.masked_fill(~(symbols.unsqueeze(2) & frames.unsqueeze(1)), float("-inf")))
    # Until its beginning and after its end an utterance stays where it is, for nothing.
    positions, steps = (
        torch.arange(S + 1, device=px.device),
        torch.arange(num_steps, device=px.device).reshape(-1, 1, 1),
    )
    waits = (positions == end_symbol) & (steps >= end_step) | (positions == begin_symbol) & (steps < begin_step)
    arcs[:, 0].masked_fill_(waits, 0)

    # Log-prob of all ways from the beginning to each position, before each step.
    alpha = px.new_full((num_steps + 1, B, S + 1), float("-inf"))
    alpha[0].scatter_(1, begin_symbol, 0)
    sums = px.new_full((2, B, S + 2), float("-inf"))  # its first column stays: no label leads to the first position
    arriving, blank, label = sums[:, :, 1:], sums[0, :, 1:], sums[1, :, :-1]
    for here, out, scores in zip(alpha[:-1].unbind(), alpha[1:].unbind(), arcs.unbind()):
        torch.add(scores, here, out=arriving)
        torch.logaddexp(blank, label, out=out)
    log_prob = alpha[-1].gather(1, end_symbol).squeeze(1)

    # Out of what arrives at a position, the share of each arc. Nothing arrives where alpha is -inf.
    arcs += alpha[:-1].unsqueeze(1)
    alpha.clamp_(min=torch.finfo(alpha.dtype).min)
    arcs[:, 0] -= alpha[1:]
    arcs[:, 1, :, :-1] -= alpha[1:, :, 1:]
    arcs.exp_()
    # From the end, where every path is, back along these shares: how probable it is that a path takes an arc.
    visits = px.new_zeros(B, S + 2).scatter_(1, end_symbol, 1)
    leads_to = visits.unfold(1, S + 1, 1).transpose(0, 1)  # (2, B, S + 1): position s by blank, s + 1 by label
    for shares in reversed(arcs.unbind()):
        shares.mul_(leads_to)
        torch.add(shares[0], shares[1], out=visits[:, :-1])
    arcs[:, 0].masked_fill_(waits, 0)
    py_grad, px_grad = by_frame
    return log_prob, (px_grad, py_grad)


def _by_frame(arcs: Tensor, shape: torch.Size, skewed: bool) -> Tensor:
    """`arcs` (steps, B, S + 1) seen as (B, positions, frames), the shape of `px` or `py`; `skewed`: step = t + s."""
    step, batch, position = arcs.stride()
    return arcs.as_strided(shape, (batch, position + skewed * step, step), arcs.storage_offset())


def _is_within(size: int, begin: Tensor, end: Tensor) -> Tensor:
    """(B, size) bool: begin <= index < end, which are (B, 1)."""
    index = torch.arange(size, device=begin.device)
    return (begin <= index) & (index < end)
