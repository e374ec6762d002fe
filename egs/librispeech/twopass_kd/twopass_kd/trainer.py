"""One training loop for every phase. It minimises whatever `Objective` it is given, and survives interruption.

Every random draw of a step (dropout, SpecAugment) comes from a seed made of the run's seed and the step's number, and
the order of the batches from the seed and the epoch. So a run that is stopped and resumed at any step ends with the
same parameters, bit for bit, as one that was not.
"""

import json
import logging
import math
import os
import random
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

import numpy as np
import torch
from lhotse.dataset import SpecAugment
from torch import nn
from torch.optim import AdamW
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from twopass_kd.asr_datamodule import Batch
from twopass_kd.checkpoint import (
    average_checkpoints,
    epoch_paths,
    find_latest,
    remove_old,
    save_checkpoint,
    weights_digest,
)
from twopass_kd.config import PhaseConfig, TrainConfig
from twopass_kd.files import write_text_atomically
from twopass_kd.objective import Losses, Objective

# What of a trainer's state is saved in each checkpoint, beside model and optimizer.
PROGRESS = ("epoch", "batch", "step", "consumed", "train_seconds", "best_valid", "best_epoch")


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state was saved."""


@dataclass
class Data:
    """What a trainer needs of the data.

    Attributes:
      train_loader: (epoch from 1, batches to skip) -> the epoch's batches in its one order.
      valid_loader: () -> the dev batches.
      train_seconds: seconds of audio in one epoch, by which progress is measured.
    """

    train_loader: Callable[[int, int], Iterable[Batch]]
    valid_loader: Callable[[], Iterable[Batch]]
    train_seconds: float


class Means:
    """Sums of loss terms and frames; gives means per frame."""

    def __init__(self) -> None:
        self.sums: Dict[str, float] = defaultdict(float)
        self.frames = 0

    def add(self, losses: Losses) -> None:
        for name, value in losses.terms.items():
            self.sums[name] += float(value.detach().sum())
        self.sums["loss"] += float(losses.total.detach().sum())
        self.frames += losses.num_frames

    def result(self) -> Dict[str, Any]:
        means = {name: value / max(1, self.frames) for name, value in self.sums.items()}
        return {"loss": means.pop("loss", 0.0), "terms": means}


def learning_rate(progress: float, base_lr: float, warmup_fraction: float) -> float:
    """Linear warm-up, then linear decay to zero; `progress` in [0, 1] is the share of all audio seen."""
    if progress < warmup_fraction:
        return base_lr * progress / warmup_fraction
    return base_lr * max(0.0, 1 - progress) / max(1e-8, 1 - warmup_fraction)


class Trainer:
    """Trains one phase and leaves `epoch-N.pt`, `best-valid-loss.pt`, `final.pt`, `metrics.jsonl`, `tensorboard/`.

    Args:
      model: its parameters with `requires_grad` learn; modules without any stay in eval mode.
      objective: gives the loss terms of a batch.
      phase, train: settings of this phase, and those shared by all.
      exp_dir: where the files go.
      seed: of the batch order and all random draws.
      metadata: entries copied into every checkpoint (config, phase, tokens_digest, ...).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        phase: PhaseConfig,
        train: TrainConfig,
        exp_dir: Path,
        seed: int,
        metadata: Dict[str, Any],
    ) -> None:
        self.model = model
        self.objective = objective
        self.phase = phase
        self.cfg = train
        self.exp_dir = Path(exp_dir)
        self.seed = seed
        self.metadata = metadata
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = AdamW(
            self.parameters, lr=phase.base_lr, betas=tuple(train.betas), weight_decay=train.weight_decay
        )
        self.spec_augment = (
            SpecAugment(num_frame_masks=2, max_frames_mask_fraction=0.15) if phase.spec_augment else None
        )
        self.epoch = 1  # the epoch that is being trained
        self.batch = 0  # batches of it that are done
        self.step = 0
        self.consumed = 0.0  # seconds of audio seen
        self.train_seconds = 0.0  # wall time spent, over all resumptions
        self.best_valid = float("inf")
        self.best_epoch = 0
        self._stop_signal: Optional[int] = None

    def run(self, data: Data) -> Path:
        """Train from the newest checkpoint in `exp_dir`, or from the start, to the end of the phase.

        Returns:
          The path of `final.pt`: the average of the last epochs, without optimizer state.
        Raises:
          Interrupted: after SIGINT or SIGTERM, once the state is saved.
          FloatingPointError: if a loss is not finite, with the utterances of the batch.
          CheckpointError: if a checkpoint cannot be written.
        """
        self._resume()
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self.writer = SummaryWriter(str(self.exp_dir / "tensorboard"), purge_step=self.step)
        bar = tqdm(
            total=math.ceil(data.train_seconds * self.phase.num_epochs),
            initial=round(self.consumed),
            unit="s",
            unit_scale=True,
            desc=self.metadata["phase"],
            disable=not sys.stderr.isatty(),
        )
        try:
            while self.epoch <= self.phase.num_epochs:
                self._train_epoch(data, bar)
                self._validate(data)
                self.epoch, self.batch = self.epoch + 1, 0
                self._save(self.exp_dir / f"epoch-{self.epoch - 1}.pt")
                self._keep_best(self.epoch - 1)
        finally:
            bar.close()
            self.writer.close()
            for s, handler in handlers.items():
                signal.signal(s, handler)
        return self._finish()

    def _train_epoch(self, data: Data, bar: tqdm) -> None:
        self._set_train_mode()
        means, clock = Means(), time.perf_counter()
        total_seconds = data.train_seconds * self.phase.num_epochs
        for batch in data.train_loader(self.epoch, self.batch):
            fix_random_seed(self.seed, self.step)
            batch = batch.to(self.device)
            if self.spec_augment is not None:
                self._augment(batch)
            lr = learning_rate(
                (self.consumed + batch.duration) / total_seconds, self.phase.base_lr, self.cfg.warmup_fraction
            )
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            losses = self._step(batch)
            self.step, self.batch = self.step + 1, self.batch + 1
            self.consumed += batch.duration
            means.add(losses)
            bar.update(batch.duration)
            now = time.perf_counter()
            self.train_seconds, clock = self.train_seconds + now - clock, now
            if self.step % self.cfg.log_interval == 0:
                self._log("train", means.result(), lr)
                means = Means()
            if self._stop_signal is not None:
                self._save(self.exp_dir / f"checkpoint-{self.step}.pt")
                raise Interrupted(
                    f"stopped by {signal.Signals(self._stop_signal).name}; state saved at step {self.step}"
                )
            if self.step % self.cfg.save_every_n == 0:
                self._save(self.exp_dir / f"checkpoint-{self.step}.pt")
                remove_old(self.exp_dir, self.cfg.keep_last_k)

    def _augment(self, batch: Batch) -> None:
        """SpecAugment on each utterance's own frames: warping time across padding would push speech out of it."""
        lens = batch.feature_lens
        segments = torch.stack([torch.arange(len(lens), device=lens.device), torch.zeros_like(lens), lens], dim=1)
        batch.feature = self.spec_augment(batch.feature, segments.int())

    def _step(self, batch: Batch) -> Losses:
        losses = self.objective(batch)
        loss = losses.total.sum() / losses.num_frames
        if not torch.isfinite(loss):
            bad = [cut for cut, value in zip(batch.cut_ids, losses.total.tolist()) if not np.isfinite(value)]
            terms = {name: float(value.sum()) for name, value in losses.terms.items()}
            raise FloatingPointError(
                f"the loss is not finite at step {self.step} (terms {terms}) for the utterances {bad}; "
                "look at their audio and text, or lower the phase's base_lr"
            )
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite at step {self.step}, batch {batch.cut_ids}; lower the phase's base_lr"
            )
        self.optimizer.step()
        return losses

    @torch.no_grad()
    def _validate(self, data: Data) -> None:
        self.model.eval()
        means = Means()
        for batch in data.valid_loader():
            means.add(self.objective(batch.to(self.device)))
        result = means.result()
        self._log("valid", result, self.optimizer.param_groups[0]["lr"])
        if result["loss"] < self.best_valid:
            self.best_valid, self.best_epoch = result["loss"], self.epoch

    def _set_train_mode(self) -> None:
        """Only modules that learn are in train mode: a frozen part has no dropout."""
        self.model.train()
        for module in self.model.children():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def _state(self) -> Dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"base_lr": self.phase.base_lr, "consumed": self.consumed},
            "sampler": {"epoch": self.epoch, "batch": self.batch},
            "grad_scaler": None,
            **{name: getattr(self, name) for name in PROGRESS},
            **self.metadata,
        }

    def _save(self, path: Path) -> None:
        save_checkpoint(self._state(), path)

    def _resume(self) -> None:
        found = find_latest(self.exp_dir)
        if found is None:
            (self.exp_dir / "metrics.jsonl").unlink(missing_ok=True)
            return
        path, content = found
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name in PROGRESS:
            setattr(self, name, content[name])
        self._keep_best(self.best_epoch)  # in case that the run was killed before it could
        self._drop_metrics_after(self.step)
        logging.info("resuming from %s: epoch %d, step %d", path, self.epoch, self.step)

    def _drop_metrics_after(self, step: int) -> None:
        path = self.exp_dir / "metrics.jsonl"
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text_atomically(path, "".join(line + "\n" for line in lines))

    def _keep_best(self, epoch: int) -> None:
        """`best-valid-loss.pt` is the checkpoint of `epoch`, if that is the best one so far."""
        source, target = self.exp_dir / f"epoch-{epoch}.pt", self.exp_dir / "best-valid-loss.pt"
        if epoch == self.best_epoch and source.is_file():
            temporary = target.with_suffix(".tmp")
            temporary.unlink(missing_ok=True)
            os.link(source, temporary)  # takes no space
            temporary.replace(target)

    def _finish(self) -> Path:
        paths = epoch_paths(self.exp_dir, self.phase.num_epochs, self.phase.average)
        final = self.exp_dir / "final.pt"
        content = {
            "model": average_checkpoints(paths),
            "step": self.step,
            "averaged": [path.name for path in paths],
            **self.metadata,
        }
        content["weights_digest"] = weights_digest(content["model"])
        content["train_seconds"] = self.train_seconds + self.metadata["train_seconds_before"]
        write_text_atomically(self.exp_dir / "identity", content["identity"] + "\n")
        save_checkpoint(content, final)
        remove_old(self.exp_dir, 0)
        logging.info("%s: average of %s, %d steps, %.0f s", final, content["averaged"], self.step, self.train_seconds)
        return final

    def _log(self, split: str, result: Dict[str, Any], lr: float) -> None:
        record = {
            "split": split,
            "epoch": self.epoch,
            "step": self.step,
            "lr": lr,
            "seconds": round(self.train_seconds, 2),
            **result,
        }
        with open(self.exp_dir / "metrics.jsonl", "a") as f:
            f.write(json.dumps(record) + "\n")
        self.writer.add_scalar(f"{split}/loss", result["loss"], self.step)
        for name, value in result["terms"].items():
            self.writer.add_scalar(f"{split}/{name}", value, self.step)
        self.writer.add_scalar("train/learning_rate", lr, self.step)
        terms = ", ".join(f"{name} {value:.4f}" for name, value in result["terms"].items())
        logging.info(
            "%s epoch %d step %d: loss %.4f (%s), lr %.2e, %.0f s",
            *(split, self.epoch, self.step, result["loss"], terms, lr, self.train_seconds),
        )

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._stop_signal is not None:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self._stop_signal = number


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for a line that a crash cut short."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def fix_random_seed(seed: int, step: int) -> None:
    """Seed python, numpy and torch for one step."""
    value = (seed * 1_000_003 + step) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def freeze_all_but(model: nn.Module, parts: Dict[str, List[nn.Module]], train: List[str]) -> None:
    """Only the parts named in `train` require gradients."""
    model.requires_grad_(False)
    for name in train:
        for module in parts[name]:
            module.requires_grad_(True)
