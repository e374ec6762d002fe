import pytest
import torch

import loss_reference as reference
from twopass_kd.losses.transducer import make_boundary
from twopass_kd.losses.transducer_kd import transducer_kd_loss

X_LENS, Y_LENS = torch.tensor([5, 3, 4]), torch.tensor([3, 1, 0])
B, T, S, V = 3, 5, 3, 6
WHOLE = torch.arange(S + 1).expand(B, T, -1).contiguous()
# A band of three positions that moves: what pruning gives.
BAND = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).unsqueeze(-1) + torch.arange(3)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(2)
    return {
        "student": torch.randn(B, T, S + 1, V, generator=g, dtype=torch.float64).mul(2).requires_grad_(),
        "teacher": torch.randn(B, T, S + 1, V, generator=g, dtype=torch.float64).mul(2).requires_grad_(),
        "boundary": make_boundary(X_LENS, Y_LENS),
    }


def on_band(x, ranges=BAND):
    return x.gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V))


def loss_of(batch, student=None, teacher=None, ranges=WHOLE, **options):
    student = batch["student"] if student is None else student
    teacher = batch["teacher"] if teacher is None else teacher
    return transducer_kd_loss(student, teacher, ranges, batch["boundary"], **options)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kd_equals_full_lattice_reference_when_band_is_whole_lattice(batch, temperature):
    loss = loss_of(batch, temperature=temperature)
    expected = torch.stack(
        [
            reference.transducer_kd(
                batch["student"][b, : X_LENS[b], : Y_LENS[b] + 1],
                batch["teacher"][b, : X_LENS[b], : Y_LENS[b] + 1].detach(),
                temperature,
            )
            for b in range(B)
        ]
    )
    torch.testing.assert_close(loss, expected)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    (ours,) = torch.autograd.grad((loss * scale).sum(), batch["student"])
    (theirs,) = torch.autograd.grad((expected * scale).sum(), batch["student"])
    torch.testing.assert_close(ours, theirs)


def test_kd_on_band_is_mean_over_its_valid_nodes(batch):
    loss = loss_of(batch, on_band(batch["student"]), on_band(batch["teacher"]), BAND)
    for b in range(B):
        inside = torch.zeros(T, S + 1)
        for t in range(T):
            inside[t, BAND[b, t]] = 1
        n, u = int(X_LENS[b]), int(Y_LENS[b]) + 1
        expected = reference.transducer_kd(batch["student"][b, :n, :u], batch["teacher"][b, :n, :u], 1.0, inside)
        torch.testing.assert_close(loss[b], expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kd_is_zero_with_zero_gradient_at_equality(batch, temperature):
    loss = loss_of(batch, teacher=batch["student"].detach().clone(), temperature=temperature)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    (grad,) = torch.autograd.grad(loss.sum(), batch["student"])
    torch.testing.assert_close(grad, torch.zeros_like(grad))


def test_kd_is_positive_where_models_differ(batch):
    assert (loss_of(batch) > 1e-3).all()


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
def test_values_outside_the_lattice_change_nothing(batch, garbage):
    student = on_band(batch["student"]).detach().requires_grad_()
    teacher = on_band(batch["teacher"]).detach()
    frames = torch.arange(T).reshape(1, T, 1)
    outside = (frames >= X_LENS.reshape(B, 1, 1)) | (BAND > Y_LENS.reshape(B, 1, 1))
    dirty = student.detach().masked_fill(outside.unsqueeze(-1), garbage).requires_grad_()
    dirty_teacher = teacher.masked_fill(outside.unsqueeze(-1), -garbage)
    a = loss_of(batch, student, teacher, BAND)
    b = loss_of(batch, dirty, dirty_teacher, BAND)
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(student.grad, dirty.grad)
    assert float(dirty.grad.masked_select(outside.unsqueeze(-1)).abs().max()) == 0


def test_utterance_has_the_same_value_alone_and_in_a_batch(batch):
    student, teacher = on_band(batch["student"]), on_band(batch["teacher"])
    together = loss_of(batch, student, teacher, BAND, temperature=2.0)
    for b in range(B):
        n, s = X_LENS[b], max(1, int(Y_LENS[b]))
        keep = min(3, s + 1)
        alone = transducer_kd_loss(
            student[b : b + 1, :n, :keep],
            teacher[b : b + 1, :n, :keep],
            BAND[b : b + 1, :n, :keep],
            make_boundary(X_LENS[b : b + 1], Y_LENS[b : b + 1]),
            temperature=2.0,
        )
        torch.testing.assert_close(alone[0], together[b])


def test_length_of_an_utterance_does_not_move_the_mean(batch):
    """Twice the frames with the same contents: the value grows as the arcs do, so that per arc it is the same."""
    one = make_boundary(X_LENS[:1], Y_LENS[:1])
    twice = make_boundary(X_LENS[:1] * 2, Y_LENS[:1])
    a = transducer_kd_loss(batch["student"][:1], batch["teacher"][:1], WHOLE[:1], one)
    student, teacher, ranges = (x[:1].repeat_interleave(2, 1) for x in (batch["student"], batch["teacher"], WHOLE))
    b = transducer_kd_loss(student, teacher, ranges, twice)
    torch.testing.assert_close(a / (T + S), b / (2 * T + S))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(batch, temperature):
    teacher = on_band(batch["teacher"]).detach()
    student = on_band(batch["student"]).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(batch, x, teacher, BAND, temperature=temperature), student)


def test_no_gradient_into_teacher(batch):
    loss_of(batch).sum().backward()
    assert batch["teacher"].grad is None
    assert batch["student"].grad is not None and float(batch["student"].grad.abs().max()) > 0


def test_teacher_under_inference_mode_can_teach(batch):
    with torch.inference_mode():
        teacher = batch["teacher"] * 1.0
    loss = loss_of(batch, teacher=teacher)
    torch.testing.assert_close(loss, loss_of(batch))
    loss.sum().backward()


def test_value_is_the_same_without_gradient(batch):
    with torch.no_grad():
        value = loss_of(batch)
    torch.testing.assert_close(value, loss_of(batch))
    assert not value.requires_grad


def test_certain_models_give_finite_loss_and_gradient_in_float32(batch):
    """Tokens have probabilities below float32's smallest number, in teacher or student."""
    sharp = torch.zeros(B, T, S + 1, V)
    sharp[..., 0] = 200.0
    sharp[0, :, 0, 3] = 200.0
    soft = batch["student"].detach().float()
    for student, teacher in ((sharp, soft), (soft, sharp), (sharp, sharp * 0.9)):
        student = student.clone().requires_grad_()
        loss = loss_of(batch, student, teacher)
        exact = loss_of(batch, student.double(), teacher.double())
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(loss.sum(), student)
        assert torch.isfinite(grad).all()


def test_bfloat16_under_autocast_is_computed_in_float32(batch):
    student, teacher = batch["student"].detach().bfloat16().requires_grad_(), batch["teacher"].detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(batch, student, teacher)
    assert loss.dtype == torch.float32
    exact = loss_of(batch, student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    loss.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"`temperature` \(0.0\) must be positive"),
        ({"teacher": torch.zeros(B, T, S + 1, V + 1)}, "`teacher_logits`"),
        ({"teacher": torch.zeros(B, T + 1, S + 1, V)}, "`teacher_logits`"),
        ({"ranges": WHOLE[:, :, :2]}, "`ranges`"),
    ],
)
def test_bad_input_is_named(batch, change, message):
    with pytest.raises(ValueError, match=message):
        loss_of(batch, **change)
