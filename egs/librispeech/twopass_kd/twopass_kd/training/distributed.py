"""The ranks of a training: torchrun starts one process for each, which share every step of it.

All ranks do the same steps; each has its own batches, and their gradients are added up. What is decided once (where to
resume, what to write) rank 0 decides.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

TIMEOUT = timedelta(hours=2)  # rank 0 may read a large corpus or write to a slow disk meanwhile
_FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STORE_ERRORS = (RuntimeError, OSError, MemoryError)  # torch's; the last one if something else answers at the address
SECONDS_TO_MEET = 600.0  # that ranks and nodes may start after each other
SECONDS_OF_SILENCE = 20.0  # after which one that waits for others says so


def started_by_torchrun() -> bool:
    """Whether torchrun or our launcher started this process; RANK and WORLD_SIZE alone may be a cluster's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Ranks:
    """This process's rank, its device, and what the ranks agree on. One process alone is rank 0 of 1.

    Attributes:
      rank: from 0, over all nodes.
      world_size: number of ranks.
      device: where this rank computes: GPU `LOCAL_RANK` of its node, or the CPU.
    """

    def __init__(self) -> None:
        self.rank = 0
        self.world_size = 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._group: dist.ProcessGroup | None = None

    @classmethod
    def from_torchrun(cls) -> "Ranks":
        """Join the ranks that torchrun started, by its environment variables; one rank alone where it started none.

        Raises:
          ValueError: a node has fewer GPUs than ranks, or the ranks do not meet.
        """
        ranks = cls()
        if not started_by_torchrun() or os.environ.get("WORLD_SIZE") == "1":
            return ranks
        missing = [name for name in _FROM_TORCHRUN if not os.environ.get(name)]
        if missing:
            raise ValueError(f"`{missing[0]}` must be in the environment beside TORCHELASTIC_RUN_ID; unset that")
        ranks.world_size = int(os.environ["WORLD_SIZE"])
        logging.getLogger("torch.distributed.distributed_c10d").setLevel(logging.WARNING)  # tells of its keys
        ranks.rank = int(os.environ["RANK"])
        if ranks.device.type == "cuda":
            local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local_rank >= num_gpus:
                raise ValueError(
                    f"`--world-size` must be at most the number of GPUs of a node ({num_gpus}), since rank"
                    f" {ranks.rank} finds none for it"
                )
            ranks.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(ranks.device)
        store = _meet(ranks.rank, ranks.world_size)
        dist.init_process_group(
            "nccl" if ranks.device.type == "cuda" else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=TIMEOUT,
        )
        # Of its own and on the CPU: what the ranks tell each other must not wait for the GPU's queue.
        ranks._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return ranks

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of `values` over all ranks, in float64; every rank must call it."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return tensor.tolist()

    def smallest(self, value: float) -> float:
        """The smallest `value` of all ranks; every rank must call it."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=self._group)
        return tensor.item()

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; all must call it."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def wait(self, what: str = "every rank to be here") -> None:
        """Until every rank is here; `what` is what a rank says that it waits for, where it takes long."""
        if self.world_size > 1:
            with _told(f"rank {self.rank} waits for {what}"):
                dist.barrier(group=self._group)

    def leave(self) -> None:
        """The end of this rank's part, after which it must not call anything here."""
        if self.world_size > 1:
            dist.destroy_process_group()


def _meet(rank: int, world_size: int) -> dist.Store:
    """The store that all ranks share, when all of them are there.

    As torch's `env://` has it: the launcher's, or one of rank 0's at the same address.

    Raises:
      ValueError: they are not all there within SECONDS_TO_MEET.
    """
    host, port, attempt = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "TORCHELASTIC_RESTART_COUNT"
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    begun = said = time.monotonic()
    store, here, why = None, 0, ""
    while here < world_size:
        try:
            if store is None:
                tcp = open_store(host, port, is_master)
                store = dist.PrefixStore(f"twopass_kd/{os.environ.get(attempt, 0)}", tcp)
                store.add("here", 1)
            here = store.add("here", 0)
        except STORE_ERRORS as e:
            store, why = None, f" ({str(e).splitlines()[0]})"
            if is_master:
                raise ValueError(f"rank 0 must be able to listen at {host}:{port}{why}; free that port") from e
        now = time.monotonic()
        missing = f"{world_size - here} of {world_size}{why if store is None else ''}"
        if now - begun > SECONDS_TO_MEET:
            raise ValueError(
                f"the ranks must meet at {host}:{port} within {SECONDS_TO_MEET:.0f} s, and rank {rank} missed"
                f" {missing}; see the logs of the others, and whether that address can be reached from every node"
            )
        if now - said > SECONDS_OF_SILENCE and here < world_size:
            said = now
            logging.warning("rank %d waits at %s:%d for %s ranks; Ctrl-C stops it", rank, host, port, missing)
        time.sleep(0 if here >= world_size else 0.1)
    store.set_timeout(TIMEOUT)
    return store


def open_store(host: str, port: int, is_master: bool = False) -> dist.TCPStore:
    """The store at an address, which this process makes there (`is_master`) or finds; returns or raises in seconds.

    Raises:
      STORE_ERRORS: nothing, or something else, answers there.
    """
    if not is_master:  # torch's own tries would keep signals and other threads waiting
        socket.create_connection((host, port), timeout=5).close()
    return dist.TCPStore(host, port, None, is_master, timedelta(seconds=5), wait_for_workers=False)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Warn of `what` where the body takes longer than SECONDS_OF_SILENCE."""
    text = f"{what}, for {TIMEOUT.total_seconds() / 3600:g} hours at most; Ctrl-C stops it"
    timer = threading.Timer(SECONDS_OF_SILENCE, logging.warning, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
