"""The largest batches first: whether they fit into a GPU's memory, and how much longer batches could be."""

import logging
from types import SimpleNamespace

import torch

from twopass_kd.data.asr_dataset import Batch
from twopass_kd.training.optimizer_step import OptimizerStep

USABLE = 0.9  # share of the free memory that a suggestion fills: the allocator loses some between its blocks


def largest_batch(num_mel_bins: int, max_duration: float, duration: float, num_tokens: int) -> Batch:
    """A batch of `max_duration` seconds of zeros, all utterances `duration` seconds long with `num_tokens` tokens."""
    count, frames = max(1, int(max_duration / duration)), round(duration * 100)
    return Batch(
        feature=torch.zeros(count, frames, num_mel_bins),
        feature_lens=torch.full((count,), frames),
        y=torch.full((count, num_tokens), 3),
        y_lens=torch.full((count,), num_tokens),
        cuts=[SimpleNamespace(id=f"longest-{i}", duration=duration) for i in range(count)],
    )


def suggest_max_duration(peak: float, base: float, later: float, usable: float, duration: float) -> float:
    """The `max_duration` in seconds that would fill `usable` bytes.

    Args:
      peak: bytes with a batch of `duration` seconds, `base` of them without it (weights, gradients).
      later: bytes that are not there yet, but will be (the optimizer's).
    """
    per_second = (peak - base) / duration
    return (usable - base - later) / per_second


def scan_largest_batches(step: OptimizerStep, batches: list[Batch]) -> None:
    """Compute gradients of each of `batches` on the GPU, before training, and log what they need.

    As icefall's scan_pessimistic_batches_for_oom does, but with batches made for it, so that no data is read. What is
    measured changes nothing: batches stay as they were computed to be, so that all ranks and resumptions have the same.

    Raises:
      OutOfMemory: one does not fit; says which settings have the same step in smaller batches.
    """
    device = step.ranks.device
    learning = sum(p.numel() * p.element_size() for p in step.parameters)
    later = 0 if step.optimizer.state else 2 * learning  # Adam's two moments
    suggestions = []
    for batch in batches:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device) + learning  # with the gradients
        step.try_gradients(batch.to(device))
        peak = torch.cuda.max_memory_allocated(device)
        usable = USABLE * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
        suggestions.append(suggest_max_duration(peak, base, later, usable, batch.duration))
        logging.info(
            "%d utterances of %.1f s with %d tokens each need %.1f of %.1f GiB",
            *(len(batch.cuts), batch.cuts[0].duration, batch.y.size(1), (peak + later) / 2**30, usable / 2**30),
        )
    logging.info(
        "batches are of %.0f s; by free memory train.max_duration could be %.0f",
        step.cfg.max_duration,
        min(suggestions),
    )
