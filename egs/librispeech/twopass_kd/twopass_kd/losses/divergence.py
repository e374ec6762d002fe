"""Weighted sums of KL(teacher || student) over many softmax distributions, with little memory.

Plain autograd keeps several tensors of the size of the logits. Here the gradient, which has a closed form, is made in
the forward pass, so that one such tensor lives until the backward pass. The rest of the work goes through all nodes of
the batch, without regard to whose they are and with nothing that a GPU has to wait for, in some five buffers of
`LOGITS_AT_ONCE`: on a CPU what stays in its caches (1 MiB), on a GPU what keeps it busy (64 MiB).
"""

from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twopass_kd.losses.precision import at_least_float32, autocast_off

LOGITS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}


def weighted_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    lens: Tensor,
    temperature: float,
) -> Tensor:
    """Per utterance, the sum over nodes of weight * temperature**2 * KL(teacher || student), in nats.

    Both are softmaxed at `temperature` (Hinton et al. 2015, arXiv 1503.02531, whence the factor temperature**2).

    Args:
      student_logits: (B, N, V) logits. Computed in float32 (float64 stays float64).
      teacher_logits: (B, N, V) logits; no gradient flows into them.
      weights: (B, N) weight of each node; nodes of weight 0 have no influence, whatever their logits. No gradient.
      lens: (B,) int64; only the first `lens[b]` nodes of utterance b are looked at.
      temperature: softmax temperature, positive.
    Returns:
      (B,) float32 (or float64), differentiable once with respect to `student_logits`.
    Raises:
      ValueError: if the logits differ in shape, or the temperature is not positive.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"`teacher_logits` {tuple(teacher_logits.shape)} must have the shape of `student_logits` "
            f"{tuple(student_logits.shape)}; give both models the same frames, tokens and vocabulary"
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` ({temperature}) must be positive")
    with autocast_off(student_logits):
        student = at_least_float32(student_logits)
        return _WeightedKL.apply(
            student,
            teacher_logits.detach(),
            weights.detach().to(student.dtype) * temperature**2,
            lens,
            float(temperature),
        )


class _WeightedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, weights, lens, temperature):  # type: ignore[override]
        B, N, V = student.shape
        need_grad = ctx.needs_input_grad[0]
        grad = torch.empty_like(student, memory_format=torch.contiguous_format) if need_grad else None
        padding = torch.arange(N, device=weights.device) >= lens.to(weights.device).unsqueeze(1)
        weights = weights.masked_fill(padding, 0)
        total = torch.empty_like(weights)

        def chunks(x: Tensor | None, *shape: int) -> Iterable[Tensor | None]:
            at_once = max(1, LOGITS_AT_ONCE[student.device.type] // V)
            return repeat(None) if x is None else x.reshape(B * N, *shape).split(at_once)

        parts = (chunks(student, V), chunks(teacher, V), chunks(weights), chunks(grad, V))
        for kl_sum, p, q, w, d in zip(total.view(-1).split(parts[0][0].shape[0]), *parts):
            kl, by_logit = _kl(p, q.to(p.dtype), temperature, need_grad)
            unused = w == 0  # their logits may be anything, so 0 * kl is not safe
            torch.mul(kl, w, out=kl_sum).masked_fill_(unused, 0)
            if need_grad:
                torch.mul(by_logit, (w / temperature).unsqueeze(-1), out=d).masked_fill_(unused.unsqueeze(-1), 0)
        if need_grad:
            ctx.save_for_backward(grad)
        return total.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[override]
        (grad,) = ctx.saved_tensors
        return grad * grad_output.reshape(-1, 1, 1), None, None, None, None


def _kl(student: Tensor, teacher: Tensor, tau: float, need_grad: bool) -> tuple[Tensor, Tensor | None]:
    """KL (N,) and its derivative (N, V) by the scaled logits, out of (N, V) logits."""
    log_p = _scaled(student, tau).log_softmax(-1)
    log_q = _scaled(teacher, tau).log_softmax(-1)
    q = log_q.exp()
    # A token that the teacher gives probability 0 (logit -inf) adds nothing, and 0 * (-inf) must not become nan.
    difference = log_q.sub_(log_p).masked_fill_(q == 0, 0)
    kl = difference.mul_(q).sum(-1)
    return kl, log_p.exp_().sub_(q) if need_grad else None


def _scaled(logits: Tensor, tau: float) -> Tensor:
    return logits if tau == 1.0 else logits / tau
