"""One step of the optimizer: from the batches of all ranks to new parameters."""

import logging
import math
from collections import deque
from statistics import median

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from twopass_kd.config.schema import TrainConfig
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.losses.precision import autocast, make_grad_scaler
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Losses, Objective

MIN_GRAD_SCALE = 1e-3  # below it, gradients are infinite for another reason than the scale
NORMS_REMEMBERED = 100
MAX_BAD_STEPS = 10  # with a loss or gradient that is not finite, one after the other


class OutOfMemory(MemoryError):
    """A batch does not fit, and how to make it fit."""


class OptimizerStep:
    """Losses, gradients over all batches of all ranks, clipping, new parameters.

    The loss is the mean per encoder frame over everything that the step sees: neither the number of ranks nor that of
    batches changes it, but for rounding.

    An utterance whose loss is not finite is left out of the step, and a step whose gradient is not finite is not taken:
    a log line names the utterances, `left_out` counts them. If that goes on for MAX_BAD_STEPS steps, it is an error.

    Gradients are clipped at a multiple of the median norm of the last steps, as icefall's ScaledAdam does it: a
    constant would have to be found anew for each model and loss.

    Ranks add up their gradients in one all-reduce when all are there, instead of by DistributedDataParallel, which adds
    them in parts during the backward pass. It lays these parts out anew after its first step, so that with three ranks
    or more a resumed run adds in another order; and a rank that runs out of memory meanwhile cannot try again.

    Args:
      model: its parameters with `requires_grad` learn; on the device of `ranks`.
      objective: gives the loss terms of a batch.
      train: precision of the forward pass, with a gradient scaler where it is a half one, and clipping; its batches are
        those that are really taken (`StepSplit.apply`).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        train: TrainConfig,
        ranks: Ranks,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.objective = objective
        self.optimizer = optimizer
        self.cfg = train
        self.ranks = ranks
        if ranks.world_size > 1:
            with torch.no_grad():
                for p in model.parameters():
                    dist.broadcast(p, src=0)
        self.scaler = make_grad_scaler(train.precision != "float32" and ranks.device.type == "cuda")
        self.norms: deque[float] = deque(maxlen=NORMS_REMEMBERED)  # of the last steps, before clipping
        self.grad_norm = math.nan  # of the last step, before clipping
        self.left_out = 0  # utterances of all ranks that the last step left out
        self._bad_steps = 0  # up to now, one after the other
        self._steps = self._clipped = 0  # since `percent_clipped` was asked

    def __call__(self, batches: list[Batch], num_frames: float, step: int) -> list[Losses]:
        """Do step number `step`; every rank must call it, with as many batches.

        A batch that does not fit into a GPU's memory is halved until it does.

        Args:
          batches: this rank's, on its device.
          num_frames: encoder frames of all batches of all ranks.
        Returns:
          The losses of `batches`, or of their parts; without the utterances that are left out.
        Raises:
          FloatingPointError: losses or gradients were not finite in too many steps; names the utterances of this one.
          OutOfMemory: a batch does not fit and cannot be halved.
        """
        finite, parts = self._gradients_of_all(batches, num_frames, step)
        self.left_out, problem = 0, None
        if not finite:
            bad = bad_utterances(parts)
            here, left = float(len(bad)), float(sum(len(batch.cuts) for batch in batches) - len(bad))
            self.left_out, left = (int(count) for count in self.ranks.sum([here, left]))
            if self.left_out:
                problem = f"the loss of {self.left_out} utterances is not finite at step {step}, here {bad}"
                parts = []
                if left:
                    self.scaler.update()  # or it would take the next gradients for unscaled already
                    finite, parts = self._gradients_of_all(without(batches, bad), num_frames, step)
            elif not self.scaler.is_enabled() or self.scaler.get_scale() <= MIN_GRAD_SCALE:
                problem = f"the gradient is not finite at step {step}, batch {[c for b in batches for c in b.cut_ids]}"
        self._count_bad_step(problem)
        if finite:
            self.scaler.step(self.optimizer)
            self.norms.append(self.grad_norm)
        self.scaler.update()  # down, where scaled gradients are infinite
        return [losses for _, losses in parts]

    def percent_clipped(self) -> float:
        """Of the steps since this was asked the last time, how many had a gradient that was clipped."""
        percent = 100 * self._clipped / max(1, self._steps)
        self._steps = self._clipped = 0
        return percent

    def try_gradients(self, batch: Batch) -> None:
        """Compute the gradients of a batch and forget them: whether it fits into memory.

        Raises:
          OutOfMemory: it does not.
        """
        try:
            self._gradients([batch], 1.0)
        except RuntimeError as e:
            if not _is_out_of_memory(e):
                raise
            raise OutOfMemory(
                f"a batch of {len(batch.cuts)} utterances of {batch.cuts[0].duration:.1f} s does not fit into memory"
                f" ({str(e).splitlines()[0]}); {self._smaller_batches([batch])}"
            ) from e
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _gradients_of_all(
        self, batches: list[Batch], num_frames: float, step: int
    ) -> tuple[bool, list[tuple[Batch, Losses]]]:
        """Leave the clipped gradient of all ranks in the parameters.

        Returns:
          Whether all losses and the gradient are finite, on all ranks; this rank's batches, or their parts where they
          did not fit, each with its losses.
        """
        while True:
            try:
                parts = self._gradients(batches, num_frames)
                break
            except RuntimeError as e:
                if not _is_out_of_memory(e):
                    raise
                failed = f"a batch of {sum(b.duration for b in batches):.1f} s does not fit into memory at step {step}"
                where = f"{failed}: {[cut for b in batches for cut in b.cut_ids]} ({str(e).splitlines()[0]})"
                halves = [half for batch in batches for half in halve(batch)]
                on_gpu = self.ranks.device.type == "cuda"
                if not on_gpu:
                    raise OutOfMemory(f"{where}; {self._smaller_batches(batches)}") from e
                if len(halves) == len(batches):
                    raise OutOfMemory(f"{where}; leave such long utterances out: lower corpus.max_duration") from e
            logging.warning("%s; trying again in halves. To save this time, %s", where, self._smaller_batches(batches))
            batches = halves
            torch.cuda.empty_cache()  # outside `except`, where the error would keep the tensors alive
        total = self._add_up(sum((losses.total.detach().sum() for _, losses in parts), torch.zeros(())))
        self.scaler.unscale_(self.optimizer)
        largest = math.inf if self.cfg.clip_grad_norm is None else self.cfg.clip_grad_norm
        if self.norms:
            largest = min(largest, self.cfg.clip_grad_scale * median(self.norms))
        norm = nn.utils.clip_grad_norm_(self.parameters, largest)
        self.grad_norm, total = torch.stack([norm.float(), total.to(norm.device)]).tolist()
        self._steps, self._clipped = self._steps + 1, self._clipped + (self.grad_norm > largest)
        return math.isfinite(self.grad_norm) and math.isfinite(total), parts

    def _gradients(self, batches: list[Batch], num_frames: float) -> list[tuple[Batch, Losses]]:
        """Leave the gradient of this rank's sum / num_frames in the parameters."""
        self.optimizer.zero_grad()
        result = []
        for batch in batches:
            with autocast(self.ranks.device, self.cfg.precision):
                losses = self.objective(batch)
            self.scaler.scale(losses.total.sum() / num_frames).backward()
            result.append((batch, losses))
        return result

    def _smaller_batches(self, batches: list[Batch]) -> str:
        seconds = self.cfg.max_duration or max(batch.duration for batch in batches)
        smaller = f"train.max_duration={seconds / 2:.3g} train.accum_grad={2 * (self.cfg.accum_grad or 1)}"
        return f"take the same step in smaller batches: {smaller}"

    def _add_up(self, total: Tensor) -> Tensor:
        """Give every rank the sum of all ranks' gradients, and of `total`, a number of each."""
        if self.ranks.world_size == 1:
            return total
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        gradients.append(total.to(gradients[0]))
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        *sums, total = flat.split([gradient.numel() for gradient in gradients])
        for p, gradient in zip(self.parameters, sums):
            p.grad = gradient.view_as(p)
        return total.squeeze(0)

    def _count_bad_step(self, problem: str | None) -> None:
        """Say what is wrong with a step, if something is.

        Raises:
          FloatingPointError: that has been so for too many steps.
        """
        self._bad_steps = 0 if problem is None else self._bad_steps + 1
        if self._bad_steps > MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{problem}, and so it was in the {MAX_BAD_STEPS} steps before; look at their audio and text, or lower"
                " the phase's base_lr or take train.precision=float32: the same run goes on with these"
            )
        if problem is not None:
            logging.warning("%s; left out", problem)


def bad_utterances(parts: list[tuple[Batch, Losses]]) -> list[str]:
    """The ids of those whose loss is not finite."""
    return [
        cut_id
        for batch, losses in parts
        for cut_id, finite in zip(batch.cut_ids, losses.total.isfinite().tolist())
        if not finite
    ]


def without(batches: list[Batch], cut_ids: list[str]) -> list[Batch]:
    """The batches without some utterances; a batch that has no other is left out."""
    kept = []
    for batch in batches:
        good = torch.tensor([cut_id not in cut_ids for cut_id in batch.cut_ids])
        if good.any():
            kept.append(batch.select(good))
    return kept


def halve(batch: Batch) -> list[Batch]:
    """Two batches of half the utterances each, no longer than they need to be; the batch itself, if it is but one."""
    middle = (len(batch.cuts) + 1) // 2
    if middle == len(batch.cuts):
        return [batch]
    rows = torch.arange(len(batch.cuts))
    return [batch.select(rows < middle), batch.select(rows >= middle)]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
