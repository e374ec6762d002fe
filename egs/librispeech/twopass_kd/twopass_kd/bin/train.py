"""Train one phase of one system. Runs from the newest checkpoint if there is one.

Exit codes: 0 trained, 1 an error (said on one line), 130 stopped by Ctrl-C or SIGTERM with the state saved.
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Dict, Optional

import torch
from tqdm import tqdm

from twopass_kd.asr_datamodule import AsrDataModule
from twopass_kd.checkpoint import build_model, final_checkpoint, find_latest, load_checkpoint, load_weights
from twopass_kd.config import Config, ConfigError, config_to_dict, load_config, save_config
from twopass_kd.environment import log_environment, log_to_file, setup_logging
from twopass_kd.fingerprint import short_hash, training_settings
from twopass_kd.model import TwoPassModel
from twopass_kd.objective import Objective
from twopass_kd.teacher import Teacher, check_sizes, check_teacher, copy_matching_weights, load_teacher
from twopass_kd.tokenizer import Tokenizer
from twopass_kd.trainer import Data, Interrupted, Trainer, fix_random_seed, freeze_all_but


def identity(cfg: Config, phase: str, tokens_digest: str, data_digest: str, parents: Dict[str, str]) -> str:
    """A hash of all that a phase's result depends on; a run resumes only checkpoints with the same one."""
    full = config_to_dict(cfg)
    return short_hash(
        {
            **training_settings(cfg),
            "kd": full["kd"] if "teacher" in parents else None,
            "model": full[full["phases"][phase]["model"]],
            "phase": {k: v for k, v in full["phases"][phase].items() if k not in ("stage", "report_as")},
            "tokens": tokens_digest,
            "data": data_digest,
            "parents": parents,
        }
    )


def train(cfg: Config, phase_name: str, data_dir: Path, exp_dir: Path) -> Path:
    """Train `phase_name` and return the path of its `final.pt` (at once, if it is there already).

    Raises:
      ConfigError, CheckpointError, FileNotFoundError, ValueError: for what the user gave.
      Interrupted: when stopped by a signal.
    """
    if phase_name not in cfg.phases:
        raise ConfigError(f"`--phase` ({phase_name}) must be one of {', '.join(cfg.phases)}")
    phase = cfg.phases[phase_name]
    tokenizer = Tokenizer(Path(data_dir) / f"lang_bpe_{cfg.tokens.vocab_size}")
    tokens_digest = tokenizer.digest()
    check_sizes(cfg, tokenizer.vocab_size)

    parents = {}
    teacher: Optional[Teacher] = None
    before: Dict = {"trained_parts": [], "train_seconds": 0.0}
    if phase.teacher is not None:
        teacher = load_teacher(final_checkpoint(cfg, exp_dir, phase.teacher))
        parents["teacher"] = teacher.content["weights_digest"]
    if phase.init_from is not None:
        before = load_checkpoint(final_checkpoint(cfg, exp_dir, phase.init_from))
        parents["init_from"] = before["weights_digest"]
    fix_random_seed(cfg.seed, 0)
    model = build_model(cfg, phase.model, tokenizer.vocab_size)
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)

    run_identity = identity(cfg, phase_name, tokens_digest, data.train_digest(), parents)
    final = Path(exp_dir) / cfg.name / phase_name / "final.pt"
    _set_aside_other_run(final.parent, run_identity)
    if final.is_file():
        logging.info("%s is trained already", final)
        return final
    log_to_file(final.parent / "train.log")
    log_environment()
    save_config(cfg, final.parent / "config.yaml")

    if teacher is not None:
        check_teacher(teacher, model, cfg, phase, tokens_digest)
    num_cuts, train_seconds = data.measure_train(final.parent / "left_out.tsv")
    logging.info("training on %d utterances, %.2f hours", num_cuts, train_seconds / 3600)
    _initialise(cfg, exp_dir, phase_name, model, teacher, data)
    freeze_all_but(model, model.parts(), phase.train)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logging.info("deployed parameters: %s; %d parameters learn", model.deployed_parameters(), trainable)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    objective = Objective(
        model,
        phase.loss_scales,
        cfg.loss,
        cfg.kd,
        sos_id=tokenizer.sos_id,
        eos_id=tokenizer.eos_id,
        teacher=None if teacher is None else teacher.model.to(device),
    )
    if cfg.train.cache_frozen_encoders and not phase.spec_augment and objective.frozen_encoders():
        bar = tqdm(data.cache_loader(), desc=f"{phase_name}: encoding", disable=not sys.stderr.isatty())
        objective.cache_frozen_encoders(batch.to(device) for batch in bar)
    metadata = {
        "config": config_to_dict(cfg),
        "phase": phase_name,
        "identity": run_identity,
        "tokens_digest": tokens_digest,
        "tokens": tokenizer.pieces,
        "vocab_size": tokenizer.vocab_size,
        "trained_parts": sorted({*before["trained_parts"], *phase.train}),
        "train_seconds_before": before["train_seconds"],
    }
    trainer = Trainer(model, objective, phase, cfg.train, final.parent, cfg.seed, metadata)
    return trainer.run(
        Data(
            train_loader=lambda epoch, skip: data.train_loader(
                epoch, num_cuts, sort=phase.sort_first_epoch and epoch == 1, skip=skip
            ),
            valid_loader=data.valid_loader,
            train_seconds=train_seconds,
        )
    )


def _set_aside_other_run(phase_dir: Path, run_identity: str) -> None:
    """A folder that another config, corpus or parent made is renamed, never resumed and never deleted."""
    if (phase_dir / "final.pt").is_file():
        content = load_checkpoint(phase_dir / "final.pt")
    else:
        found = find_latest(phase_dir)
        if found is None:
            return
        content = found[1]
    if content["identity"] != run_identity:
        aside = phase_dir.with_name(f"{phase_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        phase_dir.rename(aside)
        logging.warning("%s was trained with another config, data or parent; moved to %s", phase_dir, aside)


def _initialise(
    cfg: Config, exp_dir: Path, name: str, model: TwoPassModel, teacher: Optional[Teacher], data: AsrDataModule
) -> None:
    phase = cfg.phases[name]
    if phase.init_from is not None:
        load_weights(model, final_checkpoint(cfg, exp_dir, phase.init_from))
        logging.info("starting from %s", phase.init_from)
        return
    model.encoder.mvn.set_statistics(*data.feature_statistics())
    if phase.copy_from_teacher and teacher is not None:
        copied = copy_matching_weights(teacher.model, model)
        logging.info("copied from the teacher: %s", ", ".join(copied))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, help="YAML of the experiment, e.g. conf/mini.yaml")
    parser.add_argument("--phase", required=True, help="key in the YAML's `phases`, e.g. student/rnnt_kd")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="has fbank/, lang_bpe_<V>/ (default: data)")
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="results: <exp-dir>/<conf>/ (default: exp)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_duration=20")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    try:
        cfg = load_config(args.conf, args.overrides)
        train(cfg, args.phase, args.data_dir, args.exp_dir)
    except (Interrupted, KeyboardInterrupt) as e:
        logging.warning("%s; the same command goes on from there", e or "stopped")
        return 130
    except (ValueError, FileNotFoundError, FloatingPointError) as e:
        logging.error("%s", e)
        return 1
    except OSError as e:
        logging.error("%s; mend this (is the disk full?), then the same command goes on from the last checkpoint", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
