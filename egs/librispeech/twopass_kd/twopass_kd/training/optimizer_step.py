"""One step of the optimizer: from the batches of all ranks to new parameters."""

import logging

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from twopass_kd.data.asr_dataset import Batch
from twopass_kd.losses.precision import autocast, make_grad_scaler
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Losses, Objective

MIN_GRAD_SCALE = 1e-3  # below it, gradients are infinite for another reason than the scale


class OutOfMemory(MemoryError):
    """A batch does not fit, and how to make it fit."""


class OptimizerStep:
    """Losses, gradients over all batches of all ranks, clipping, new parameters.

    The loss is the mean per encoder frame over everything that the step sees: neither the number of ranks nor that of
    batches changes it, but for rounding.

    Ranks add up their gradients in one all-reduce when all are there, instead of by DistributedDataParallel, which adds
    them in parts during the backward pass. It lays these parts out anew after its first step, so that with three ranks
    or more a resumed run adds in another order; and a rank that runs out of memory meanwhile cannot try again.

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
        if ranks.world_size > 1:
            with torch.no_grad():
                for p in model.parameters():
                    dist.broadcast(p, src=0)
        self.scaler = make_grad_scaler(precision != "float32" and ranks.device.type == "cuda")
        self.grad_norm: Tensor | None = None  # of the last step, before clipping

    def __call__(self, batches: list[Batch], num_frames: float, step: int) -> list[Losses]:
        """Do step number `step`; every rank must call it, with as many batches.

        A batch that does not fit into a GPU's memory is halved until it does.

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
                losses = self._gradients(batches, num_frames)
                break
            except RuntimeError as e:
                if not _is_out_of_memory(e):
                    raise
                failed = f"a batch of {sum(b.duration for b in batches):.1f} s does not fit into memory at step {step}"
                where = f"{failed}: {[cut for b in batches for cut in b.cut_ids]} ({str(e).splitlines()[0]})"
                halves = [half for batch in batches for half in halve(batch)]
                on_gpu = self.ranks.device.type == "cuda"
                if not on_gpu or len(halves) == len(batches):
                    raise OutOfMemory(f"{where}; lower train.max_duration, and raise train.accum_grad instead") from e
            logging.warning("%s; trying again in halves. Lower train.max_duration to save this time", where)
            batches = halves
            torch.cuda.empty_cache()  # outside `except`, where the error would keep the tensors alive
        self._add_up()
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        if not torch.isfinite(self.grad_norm):
            self._explain(batches, losses, step)
        self.scaler.step(self.optimizer)  # leaves the step out where scaled gradients are infinite
        self.scaler.update()
        return losses

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
                f" ({str(e).splitlines()[0]}); lower train.max_duration, and raise train.accum_grad instead"
            ) from e
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self, batches: list[Batch], num_frames: float) -> list[Losses]:
        """Leave the gradient of this rank's sum / num_frames in the parameters."""
        self.optimizer.zero_grad()
        result = []
        for batch in batches:
            with autocast(self.ranks.device, self.precision):
                losses = self.objective(batch)
            self.scaler.scale(losses.total.sum() / num_frames).backward()
            result.append(losses)
        return result

    def _add_up(self) -> None:
        """Give every rank the sum of all ranks' gradients."""
        if self.ranks.world_size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for p, total in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
            p.grad = total.view_as(p)

    def _explain(self, batches: list[Batch], losses: list[Losses], step: int) -> None:
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


def halve(batch: Batch) -> list[Batch]:
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
