"""A step is as long with any number of ranks and any memory; where it cannot be, an error says what to do."""

import math

import psutil
import pytest
import torch

from twopass_kd.config.schema import ConfigError, TrainConfig
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.step_cost import StepCost
from twopass_kd.training.step_split import USABLE, device_memory, rank_memory, split_step

GIB = 2.0**30
# Weights and their running mean: 2 GiB; 0.1 GiB for a second of audio.
COST = StepCost(learning=0, model=2**28, teacher=0, kept_bytes=0.1 * GIB, largest_bytes=0.0, flops=0.0)


def split(gib, world_size=1, longest=30.0, device="cuda", **train):
    train = {"ref_duration": 1200.0, "precision": "float32", **train}
    return split_step(TrainConfig(**train), world_size, longest, COST, gib * GIB, device)


@pytest.mark.parametrize("gib", [8, 16, 24, 80])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 8, 40])
def test_a_step_is_ref_duration_on_any_number_of_any_cards_in_batches_that_fit(gib, world_size):
    found = split(gib, world_size)
    assert found.seconds == pytest.approx(1200) and found.max_duration >= 30
    assert found.needed <= USABLE["cuda"] * gib * GIB and found.needed == pytest.approx(
        (2 + 0.1 * found.max_duration) * GIB
    )
    if found.accum_grad > 1:  # in fewer batches it would not fit
        fewer = 1200 / world_size / (found.accum_grad - 1)
        assert COST.total_memory(fewer, "float32") > USABLE["cuda"] * gib * GIB


def test_a_split_says_what_it_is():
    assert str(split(22, world_size=4)) == "a step of 1200 s: 4 ranks x 2 batches of 150 s, each about 17 of 22 GiB"
    assert str(split(200)) == "a step of 1200 s: 1 rank x 1 batch of 1200 s, each about 122 of 200 GiB"


def test_a_cpu_is_not_filled_as_a_gpu_is():
    assert split(80, device="cpu").accum_grad > split(80).accum_grad


def test_given_batches_are_taken_as_they_are():
    found = split(8, world_size=2, max_duration=600.0, accum_grad=3)
    assert (found.max_duration, found.accum_grad, found.seconds) == (600, 3, 3600)
    assert split(8, max_duration=10.0).accum_grad == 1  # shorter than an utterance may be


def test_too_many_ranks_for_the_step_is_an_error_that_says_how_many():
    with pytest.raises(
        ConfigError, match=r"ranks \(64\) must be at most 40: of the 1200 s.*each gets 18.8 s.*\(30.0 s\)"
    ):
        split(80, world_size=64)
    with pytest.raises(ConfigError, match="must be smaller, and is 1 already"):
        split(80, ref_duration=20.0)


def test_ranks_that_no_batch_suits_is_an_error_that_names_another_number():
    """35 s fit: 90 s go in three batches of 30 s, the 45 s of each of two ranks in none."""
    gib = (2 + 3.5) / USABLE["cuda"]
    assert split(gib, 1, ref_duration=90.0).accum_grad == 3 and split(gib, 3, ref_duration=90.0).accum_grad == 1
    with pytest.raises(ConfigError, match=r"ranks \(2\) must be another one, e.g. 3:"):
        split(gib, 2, ref_duration=90.0)


def test_a_card_too_small_for_an_utterance_is_an_error_that_says_how_long_one_may_be():
    with pytest.raises(
        ConfigError, match=r"\(30.0 s\) must be of at most 20.0 s: .* 5.0 GiB, .* has 5.0, .*corpus.max_duration"
    ):
        split(5)
    with pytest.raises(ConfigError, match="must be of at most 0.0 s.*a device with more memory"):
        split(1)


def test_where_the_longest_utterance_is_not_known_batches_may_be_of_any_length():
    assert split(80, world_size=1200, longest=0.0).max_duration == 1
    with pytest.raises(ConfigError, match="must be of at most 0.0 s"):
        split(1, longest=0.0)


def test_memory_of_a_cpu_is_all_of_it():
    assert rank_memory(Ranks()) == device_memory(torch.device("cpu")) == psutil.virtual_memory().total


def test_models_and_optimizer_are_in_the_longest_batch():
    assert COST.longest_batch(12 * GIB, "float32") == pytest.approx(100)
    assert COST.longest_batch(1 * GIB, "float32") < 0
    assert math.isclose(COST.total_memory(100, "float32"), 12 * GIB)
