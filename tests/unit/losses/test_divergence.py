"""That the work on a batch does not go utterance by utterance, and that working in chunks changes nothing."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from twopass_kd.losses import divergence
from twopass_kd.losses.divergence import weighted_kl


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def batch(B, N=20, V=12, dtype=torch.float32):
    g = torch.Generator().manual_seed(B)
    student, teacher = (torch.randn(B, N, V, generator=g, dtype=dtype) for _ in range(2))
    weights, lens = torch.rand(B, N, generator=g, dtype=dtype), torch.randint(0, N + 1, (B,), generator=g)
    return student.requires_grad_(), teacher, weights, lens


def value_and_gradient(student, teacher, weights, lens):
    loss = weighted_kl(student, teacher, weights, lens, 2.0)
    return loss.detach(), *torch.autograd.grad((loss * torch.arange(len(loss))).sum(), student)


def test_operations_do_not_grow_with_the_batch():
    counts = []
    for B in (2, 25, 100):
        tensors = batch(B)
        with CountOperations() as operations:
            value_and_gradient(*tensors)
        counts.append(operations.count)
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("logits_at_once", [1, 12 * 7, 12 * 20 * 2])
def test_chunks_change_nothing(monkeypatch, logits_at_once):
    tensors = batch(5, dtype=torch.float64)
    expected = value_and_gradient(*tensors)
    monkeypatch.setitem(divergence.LOGITS_AT_ONCE, "cpu", logits_at_once)
    torch.testing.assert_close(value_and_gradient(*tensors), expected)


def test_equals_its_utterances_one_by_one():
    student, teacher, weights, lens = batch(6, dtype=torch.float64)
    together = weighted_kl(student, teacher, weights, lens, 1.5)
    for b, n in enumerate(lens.tolist()):
        one = slice(b, b + 1), slice(0, n)
        alone = weighted_kl(student[one], teacher[one], weights[one], lens[b : b + 1], 1.5)
        torch.testing.assert_close(alone[0], together[b])


def test_a_teacher_in_half_precision_is_computed_in_float32():
    student, teacher, weights, lens = batch(3)
    half = teacher.half()
    torch.testing.assert_close(
        weighted_kl(student, half, weights, lens, 1.0), weighted_kl(student, half.float(), weights, lens, 1.0)
    )
