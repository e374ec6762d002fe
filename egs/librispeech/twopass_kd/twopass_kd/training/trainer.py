"""One training loop for every phase. It minimises whatever `Objective` it is given, and survives interruption.

Every random draw of a step (dropout) comes from a seed made of the run's seed, the step's number and the rank; what
augments an utterance from the seed, the epoch and the utterance; the order of the batches from the seed and the epoch.
So a run that is stopped and resumed at any step ends with the same parameters, bit for bit, as one that was not (on
CPUs, with the same number of ranks).
"""

import logging
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from twopass_kd.config.schema import PhaseConfig, TrainConfig
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.files.write import write_text_atomically
from twopass_kd.losses.precision import autocast
from twopass_kd.models.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from twopass_kd.models.encoder import num_output_frames
from twopass_kd.training.checkpoint_files import find_latest, remove_old
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.gpu_memory import scan_largest_batches
from twopass_kd.training.identity import changed_settings
from twopass_kd.training.objective import Objective
from twopass_kd.training.optimizer_step import OptimizerStep
from twopass_kd.training.schedules import learning_rate, loss_scales
from twopass_kd.training.training_log import Means, TrainingLog


@dataclass
class Progress:
    """How far a training is; saved in each checkpoint under these names, beside model and optimizer.

    Attributes:
      epoch: the epoch that is being trained.
      batch: batches of it that each rank has done.
      consumed: seconds of audio seen by all ranks.
      train_seconds: wall time spent, over all resumptions.
      left_out: utterances of all ranks whose loss was not finite, and which taught nothing therefore.
      best_valid: the lowest dev loss, of `best_epoch`; 0 before the first epoch's end.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    consumed: float = 0.0
    train_seconds: float = 0.0
    left_out: int = 0
    best_valid: float = math.inf
    best_epoch: int = 0


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state was saved."""


@dataclass
class Data:
    """What a trainer needs of the data.

    Attributes:
      train_loader: (epoch from 1, batches to skip) -> the epoch's batches in its one order.
      valid_loader: () -> the dev batches.
      train_seconds: seconds of audio in one epoch, by which progress is measured.
      largest_batches: the batches that take the most memory, tried first on a GPU.
    """

    train_loader: Callable[[int, int], Iterable[Batch]]
    valid_loader: Callable[[], Iterable[Batch]]
    train_seconds: float
    largest_batches: list[Batch] = field(default_factory=list)


class Trainer:
    """Trains one phase and leaves `epoch-N.pt`, `best-valid-loss.pt`, `final.pt`, `metrics.jsonl`, `tensorboard/`.

    Args:
      model: on the device of `ranks`; its parameters with `requires_grad` learn; modules without any stay in eval mode.
      objective: gives the loss terms of a batch.
      phase, train: settings of this phase, and those shared by all.
      exp_dir: where the files go; all ranks must see it.
      seed: of the batch order and all random draws.
      metadata: entries copied into every checkpoint (config, phase, tokens_digest, environment, ...).
      ranks: among which each step is shared; rank 0 writes.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        phase: PhaseConfig,
        train: TrainConfig,
        exp_dir: Path,
        seed: int,
        metadata: dict[str, Any],
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.objective = objective
        self.phase = phase
        self.cfg = train
        self.exp_dir = Path(exp_dir)
        self.seed = seed
        self.metadata = metadata
        self.ranks = ranks
        self.optimizer = AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=phase.base_lr,
            betas=tuple(train.betas),
            weight_decay=train.weight_decay,
            **in_one_kernel(ranks.device),
        )
        self.optimizer_step = OptimizerStep(model, objective, self.optimizer, train, ranks)
        self.averaged = AveragedModel(model) if phase.average > 0 else None
        self.progress = Progress()
        self.changes: list[dict[str, Any]] = []
        self._stop_signal: int | None = None
        self._stopped_at = 0.0

    def run(self, data: Data) -> Path:
        """Train from the newest checkpoint in `exp_dir`, or from the start, to the end of the phase.

        Returns:
          The path of `final.pt`: the last parameters or their running mean, without optimizer state.
        Raises:
          Interrupted: after SIGINT or SIGTERM to any rank, once the state is saved; from then on both are ignored.
          FloatingPointError: if losses are not finite in too many steps one after the other; names the utterances.
          OutOfMemory: if a batch does not fit, with its utterances.
          CheckpointError: if a checkpoint cannot be written.
        """
        self._resume()
        if self.ranks.device.type == "cuda":
            self._set_train_mode()
            scan_largest_batches(self.optimizer_step, data.largest_batches)
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        total = data.train_seconds * self.phase.num_epochs
        self.log = TrainingLog(self.exp_dir, self.metadata["phase"], total, self.ranks)
        self.log.open(
            self.progress.epoch,
            self.progress.step,
            self.progress.consumed,
            {k: self.metadata[k] for k in ("config", "environment")},
        )
        try:
            while self.progress.epoch <= self.phase.num_epochs:
                self._train_epoch(data)
                self._validate(data)
                self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
                self._save(self.exp_dir / f"epoch-{self.progress.epoch - 1}.pt")
                self._keep_best(self.progress.epoch - 1)
                self._remove_old(self.cfg.keep_last_k)
        finally:
            self.log.close()
            if self._stop_signal is None:  # else the process ends: a signal passed on twice must not hide what it says
                for s, handler in handlers.items():
                    signal.signal(s, handler)
        return self._finish()

    def _train_epoch(self, data: Data) -> None:
        self._set_train_mode()
        means, clock, logged = Means(), time.perf_counter(), (self.progress.train_seconds, self.progress.consumed)
        total_seconds = data.train_seconds * self.phase.num_epochs
        averaged_from = data.train_seconds * (self.phase.num_epochs - self.phase.average)
        for batches in _groups(data.train_loader(self.progress.epoch, self.progress.batch), self.cfg.accum_grad):
            num_frames, duration, stop = self.ranks.sum(
                [
                    sum(self._num_frames(batch) for batch in batches),
                    sum(batch.duration for batch in batches),
                    float(self._stop_signal is not None),
                ]
            )
            fix_random_seed(self.seed, self.progress.step, self.ranks.rank)
            batches = [batch.to(self.ranks.device) for batch in batches]
            lr = learning_rate(
                (self.progress.consumed + duration) / total_seconds, self.phase.base_lr, self.cfg.warmup_fraction
            )
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.objective.scales = self._loss_scales(self.progress.step)
            is_warm = self.phase.init_from is not None or self.progress.step >= self.cfg.warm_step
            self.objective.delay_penalty = self.objective.loss.delay_penalty if is_warm else 0.0
            for losses in self.optimizer_step(batches, num_frames, self.progress.step):
                means.add(losses)
            self.progress.step, self.progress.batch = self.progress.step + 1, self.progress.batch + len(batches)
            self.progress.left_out += self.optimizer_step.left_out
            self.progress.consumed += duration
            if self.averaged is not None and self.progress.consumed > averaged_from:
                self.averaged.update_parameters(self.model)
            self.log.advance(duration)
            now = time.perf_counter()
            self.progress.train_seconds, clock = self.progress.train_seconds + now - clock, now
            if self.progress.step % self.cfg.log_interval == 0:
                seconds, consumed = self.progress.train_seconds - logged[0], self.progress.consumed - logged[1]
                self._report("train", means, lr, audio_seconds_per_second=consumed / seconds)
                means, logged = Means(), (self.progress.train_seconds, self.progress.consumed)
            if stop:
                self._stop()
            if self.progress.step % self.cfg.save_every_n == 0:
                self._save(self.exp_dir / f"checkpoint-{self.progress.step}.pt")
                self._remove_old(self.cfg.keep_last_k)

    def _num_frames(self, batch: Batch) -> int:
        """Encoder frames of a batch: known before the encoder runs, since all ranks divide by their sum."""
        return int(num_output_frames(batch.feature_lens, self.model.encoder.subsampling_factor).sum())

    def _loss_scales(self, step: int) -> dict[str, float]:
        scales = {term: scale for term, scale in self.phase.loss_scales.items() if scale != 0}
        return loss_scales(step, self.phase.start_scales, scales, self.cfg.warm_step)

    @torch.no_grad()
    def _validate(self, data: Data) -> None:
        self.model.eval()
        means = Means()
        # So that epochs can be compared, and models with and without the penalty.
        self.objective.scales, self.objective.delay_penalty = self._loss_scales(self.cfg.warm_step), 0.0
        for batch in data.valid_loader():
            with autocast(self.ranks.device, self.cfg.precision):
                means.add(self.objective(batch.to(self.ranks.device)))
            if self._stop_signal is not None:
                break
        if self.ranks.sum([float(self._stop_signal is not None)])[0]:
            self._stop()  # the epoch's training is done and saved; validation is done again
        result = self._report("valid", means, self.optimizer.param_groups[0]["lr"])
        if result["loss"] < self.progress.best_valid:
            self.progress.best_valid, self.progress.best_epoch = result["loss"], self.progress.epoch

    def _report(self, split: str, means: Means, lr: float, **scalars: float) -> dict[str, Any]:
        result = means.result(self.ranks, list(self.objective.scales))
        if split == "train":
            scalars["grad_norm"] = self.optimizer_step.grad_norm
            scalars["percent_clipped"] = self.optimizer_step.percent_clipped()
            scalars["left_out"] = self.progress.left_out
            if self.ranks.device.type == "cuda":
                scalars["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.ranks.device) / 2**30
        self.log.report(
            split,
            self.progress.epoch,
            self.progress.step,
            result,
            lr,
            self.progress.train_seconds,
            self.progress.consumed,
            scalars,
        )
        return result

    def _set_train_mode(self) -> None:
        """Only modules that learn are in train mode: a frozen part has no dropout."""
        self.model.train()
        for module in self.model.children():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def _stop(self) -> None:
        self._save(self.exp_dir / f"checkpoint-{self.progress.step}.pt")
        self.ranks.wait()  # the launcher stops all ranks as soon as one has ended: not before rank 0 has saved
        name = "a signal to another rank" if self._stop_signal is None else signal.Signals(self._stop_signal).name
        self._stop_signal, self._stopped_at = self._stop_signal or signal.SIGTERM, math.inf  # nothing to wait for
        raise Interrupted(f"stopped by {name}; state saved at step {self.progress.step}")

    def _save(self, path: Path) -> None:
        if not self.ranks.is_main:
            return
        scaler = self.optimizer_step.scaler
        save_checkpoint(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": {"base_lr": self.phase.base_lr, "consumed": self.progress.consumed},
                "sampler": {
                    "epoch": self.progress.epoch,
                    "batch": self.progress.batch,
                    "world_size": self.ranks.world_size,
                    "max_duration": self.cfg.max_duration,
                },
                "grad_scaler": scaler.state_dict() if scaler.is_enabled() else None,
                "grad_norms": list(self.optimizer_step.norms),
                "averaged": None if self.averaged is None else self.averaged.state_dict(),
                "changes": self.changes,
                **asdict(self.progress),
                **self.metadata,
            },
            path,
        )

    def _resume(self) -> None:
        found = None
        if self.ranks.is_main:
            for left in self.exp_dir.glob("*.pt.tmp"):  # of a process that was killed
                left.unlink()
            found = find_latest(self.exp_dir)
        path = self.ranks.from_main(None if found is None else found[0])
        if path is None:
            return
        content = found[1] if found is not None else load_checkpoint(path)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["grad_scaler"] is not None:
            self.optimizer_step.scaler.load_state_dict(content["grad_scaler"])
        self.optimizer_step.norms.extend(content["grad_norms"])
        if self.averaged is not None:
            self.averaged.load_state_dict(content["averaged"])
        self.progress = Progress(**{f.name: content[f.name] for f in fields(Progress)})
        configs = content["config"], self.metadata["config"]
        changes = changed_settings(*configs, self.metadata["phase"], self.progress.step)
        self.changes = [*content["changes"], *changes]
        for change in changes:
            logging.warning("from step %(step)d on, `%(key)s` is %(now)s; it was %(before)s", change)
        before = content["sampler"]["world_size"], content["sampler"]["max_duration"]
        now = self.ranks.world_size, self.cfg.max_duration
        if before != now:
            self.progress.batch = int(self.progress.batch * before[0] * before[1] / (now[0] * now[1]))
            logging.warning("%d ranks with batches of %g s before, now %d with %g s: goes on at about the same place in"
                            " the epoch, with other batches", *before, *now)  # fmt: skip
        self._keep_best(self.progress.best_epoch)  # in case that the run was killed before it could
        logging.info("resuming from %s: epoch %d, step %d", path, self.progress.epoch, self.progress.step)

    def _keep_best(self, epoch: int) -> None:
        """`best-valid-loss.pt` is the checkpoint of `epoch`, if that is the best one so far."""
        source, target = self.exp_dir / f"epoch-{epoch}.pt", self.exp_dir / "best-valid-loss.pt"
        if not self.ranks.is_main or epoch != self.progress.best_epoch or not source.is_file():
            return
        if target.is_file() and target.samefile(source):
            return
        temporary = target.with_name(target.name + ".tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)  # takes no space
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
        temporary.replace(target)

    def _remove_old(self, keep: int) -> None:
        if self.ranks.is_main:
            remove_old(self.exp_dir, "checkpoint", keep)
            remove_old(self.exp_dir, "epoch", self.cfg.keep_last_epochs)

    def _finish(self) -> Path:
        final = self.exp_dir / "final.pt"
        if self.ranks.is_main:
            count = 0 if self.averaged is None else int(self.averaged.n_averaged)
            content = {
                "model": (self.averaged.module if count else self.model).state_dict(),
                "step": self.progress.step,
                "averaged_steps": count,
                "left_out": self.progress.left_out,
                "changes": self.changes,
                **self.metadata,
            }
            content["weights_digest"] = weights_digest(content["model"])
            content["train_seconds"] = self.progress.train_seconds + self.metadata["train_seconds_before"]
            earlier = self.metadata["updates_before"]
            content["updates"] = None if earlier is None else self.progress.step + earlier
            write_text_atomically(self.exp_dir / "identity", content["identity"] + "\n")
            save_checkpoint(content, final)
            self._remove_old(0)
            logging.info(
                "%s: %s, %d steps, %.0f s",
                final,
                f"running mean of the last {count} steps" if count else "the last parameters",
                self.progress.step,
                self.progress.train_seconds,
            )
        self.ranks.wait()
        return final

    def _on_signal(self, number: int, _frame: Any) -> None:
        # Asked again: do not wait for the step. A launcher or Slurm may pass one signal on twice, within the second.
        if self._stop_signal is not None and time.monotonic() - self._stopped_at > 1:
            raise KeyboardInterrupt
        if self._stop_signal is None:
            self._stop_signal, self._stopped_at = number, time.monotonic()


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def in_one_kernel(device: torch.device) -> dict[str, bool]:
    """AdamW's option to take a step in one kernel, or in a few, instead of some for each parameter; for GPUs."""
    if device.type != "cuda":
        return {}
    return {"fused" if torch.__version__ >= "2" else "foreach": True}


def fix_random_seed(seed: int, step: int, rank: int = 0) -> None:
    """Seed python, numpy and torch for one step of one rank."""
    value = (seed * 1_000_003 + step + rank * 500_009_987) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def freeze_all_but(model: nn.Module, parts: dict[str, list[nn.Module]], train: list[str]) -> None:
    """Only the parts named in `train` require gradients."""
    model.requires_grad_(False)
    for name in train:
        for module in parts[name]:
            module.requires_grad_(True)
