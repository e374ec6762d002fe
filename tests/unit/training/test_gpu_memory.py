"""What is said about a GPU's memory before training; the GPU's own numbers are made up."""

import logging

import pytest
import torch

from tiny_training import make_step
from twopass_kd.training.gpu_memory import largest_batch, scan_largest_batches, suggest_max_duration
from twopass_kd.training.optimizer_step import OutOfMemory

GIB = 2**30
BATCHES = {"max_duration": 4.0, "accum_grad": 3}


def test_largest_batch_is_of_max_duration_and_longest_utterances():
    batch = largest_batch(num_mel_bins=16, max_duration=100, duration=24.6, num_tokens=9)
    assert batch.feature.shape == (4, 2460, 16) and batch.y.shape == (4, 9) and batch.duration == pytest.approx(98.4)
    assert len(largest_batch(16, 10, 24.6, 9).cuts) == 1


def test_suggestion_fills_the_memory():
    """2 GiB of weights, 1 GiB of Adam's, 5 GiB for 100 s: 18 GiB hold 300 s."""
    assert suggest_max_duration(7 * GIB, 2 * GIB, 1 * GIB, 18 * GIB, 100) == pytest.approx(300)


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda as a GPU of 20 GiB, of which each batch takes 4 beyond the 1 of the weights."""
    for name, value in {
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": GIB,
        "max_memory_allocated": 5 * GIB,
        "memory_reserved": 5 * GIB,
        "mem_get_info": (15 * GIB, 20 * GIB),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


def test_scan_says_what_the_batch_takes_and_leaves_no_gradient(gpu, caplog):
    model, step = make_step(**BATCHES)
    with caplog.at_level(logging.INFO):
        scan_largest_batches(step, [largest_batch(16, 4.0, 1.0, 5)])
    assert "4 utterances of 1.0 s with 5 tokens each need 5.0 of 18.0 GiB" in caplog.text
    assert "batches are of 4 s; by free memory train.max_duration could be 17" in caplog.text
    assert all(p.grad is None for p in model.parameters())


def test_scan_of_a_batch_that_does_not_fit_says_what_to_lower(gpu, monkeypatch):
    _, step = make_step(**BATCHES)

    def full(batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(step, "objective", full)
    with pytest.raises(OutOfMemory, match="4 utterances of 1.0 s does not fit.*max_duration=2 train.accum_grad=6$"):
        scan_largest_batches(step, [largest_batch(16, 4.0, 1.0, 5)])
