"""The whole model as `weights.safetensors` and `config.yaml`: no pickle, readable without this recipe."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from twopass_kd.config.load import config_from_dict, load_config, save_config
from twopass_kd.export import ExportError
from twopass_kd.models.checkpoint import build_model, weights_digest
from twopass_kd.models.two_pass import TwoPassModel

_INFO = ("phase", "vocab_size", "identity", "tokens_digest", "weights_digest")


def export_weights(model: TwoPassModel, content: dict[str, Any], folder: Path) -> None:
    """Write `weights.safetensors` and `config.yaml`, and read them back.

    Args:
      model: as `load_model` gives it; all of its parts are stored, those that serve training only too.
      content: the other entries of its checkpoint.
      folder: an existing folder.
    Raises:
      ExportError: if what is read back is not the same, bit for bit.
    """
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    info = {**content, "weights_digest": weights_digest(weights)}
    metadata = {"format": "pt", **{key: str(info[key]) for key in _INFO}}
    (folder / "weights.safetensors").write_bytes(save(weights, metadata))
    save_config(config_from_dict(content["config"]), folder / "config.yaml")
    loaded = load_exported_weights(folder)[0].state_dict()
    for name, tensor in weights.items():
        if not torch.equal(loaded[name], tensor):
            raise ExportError(f"weights.safetensors must hold the model's weights, but `{name}` differs")


def load_exported_weights(folder: Path) -> tuple[TwoPassModel, dict[str, Any]]:
    """The inverse of `export_weights`.

    Returns:
      The model in eval mode on the CPU, and {"phase", "vocab_size" (int), "identity", "tokens_digest",
      "weights_digest"}.
    Raises:
      ExportError: if a file is missing or damaged, or the two do not belong together.
      ConfigError: if config.yaml is no config.
    """
    path = Path(folder) / "weights.safetensors"
    if not path.is_file():
        raise ExportError(f"{path} must exist; export the model again (stage 10)")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as f:
            info: dict[str, Any] = dict(f.metadata() or {})
            weights = {name: f.get_tensor(name) for name in f.keys()}
    except SafetensorError as e:
        raise ExportError(f"{path} is cut short or no safetensors file ({e}); export the model again") from e
    missing = [key for key in _INFO if key not in info]
    if missing:
        raise ExportError(f"{path} has no metadata `{missing[0]}`: it is no export of this recipe")
    info = {key: info[key] for key in _INFO}
    info["vocab_size"] = int(info["vocab_size"])
    cfg = load_config(Path(folder) / "config.yaml")
    if info["phase"] not in cfg.phases:
        raise ExportError(f"config.yaml beside {path} must have the phase {info['phase']}; copy the whole folder")
    model = build_model(cfg, cfg.phases[info["phase"]].model, info["vocab_size"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise ExportError(f"{path} does not fit the model of config.yaml beside it: {e}") from e
    if weights_digest(weights) != info["weights_digest"]:
        raise ExportError(f"{path} is damaged: its weights are not those that were exported; export the model again")
    return model.eval(), info
