"""What a training will cost, told before it runs: steps, memory, work and GPU hours of each phase.

Work and activations are counted, not guessed: each phase's `Objective` runs once on this machine's CPU, with its own
full-size models and one random utterance, while the layers' operations and the bytes kept for the backward pass are
counted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from twopass_kd.config.schema import EXTERNAL_TEACHER, Config
from twopass_kd.data.asr_datamodule import measured_before
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.data.cut_lines import CutLines
from twopass_kd.files.layout import cuts_path
from twopass_kd.models.checkpoint import build_model
from twopass_kd.training.objective import Objective
from twopass_kd.training.trainer import freeze_all_but

# Hours and utterances of LibriSpeech's parts (Panayotov et al. 2015, table 1, and the transcripts).
LIBRISPEECH = {
    "train-clean-100": (100.6, 28539),
    "train-clean-360": (363.6, 104014),
    "train-other-500": (496.7, 148688),
}
UTTERANCE_SECONDS = 12.0  # of the random utterance; LibriSpeech's mean. All but attention grows with it in proportion
TOKENS_PER_SECOND = 5.0  # of the random utterance
# Assumed, not measured: what an A100 really computes in a training like this, in TFLOP/s. LSTMs go frame by frame, so
# it is a twentieth of the peak in half precision (312) and half of it in float32 (19.5).
ASSUMED_TFLOPS = {"float32": 9.75, "bfloat16": 15.6, "float16": 15.6}
# Tensors as large as the largest output of a layer that live at once beside what is kept for the backward pass, so that
# the estimate comes near what benchmarks/full_size_step.py measures on a CPU; it prints both.
TEMPORARIES = 6


@dataclass
class CorpusSize:
    """The training data of one epoch, speed-perturbed copies included.

    Attributes:
      source: where the numbers are from, for people.
    """

    seconds: float
    num_cuts: int
    source: str


@dataclass
class StepCost:
    """What a phase takes, whatever its batches are.

    Attributes:
      learning: parameters that learn.
      model: parameters of the model, those included.
      teacher: parameters of the teacher; 0 without one.
      kept_bytes: kept for the backward pass, for each second of audio in a batch, in float32.
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
            "teacher": 4.0 * self.teacher,
            "activations": self.kept_bytes * max_duration,
            "temporaries": TEMPORARIES * self.largest_bytes * max_duration,
        }


def corpus_size(cfg: Config, data_dir: Path, exp_dir: Path) -> CorpusSize | None:
    """From what a training has measured, else stage 2's manifests, else what is known of LibriSpeech; else None."""
    parts, paths = cfg.corpus.train_parts, train_manifests(cfg, data_dir)
    if all(path.is_file() for path in paths):
        measured = Path(exp_dir) / cfg.name / "train_cuts.json"
        return _measured_size(measured, paths) or manifests_size(paths)
    if not all(part in LIBRISPEECH for part in parts):
        return None
    hours = sum(LIBRISPEECH[part][0] for part in parts)
    num_cuts = sum(LIBRISPEECH[part][1] for part in parts)
    copies = sum(1 / factor for factor in cfg.corpus.speed_perturb)
    source = f"LibriSpeech's {hours:.1f} h" + (f" x {1 + copies:.2f} by speed perturbation" if copies else "")
    return CorpusSize(hours * 3600 * (1 + copies), num_cuts * (1 + len(cfg.corpus.speed_perturb)), source)


def train_manifests(cfg: Config, data_dir: Path) -> list[Path]:
    """Where stage 2 leaves the training cuts."""
    return [cuts_path(data_dir, part) for part in cfg.corpus.train_parts]


def _measured_size(path: Path, manifests: list[Path]) -> CorpusSize | None:
    """What `AsrDataModule.measure_train` has kept, unless the manifests have changed since."""
    measured = measured_before(path, manifests)
    return None if measured is None else CorpusSize(measured.seconds, measured.num_cuts, str(path))


def manifests_size(paths: list[Path]) -> CorpusSize:
    """All cuts of some manifests, usable or not."""
    seconds, num_cuts = 0.0, 0
    for path in paths:
        for cut in CutLines(path):
            seconds += cut.duration
            num_cuts += 1
    return CorpusSize(seconds, num_cuts, f"{paths[0].parent}, unusable cuts included")


def steps_per_epoch(cfg: Config, size: CorpusSize, ranks: int) -> int:
    """Steps of the optimizer in an epoch, if all batches are as full as utterances of the mean length allow."""
    utterances = max(1, int(cfg.train.max_duration / (size.seconds / size.num_cuts)))
    return math.ceil(size.num_cuts / (utterances * cfg.train.accum_grad * ranks))


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


def build_objective(cfg: Config, phase_name: str, device: torch.device) -> Objective:
    """The objective of a phase with fresh weights on both sides, ready to train."""
    phase, vocab_size = cfg.phases[phase_name], cfg.tokens.vocab_size
    model = build_model(cfg, phase.model, vocab_size).to(device)
    freeze_all_but(model, model.parts(), phase.train)
    teacher = None
    if phase.teacher is not None:
        # An external teacher is counted as large as the config's own, which it takes the place of.
        which = "teacher" if phase.teacher == EXTERNAL_TEACHER else cfg.phases[phase.teacher].model
        teacher = build_model(cfg, which, vocab_size).to(device).eval().requires_grad_(False)
    return Objective(model, phase.loss_scales, cfg.loss, cfg.kd, sos_id=1, eos_id=1, teacher=teacher)


def step_cost(cfg: Config, phase_name: str) -> StepCost:
    """Measure a phase on the CPU with one utterance; see `StepCost`. Takes a forward pass of its models."""
    objective = build_objective(cfg, phase_name, torch.device("cpu"))
    models = [objective.model] + ([objective.teacher] if objective.teacher is not None else [])
    batch = random_utterances(cfg, 1, UTTERANCE_SECONDS)
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
