"""Print what checkpoints are: phase, progress, sizes, results, and where, when and how they were made.

    python3 -m twopass_kd.bin.inspect exp/mini/student/deep/final.pt
    python3 -m twopass_kd.bin.inspect --config exp/mini/student/deep/final.pt     the whole config, as YAML
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import yaml

from twopass_kd.checkpoint import CheckpointError, build_model, load_checkpoint, weights_digest
from twopass_kd.cli import exit_status
from twopass_kd.config import Config, config_from_dict
from twopass_kd.environment import setup_logging
from twopass_kd.results import PASS_TITLES, format_wer, load_results


def describe(path: Path) -> Dict[str, str]:
    """Title -> what a checkpoint says of it; what it does not know is left out.

    Raises:
      CheckpointError: if the file is missing, damaged or none of this recipe.
    """
    content = load_checkpoint(path)
    try:
        cfg = config_from_dict(content["config"])
        name = content["phase"]
        phase = cfg.phases[name]
        model = build_model(cfg, phase.model, content["vocab_size"])
        model.load_state_dict(content["model"])
        digest = content.get("weights_digest", weights_digest(content["model"]))
    except (KeyError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{path} must be a model that this version of the recipe trained ({e!r})") from e
    sizes = model.deployed_parameters()
    environment = content.get("environment", {})
    found = {
        "phase": f"{name} of {cfg.name}: {', '.join(phase.train)} of the {phase.model}",
        "progress": progress(content, phase.num_epochs),
        "trained": ", ".join(content["trained_parts"]),
        "parameters": f"{sizes.pop('total'):,} ({', '.join(f'{part} {size:,}' for part, size in sizes.items())})",
        "tokens": f"{content['vocab_size']} ({content['tokens_digest'][:16]})",
        "weights": digest,
        "WER": wer(path, name, content["identity"]),
        "config": short_config(cfg, name),
        "command": environment.pop("command", None),
        "commit": environment.pop("git_commit", None),
        "environment": ", ".join(f"{key} {value}" for key, value in environment.items() if value is not None),
    }
    return {title: text for title, text in found.items() if text}


def progress(content: Dict[str, Any], num_epochs: int) -> str:
    """How far the training is that left a checkpoint."""
    minutes = content["train_seconds"] / 60
    if "optimizer" not in content:
        averaged = ", ".join(content.get("averaged", ["one checkpoint"]))
        return f"finished: average of {averaged}; {content.get('step', '?')} steps, {minutes:.1f} min with its parents"
    epoch, batch = content["epoch"], content["batch"]
    where = f"after {epoch - 1} of {num_epochs} epochs"
    if batch:
        where += f" and {batch} batches of each rank"
    text = f"can be resumed {where}; {content['step']} steps, {minutes:.1f} min"
    if content["best_epoch"]:
        text += f"; best on dev: {content['best_valid']:.4f} in epoch {content['best_epoch']}"
    return text


def wer(path: Path, phase: str, identity: str) -> Optional[str]:
    """What results.json of the experiment says of this very model; None where it says nothing."""
    if path.name != "final.pt":
        return None
    experiment = path.resolve().parents[2]
    if not (experiment / "results.json").is_file():
        return None
    results = load_results(experiment)
    system = next((s for s in results["systems"] if s["phase"] == phase), None)
    if system is None:
        return None
    decoded = json.loads((experiment / "decode" / system["name"] / "decode.json").read_text(encoding="utf-8"))
    if decoded["identity"] != identity:
        return None
    texts = []
    for set_name in results["corpus"]["test_parts"]:
        scored = system["wer"][set_name]
        passes = [f"{title} {format_wer(scored[key])}" for key, title in PASS_TITLES.items() if scored[key]]
        texts.append(f"{set_name}: {', '.join(passes)}")
    return "; ".join(texts)


def short_config(cfg: Config, name: str) -> str:
    """The settings that people ask for first."""
    phase, train = cfg.phases[name], cfg.train
    scales = ", ".join(f"{term} {scale:g}" for term, scale in phase.loss_scales.items() if scale)
    return (
        f"{'+'.join(cfg.corpus.train_parts)}, {phase.num_epochs} epochs, base_lr {phase.base_lr:g}, losses {scales}; "
        f"batches of {train.max_duration:g} s x {train.accum_grad}, {train.precision}, seed {cfg.seed}"
    )


def show(paths: Sequence[Path], whole_config: bool) -> None:
    """Print all `paths`; those that cannot be read are told at the end."""
    errors: List[str] = []
    for path in paths:
        try:
            if whole_config:
                print(yaml.safe_dump(load_checkpoint(path)["config"], sort_keys=False), end="")
            else:
                print("\n".join([str(path), *(f"  {title:12s} {text}" for title, text in describe(path).items())]))
        except CheckpointError as e:
            errors.append(str(e))
    for error in errors[:-1]:
        logging.error("%s", error)
    if errors:
        raise CheckpointError(errors[-1])


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="final.pt, epoch-N.pt, ...")
    parser.add_argument("--config", action="store_true", help="print the config with which it was trained, as YAML")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    return exit_status(lambda: show(args.checkpoints, args.config))


if __name__ == "__main__":
    sys.exit(main())
