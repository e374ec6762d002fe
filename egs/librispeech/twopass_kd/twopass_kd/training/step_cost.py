"""What a step of a training takes in memory and work: counted, not guessed.

A phase's `Objective` runs once, with its own full-size models and one random utterance, while the layers' operations
and the bytes kept for the backward pass are counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from twopass_kd.config.schema import Config
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.training.objective import Objective

# Of the random utterance: short, so that counting takes a second or two. All grows with it in proportion, but for the
# fiftieth or so of a batch of long utterances that is attention's.
UTTERANCE_SECONDS = 4.0
TOKENS_PER_SECOND = 5.0  # of the random utterance
# Tensors as large as the largest output of a layer that live at once beside what is kept for the backward pass, so that
# the estimate comes near what benchmarks/gpu_check.sh --cpu measures; it prints both.
TEMPORARIES = 6


@dataclass
class StepCost:
    """What a phase takes, whatever its batches are.

    Attributes:
      learning: parameters that learn.
      model: parameters of the model, those included.
      teacher: parameters of the teacher; 0 without one.
      kept_bytes: kept for the backward pass, for each second of audio in a batch, in float32. Logits on the lattice,
        those of a teacher and losses are among them.
      largest_bytes: the largest output of a layer, likewise.
      flops: operations of a training step (2 for each multiplication and addition), for each second of audio.
    """

    learning: int
    model: int
    teacher: int
    kept_bytes: float
    largest_bytes: float
    flops: float

    def memory(self, max_duration: float, precision: str) -> dict[str, float]:
        """Bytes that a rank needs for batches of `max_duration` seconds, by what they are for."""
        return {
            "weights": 4.0 * self.model,
            "half-precision copies": 0.0 if precision == "float32" else 2.0 * self.learning,
            "gradients": 4.0 * self.learning,
            "Adam": 8.0 * self.learning,
            "running mean": 4.0 * self.model,
            "teacher": 4.0 * self.teacher,
            "activations": self.kept_bytes * max_duration,
            "temporaries": TEMPORARIES * self.largest_bytes * max_duration,
        }

    def total_memory(self, max_duration: float, precision: str) -> float:
        """The sum of `memory`."""
        return sum(self.memory(max_duration, precision).values())

    def longest_batch(self, usable: float, precision: str) -> float:
        """The `max_duration` whose `total_memory` is `usable` bytes; negative where models and optimizer take more."""
        fixed = self.total_memory(0.0, precision)
        return (usable - fixed) / (self.total_memory(1.0, precision) - fixed)


def count_step(cfg: Config, objective: Objective) -> StepCost:
    """Count what a step of an objective takes, where its models are; see `StepCost`.

    Takes a forward pass in float32 on one short utterance: a second or two for LibriSpeech's models on one thread of a
    CPU. Counted are sizes of tensors, so the answer is the same each time with the same versions. Random draws of the
    caller are as if this had not run.
    """
    models = [objective.model] + ([objective.teacher] if objective.teacher is not None else [])
    device = next(objective.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        batch = random_utterances(cfg, 1, UTTERANCE_SECONDS).to(device)
        with _counting_layers(models) as layers, _counting_kept(objective.model) as kept:
            objective(batch)
    return StepCost(
        learning=sum(p.numel() for p in objective.model.parameters() if p.requires_grad),
        model=sum(p.numel() for p in objective.model.parameters()),
        teacher=sum(p.numel() for m in models[1:] for p in m.parameters()),
        kept_bytes=sum(kept.values()) / UTTERANCE_SECONDS,
        largest_bytes=max(size for _, size in layers) / UTTERANCE_SECONDS,
        flops=sum(flops for flops, _ in layers) / UTTERANCE_SECONDS,
    )


def random_utterances(cfg: Config, count: int, seconds: float) -> Batch:
    """A batch of `count` utterances of noise with random tokens."""
    frames, symbols = round(seconds * 100), max(1, int(seconds * TOKENS_PER_SECOND))
    return Batch(
        feature=torch.randn(count, frames, cfg.features.num_mel_bins),
        feature_lens=torch.full((count,), frames),
        y=torch.randint(3, cfg.tokens.vocab_size, (count, symbols)),
        y_lens=torch.full((count,), symbols),
        cuts=[SimpleNamespace(id=f"random-{i}", duration=seconds) for i in range(count)],
    )


@contextmanager
def _counting_kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Yields address -> bytes of every storage kept for the backward pass, other than parameters.

    What is kept stays alive as long as the graph, so an address is one tensor's only.
    """
    found: dict[int, int] = {}
    parameters = {_storage(p)[0] for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        address, size = _storage(x)
        if address not in parameters:
            found[address] = size
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield found


def _storage(x: Tensor) -> tuple[int, int]:
    """Address and bytes of what a tensor may be a view of."""
    storage = x.untyped_storage() if hasattr(x, "untyped_storage") else x.storage()  # torch 2 | 1
    return storage.data_ptr(), storage.nbytes()


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.MultiheadAttention)


@contextmanager
def _counting_layers(models: list[nn.Module]) -> Iterator[list[tuple[int, int]]]:
    """Yields a list of (operations, forward and backward; bytes of the output) of each layer that runs."""
    found: list[tuple[int, int]] = []

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        out = _data(output if isinstance(output, Tensor) else output[0])
        flops = _forward_flops(layer, inputs, out) * _passes(layer, _data(inputs[0]))
        found.append((flops, out.numel() * out.element_size()))

    layers = [m for model in models for m in model.modules() if isinstance(m, _LAYERS)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _data(x: Any) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _passes(layer: nn.Module, x: Tensor) -> int:
    """The forward pass, and one more for each of the gradients of input and weights that the backward pass makes."""
    return 1 + int(x.requires_grad) + int(any(p.requires_grad for p in layer.parameters()))


def _forward_flops(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return 2 * output.numel() * layer.in_features
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return 2 * output.numel() * layer.weight[0].numel()
    if isinstance(layer, nn.LSTM):
        rows = _data(inputs[0]).numel() // layer.input_size
        weights = [p for name, p in layer.named_parameters() if name.startswith("weight")]
        return 2 * rows * sum(p.numel() for p in weights)
    query, memory = inputs[:2]  # (N, U, C) and (N, T, its own C)
    N, U, C = query.shape
    T = memory.size(1)
    projections = 2 * N * C * (2 * U * C + 2 * T * memory.size(2))  # of query and output, of keys and values
    return projections + 2 * 2 * N * U * T * C
