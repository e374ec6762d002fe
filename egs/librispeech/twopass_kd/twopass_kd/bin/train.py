"""Train one phase of one system. Runs from the newest checkpoint if there is one.

With --world-size it starts as many ranks, one for each GPU, which share each step. On several nodes the same command
is run on each, with --nnodes and --rdzv-endpoint. It may be run by torchrun too.

Exit codes: 0 trained, 1 an error (said on one line), 130 stopped by Ctrl-C or SIGTERM with the state saved.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from twopass_kd.config.cli import lost_worker, no_memory, without_traceback
from twopass_kd.config.environment import log_environment, log_to_file, setup_logging
from twopass_kd.config.load import config_to_dict, experiment_folder, load_config, save_config
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.asr_datamodule import AsrDataModule, TrainCuts
from twopass_kd.data.tokenizer import open_tokenizer
from twopass_kd.files.write import write_text_atomically
from twopass_kd.models.checkpoint import build_model, final_checkpoint, load_checkpoint
from twopass_kd.teachers.check_teacher import check_sizes, check_teacher, without_attention_kd
from twopass_kd.teachers.load_teacher import Teacher, open_teacher
from twopass_kd.training.checkpoint_files import find_latest
from twopass_kd.training.distributed import Ranks, started_by_torchrun
from twopass_kd.training.gpu_memory import largest_batch
from twopass_kd.training.identity import identities
from twopass_kd.training.initial_weights import initialise
from twopass_kd.training.launch import STOPPED, launch_ranks, rank_log
from twopass_kd.training.objective import Objective
from twopass_kd.training.optimizer_step import OutOfMemory
from twopass_kd.training.schedules import epochs_before_augmentation, learning_rate_scale
from twopass_kd.training.step_cost import count_step
from twopass_kd.training.step_split import rank_memory, split_step
from twopass_kd.training.trainer import Data, Interrupted, Trainer, fix_random_seed, freeze_all_but
from twopass_kd.training.training_log import environment_record


def train(cfg: Config, phase_name: str, data_dir: Path, exp_dir: Path, ranks: Ranks) -> Path:
    """Train `phase_name` and return the path of its `final.pt` (at once, if it is there already).

    Raises:
      ConfigError, CheckpointError, FileNotFoundError, ValueError: for what the user gave.
      OutOfMemory: if a batch does not fit.
      Interrupted: when stopped by a signal.
    """
    if phase_name not in cfg.phases:
        raise ConfigError(f"`--phase` ({phase_name}) must be one of {', '.join(cfg.phases)}")
    phase = cfg.phases[phase_name]
    tokenizer = open_tokenizer(cfg, data_dir)
    tokens_digest = tokenizer.digest()
    check_sizes(cfg, tokenizer.vocab_size)

    parents = {}
    teacher: Teacher | None = None
    before: dict = {"trained_parts": [], "train_seconds": 0.0, "updates": 0}
    if phase.teacher is not None:
        teacher = open_teacher(cfg, phase, exp_dir, tokenizer.vocab_size)
        parents["teacher"] = teacher.digest
    if phase.init_from is not None:
        needed = ["weights_digest", "trained_parts", "train_seconds"]
        before = load_checkpoint(final_checkpoint(cfg, exp_dir, phase.init_from), needed)
        parents["init_from"] = before["weights_digest"]
    fix_random_seed(cfg.seed, 0)
    model = build_model(cfg, phase.model, tokenizer.vocab_size)
    if teacher is not None:
        phase = replace(phase, loss_scales=without_attention_kd(phase, teacher))
        check_teacher(teacher, model, cfg, phase, tokenizer)
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor, ranks.rank, ranks.world_size)
    final = experiment_folder(cfg, exp_dir) / phase_name / "final.pt"
    measured = _measure(data, final.parents[2], ranks)

    run_identities = identities(cfg, phase_name, tokens_digest, measured.digest, parents)
    if ranks.is_main:
        _set_aside_other_run(final.parent, run_identities)
    if ranks.from_main(final.is_file()):
        logging.info("%s is trained already", final)
        return final
    log_to_file(rank_log(final.parent, ranks.rank))
    environment = environment_record(ranks.world_size)
    log_environment()
    if ranks.is_main:
        save_config(cfg, final.parent / "config.yaml")
        write_text_atomically(final.parent / "environment.json", json.dumps(environment, indent=1) + "\n")

    if teacher is not None and phase.loss_scales.keys() != cfg.phases[phase_name].loss_scales.keys():
        logging.info(
            "teacher %s has no attention decoder: no LAS KD, the student's learns from the references alone "
            "(attention_kd left out)", teacher.path
        )  # fmt: skip
    if ranks.device.type == "cpu" and cfg.train.precision != "float32":
        logging.warning("a CPU computes in float32; `train.precision` (%s) is for GPUs", cfg.train.precision)
    lr_scale = learning_rate_scale(cfg.train, ranks.world_size)
    phase = replace(phase, base_lr=phase.base_lr * lr_scale)
    logging.info(
        "training on %d utterances, %.2f hours; ranks: %d (%s)",
        *(measured.num_cuts, measured.seconds / 3600, ranks.world_size, ranks.device.type),
    )
    if lr_scale != 1:
        logging.info(
            "base_lr is tuned for steps of %g s (`train.ref_duration`): scaled by %.3f to %.2e",
            *(cfg.train.ref_duration, lr_scale, phase.base_lr),
        )
    initialise(model, cfg, phase_name, exp_dir, teacher, data)
    freeze_all_but(model, model.parts(), phase.train)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logging.info("deployed parameters: %s; %d parameters learn", model.deployed_parameters(), trainable)

    model.to(ranks.device)
    objective = Objective(
        model,
        phase.loss_scales,
        cfg.loss,
        cfg.kd,
        sos_id=tokenizer.sos_id,
        eos_id=tokenizer.eos_id,
        teacher=None if teacher is None else teacher.model,
    )
    if objective.teacher is not None:
        objective.teacher.to(ranks.device)
    cost, memory = count_step(cfg, objective), rank_memory(ranks)
    split = split_step(cfg.train, ranks.world_size, measured.longest, cost, memory, ranks.device.type)
    logging.info("%s", split)
    data.cfg = replace(cfg, train=split.apply(cfg.train))
    metadata = {
        "config": config_to_dict(cfg),
        "environment": environment,
        "phase": phase_name,
        **run_identities,
        "tokens_digest": tokens_digest,
        "tokens": tokenizer.pieces,
        "vocab_size": tokenizer.vocab_size,
        "trained_parts": sorted({*before["trained_parts"], *phase.train}),
        "train_seconds_before": before["train_seconds"],
        "updates_before": before.get("updates"),
    }
    clean = epochs_before_augmentation(phase, cfg.augment)
    trainer = Trainer(model, objective, phase, data.cfg.train, final.parent, cfg.seed, metadata, ranks)
    return trainer.run(
        Data(
            train_loader=lambda epoch, skip: data.train_loader(
                epoch,
                sort=phase.sort_first_epoch and epoch == 1,
                skip=skip,
                spec_augment=phase.spec_augment and epoch > clean,
                augment=epoch > clean,
            ),
            valid_loader=data.valid_loader,
            train_seconds=measured.seconds,
            largest_batches=[
                largest_batch(
                    cfg.features.num_mel_bins,
                    split.max_duration,
                    measured.longest + cfg.augment.longest_pauses,
                    measured.most_tokens,
                )
            ],
        )
    )


def _measure(data: AsrDataModule, experiment: Path, ranks: Ranks) -> TrainCuts:
    """What `measure_train` says; rank 0 reads the corpus, the others what it has kept."""
    if not ranks.is_main:
        ranks.wait("rank 0, which reads the corpus")
    left_out_path = experiment / "left_out.tsv" if ranks.is_main else None
    measured = data.measure_train(experiment / "train_cuts.json", left_out_path)
    if ranks.is_main:
        ranks.wait()
    return measured


def _set_aside_other_run(phase_dir: Path, run_identities: dict[str, str]) -> None:
    """A folder that another config, corpus or parent made is renamed, never resumed and never deleted."""
    if (phase_dir / "final.pt").is_file():
        key, content = "identity", load_checkpoint(phase_dir / "final.pt")
    else:
        found = find_latest(phase_dir)
        if found is None:
            return
        key, content = "resume_identity", found[1]
    if content.get(key) != run_identities[key]:
        aside = phase_dir.with_name(f"{phase_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        phase_dir.rename(aside)
        logging.warning("%s was trained with another config, data or parent; moved to %s", phase_dir, aside)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, help="YAML of the experiment, e.g. conf/mini.yaml")
    parser.add_argument("--phase", required=True, help="key in the YAML's `phases`, e.g. student/rnnt_kd")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="has fbank/, lang_bpe_<V>/ (default: data)")
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="results: <exp-dir>/<conf>/ (default: exp)")
    parser.add_argument("--world-size", type=int, help="ranks on this node, e.g. its GPUs (default: 1, or cpu_ranks)")
    parser.add_argument("--nnodes", type=int, default=1, help="nodes, each with as many ranks (default: 1)")
    parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where several nodes meet: a free port of one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_duration=20")
    return parser


def launch(cfg: Config, args: argparse.Namespace, options: Sequence[str] = ()) -> int:
    """Start the ranks that `args` ask for, each with this program and more `options`; returns their exit status."""
    if args.world_size < 1 or args.nnodes < 1:
        raise ConfigError(f"`--world-size` ({args.world_size}) and `--nnodes` ({args.nnodes}) must be positive")
    if args.nnodes > 1 and args.rdzv_endpoint is None:
        raise ConfigError(f"`--rdzv-endpoint` must be given, since `--nnodes` is {args.nnodes}, e.g. first-node:29500")
    phase_dir = experiment_folder(cfg, args.exp_dir) / args.phase
    return launch_ranks(
        "twopass_kd.bin.train", [*sys.argv[1:], *options], phase_dir, args.world_size, args.nnodes, args.rdzv_endpoint
    )


def check_no_other_ranks(args: argparse.Namespace) -> None:
    """Refuse to be one of several trainings that a cluster, and not torchrun, has started in the same folder."""
    claimed = os.environ.get("WORLD_SIZE", "")
    if claimed not in ("", "1") and args.nnodes == 1:
        raise ConfigError(
            f"`WORLD_SIZE` ({claimed}) is in the environment and not from torchrun; unset it, or say --world-size, and"
            " --nnodes with --rdzv-endpoint for several nodes"
        )


def default_ranks(cfg: Config, args: argparse.Namespace) -> tuple[int, list[str]]:
    """The ranks of a training that was not told how many, and the options by which they share a batch."""
    if args.nnodes > 1 or torch.cuda.is_available() or args.phase not in cfg.phases:
        return 1, []
    count, duration = cfg.phases[args.phase].cpu_ranks, cfg.train.max_duration
    return count, [] if count == 1 or duration is None else [f"train.max_duration={duration / count}"]


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    ranks = Ranks()
    try:
        cfg = load_config(args.conf, args.overrides)
        if not started_by_torchrun():
            shared = []
            if args.world_size is None:
                check_no_other_ranks(args)
                args.world_size, shared = default_ranks(cfg, args)
            if (args.world_size, args.nnodes) != (1, 1):
                return launch(cfg, args, shared)
        ranks = Ranks.from_torchrun()
        if not ranks.is_main:
            logging.getLogger().handlers[0].setLevel(logging.WARNING)  # its log file has the rest
        train(cfg, args.phase, args.data_dir, args.exp_dir, ranks)
        ranks.leave()
    except (Interrupted, KeyboardInterrupt) as e:
        logging.warning("%s; the same command goes on from there", str(e) or "stopped")
        return STOPPED
    except (ValueError, FileNotFoundError, FloatingPointError, OutOfMemory) as e:
        logging.error("%s", without_traceback(e))
        return 1
    except OSError as e:
        logging.error("%s; mend this (is the disk full?), then the same command goes on from the last checkpoint", e)
        return 1
    except (RuntimeError, MemoryError) as e:
        if (why := lost_worker(e) or no_memory(e)) is not None:
            logging.error("%s", why)
            return 1
        if ranks.world_size == 1:
            raise
        logging.error("%s; if it is a lost connection, see the log of the rank that ended first", e, exc_info=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
