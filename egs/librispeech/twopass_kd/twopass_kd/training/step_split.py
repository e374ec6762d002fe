"""How a step of the optimizer is shared among the ranks, and cut into batches that fit into memory."""

import math
import os
from dataclasses import dataclass, replace

import psutil
import torch

from twopass_kd.config.schema import ConfigError, TrainConfig
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.step_cost import StepCost

# Share of a device's whole memory that a training is planned to fill. The rest: the GPU's own context and workspaces,
# and what the allocator loses between its blocks; on a CPU, other programs and data.
USABLE = {"cuda": 0.8, "cpu": 0.5}


@dataclass
class StepSplit:
    """The batches of one step of the optimizer.

    Attributes:
      world_size: ranks.
      accum_grad: batches of each rank.
      max_duration: seconds of audio in one batch.
      needed: bytes that a rank will need, with models and optimizer, as counted in float32.
      memory: bytes that its device has.
    """

    world_size: int
    accum_grad: int
    max_duration: float
    needed: float
    memory: float

    def apply(self, train: TrainConfig) -> TrainConfig:
        """The settings with these batches in them."""
        return replace(train, max_duration=self.max_duration, accum_grad=self.accum_grad)

    @property
    def seconds(self) -> float:
        """Seconds of audio in the step."""
        return self.world_size * self.accum_grad * self.max_duration

    def __str__(self) -> str:
        ranks = f"{self.world_size} ranks" if self.world_size > 1 else "1 rank"
        batches = f"{self.accum_grad} batches" if self.accum_grad > 1 else "1 batch"
        return (
            f"a step of {self.seconds:g} s: {ranks} x {batches} of {self.max_duration:g} s, each about"
            f" {self.needed / 2**30:.3g} of {self.memory / 2**30:.3g} GiB"
        )


def device_memory(device: torch.device) -> float:
    """All bytes of a GPU, or of this machine."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)


def rank_memory(ranks: Ranks) -> float:
    """The bytes that each rank may count on: the smallest over the ranks of its GPU's memory, or its share of a CPU's.

    All of it, not what is free now: so that it is the same for all ranks, and when a training is resumed.
    """
    ranks_here = 1
    if ranks.device.type == "cpu" and ranks.world_size > 1:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))  # torchrun's, of this node
    return ranks.smallest(device_memory(ranks.device) / ranks_here)


def split_step(
    train: TrainConfig, world_size: int, longest: float, cost: StepCost, memory: float, device: str
) -> StepSplit:
    """Cut `train.ref_duration` seconds into as few batches as fit, or take `train.max_duration` where it is given.

    Args:
      longest: seconds of the longest utterance; no batch is shorter. 0: not known.
      cost: of a step of the phase.
      memory: bytes that each rank has (`rank_memory`).
      device: "cuda" | "cpu".
    Raises:
      ConfigError: there is no such cut: too many ranks, or a device that is too small.
    """
    max_duration, accum_grad = train.max_duration, train.accum_grad or 1
    if max_duration is None:
        fits = cost.longest_batch(USABLE[device] * memory, train.precision)
        if fits < longest or fits <= 0:
            needed = cost.total_memory(longest, train.precision) / 2**30
            raise ConfigError(
                f"the longest utterance ({longest:.1f} s) must be of at most {max(0.0, fits):.1f} s: with models and"
                f" optimizer it needs about {needed:.1f} GiB, and a rank has {memory / 2**30:.1f}, not all of it for"
                " this. Lower corpus.max_duration, take smaller models, or a device with more memory"
            )
        accum_grad = _batches(train.ref_duration / world_size, longest, fits)
        if accum_grad == 0:
            raise ConfigError(_why_no_split(train.ref_duration, world_size, longest, fits))
        max_duration = train.ref_duration / world_size / accum_grad
    needed = cost.total_memory(max_duration, train.precision)
    return StepSplit(world_size, accum_grad, max_duration, needed, memory)


def _batches(share: float, longest: float, fits: float) -> int:
    """Into how many equal batches of `longest` to `fits` seconds `share` seconds can be cut, the fewest; 0: none."""
    count = math.ceil(share / fits)
    return count if share / count >= longest else 0


def _why_no_split(ref_duration: float, world_size: int, longest: float, fits: float) -> str:
    most = int(ref_duration / longest)  # `longest` is above 0, or there were a split
    possible = [n for n in range(1, most + 1) if _batches(ref_duration / n, longest, fits)]
    if possible == list(range(1, most + 1)):
        must = f"at most {most}" if possible else "smaller, and is 1 already"
    else:
        must = "another one" + (f", e.g. {possible[-1]}" if possible else "")
    return (
        f"the number of ranks ({world_size}) must be {must}: of the {ref_duration:g} s of a step (`train.ref_duration`)"
        f" each gets {ref_duration / world_size:.1f} s, and a batch must hold the longest utterance"
        f" ({longest:.1f} s) and fit into memory ({fits:.0f} s). Take another number of ranks, raise"
        " `train.ref_duration`, or set `train.max_duration`, for steps of another length with learning rates to match"
    )
