"""Rows added for a GPU's kernels change nothing in the others; they are forced here, on a CPU."""

import functools

import pytest
import torch
from torch import nn

from tiny import random_batch, tiny_model
from twopass_kd.config.schema import LOSS_TERMS, KdConfig, LossConfig
from twopass_kd.training import frozen_encoder, objective
from twopass_kd.training.objective import Objective
from twopass_kd.training.padded_rows import encode, has_persistent_lstm, missing_rows

FRAMES, SYMBOLS = (60, 58, 52, 40, 39), (5, 3, 4, 2, 1)


class Counting(nn.Module):
    """An encoder that remembers how many rows it was given."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, x_lens):
        self.rows = len(x), len(x_lens)
        return self.encoder(x, x_lens)


@pytest.mark.parametrize("factor", [4, 6])
def test_real_rows_are_the_same_with_added_ones_and_so_are_gradients(factor):
    batch = random_batch(frames=FRAMES, symbols=SYMBOLS)
    encoder = Counting(tiny_model(factor=factor).encoder)
    found = {}
    for pad in (False, True):
        out, lens = encode(encoder, batch.feature, batch.feature_lens, pad)
        assert encoder.rows == ((8, 8) if pad else (5, 5)) and len(out) == len(lens) == 5 and out.is_contiguous()
        encoder.zero_grad()
        out.square().sum().backward()
        found[pad] = [out, lens, *(p.grad.clone() for p in encoder.parameters())]
    for plain, padded in zip(*found.values()):
        torch.testing.assert_close(padded, plain)


def test_losses_and_gradients_of_a_step_are_the_same_with_added_rows(monkeypatch):
    batch = random_batch(frames=FRAMES, symbols=SYMBOLS)
    teacher = tiny_model(seed=2, dim=20).requires_grad_(False)
    found = {}
    for pad in (False, True):
        for module in (objective, frozen_encoder):
            monkeypatch.setattr(module, "encode", functools.partial(encode, pad=pad))
        model = tiny_model(seed=1)
        step = Objective(model, dict.fromkeys(LOSS_TERMS, 1.0), LossConfig(), KdConfig(), 1, 1, teacher=teacher)
        losses = step(batch)
        losses.total.sum().backward()
        assert losses.total.shape == (5,)
        gradients = [p.grad for p in model.parameters()]
        found[pad] = [losses.num_frames, losses.total, *losses.terms.values(), *gradients]
    for plain, padded in zip(*found.values()):
        torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)


def test_rows_become_multiples_of_8_but_never_double_and_never_pass_128():
    assert [missing_rows(n) for n in (1, 4, 5, 7, 8, 9, 97, 121, 128, 129, 200)] == [0, 0, 3, 1, 0, 7, 7, 7, 0, 0, 0]


def test_only_lstms_for_the_persistent_kernels_ask_for_rows():
    assert has_persistent_lstm(tiny_model(dim=128).encoder) and has_persistent_lstm(tiny_model(dim=640).encoder)
    assert not has_persistent_lstm(tiny_model(dim=160).encoder) and not has_persistent_lstm(
        tiny_model(dim=1152).encoder
    )
    assert not has_persistent_lstm(nn.LSTM(128, 128, bidirectional=True))
    assert not has_persistent_lstm(nn.LSTM(128, 128, num_layers=2))
    assert not has_persistent_lstm(nn.LSTM(128, 256, proj_size=128))
    assert not has_persistent_lstm(nn.Linear(128, 128))


def test_on_a_cpu_no_row_is_added():
    batch, encoder = random_batch(frames=FRAMES, symbols=SYMBOLS), Counting(tiny_model(dim=128).encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        encode(encoder, batch.feature, batch.feature_lens)
    assert encoder.rows == (5, 5)
