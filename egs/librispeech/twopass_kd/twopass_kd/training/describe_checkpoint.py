"""What a checkpoint says of itself, for people."""

from pathlib import Path
from typing import Any

from twopass_kd.config.load import config_from_dict
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.files.decode_json import CheckpointDecoding, Pass
from twopass_kd.files.json_model import read_json
from twopass_kd.models.checkpoint import CheckpointError, build_model, load_checkpoint, weights_digest
from twopass_kd.scoring.results import load_results
from twopass_kd.scoring.summary import format_wer


def describe_checkpoint(path: Path) -> dict[str, str]:
    """Title -> what a checkpoint says of it; what it does not know is left out.

    Raises:
      CheckpointError: if the file is missing, damaged or none of this recipe.
      ValueError: if results.json of its experiment, or its decode.json, is malformed.
    """
    content = load_checkpoint(path)
    try:
        found = _describe(path, content)
    except (KeyError, TypeError, AttributeError, ConfigError, RuntimeError) as e:
        raise CheckpointError(f"{path} must be a model that this version of the recipe trained ({e!r})") from e
    return {title: text for title, text in found.items() if text}


def _describe(path: Path, content: dict[str, Any]) -> dict[str, str | None]:
    cfg = config_from_dict(content["config"])
    name = content["phase"]
    phase = cfg.phases[name]
    model = build_model(cfg, phase.model, content["vocab_size"])
    model.load_state_dict(content["model"])
    digest = content.get("weights_digest", weights_digest(content["model"]))
    sizes = model.deployed_parameters()
    environment, left_out = content.get("environment", {}), content.get("left_out", 0)
    return {
        "phase": f"{name} of {cfg.name}: {', '.join(phase.train)} of the {phase.model}",
        "progress": progress(content, phase.num_epochs),
        "changes": "; ".join(
            "{key} {before}, from step {step} on {now}".format(**c) for c in content.get("changes", [])
        ),
        "left out": f"{left_out} times an utterance whose loss was not finite" if left_out else None,
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


def progress(content: dict[str, Any], num_epochs: int) -> str:
    """How far the training is that left a checkpoint."""
    minutes = content["train_seconds"] / 60
    if "optimizer" not in content:
        averaged = content.get("averaged_steps", 0)
        weights = f"running mean of the last {averaged} steps" if averaged else "the last parameters"
        return f"finished: {weights}; {content.get('step', '?')} steps, {minutes:.1f} min with its parents"
    epoch, batch = content["epoch"], content["batch"]
    where = f"after {epoch - 1} of {num_epochs} epochs"
    if batch:
        where += f" and {batch} batches of each rank"
    text = f"can be resumed {where}; {content['step']} steps, {minutes:.1f} min"
    if content["best_epoch"]:
        text += f"; best on dev: {content['best_valid']:.4f} in epoch {content['best_epoch']}"
    return text


def wer(path: Path, phase: str, identity: str) -> str | None:
    """What results.json of the experiment says of this very model; None where it says nothing."""
    if path.name != "final.pt":
        return None
    experiment = (path.resolve().parents[2:3] or [path.parent])[0]
    if not (experiment / "results.json").is_file():
        return None
    results = load_results(experiment)
    system = next((s for s in results.systems if s.phase == phase), None)
    if system is None:
        return None
    decoded = experiment / "decode" / system.name / "decode.json"
    remedy = "decode again (stage 8)"
    if not decoded.is_file() or read_json(decoded, CheckpointDecoding, remedy).identity != identity:
        return None
    texts = []
    for set_name in results.corpus.test_parts:
        scored = system.wer[set_name]
        passes = [f"{name.title} {format_wer(scored[name])}" for name in Pass if scored[name]]
        texts.append(f"{set_name}: {', '.join(passes)}")
    return "; ".join(texts)


def short_config(cfg: Config, name: str) -> str:
    """The settings that people ask for first."""
    phase, train = cfg.phases[name], cfg.train
    scales = ", ".join(f"{term} {scale:g}" for term, scale in phase.loss_scales.items() if scale)
    seconds = f"steps of {train.ref_duration:g} s"
    if train.max_duration is not None:
        seconds = f"batches of {train.max_duration:g} s x {train.accum_grad}"
    return (
        f"{'+'.join(cfg.corpus.train_parts)}, {phase.num_epochs} epochs, base_lr {phase.base_lr:g}, losses {scales}; "
        f"{seconds}, {train.precision}, seed {cfg.seed}"
    )
