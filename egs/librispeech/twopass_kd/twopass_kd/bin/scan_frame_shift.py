"""Find the `kd.frame_shift` that suits a student and its teacher, on the dev sets.

A student that hears no future emits later than a teacher that does; distilled frame by frame it would be taught to say
what it cannot know yet. For each shift this prints how far a student that was trained without distillation is from the
teacher (KD loss per frame, see losses/transducer_kd.py); the nearest shift is the one to distil with.

    . ./path.sh
    python3 -m twopass_kd.bin.train --conf conf/librispeech_100h.yaml --phase student_copy/rnnt \\
        external_teacher.path=FILE
    python3 -m twopass_kd.bin.scan_frame_shift --conf conf/librispeech_100h.yaml external_teacher.path=FILE
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from twopass_kd.config.cli import exit_status, experiment_parser
from twopass_kd.config.environment import setup_logging
from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.data.tokenizer import open_tokenizer
from twopass_kd.models.checkpoint import load_model
from twopass_kd.teachers.check_teacher import check_teacher
from twopass_kd.teachers.load_teacher import open_teacher
from twopass_kd.training.frozen_encoder import FrozenEncoder
from twopass_kd.training.objective import Objective

SCALES = {"simple": 1.0, "transducer_kd": 1.0}


class EncodeOnce(FrozenEncoder):
    """Encodes a batch once for all shifts."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder)
        self.last: tuple[Batch | None, tuple[Tensor, Tensor] | None] = (None, None)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.last[0] is not batch:
            self.last = (batch, super().__call__(batch))
        return self.last[1]


@torch.no_grad()
def scan_frame_shift(
    cfg: Config, phase_name: str, student_path: Path, data_dir: Path, exp_dir: Path, max_shift: int
) -> dict[int, float]:
    """Shift -> KD loss per frame of the dev sets in nats, for shifts from -`max_shift` to `max_shift`.

    Args:
      phase_name: whose teacher it is.
      student_path: checkpoint of a student that has learnt to emit without this teacher.
    Raises:
      ConfigError, CheckpointError, FileNotFoundError: for what the user gave.
    """
    if phase_name not in cfg.phases or cfg.phases[phase_name].teacher is None:
        named = [name for name, phase in cfg.phases.items() if phase.teacher is not None]
        raise ConfigError(f"`--phase` ({phase_name}) must be one that has a teacher: {', '.join(named)}")
    phase = replace(cfg.phases[phase_name], loss_scales=SCALES)
    tokenizer = open_tokenizer(cfg, data_dir)
    teacher = open_teacher(cfg, phase, exp_dir, tokenizer.vocab_size)
    model, _ = load_model(student_path)
    check_teacher(teacher, model, cfg, phase, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ids = {"sos_id": tokenizer.sos_id, "eos_id": tokenizer.eos_id}
    objective = Objective(
        model.to(device).requires_grad_(False), SCALES, cfg.loss, cfg.kd, **ids, teacher=teacher.model.to(device)
    )
    objective.frozen_encoder = EncodeOnce(model.encoder)
    objective.teacher_encoder = EncodeOnce(teacher.model.encoder)
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)
    data.measure_train(experiment_folder(cfg, exp_dir) / "train_cuts.json")
    sums, frames = dict.fromkeys(range(-max_shift, max_shift + 1), 0.0), 0
    for batch in tqdm(data.valid_loader(), desc="dev", unit="batch"):
        batch = batch.to(device)
        for shift in sums:
            objective.kd = replace(cfg.kd, frame_shift=shift)
            losses = objective(batch)
            sums[shift] += float(losses.terms["transducer_kd"].sum())
        frames += int(losses.num_frames)
    return {shift: total / frames for shift, total in sums.items()}


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.conf, args.overrides)
    student = args.student or experiment_folder(cfg, args.exp_dir) / "student_copy" / "rnnt" / "final.pt"
    scan = scan_frame_shift(cfg, args.phase, student, args.data_dir, args.exp_dir, args.max_shift)
    best = min(scan, key=lambda shift: (scan[shift], abs(shift)))
    print("kd.frame_shift  KD loss per frame")
    for shift, loss in scan.items():
        print(f"{shift:14d}  {loss:17.4f}{'  <- nearest' if shift == best else ''}")
    print(f"distil with kd.frame_shift={best} ({student} against its teacher, {', '.join(cfg.corpus.dev_parts)})")
    if abs(best) == args.max_shift > 0:
        logging.warning("the nearest shift is at the end of the scan; scan further: --max-shift %d", 2 * args.max_shift)


def get_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, example="external_teacher.path=jit_script.pt")
    parser.add_argument("--phase", default="student/rnnt_kd", help="whose teacher it is (default: student/rnnt_kd)")
    parser.add_argument(
        "--student", type=Path, help="checkpoint (default: <exp-dir>/<conf>/student_copy/rnnt/final.pt)"
    )
    parser.add_argument("--max-shift", type=int, default=8, help="frames after subsampling, both ways (default: 8)")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
