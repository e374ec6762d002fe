"""A trained system of an experiment, teacher or student, by the name under which it is reported."""

from pathlib import Path
from typing import Any

from twopass_kd.config.load import reported_systems
from twopass_kd.config.schema import EXTERNAL_TEACHER, Config, ConfigError
from twopass_kd.data.tokenizer import Tokenizer, open_tokenizer
from twopass_kd.models.checkpoint import final_checkpoint, load_model
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.teachers.check_teacher import check_tokens
from twopass_kd.teachers.load_teacher import load_external_teacher


def load_system(
    cfg: Config, system: str, data_dir: Path, exp_dir: Path
) -> tuple[Path, TwoPassModel, dict[str, Any], Tokenizer]:
    """The finished model of a system, with the tokens it was trained on.

    Returns:
      The path of its checkpoint, the model in eval mode (an `IcefallTransducer` where an external teacher is one), the
      checkpoint's other entries, and the tokenizer.
    Raises:
      ConfigError: if there is no such system, or `data_dir` has other tokens.
      FileNotFoundError: naming the stage that trains it.
    """
    phases = reported_systems(cfg)
    if system not in phases:
        raise ConfigError(f"`--system` ({system}) must be one of {', '.join(phases)}")
    tokenizer = open_tokenizer(cfg, data_dir)
    if phases[system] == EXTERNAL_TEACHER:
        teacher = load_external_teacher(cfg.external_teacher, tokenizer.vocab_size, cfg.features.num_mel_bins)
        check_tokens(teacher, tokenizer)
        content = {
            "identity": teacher.digest,
            "phase": EXTERNAL_TEACHER,
            "trained_parts": teacher.trained_parts,
            "train_seconds": 0.0,
        }
        return teacher.path, teacher.model, content, tokenizer
    path = final_checkpoint(cfg, exp_dir, phases[system])
    model, content = load_model(path)
    if content["tokens_digest"] != tokenizer.digest():
        raise ConfigError(
            f"{path} was trained with other tokens than {data_dir} has; give the data that it was trained on"
        )
    return path, model, content, tokenizer
