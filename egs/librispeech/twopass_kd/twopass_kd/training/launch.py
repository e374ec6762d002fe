"""Starts the ranks of a training, as torchrun does and by its library.

The program torchrun itself does not start under torch 1.13 with Python 3.11; where it does, it may be used instead.
"""

import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from twopass_kd.training.distributed import SECONDS_OF_SILENCE, SECONDS_TO_MEET, STORE_ERRORS, open_store

STOPPED = 130  # exit status of a rank that has stopped with its state saved


def rank_log(phase_dir: Path, rank: int) -> Path:
    """Where a rank writes its log."""
    return phase_dir / ("train.log" if rank == 0 else f"train-rank{rank}.log")


def launch_ranks(
    module: str, args: Sequence[str], phase_dir: Path, world_size: int, nnodes: int, rdzv_endpoint: str | None
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
    Raises:
      ValueError: the nodes do not meet at `rdzv_endpoint`, or lose it.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said below
    config = LaunchConfig(
        min_nodes=nnodes,
        max_nodes=nnodes,
        nproc_per_node=world_size,
        run_id="twopass_kd",
        # One node needs no other, nor a name by which others would find it.
        rdzv_backend="static" if nnodes == 1 else "c10d",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}" if nnodes == 1 else rdzv_endpoint,
        rdzv_configs={"rank": 0} if nnodes == 1 else {"join_timeout": int(SECONDS_TO_MEET)},
        max_restarts=0,  # the same command goes on from the last checkpoint; an error would only come again
        monitor_interval=0.5,
    )
    with _missing_nodes_told(rdzv_endpoint, nnodes):
        try:
            elastic_launch(config, sys.executable)("-m", module, *args)
        except (RendezvousError, *STORE_ERRORS) as e:
            if nnodes == 1:
                raise
            raise ValueError(
                f"the {nnodes} nodes must meet at `--rdzv-endpoint` ({rdzv_endpoint}) within {SECONDS_TO_MEET:.0f} s,"
                f" and reach it as long as they train ({str(e) or type(e).__name__}); run the same command on each,"
                " with the name and a free port of one"
            ) from e
        except SignalException:
            return STOPPED
        except ChildFailedError as e:
            rank, failure = _cause(e.failures)
            if any(f.exitcode == STOPPED for f in e.failures.values()):
                return STOPPED
            log = rank_log(phase_dir, rank)
            its_log = f"; its log: {log}" if log.is_file() else ""
            logging.error("rank %d %s, so all ranks were stopped%s", rank, _how_it_ended(failure), its_log)
            return 1
    return 0


def _cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first; one killed by a signal where several had ended when they were looked at."""
    return min(failures.items(), key=lambda f: (f[1].exitcode >= 0, f[1].timestamp))


def _how_it_ended(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"failed with exit status {failure.exitcode}"
    hint = " (is there enough memory?)" if failure.exitcode == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-failure.exitcode).name}{hint}"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _parse_endpoint(endpoint: str | None) -> tuple[str, int]:
    host, _, port = (endpoint or "").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"`--rdzv-endpoint` ({endpoint}) must be HOST:PORT, e.g. first-node:29500")
    return host, int(port)


def _wait_for_first_node(host: str, port: int) -> None:
    """Until the node of the rendezvous answers, where that is another one; torch's own wait is silent."""
    begun = said = time.monotonic()
    while not _is_here(host):
        try:
            socket.create_connection((host, port), timeout=SECONDS_OF_SILENCE).close()
            return
        except OSError as e:
            why = e
        now = time.monotonic()
        if now - begun > SECONDS_TO_MEET:
            raise ValueError(
                f"`--rdzv-endpoint` ({host}:{port}) must be answered within {SECONDS_TO_MEET:.0f} s ({why}); run the"
                f" same command on {host}, and see that it can be reached from here"
            )
        if now - said > SECONDS_OF_SILENCE:
            said = now
            logging.warning("waits for %s:%d, where the same command must run (%s); Ctrl-C stops it", host, port, why)
        time.sleep(1)


def _is_here(host: str) -> bool:
    """Whether `host` is an address of this machine: one that a socket can be bound to."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: tuple) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.bind(address)
    except OSError:
        return False
    return True


@contextmanager
def _missing_nodes_told(endpoint: str | None, nnodes: int) -> Iterator[None]:
    """Wait for the first node, then say beside the body, while nodes are missing, how many are there."""
    if nnodes == 1:
        yield
        return
    host, port = _parse_endpoint(endpoint)
    _wait_for_first_node(host, port)
    ended = threading.Event()
    thread = threading.Thread(target=_tell_of_missing_nodes, args=(host, port, nnodes, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell_of_missing_nodes(host: str, port: int, nnodes: int, ended: threading.Event) -> None:
    """Each node counts itself in the store of the rendezvous."""
    store, here = None, 0
    while here < nnodes and not ended.wait(SECONDS_OF_SILENCE if store else 1):
        try:
            if store is None:
                store = open_store(host, port)
                store.add("twopass_kd/nodes", 1)
                continue
            here = store.add("twopass_kd/nodes", 0)
        except STORE_ERRORS:
            continue  # torch says what is wrong, when it gives up
        if here < nnodes:
            logging.warning(
                "%d of %d nodes have come to %s:%d; run the same command on the others (Ctrl-C stops it)",
                *(here, nnodes, host, port),
            )
