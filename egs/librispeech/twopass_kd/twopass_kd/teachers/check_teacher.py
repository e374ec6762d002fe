"""Whether a teacher and a student fit: their sizes, tokens, frame rates, features, and what the teacher has learnt."""

from dataclasses import replace

from twopass_kd.config.load import distilled_parts
from twopass_kd.config.schema import EXTERNAL_TEACHER, Config, ConfigError, PhaseConfig
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.checkpoint import build_model
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.teachers.load_teacher import Teacher


def check_sizes(cfg: Config, vocab_size: int) -> None:
    """The models of a config that learn from another one must be smaller than that one, and by `min_reduction` smaller
    than the one that nobody taught; known before anything is trained.

    Raises:
      ConfigError: with both sizes.
    """
    sizes = {name: build_model(cfg, name, vocab_size).deployed_parameters()["total"] for name in cfg.models}
    taught = {
        (phase.model, cfg.phases[phase.teacher].model) for phase in cfg.phases.values() if phase.teacher in cfg.phases
    }
    for name, teacher in sorted(taught):
        if sizes[name] >= sizes[teacher] and name != teacher:
            raise ConfigError(
                f"`models.{name}` ({sizes[name]:,} deployed parameters) must be smaller than {teacher}"
                f" ({sizes[teacher]:,}), from which it learns; shrink it"
            )
    # An external teacher's size is known, and compared, when it is opened.
    elsewhere = {phase.model for phase in cfg.phases.values() if phase.teacher == EXTERNAL_TEACHER}
    first = {name: name for name in sizes}
    for name in sorted(sizes, key=sizes.get, reverse=True):  # teachers before those that they teach
        first[name] = max((first[teacher] for model, teacher in taught if model == name), key=sizes.get, default=name)
        if first[name] != name and first[name] not in elsewhere:
            _check_reduction(cfg, name, sizes[first[name]], sizes[name])


def _check_reduction(cfg: Config, name: str, big: int, small: int) -> None:
    if small > (1 - cfg.min_reduction) * big:
        raise ConfigError(
            f"`models.{name}` ({small:,} deployed parameters) must be at least {cfg.min_reduction:.0%} smaller than the"
            f" teacher ({big:,}), but is {1 - small / big:.1%} smaller; shrink it, or lower `min_reduction`"
        )


def check_tokens(teacher: Teacher, tokens: Tokenizer) -> None:
    """A teacher must have the tokens of the data. Raises ConfigError with what both sides have."""
    if teacher.model.vocab_size != tokens.vocab_size:
        raise ConfigError(
            f"teacher {teacher.path} has {teacher.model.vocab_size} tokens, this lang_dir {tokens.vocab_size}; use the "
            "teacher's tokens.txt and bpe.model, and set `tokens.vocab_size`"
        )
    if teacher.pieces is not None and teacher.pieces != tokens.pieces:
        differing = [(i, *pair) for i, pair in enumerate(zip(teacher.pieces, tokens.pieces)) if pair[0] != pair[1]]
        example = ", token {} is {!r} there and {!r} here".format(*differing[0]) if differing else ""
        raise ConfigError(
            f"teacher {teacher.path} was trained with other tokens ({len(teacher.pieces)}) than this lang_dir has "
            f"({len(tokens.pieces)}){example}; use the teacher's tokens.txt and bpe.model, or train a teacher on these"
        )


def check_teacher(teacher: Teacher, student: TwoPassModel, cfg: Config, phase: PhaseConfig, tokens: Tokenizer) -> None:
    """Distillation needs equal tokens, frame rate and features on both sides, and a teacher that was trained.

    Raises:
      ConfigError: saying what both sides have.
    """
    check_tokens(teacher, tokens)
    sides = {
        "subsampling_factor": (teacher.model.encoder.subsampling_factor, student.encoder.subsampling_factor),
    }
    if teacher.features is not None:
        for key in ("num_mel_bins", "sampling_rate"):
            sides[f"features.{key}"] = (getattr(teacher.features, key), getattr(cfg.features, key))
    for name, (theirs, ours) in sides.items():
        if theirs != ours:
            raise ConfigError(f"`{name}`: teacher {teacher.path} has {theirs}, the student {ours}; they must be equal")
    _check_trained(teacher, cfg, phase, "this phase")
    if phase.teacher == EXTERNAL_TEACHER:
        # A transducer is compared with the student's transducer.
        big, small = teacher.model.deployed_parameters(), student.deployed_parameters()
        parts = [part for part, size in big.items() if size > 0 and part != "total"]
        _check_reduction(cfg, phase.model, big["total"], sum(small[part] for part in parts))
        for name, later in cfg.phases.items():  # now, not when those before it have trained
            if later.teacher == EXTERNAL_TEACHER:
                scales = without_attention_kd(later, teacher)
                if not any(scales.values()):
                    raise ConfigError(
                        f"`phases.{name}.loss_scales` must have `attention`, since teacher {teacher.path} has no"
                        " attention decoder to distil from"
                    )
                _check_trained(teacher, cfg, replace(later, loss_scales=scales), name)


def _check_trained(teacher: Teacher, cfg: Config, phase: PhaseConfig, what: str) -> None:
    untrained = [part for part in distilled_parts(phase) if part not in teacher.trained_parts]
    if untrained:
        raise ConfigError(
            f"teacher {teacher.path} was never trained in {', '.join(untrained)}, which {what} distils from; name a"
            " later phase of the teacher"
        )


def without_attention_kd(phase: PhaseConfig, teacher: Teacher) -> dict[str, float]:
    """The phase's loss scales; without `attention_kd` where an external teacher has no attention decoder."""
    scales = dict(phase.loss_scales)
    if phase.teacher == EXTERNAL_TEACHER and "attention_decoder" not in teacher.trained_parts:
        scales.pop("attention_kd", None)
    return scales
