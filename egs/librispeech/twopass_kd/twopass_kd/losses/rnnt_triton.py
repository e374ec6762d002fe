"""The recursion over a transducer's lattice as two Triton kernels, for GPUs: one program for each utterance.

A step is a frame for the modified topology and an anti-diagonal t + s for the regular one, as in rnnt_torch.py; a
program has all positions of a step in one block. What a position needs of its neighbour goes through global memory:
it is written, and read after a barrier of the program's threads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`k2.mutual_information_recursion` with `return_grad`, without autograd; see `rnnt_backend.transducer_recursion`.

    Holds once more as much as `py`, and its results.
    """
    (B, S, _), T = px.shape, py.shape[2]
    regular = px.shape[2] > T
    log_prob = px.new_empty(B)
    alpha = px.new_empty(B, (T + S if regular else T) + 1, S + 1)
    px_grad, py_grad = torch.zeros_like(px), torch.zeros_like(py)
    block = triton.next_power_of_2(S + 1)
    # A block's threads wait for each other in each step: as few warps as have two positions a thread, at most 8.
    options = {"REGULAR": regular, "BLOCK": block, "num_warps": min(8, max(1, block // 64))}
    arcs = (px, *px.stride(), py, *py.stride())
    grads = (px_grad, *px_grad.stride(), py_grad, *py_grad.stride())
    with torch.cuda.device_of(px):
        _forward[(B,)](*arcs, boundary.contiguous(), alpha, *alpha.stride()[:2], log_prob, **options)
        _backward[(B,)](*arcs, boundary.contiguous(), alpha, *alpha.stride()[:2], *grads, **options)
    return log_prob, (px_grad, py_grad)


@triton.jit
def _forward(
    px, px_b, px_s, px_t, py, py_b, py_s, py_t, boundary, alpha, alpha_b, alpha_n, log_prob,
    REGULAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """alpha[b, n, s]: log-prob of all ways from the beginning to position s, before step n; -inf where none is."""
    b = tl.program_id(0).to(tl.int64)
    boundary += 4 * b
    begin_symbol, begin_frame = tl.load(boundary).to(tl.int32), tl.load(boundary + 1).to(tl.int32)
    end_symbol, end_frame = tl.load(boundary + 2).to(tl.int32), tl.load(boundary + 3).to(tl.int32)
    begin_step, end_step = begin_frame, end_frame
    if REGULAR:
        begin_step, end_step = begin_frame + begin_symbol, end_frame + end_symbol
    px, py, alpha = px + b * px_b, py + b * py_b, alpha + b * alpha_b
    dtype: tl.constexpr = alpha.dtype.element_ty

    s = tl.arange(0, BLOCK)
    inside = (s >= begin_symbol) & (s <= end_symbol)
    has_label = (s > begin_symbol) & (s <= end_symbol)  # a label leads to it, from s - 1
    here = tl.where(s == begin_symbol, 0.0, float("-inf")).to(dtype)
    tl.store(alpha + begin_step * alpha_n + s, here, mask=inside)
    for n in range(begin_step, end_step):
        tl.debug_barrier()
        if REGULAR:
            blank_frame, label_frame = n - s, n - s + 1
            blank_is = inside & (blank_frame >= begin_frame) & (blank_frame < end_frame)
            label_is = has_label & (label_frame >= begin_frame) & (label_frame <= end_frame)
        else:
            blank_frame, label_frame = n, n
            blank_is, label_is = inside, has_label
        before = tl.load(alpha + n * alpha_n + s - 1, mask=has_label, other=float("-inf"))
        blank = here + tl.load(py + s * py_s + blank_frame * py_t, mask=blank_is, other=float("-inf"))
        label = before + tl.load(px + (s - 1) * px_s + label_frame * px_t, mask=label_is, other=float("-inf"))
        larger = tl.maximum(blank, label)
        larger = tl.where(larger == float("-inf"), 0.0, larger)  # none of both: log(0 + 0)
        here = larger + tl.log(tl.exp(blank - larger) + tl.exp(label - larger))
        tl.store(alpha + (n + 1) * alpha_n + s, here, mask=inside)
    tl.store(log_prob + b + s * 0, here, mask=s == end_symbol)


@triton.jit
def _backward(
    px, px_b, px_s, px_t, py, py_b, py_s, py_t, boundary, alpha, alpha_b, alpha_n,
    px_grad, px_grad_b, px_grad_s, px_grad_t, py_grad, py_grad_b, py_grad_s, py_grad_t,
    REGULAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the end, where every path is, back along the share that each arc has of what arrives at its position."""
    b = tl.program_id(0).to(tl.int64)
    boundary += 4 * b
    begin_symbol, begin_frame = tl.load(boundary).to(tl.int32), tl.load(boundary + 1).to(tl.int32)
    end_symbol, end_frame = tl.load(boundary + 2).to(tl.int32), tl.load(boundary + 3).to(tl.int32)
    begin_step, end_step = begin_frame, end_frame
    if REGULAR:
        begin_step, end_step = begin_frame + begin_symbol, end_frame + end_symbol
    px, py, alpha = px + b * px_b, py + b * py_b, alpha + b * alpha_b
    px_grad, py_grad = px_grad + b * px_grad_b, py_grad + b * py_grad_b
    dtype: tl.constexpr = alpha.dtype.element_ty

    s = tl.arange(0, BLOCK)
    inside = (s >= begin_symbol) & (s <= end_symbol)
    has_label = (s > begin_symbol) & (s <= end_symbol)  # a label leads to it, from s - 1
    leaves = (s >= begin_symbol) & (s < end_symbol)  # a label leads from it, to s + 1
    visits = tl.where(s == end_symbol, 1.0, 0.0).to(dtype)
    arrived = tl.load(alpha + end_step * alpha_n + s, mask=inside, other=float("-inf"))
    for i in range(end_step - begin_step):
        n = end_step - 1 - i
        if REGULAR:
            blank_frame, label_frame = n - s, n - s + 1
            blank_is = inside & (blank_frame >= begin_frame) & (blank_frame < end_frame)
            label_is = has_label & (label_frame >= begin_frame) & (label_frame <= end_frame)
            leaves_is = leaves & (blank_frame >= begin_frame) & (blank_frame <= end_frame)
        else:
            blank_frame, label_frame = n, n
            blank_is, label_is, leaves_is = inside, has_label, leaves
        here = tl.load(alpha + n * alpha_n + s, mask=inside, other=float("-inf"))
        before = tl.load(alpha + n * alpha_n + s - 1, mask=has_label, other=float("-inf"))
        blank = here + tl.load(py + s * py_s + blank_frame * py_t, mask=blank_is, other=float("-inf"))
        label = before + tl.load(px + (s - 1) * px_s + label_frame * px_t, mask=label_is, other=float("-inf"))
        arrived = tl.where(arrived == float("-inf"), 0.0, arrived)  # then both are -inf, and have no share
        blank, label = visits * tl.exp(blank - arrived), visits * tl.exp(label - arrived)
        tl.store(py_grad + s * py_grad_s + blank_frame * py_grad_t, blank, mask=blank_is)
        tl.store(px_grad + (s - 1) * px_grad_s + label_frame * px_grad_t, label, mask=label_is)
        tl.debug_barrier()
        visits = blank + tl.load(px_grad + s * px_grad_s + blank_frame * px_grad_t, mask=leaves_is, other=0.0)
        arrived = here
