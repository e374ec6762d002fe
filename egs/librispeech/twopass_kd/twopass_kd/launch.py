"""Starts the ranks of a training, as torchrun does and by its library.

The program torchrun itself does not start under torch 1.13 with Python 3.11; where it does, it may be used instead.
"""

import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Optional, Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

STOPPED = 130  # exit status of a rank that has stopped with its state saved


def rank_log(phase_dir: Path, rank: int) -> Path:
    """Where a rank writes its log."""
    return phase_dir / ("train.log" if rank == 0 else f"train-rank{rank}.log")


def launch_ranks(
    module: str, args: Sequence[str], phase_dir: Path, world_size: int, nnodes: int, rdzv_endpoint: Optional[str]
) -> int:
    """Run `python -m module args` as each of this node's ranks until all have ended.

    When one dies, the others are stopped: within seconds, or after 30 where they do not react.

    Args:
      phase_dir: where the ranks write their logs.
      world_size: ranks on this node; with several nodes, each has as many.
      nnodes: nodes that take part; this is called on each of them.
      rdzv_endpoint: "host:port" of one node, where they find each other; None for a single node.
    Returns:
      0, 1 after naming the rank that failed first, or 130: stopped by a signal.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said below
    config = LaunchConfig(
        min_nodes=nnodes,
        max_nodes=nnodes,
        nproc_per_node=world_size,
        run_id="twopass_kd",
        rdzv_backend="c10d",
        rdzv_endpoint=rdzv_endpoint or f"localhost:{_free_port()}",
        max_restarts=0,  # the same command goes on from the last checkpoint; an error would only come again
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *args)
    except SignalException:
        return STOPPED
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        if any(f.exitcode == STOPPED for f in e.failures.values()):
            return STOPPED
        log = rank_log(phase_dir, rank)
        logging.error("rank %d %s, so all ranks were stopped; its log: %s", rank, _how_it_ended(failure), log)
        return 1
    return 0


def _how_it_ended(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"failed with exit status {failure.exitcode}"
    hint = " (is there enough memory?)" if failure.exitcode == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-failure.exitcode).name}{hint}"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
