"""The cost of a step counts what really runs."""

import pytest
import torch
from torch import nn

from tiny import TINY_CONF
from twopass_kd.config.load import load_config
from twopass_kd.training import step_cost as module
from twopass_kd.training.estimate import build_objective, step_cost
from twopass_kd.training.step_cost import StepCost, count_step


def flops_of(layer, *inputs):
    with module._counting_layers([layer]) as layers:
        layer(*inputs)
    return sum(flops for flops, _ in layers)


def test_flops_of_layers_are_those_of_their_matrix_products():
    x = torch.randn(2, 7, 3)
    linear = nn.Linear(3, 5)
    assert flops_of(linear, x) == 2 * (2 * 2 * 7 * 3 * 5)  # forward and the weights' gradient
    assert flops_of(linear, x.clone().requires_grad_()) == 3 * (2 * 2 * 7 * 3 * 5)
    assert flops_of(linear.requires_grad_(False), x) == 2 * 2 * 7 * 3 * 5
    lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True).requires_grad_(False)
    assert flops_of(lstm, x) == 2 * 14 * 2 * (4 * 4 * (3 + 4) + 4 * 4 * (8 + 4))
    conv = nn.Conv2d(2, 5, kernel_size=3, stride=2).requires_grad_(False)
    assert flops_of(conv, torch.randn(1, 2, 9, 7)) == 2 * (4 * 3) * 5 * (2 * 3 * 3)
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).requires_grad_(False)
    query, memory = torch.randn(2, 5, 8), torch.randn(2, 11, 6)
    products = 5 * 8 * 8 + 2 * 11 * 6 * 8 + 2 * 5 * 11 * 8 + 5 * 8 * 8  # query; keys, values; attention; output
    assert flops_of(attention, query, memory, memory) == 2 * 2 * products


def test_kept_bytes_are_counted_once_and_without_parameters():
    layer = nn.Linear(10, 10)
    x = torch.randn(4, 10, requires_grad=True)
    with module._counting_kept(layer) as kept:
        y = layer(x)  # keeps x, and the weights
        z = torch.tanh(y)  # keeps z
        total = (z[:2] * z[2:]).sum()  # views of z
    assert total.requires_grad and sum(kept.values()) == 2 * 4 * 10 * 4


@pytest.mark.parametrize("phase", ["teacher/rnnt", "student/rnnt_kd"])
def test_cost_is_in_proportion_to_the_audio(phase, monkeypatch):
    cfg = load_config(TINY_CONF)
    once = step_cost(cfg, phase)
    monkeypatch.setattr(module, "UTTERANCE_SECONDS", module.UTTERANCE_SECONDS / 2)
    half = step_cost(cfg, phase)
    for name in ("kept_bytes", "flops", "largest_bytes"):
        assert getattr(half, name) == pytest.approx(getattr(once, name), rel=0.1), name


def test_cost_tells_parts_that_learn_from_frozen_ones():
    cfg = load_config(TINY_CONF)
    rnnt, las, kd = (step_cost(cfg, name) for name in ("student_copy/rnnt", "student_copy/las", "student/las_kd"))
    assert rnnt.teacher == las.teacher == 0 and kd.teacher == step_cost(cfg, "teacher/rnnt").model > rnnt.model
    assert las.learning < rnnt.learning < rnnt.model == las.model
    assert las.kept_bytes < rnnt.kept_bytes  # the frozen encoder keeps nothing
    assert las.flops < kd.flops
    assert las.learning == kd.learning


def test_memory_counts_copies_only_in_half_precision():
    cost = StepCost(learning=10, model=12, teacher=20, kept_bytes=7.0, largest_bytes=2.0, flops=0.0)
    expected = {"weights": 48, "half-precision copies": 0, "gradients": 40, "Adam": 80, "running mean": 48,
                "teacher": 80, "activations": 70, "temporaries": 20 * module.TEMPORARIES}  # fmt: skip
    assert cost.memory(10.0, "float32") == expected
    assert cost.memory(10.0, "bfloat16") == {**expected, "half-precision copies": 20}


def test_counting_leaves_random_draws_and_gradients_as_they_were():
    cfg = load_config(TINY_CONF)
    objective = build_objective(cfg, "student/deep", torch.device("cpu"))
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = count_step(cfg, objective)
    assert torch.equal(torch.randn(3), expected)
    assert count_step(cfg, objective) == first  # the same each time
    assert all(p.grad is None for p in objective.model.parameters())
