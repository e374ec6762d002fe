"""What a training will cost, told before it runs: steps, memory, work and GPU hours of each phase."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from twopass_kd.config.load import experiment_folder
from twopass_kd.config.schema import EXTERNAL_TEACHER, Config
from twopass_kd.data.asr_datamodule import measured_before
from twopass_kd.data.cut_lines import CutLines
from twopass_kd.files.layout import cuts_path
from twopass_kd.models.checkpoint import build_model
from twopass_kd.training.objective import Objective
from twopass_kd.training.step_cost import StepCost, count_step
from twopass_kd.training.step_split import StepSplit
from twopass_kd.training.trainer import freeze_all_but

# Hours and utterances of LibriSpeech's parts (Panayotov et al. 2015, table 1, and the transcripts).
LIBRISPEECH = {
    "train-clean-100": (100.6, 28539),
    "train-clean-360": (363.6, 104014),
    "train-other-500": (496.7, 148688),
}
# Assumed, not measured: what an A100 really computes in a training like this, in TFLOP/s. LSTMs go frame by frame, so
# it is a twentieth of the peak in half precision (312) and half of it in float32 (19.5).
ASSUMED_TFLOPS = {"float32": 9.75, "bfloat16": 15.6, "float16": 15.6}
ASSUMED_GPU_MEMORY = 80 * 2.0**30  # bytes, of that A100


@dataclass
class CorpusSize:
    """The training data of one epoch, speed-perturbed copies included.

    Attributes:
      longest: seconds of the longest utterance, or of what the config allows.
      source: where the numbers are from, for people.
    """

    seconds: float
    num_cuts: int
    longest: float
    source: str


def corpus_size(cfg: Config, data_dir: Path, exp_dir: Path) -> CorpusSize | None:
    """From what a training has measured, else stage 2's manifests, else what is known of LibriSpeech; else None."""
    parts, paths = cfg.corpus.train_parts, train_manifests(cfg, data_dir)
    if all(path.is_file() for path in paths):
        measured = experiment_folder(cfg, exp_dir) / "train_cuts.json"
        return _measured_size(measured, paths) or manifests_size(cfg, paths)
    if not all(part in LIBRISPEECH for part in parts):
        return None
    hours = sum(LIBRISPEECH[part][0] for part in parts)
    num_cuts = sum(LIBRISPEECH[part][1] for part in parts)
    copies = sum(1 / factor for factor in cfg.corpus.speed_perturb)
    source = f"LibriSpeech's {hours:.1f} h" + (f" x {1 + copies:.2f} by speed perturbation" if copies else "")
    num_cuts *= 1 + len(cfg.corpus.speed_perturb)
    return CorpusSize(hours * 3600 * (1 + copies), num_cuts, cfg.corpus.max_duration, source)


def train_manifests(cfg: Config, data_dir: Path) -> list[Path]:
    """Where stage 2 leaves the training cuts."""
    return [cuts_path(data_dir, part) for part in cfg.corpus.train_parts]


def _measured_size(path: Path, manifests: list[Path]) -> CorpusSize | None:
    """What `AsrDataModule.measure_train` has kept, unless the manifests have changed since."""
    measured = measured_before(path, manifests)
    return None if measured is None else CorpusSize(measured.seconds, measured.num_cuts, measured.longest, str(path))


def manifests_size(cfg: Config, paths: list[Path]) -> CorpusSize:
    """All cuts of some manifests, usable or not."""
    durations = [cut.duration for path in paths for cut in CutLines(path)]
    longest = min(cfg.corpus.max_duration, max(durations, default=0.0))
    return CorpusSize(sum(durations), len(durations), longest, f"{paths[0].parent}, unusable cuts included")


def steps_per_epoch(size: CorpusSize, split: StepSplit) -> int:
    """Steps of the optimizer in an epoch, if all batches are as full as utterances of the mean length allow."""
    utterances = max(1, int(split.max_duration / (size.seconds / size.num_cuts)))
    return math.ceil(size.num_cuts / (utterances * split.accum_grad * split.world_size))


def step_cost(cfg: Config, phase_name: str) -> StepCost:
    """`count_step` of a phase with fresh models on the CPU."""
    return count_step(cfg, build_objective(cfg, phase_name, torch.device("cpu")))


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
    loss = replace(cfg.loss, backend="auto")  # the config's may be for a GPU that is not here; all give the same
    return Objective(model, phase.loss_scales, loss, cfg.kd, sos_id=1, eos_id=1, teacher=teacher)
