"""RANK and WORLD_SIZE, left in the environment by a cluster, were taken for torchrun's; and ranks waited in silence."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest

from run_sh import RECIPE, TINY
from twopass_kd.bin import train
from twopass_kd.bin.run_stages import forget_other_ranks
from twopass_kd.stages.commands import visible_gpus
from twopass_kd.training import distributed
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.launch import _is_here, _parse_endpoint

POD = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
IMPATIENT = """
import logging, sys
from pathlib import Path
from twopass_kd.training import distributed, launch

logging.basicConfig(format="%(levelname)s %(message)s")
for module in (distributed, launch):
    module.SECONDS_TO_MEET, module.SECONDS_OF_SILENCE = 4.0, 1.0
try:
    launch.launch_ranks("two_ranks", [], Path(), 1, 2, sys.argv[1])
except ValueError as e:
    print(e)
"""


@pytest.fixture
def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def impatient(endpoint):
    """What is said where nodes give up after seconds: warnings, and the error."""
    env = {**os.environ, "PYTHONPATH": str(RECIPE)}
    command = [sys.executable, "-c", IMPATIENT, endpoint]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.stderr, done.stdout


def test_run_sh_takes_them_out_and_says_so(monkeypatch, capsys):
    for name in (*POD, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_X", "LOCAL_RANK", "GROUP_WORLD_SIZE"):
        monkeypatch.setenv(name, POD.get(name, "x"))
    forget_other_ranks()
    left = [name for name in os.environ if re.match(r"RANK|LOCAL_|GROUP_|WORLD_SIZE|MASTER|TORCHELASTIC_", name)]
    said = capsys.readouterr().out
    assert not left and said.startswith("ignored: RANK, WORLD_SIZE (2)") and said.count("\n") == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    forget_other_ranks()
    forget_other_ranks()
    assert capsys.readouterr().out == "" and "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize("env", [POD, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "abc"}])
def test_one_rank_alone_where_torchrun_started_none(monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_torchrun().world_size == 1


def test_train_by_hand_is_told_what_to_do(monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train", "--conf", str(TINY), "--phase", "teacher/rnnt"])
    assert train.main() == 1 and "`WORLD_SIZE` (2) is in the environment" in capfd.readouterr().err
    args = train.get_parser().parse_args(sys.argv[1:])
    monkeypatch.setenv("WORLD_SIZE", "1")
    train.check_no_other_ranks(args)


def test_torchrun_variables_that_are_not_all_there_are_an_error(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ValueError, match="`RANK` must be in the environment beside TORCHELASTIC_RUN_ID"):
        Ranks.from_torchrun()


@pytest.mark.parametrize("rank, missing", [(0, "1 of 2"), (1, "2 of 2 ([Errno 111] Connection refused)")])
def test_a_rank_says_how_many_are_missing_where_and_gives_up(port, rank, missing, monkeypatch, caplog):
    monkeypatch.setattr(distributed, "SECONDS_TO_MEET", 0.5)
    monkeypatch.setattr(distributed, "SECONDS_OF_SILENCE", 0.2)
    env = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in {**env, "RANK": str(rank), "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as e:
        Ranks.from_torchrun()
    assert f"rank {rank} waits at localhost:{port} for {missing} ranks; Ctrl-C stops it" in caplog.text
    assert f"must meet at localhost:{port} within 0 s, and rank {rank} missed {missing};" in str(e.value)


def test_a_rank_that_waits_for_another_says_for_what(monkeypatch, caplog):
    monkeypatch.setattr(distributed, "SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setattr(distributed.dist, "barrier", lambda group: time.sleep(0.2))
    ranks = Ranks()
    ranks.wait("nothing")  # alone
    ranks.rank, ranks.world_size = 1, 2
    ranks.wait("rank 0, which reads the corpus")
    assert caplog.messages == ["rank 1 waits for rank 0, which reads the corpus, for 2 hours at most; Ctrl-C stops it"]


def test_a_node_says_how_many_are_missing_where_and_gives_up(port):
    warned, said = impatient(f"localhost:{port}")
    assert f"WARNING 1 of 2 nodes have come to localhost:{port}" in warned
    assert f"the 2 nodes must meet at `--rdzv-endpoint` (localhost:{port}) within 4 s" in said


def test_a_node_that_finds_nobody_says_whom_it_waits_for(port):
    warned, said = impatient(f"nowhere.invalid:{port}")
    assert f"WARNING waits for nowhere.invalid:{port}, where the same command must run" in warned
    assert f"`--rdzv-endpoint` (nowhere.invalid:{port}) must be answered within 4 s" in said


def test_addresses_of_this_machine_are_known():
    assert _is_here("localhost") and _is_here("127.0.0.1") and not _is_here("192.0.2.1")
    assert _parse_endpoint("a:29500") == ("a", 29500)
    for wrong in ("a", "a:b", ":1", "a:99999", None):
        with pytest.raises(ValueError, match="must be HOST:PORT"):
            _parse_endpoint(wrong)


@pytest.mark.parametrize(
    "visible, found",
    [
        ("0,1", "0,1"),
        (" 0, 1", "0,1"),
        ("0,,1", "0"),
        ("1,-1,0", "1"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("GPU-8932f937-d72c,MIG-GPU-8932/1/0", "GPU-8932f937-d72c,MIG-GPU-8932/1/0"),
    ],
)
def test_gpus_are_those_that_cuda_takes(visible, found, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ",".join(visible_gpus()) == found


def test_a_gpu_that_is_named_twice_is_an_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0")
    with pytest.raises(ValueError, match=re.escape("`CUDA_VISIBLE_DEVICES` (0,0) must name each GPU once")):
        visible_gpus()


@pytest.mark.parametrize("script, found", [("echo No devices were found\nexit 6", []), ("echo 0\necho 1", ["0", "1"])])
def test_nvidia_smi_without_a_gpu_is_no_gpu(tmp_path, monkeypatch, script, found):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == found
