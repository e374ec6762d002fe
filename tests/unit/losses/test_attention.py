import pytest
import torch

import loss_reference as reference
from twopass_kd.losses.attention import attention_loss, make_attention_targets
from twopass_kd.losses.attention_kd import attention_kd_loss
from twopass_kd.losses.ctc import ctc_loss

B, U, V = 3, 4, 6
LENS = torch.tensor([4, 2, 1])
TARGETS = torch.tensor([[3, 2, 5, 1], [4, 1, -1, -1], [1, -1, -1, -1]])


def make_logits(seed, requires_grad=True):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, U, V, generator=g, dtype=torch.float64).mul(2).requires_grad_(requires_grad)


def test_targets_shift_end_and_pad():
    y = torch.tensor([[7, 8, 9], [7, 99, 99], [99, 99, 99]])
    inputs, targets = make_attention_targets(y, torch.tensor([3, 1, 0]), sos_id=1, eos_id=2)
    assert inputs.tolist() == [[1, 7, 8, 9], [1, 7, 2, 2], [1, 2, 2, 2]]
    assert targets.tolist() == [[7, 8, 9, 2], [7, 2, -1, -1], [2, -1, -1, -1]]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_attention_loss_equals_reference(label_smoothing):
    logits = make_logits(0)
    loss = attention_loss(logits, TARGETS, label_smoothing)
    expected = torch.stack(
        [
            sum(
                reference.smoothed_cross_entropy(logits[b, u], int(TARGETS[b, u]), label_smoothing)
                for u in range(LENS[b])
            )
            for b in range(B)
        ]
    )
    torch.testing.assert_close(loss, expected)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    (ours,) = torch.autograd.grad((loss * scale).sum(), logits)
    (theirs,) = torch.autograd.grad((expected * scale).sum(), logits)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda x: attention_loss(x, TARGETS, label_smoothing), logits)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_attention_kd_equals_reference(temperature):
    student, teacher = make_logits(0), make_logits(1)
    loss = attention_kd_loss(student, teacher, LENS, temperature)
    expected = torch.stack(
        [
            sum(reference.kl(student[b, u], teacher[b, u].detach(), temperature) for u in range(LENS[b]))
            * temperature**2
            for b in range(B)
        ]
    )
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda x: attention_kd_loss(x, teacher, LENS, temperature), student)
    loss.sum().backward()
    assert teacher.grad is None


def test_attention_kd_is_zero_at_equality():
    student = make_logits(0)
    loss = attention_kd_loss(student, student.detach().clone(), LENS, 2.0)
    torch.testing.assert_close(loss, torch.zeros_like(loss))


def test_gradient_of_soft_kd_keeps_its_size_over_temperature():
    """What temperature**2 is for: at high temperatures the gradient tends to (student - teacher) / V."""
    student, teacher = make_logits(0), make_logits(1)
    sizes = []
    for temperature in (50.0, 100.0):
        (grad,) = torch.autograd.grad(attention_kd_loss(student, teacher, LENS, temperature).sum(), student)
        sizes.append(float(grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_values_in_padding_change_nothing():
    padding = torch.arange(U).unsqueeze(0) >= LENS.unsqueeze(1)
    clean, teacher = make_logits(0), make_logits(1, False)
    dirty = clean.detach().masked_fill(padding.unsqueeze(-1), 1e4).requires_grad_()
    dirty_teacher = teacher.masked_fill(padding.unsqueeze(-1), -1e4)
    for a, b in (
        (attention_loss(clean, TARGETS, 0.1), attention_loss(dirty, TARGETS, 0.1)),
        (attention_kd_loss(clean, teacher, LENS), attention_kd_loss(dirty, dirty_teacher, LENS)),
    ):
        torch.testing.assert_close(a, b)
        (grad_a,) = torch.autograd.grad(a.sum(), clean)
        (grad_b,) = torch.autograd.grad(b.sum(), dirty)
        torch.testing.assert_close(grad_a, grad_b)
        assert float(grad_b.masked_select(padding.unsqueeze(-1)).abs().max()) == 0


def test_batch_equals_batches_of_one():
    student, teacher = make_logits(0), make_logits(1)
    together = attention_loss(student, TARGETS, 0.1), attention_kd_loss(student, teacher, LENS, 2.0)
    for b in range(B):
        cut = slice(b, b + 1), slice(0, int(LENS[b]))
        torch.testing.assert_close(attention_loss(student[cut], TARGETS[cut], 0.1)[0], together[0][b])
        torch.testing.assert_close(
            attention_kd_loss(student[cut], teacher[cut], LENS[b : b + 1], 2.0)[0], together[1][b]
        )


def test_bfloat16_under_autocast_is_computed_in_float32():
    student, teacher = make_logits(0).detach().bfloat16(), make_logits(1).detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ce, kd = attention_loss(student, TARGETS, 0.1), attention_kd_loss(student, teacher, LENS)
    assert ce.dtype == kd.dtype == torch.float32
    torch.testing.assert_close(ce.double(), attention_loss(student.double(), TARGETS, 0.1), rtol=1e-5, atol=1e-5)
    exact = attention_kd_loss(student.double(), teacher.double(), LENS)
    torch.testing.assert_close(kd.double(), exact, rtol=1e-5, atol=1e-5)


def test_ctc_equals_sum_over_all_labellings():
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    x_lens, y_lens = torch.tensor([5, 4, 3]), torch.tensor([2, 2, 0])
    y = torch.tensor([[1, 2], [3, 3], [1, 1]])
    loss = ctc_loss(log_probs, x_lens, y, y_lens)
    expected = torch.stack([reference.ctc(log_probs[b, : x_lens[b]], y[b, : y_lens[b]].tolist()) for b in range(3)])
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(ours, theirs)


def test_ctc_of_impossible_utterance_is_zero_without_gradient():
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    loss = ctc_loss(logits.log_softmax(-1), torch.tensor([2]), torch.tensor([[3, 3]]), torch.tensor([2]))
    loss.sum().backward()
    assert float(loss) == 0 and float(logits.grad.abs().max()) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`label_smoothing` \(1.0\)"):
        attention_loss(make_logits(0), TARGETS, 1.0)
    with pytest.raises(ValueError, match=r"`temperature` \(-1.0\)"):
        attention_kd_loss(make_logits(0), make_logits(1), LENS, -1.0)
    with pytest.raises(ValueError, match="`teacher_logits`"):
        attention_kd_loss(make_logits(0), make_logits(1)[:, :2], LENS)
