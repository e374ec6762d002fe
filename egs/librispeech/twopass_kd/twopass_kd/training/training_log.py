"""What a training says of itself: `metrics.jsonl`, tensorboard, log lines and, on a terminal, a progress bar."""

import json
import logging
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from twopass_kd.config.environment import command_line, describe_environment
from twopass_kd.files.write import write_text_atomically
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Losses


class Means:
    """Sums of loss terms and frames over batches; gives means per frame over all ranks."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.frames: int | Tensor = 0

    def add(self, losses: Losses) -> None:
        """Keeps the sums where the losses are, in float64: reading them would make a GPU wait."""
        for name, value in {**losses.terms, "loss": losses.total}.items():
            total = value.detach().sum().double()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.frames = self.frames + losses.num_frames

    def result(self, ranks: Ranks, names: list[str]) -> dict[str, Any]:
        """`{"loss": mean, "terms": {name: mean}}`; every rank must call it, with the same `names` of terms."""
        sums = [float(self.sums.get(name, 0.0)) for name in ["loss", *names]]
        *sums, frames = ranks.sum([*sums, float(self.frames)])
        loss, *terms = (value / max(1, frames) for value in sums)
        return {"loss": loss, "terms": dict(zip(names, terms))}


class TrainingLog:
    """Writes what rank 0 reports; on the other ranks it does nothing.

    Args:
      exp_dir: where `metrics.jsonl` and `tensorboard/` go.
      name: of the phase, before the progress bar.
      total: seconds of audio in the whole phase.
    """

    def __init__(self, exp_dir: Path, name: str, total: float, ranks: Ranks) -> None:
        self.exp_dir = exp_dir
        self.name = name
        self.total = total
        self.active = ranks.is_main

    def open(self, epoch: int, step: int, consumed: float, texts: dict[str, Any]) -> None:
        """Start in `epoch` after `step` steps; what an earlier run reported of later ones is dropped.

        Args:
          consumed: seconds of audio seen so far.
          texts: shown in tensorboard, as YAML.
        """
        if not self.active:
            return
        self._drop_metrics_after(epoch, step)
        self.writer = SummaryWriter(str(self.exp_dir / "tensorboard"), purge_step=step)
        for title, content in texts.items():
            text = yaml.safe_dump(content, sort_keys=False)
            self.writer.add_text(title, "".join(f"    {line}\n" for line in text.splitlines()), step)
        self.bar = tqdm(
            total=math.ceil(self.total),
            initial=round(consumed),
            unit="s",
            unit_scale=True,
            desc=self.name,
        )

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self.writer.close()

    def advance(self, seconds: float) -> None:
        """`seconds` of audio more have been trained on."""
        if self.active:
            self.bar.update(seconds)

    def report(
        self,
        split: str,
        epoch: int,
        step: int,
        result: dict[str, Any],
        lr: float,
        seconds: float,
        consumed: float,
        scalars: dict[str, float],
    ) -> None:
        """Tell the means of `split` (train | valid) at `step`.

        Args:
          result: of `Means.result`.
          seconds: of training so far.
          consumed: seconds of audio seen so far.
          scalars: more numbers to keep.
        """
        if not self.active:
            return
        times = {"seconds": round(seconds, 2), "audio_seconds": round(consumed, 2)}
        record = {"split": split, "epoch": epoch, "step": step, "lr": lr, **times, **result, **scalars}
        with open(self.exp_dir / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        for name, value in {"loss": result["loss"], **result["terms"], **scalars}.items():
            self.writer.add_scalar(f"{split}/{name}", value, step)
        self.writer.add_scalar("train/learning_rate", lr, step)
        left = timedelta(seconds=round(seconds * max(0.0, self.total / consumed - 1)))
        terms = ", ".join(f"{name} {value:.4f}" for name, value in result["terms"].items())
        logging.info(
            "%s epoch %d step %d: loss %.4f (%s), lr %.2e, %.0f s, %s left",
            *(split, epoch, step, result["loss"], terms, lr, seconds, left),
        )

    def _drop_metrics_after(self, epoch: int, step: int) -> None:
        path = self.exp_dir / "metrics.jsonl"
        if step == 0:
            path.unlink(missing_ok=True)
        elif path.is_file():
            lines = [line for line in path.read_text("utf-8", "replace").split("\n") if _is_before(line, epoch, step)]
            write_text_atomically(path, "".join(line + "\n" for line in lines))


def _is_before(line: str, epoch: int, step: int) -> bool:
    """Whether a line of metrics.jsonl tells of what a run at `step` in `epoch` has done; not so one cut short."""
    try:
        record = json.loads(line)
        return record["step"] <= step and (record["split"] == "train" or record["epoch"] < epoch)
    except (ValueError, KeyError, TypeError):
        return False


def environment_record(world_size: int) -> dict[str, Any]:
    """`describe_environment`, and how and on what GPU a training runs; saved with its checkpoints."""
    gpu = None
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return {
        **describe_environment(),
        "gpu": gpu,
        "world_size": world_size,
        "command": command_line(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
