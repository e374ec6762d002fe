"""One step of the optimizer: from the batches of all ranks to new parameters."""

import logging
from contextlib import nullcontext
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from twopass_kd.asr_datamodule import Batch
from twopass_kd.distributed import Ranks
from twopass_kd.objective import Losses, Objective
from twopass_kd.precision import autocast, make_grad_scaler

MIN_GRAD_SCALE = 1e-3  # below it, gradients are infinite for another reason than the scale


class OutOfMemory(MemoryError):
    """A batch does not fit, and how to make it fit."""


class _Forward(nn.Module):
    """What DDP wraps: it must see the parameters as a module's, and the losses as what that module's forward gives."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Losses:
        return self.objective(batch)


class OptimizerStep:
    """Losses, gradients over all batches of all ranks, clipping, new parameters.

    The loss is the mean per encoder frame over everything that the step sees: neither the number of ranks nor that of
    batches changes it, but for rounding.

    Args:
      model: its parameters with `requires_grad` learn; on the device of `ranks`.
      objective: gives the loss terms of a batch.
      precision: float32 | bfloat16 | float16, of the forward pass on a GPU; half precision with a gradient scaler.
      clip_grad_norm: largest norm of the gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        precision: str,
        clip_grad_norm: float,
        ranks: Ranks,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.objective = objective
        self.optimizer = optimizer
        self.precision = precision
        self.clip_grad_norm = clip_grad_norm
        self.ranks = ranks
        self.scaler = make_grad_scaler(precision != "float32" and ranks.device.type == "cuda")
        self.grad_norm: Optional[Tensor] = None  # of the last step, before clipping
        self._forward: nn.Module = _Forward(model, objective)
        self._is_reducing = False
        if ranks.world_size > 1:
            self._forward = DistributedDataParallel(
                self._forward, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def __call__(self, batches: List[Batch], num_frames: float, step: int) -> List[Losses]:
        """Do step number `step`; every rank must call it, with as many batches.

        A batch that does not fit into a GPU's memory is halved until it does; with several ranks that is possible only
        before they have begun to add up gradients.

        Args:
          batches: this rank's, on its device.
          num_frames: encoder frames of all batches of all ranks.
        Returns:
          The losses of `batches`, or of their parts.
        Raises:
          FloatingPointError: a loss or the gradient is not finite; names the utterances.
          OutOfMemory: a batch does not fit and cannot be halved.
        """
        while True:
            try:
                losses = self._gradients(batches, num_frames / self.ranks.world_size)
                break
            except RuntimeError as e:
                if not _is_out_of_memory(e):
                    raise
                failed = f"a batch of {sum(b.duration for b in batches):.1f} s does not fit into memory at step {step}"
                where = f"{failed}: {[cut for b in batches for cut in b.cut_ids]} ({str(e).splitlines()[0]})"
                halves = [half for batch in batches for half in halve(batch)]
                on_gpu = self.ranks.device.type == "cuda"
                if not on_gpu or self._is_reducing or len(halves) == len(batches):
                    raise OutOfMemory(f"{where}; lower train.max_duration, and raise train.accum_grad instead") from e
            logging.warning("%s; trying again in halves. Lower train.max_duration to save this time", where)
            batches = halves
            torch.cuda.empty_cache()  # outside `except`, where the error would keep the tensors alive
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        if not torch.isfinite(self.grad_norm):
            self._explain(batches, losses, step)
        self.scaler.step(self.optimizer)  # leaves the step out where scaled gradients are infinite
        self.scaler.update()
        return losses

    def try_gradients(self, batch: Batch) -> None:
        """Compute the gradients of a batch and forget them: whether it fits into memory; every rank must call it.

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
                f" ({str(e).splitlines()[0]}); lower train.max_duration, and raise train.accum_grad instead"
            ) from e
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self, batches: List[Batch], num_frames: float) -> List[Losses]:
        """Leave the gradient of sum / num_frames, averaged over the ranks, in the parameters."""
        self._is_reducing = False
        self.optimizer.zero_grad()
        result = []
        for batch in batches:
            last = batch is batches[-1]
            with nullcontext() if last or self.ranks.world_size == 1 else self._forward.no_sync():
                with autocast(self.ranks.device, self.precision):
                    losses = self._forward(batch)
                loss = self.scaler.scale(losses.total.sum() / num_frames)
                self._is_reducing = last and self.ranks.world_size > 1
                loss.backward()
            result.append(losses)
        return result

    def _explain(self, batches: List[Batch], losses: List[Losses], step: int) -> None:
        """Raises FloatingPointError, unless it is only that the scale is too large still."""
        bad = [
            cut
            for batch, batch_losses in zip(batches, losses)
            for cut, value in zip(batch.cut_ids, batch_losses.total.isfinite().tolist())
            if not value
        ]
        if bad:
            terms = {name: float(value.sum()) for name, value in losses[0].terms.items()}
            raise FloatingPointError(
                f"the loss is not finite at step {step} (terms {terms}) for the utterances {bad}; "
                "look at their audio and text, or lower the phase's base_lr"
            )
        if self.scaler.is_enabled() and self.scaler.get_scale() > MIN_GRAD_SCALE:
            return
        cut_ids = [cut for batch in batches for cut in batch.cut_ids]
        elsewhere = " here or on another rank" if self.ranks.world_size > 1 else ""
        raise FloatingPointError(
            f"the gradient is not finite at step {step}{elsewhere}, batch {cut_ids}; lower the phase's base_lr"
        )


def halve(batch: Batch) -> List[Batch]:
    """Two batches of half the utterances each, no longer than they need to be; the batch itself, if it is but one."""
    middle = (len(batch.cuts) + 1) // 2
    if middle == len(batch.cuts):
        return [batch]
    halves = []
    for part in (slice(None, middle), slice(middle, None)):
        feature_lens, y_lens = batch.feature_lens[part], batch.y_lens[part]
        feature = batch.feature[part, : int(feature_lens.max())]
        halves.append(Batch(feature, feature_lens, batch.y[part, : int(y_lens.max())], y_lens, batch.cuts[part]))
    return halves


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
