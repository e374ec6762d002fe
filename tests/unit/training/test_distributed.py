"""Two real ranks on the CPU (gloo), started as run.sh starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from two_ranks import gradients
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.step_split import device_memory

TESTS = Path(__file__).parents[1]
RECIPE = TESTS.parents[1] / "egs" / "librispeech" / "twopass_kd"


def two_ranks(*args, timeout=120):
    """Run two_ranks.py as two ranks, by `launch_ranks`."""
    program = (
        "import sys; from pathlib import Path; from twopass_kd.training.launch import launch_ranks;"
        "sys.exit(launch_ranks('two_ranks', sys.argv[1:], Path(), 2, 1, None))"
    )
    env = {**os.environ, "PYTHONPATH": f"{RECIPE}:{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("accum_grad", [1, 2])
def test_two_ranks_with_half_batches_give_the_gradients_of_one_with_the_whole(tmp_path, accum_grad):
    done = two_ranks(tmp_path, accum_grad)
    assert done.returncode == 0, done.stderr
    whole = gradients(Ranks(), 1)
    of_ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for name, gradient in whole.items():
        assert torch.equal(of_ranks[0][name], of_ranks[1][name]), name
        torch.testing.assert_close(of_ranks[0][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert max(float(g.abs().max()) for g in whole.values()) > 0.01
    half_of_the_machine = device_memory(torch.device("cpu")) / 2
    for rank in (0, 1):
        memory = torch.load(tmp_path / f"memory{rank}.pt", weights_only=True)
        assert memory.tolist() == [half_of_the_machine, 3.0]


@pytest.mark.parametrize("spoilt", [[3], [0, 1], [1, 3, 5, 7]])  # the last are all of rank 1's
def test_ranks_leave_out_together_what_has_no_finite_loss(tmp_path, spoilt):
    done = two_ranks(tmp_path, 1, *spoilt)
    assert done.returncode == 0, done.stderr
    alone = gradients(Ranks(), 1, spoilt)
    of_ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for name, gradient in alone.items():
        assert torch.equal(of_ranks[0][name], of_ranks[1][name]) and gradient.isfinite().all(), name
        torch.testing.assert_close(of_ranks[0][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert "not finite at step 0" in done.stderr and f"utt-3-{spoilt[0]}" in done.stderr


def test_one_rank_alone_agrees_with_itself():
    ranks = Ranks()
    assert ranks.is_main and ranks.sum([1.5, 2]) == [1.5, 2] and ranks.from_main({"a": 1}) == {"a": 1}
    ranks.wait()
    ranks.leave()
