"""The ranks of a training: torchrun starts one process for each, which share every step of it.

All ranks do the same steps; each has its own batches, and their gradients are added up. What is decided once (where to
resume, what to write) rank 0 decides.
"""

import logging
import os
from datetime import timedelta
from typing import Any, List, Optional, Sequence

import torch
from torch import distributed as dist

TIMEOUT = timedelta(hours=2)  # rank 0 may read a large corpus or write to a slow disk meanwhile


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
        self._group: Optional[dist.ProcessGroup] = None

    @classmethod
    def from_torchrun(cls) -> "Ranks":
        """Join the ranks that torchrun started, by its environment variables; without them, one rank alone.

        Raises:
          ValueError: a node has fewer GPUs than ranks.
        """
        ranks = cls()
        ranks.world_size = int(os.environ.get("WORLD_SIZE", 1))
        if ranks.world_size == 1:
            return ranks
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
        dist.init_process_group("nccl" if ranks.device.type == "cuda" else "gloo", timeout=TIMEOUT)
        # Of its own and on the CPU: what the ranks tell each other must not wait for the GPU's queue.
        ranks._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return ranks

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> List[float]:
        """The sums of `values` over all ranks, in float64; every rank must call it."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return tensor.tolist()

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; all must call it."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self._group)

    def leave(self) -> None:
        """The end of this rank's part, after which it must not call anything here."""
        if self.world_size > 1:
            dist.destroy_process_group()
