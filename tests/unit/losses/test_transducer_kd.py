import pytest
import torch

import loss_reference as reference
from twopass_kd.losses.transducer import make_boundary, occupation
from twopass_kd.losses.transducer_kd import KINDS, transducer_kd_loss

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
        "symbols": torch.randint(1, V, (B, S), generator=g),
        "boundary": make_boundary(X_LENS, Y_LENS),
    }


def on_band(x, ranges=BAND):
    return x.gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V))


def loss_of(batch, student=None, teacher=None, ranges=WHOLE, **options):
    student = batch["student"] if student is None else student
    teacher = batch["teacher"] if teacher is None else teacher
    return transducer_kd_loss(student, teacher, batch["symbols"], ranges, batch["boundary"], **options)


def teacher_weights(batch, ranges=WHOLE):
    return occupation(on_band(batch["teacher"], ranges), batch["symbols"], ranges, batch["boundary"])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_kd_equals_full_lattice_reference_when_band_is_whole_lattice(batch, kind, temperature, weighted):
    weights = teacher_weights(batch) if weighted else None
    loss = loss_of(batch, kind=kind, temperature=temperature, node_weights=weights)
    expected = torch.stack(
        [
            reference.transducer_kd(
                batch["student"][b, : X_LENS[b], : Y_LENS[b] + 1],
                batch["teacher"][b, : X_LENS[b], : Y_LENS[b] + 1].detach(),
                batch["symbols"][b].tolist(),
                kind,
                temperature,
                None if weights is None else weights[b],
            )
            for b in range(B)
        ]
    )
    torch.testing.assert_close(loss, expected)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    (ours,) = torch.autograd.grad((loss * scale).sum(), batch["student"])
    (theirs,) = torch.autograd.grad((expected * scale).sum(), batch["student"])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_kd_on_band_is_mean_over_its_valid_nodes(batch, kind):
    loss = loss_of(batch, on_band(batch["student"]), on_band(batch["teacher"]), BAND, kind=kind)
    for b in range(B):
        inside = torch.zeros(T, S + 1, dtype=torch.float64)
        for t in range(T):
            inside[t, BAND[b, t]] = 1
        n, u = int(X_LENS[b]), int(Y_LENS[b]) + 1
        expected = reference.transducer_kd(
            batch["student"][b, :n, :u], batch["teacher"][b, :n, :u], batch["symbols"][b].tolist(), kind, 1.0, inside
        )
        torch.testing.assert_close(loss[b], expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_kd_is_zero_with_zero_gradient_at_equality(batch, kind, temperature):
    loss = loss_of(batch, teacher=batch["student"].detach().clone(), kind=kind, temperature=temperature)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    (grad,) = torch.autograd.grad(loss.sum(), batch["student"])
    torch.testing.assert_close(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("kind", KINDS)
def test_kd_is_positive_where_models_differ(batch, kind):
    assert (loss_of(batch, kind=kind) > 1e-3).all()


def test_collapsed_ignores_how_the_rest_is_shared_out(batch):
    teacher = batch["student"].detach().clone()
    label, blank = int(batch["symbols"][0, 0]), 0
    a, b = [v for v in range(V) if v not in (label, blank)][:2]
    teacher[0, 0, 0, [a, b]] = teacher[0, 0, 0, [b, a]]
    collapsed, full = loss_of(batch, teacher=teacher, kind="collapsed"), loss_of(batch, teacher=teacher, kind="full")
    assert float(collapsed[0]) == pytest.approx(0, abs=1e-12)
    assert float(full[0]) > 1e-3


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_outside_the_lattice_change_nothing(batch, kind, weighted, garbage):
    student = on_band(batch["student"]).detach().requires_grad_()
    teacher = on_band(batch["teacher"]).detach()
    weights = teacher_weights(batch, BAND) if weighted else None
    frames = torch.arange(T).reshape(1, T, 1)
    outside = (frames >= X_LENS.reshape(B, 1, 1)) | (BAND > Y_LENS.reshape(B, 1, 1))
    dirty = student.detach().masked_fill(outside.unsqueeze(-1), garbage).requires_grad_()
    dirty_teacher = teacher.masked_fill(outside.unsqueeze(-1), -garbage)
    dirty_weights = None if weights is None else weights.masked_fill(outside, garbage)
    a = loss_of(batch, student, teacher, BAND, kind=kind, node_weights=weights)
    symbols = batch["symbols"].clone()
    symbols[1, 1:], symbols[2] = 0, V - 1
    b = loss_of({**batch, "symbols": symbols}, dirty, dirty_teacher, BAND, kind=kind, node_weights=dirty_weights)
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(student.grad, dirty.grad)
    assert float(dirty.grad.masked_select(outside.unsqueeze(-1)).abs().max()) == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_utterance_has_the_same_value_alone_and_in_a_batch(batch, kind, weighted):
    student, teacher = on_band(batch["student"]), on_band(batch["teacher"])
    weights = teacher_weights(batch, BAND) if weighted else None
    together = loss_of(batch, student, teacher, BAND, kind=kind, temperature=2.0, node_weights=weights)
    for b in range(B):
        n, s = X_LENS[b], max(1, int(Y_LENS[b]))
        keep = min(3, s + 1)
        alone = transducer_kd_loss(
            student[b : b + 1, :n, :keep],
            teacher[b : b + 1, :n, :keep],
            batch["symbols"][b : b + 1, :s],
            BAND[b : b + 1, :n, :keep],
            make_boundary(X_LENS[b : b + 1], Y_LENS[b : b + 1]),
            kind=kind,
            temperature=2.0,
            node_weights=None if weights is None else weights[b : b + 1, :n, :keep],
        )
        torch.testing.assert_close(alone[0], together[b])


def test_scale_of_weights_and_length_of_utterance_do_not_move_the_mean(batch):
    weights = teacher_weights(batch)
    torch.testing.assert_close(loss_of(batch, node_weights=weights), loss_of(batch, node_weights=weights * 7))
    # Twice the frames with the same contents: the value grows as the arcs do, so that per arc it is the same.
    one = make_boundary(X_LENS[:1], Y_LENS[:1])
    twice = make_boundary(X_LENS[:1] * 2, Y_LENS[:1])
    a = transducer_kd_loss(batch["student"][:1], batch["teacher"][:1], batch["symbols"][:1], WHOLE[:1], one)
    student, teacher, ranges = (x[:1].repeat_interleave(2, 1) for x in (batch["student"], batch["teacher"], WHOLE))
    b = transducer_kd_loss(student, teacher, batch["symbols"][:1], ranges, twice)
    torch.testing.assert_close(a / (T + S), b / (2 * T + S))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(batch, kind, temperature, weighted):
    teacher = on_band(batch["teacher"]).detach()
    weights = teacher_weights(batch, BAND) if weighted else None
    student = on_band(batch["student"]).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: loss_of(batch, x, teacher, BAND, kind=kind, temperature=temperature, node_weights=weights), student
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_into_teacher_or_weights(batch, kind):
    weights = torch.rand(B, T, S + 1, dtype=torch.float64, requires_grad=True)
    loss_of(batch, kind=kind, node_weights=weights).sum().backward()
    assert batch["teacher"].grad is None and weights.grad is None
    assert batch["student"].grad is not None and float(batch["student"].grad.abs().max()) > 0
    assert not occupation(batch["teacher"], batch["symbols"], WHOLE, batch["boundary"]).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_under_inference_mode_can_teach(batch, kind):
    with torch.inference_mode():
        teacher = batch["teacher"] * 1.0
        weights = occupation(teacher, batch["symbols"], WHOLE, batch["boundary"])
    loss = loss_of(batch, teacher=teacher, kind=kind, node_weights=weights)
    torch.testing.assert_close(loss, loss_of(batch, kind=kind, node_weights=teacher_weights(batch)))
    loss.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_value_is_the_same_without_gradient(batch, kind):
    with torch.no_grad():
        value = loss_of(batch, kind=kind)
    torch.testing.assert_close(value, loss_of(batch, kind=kind))
    assert not value.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_certain_models_give_finite_loss_and_gradient_in_float32(batch, kind):
    """The rest of the tokens has a probability below float32's smallest number, in teacher or student."""
    sharp = torch.zeros(B, T, S + 1, V)
    sharp[..., 0] = 200.0
    label = batch["symbols"][0, 0]
    sharp[0, :, 0, label] = 200.0
    soft = batch["student"].detach().float()
    for student, teacher in ((sharp, soft), (soft, sharp), (sharp, sharp * 0.9)):
        student = student.clone().requires_grad_()
        loss = loss_of(batch, student, teacher, kind=kind)
        exact = loss_of(batch, student.double(), teacher.double(), kind=kind)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(loss.sum(), student)
        assert torch.isfinite(grad).all()


def test_bfloat16_under_autocast_is_computed_in_float32(batch):
    student, teacher = batch["student"].detach().bfloat16().requires_grad_(), batch["teacher"].detach().bfloat16()
    for kind in KINDS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(batch, student, teacher, kind=kind)
        assert loss.dtype == torch.float32
        exact = loss_of(batch, student.double(), teacher.double(), kind=kind)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
        loss.sum().backward()


def test_zero_weights_give_zero(batch):
    loss = loss_of(batch, node_weights=torch.zeros(B, T, S + 1))
    assert loss.tolist() == [0.0] * B
    (grad,) = torch.autograd.grad(loss.sum(), batch["student"])
    assert float(grad.abs().max()) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "topk"}, r"`kind` \(topk\) must be one of full, collapsed"),
        ({"temperature": 0.0}, r"`temperature` \(0.0\) must be positive"),
        ({"node_weights": torch.ones(B, T)}, "`node_weights`"),
        ({"teacher": torch.zeros(B, T, S + 1, V + 1)}, "`teacher_logits`"),
        ({"teacher": torch.zeros(B, T + 1, S + 1, V)}, "`teacher_logits`"),
        ({"ranges": WHOLE[:, :, :2]}, "`ranges`"),
    ],
)
def test_bad_input_is_named(batch, change, message):
    with pytest.raises(ValueError, match=message):
        loss_of(batch, **change)


def test_two_tokens_cannot_be_collapsed(batch):
    with pytest.raises(ValueError, match="V=2"):
        loss_of(batch, torch.zeros(B, T, S + 1, 2), torch.zeros(B, T, S + 1, 2), kind="collapsed")
