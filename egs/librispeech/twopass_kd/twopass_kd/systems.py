"""The trained systems of an experiment, by the names under which they are reported."""

from pathlib import Path
from typing import Any, Dict, Tuple

from twopass_kd.checkpoint import final_checkpoint, load_model
from twopass_kd.config import Config, ConfigError, reported_systems
from twopass_kd.model import TwoPassModel
from twopass_kd.tokenizer import Tokenizer

# How stage 8 decoded a system: keys of its decode.json that exports and runtimes take over.
DECODING = ("beam", "nbest", "rescore_weight", "length_reward")


def load_system(
    cfg: Config, system: str, data_dir: Path, exp_dir: Path
) -> Tuple[Path, TwoPassModel, Dict[str, Any], Tokenizer]:
    """The finished model of a system, with the tokens it was trained on.

    Returns:
      The path of its checkpoint, the model in eval mode, the checkpoint's other entries, and the tokenizer.
    Raises:
      ConfigError: if there is no such system, or `data_dir` has other tokens.
      FileNotFoundError: naming the stage that trains it.
    """
    phases = reported_systems(cfg)
    if system not in phases:
        raise ConfigError(f"`--system` ({system}) must be one of {', '.join(phases)}")
    path = final_checkpoint(cfg, exp_dir, phases[system])
    model, content = load_model(path)
    tokenizer = Tokenizer(Path(data_dir) / f"lang_bpe_{cfg.tokens.vocab_size}")
    if content["tokens_digest"] != tokenizer.digest():
        raise ConfigError(
            f"{path} was trained with other tokens than {data_dir} has; give the data that it was trained on"
        )
    return path, model, content, tokenizer
