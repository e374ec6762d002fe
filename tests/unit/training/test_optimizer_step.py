"""One step: accumulation, half precision, batches that do not fit."""

import math
from contextlib import nullcontext
from statistics import median

import pytest
import torch

from tiny import random_batch
from tiny_training import make_step
from two_ranks import FRAMES, SYMBOLS, gradients
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Objective
from twopass_kd.training.optimizer_step import OutOfMemory, halve


class GpuRanks(Ranks):
    """Says that it computes on a GPU; what it is used for here runs on the CPU."""

    def __init__(self):
        super().__init__()
        self.device = torch.device("cuda")


class Small(Objective):
    """An objective that runs out of memory with more than `limit` utterances, on the way there or back."""

    limit, calls = 2, ()

    def __call__(self, batch):
        self.calls = (*self.calls, len(batch.cuts))
        if len(batch.cuts) > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().__call__(batch)


def frames_of(batch):
    return int(((batch.feature_lens - 7) // 4 + 1).sum())


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole, parts = gradients(Ranks(), 1), gradients(Ranks(), 3)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_halve_splits_without_loss():
    batch = random_batch(3, FRAMES, SYMBOLS)
    first, second = halve(batch)
    assert first.cuts + second.cuts == batch.cuts
    assert second.feature.size(1) == max(FRAMES[4:]) and second.y.size(1) == max(SYMBOLS[4:])
    assert torch.equal(second.feature[0], batch.feature[4, : FRAMES[4]])
    (one,) = halve(halve(halve(first)[0])[0])
    assert one.cut_ids == batch.cut_ids[:1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr("twopass_kd.training.optimizer_step.autocast", lambda device, precision: nullcontext())
    return GpuRanks()


def test_a_batch_that_does_not_fit_is_halved_and_named(gpu, caplog):
    batch = random_batch(3, FRAMES, SYMBOLS)
    model, step = make_step(Small, gpu)
    losses = step([batch], frames_of(batch), step=7)
    assert step.objective.calls == (8, 4, 2, 2, 2, 2)
    assert "1.0 s does not fit" not in caplog.text and "4.2 s does not fit into memory at step 7" in caplog.text
    assert "utt-3-7" in caplog.text and "train.max_duration=2.09 train.accum_grad=2" in caplog.text
    assert sum(len(x.total) for x in losses) == 8
    whole_model, whole = make_step()
    whole([batch], frames_of(batch), step=7)
    for (name, p), q in zip(model.named_parameters(), whole_model.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_an_utterance_that_does_not_fit_is_an_error_with_its_name(gpu):
    _, step = make_step(Small, gpu)
    step.objective.limit = 0
    batch = random_batch(3, FRAMES[:2], SYMBOLS[:2])
    with pytest.raises(OutOfMemory, match=r"\['utt-3-0', 'utt-3-1'\].*lower corpus.max_duration$"):
        step([batch], frames_of(batch), step=7)


def test_on_a_cpu_nothing_is_halved():
    _, step = make_step(Small)
    batch = random_batch(3, FRAMES, SYMBOLS)
    with pytest.raises(OutOfMemory, match="utt-3-7.*train.max_duration=2.09 train.accum_grad=2$"):
        step([batch], frames_of(batch), step=0)
    assert step.objective.calls == (8,)


@pytest.mark.parametrize("cap, largest", [(None, 0.5), (0.01, 0.01)])
def test_gradients_are_clipped_at_a_multiple_of_the_median_norm_and_at_the_limit(cap, largest):
    model, step = make_step(clip_grad_scale=0.5, clip_grad_norm=cap)
    batch = random_batch(3, FRAMES, SYMBOLS)
    for number in range(3):
        before = list(step.norms)
        step([batch], frames_of(batch), number)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    expected = largest * median(before) if cap is None else largest
    assert float(norm) == pytest.approx(expected, rel=1e-3) and expected < step.grad_norm
    assert step.percent_clipped() == pytest.approx(100 if cap else 200 / 3) and step.percent_clipped() == 0


def test_a_step_whose_gradient_is_not_finite_is_not_taken(caplog):
    model, step = make_step()
    batch = random_batch(3, FRAMES, SYMBOLS)
    before = [p.clone() for p in model.parameters()]
    handle = model.encoder.norm.weight.register_hook(lambda grad: grad * math.nan)
    step([batch], frames_of(batch), 0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before)) and not step.norms
    assert "the gradient is not finite at step 0, batch ['utt-3-0'" in caplog.text
    handle.remove()
    step([batch], frames_of(batch), 1)
    assert len(step.norms) == 1 and not all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
