"""The experiment config: typed dataclasses, strict YAML, `key=value` overrides.

One YAML describes one experiment. A key that is not a field of these dataclasses, a value of the wrong
type and a reference to a phase that does not exist are errors; nothing is skipped or guessed.
This module imports neither torch nor k2, so that the shell can ask it questions cheaply.
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

LOSS_TERMS = ("simple", "pruned", "ctc", "transducer_kd", "attention", "attention_kd")
MODEL_PARTS = ("encoder", "decoder", "joiner", "attention_decoder", "simple_heads", "ctc_head")


class ConfigError(ValueError):
    """What the user's YAML or overrides got wrong, and what to do about it."""


@dataclass
class SynthesisConfig:
    """How stage 0 makes synthetic speech (corpora of kind `mini` only)."""

    grammar: str = "phrases"  # phrases | digits
    num_sentences: int = 4800  # training sentences
    num_fragments: int = 1200  # training fragments of 1-4 words; short ones matter for convergence
    num_dev: int = 300
    num_test: int = 300  # utterances in each test part
    num_train_voices: int = 62
    num_dev_voices: int = 8
    num_test_voices: int = 8


@dataclass
class CorpusConfig:
    """A corpus in LibriSpeech's folder layout and the parts of it that are used."""

    kind: str = "folder"  # mini | librispeech | mini_librispeech | folder
    train_parts: List[str] = MISSING
    dev_parts: List[str] = MISSING
    test_parts: List[str] = MISSING
    max_left_out: float = 0.01  # share of utterances that may be left out as unusable before it is an error
    min_duration: float = 0.3  # seconds; shorter utterances are left out
    max_duration: float = 30.0  # seconds; longer utterances are left out
    speed_perturb: List[float] = field(default_factory=list)  # extra copies of the train cuts, e.g. [0.9, 1.1]
    synthesis: Optional[SynthesisConfig] = None


@dataclass
class FeaturesConfig:
    extractor: str = "auto"  # auto | kaldifeat | lhotse; auto takes kaldifeat where it is installed
    num_mel_bins: int = 80
    sampling_rate: int = 16000


@dataclass
class TokensConfig:
    vocab_size: int = 500  # BPE pieces, blank included


@dataclass
class EncoderConfig:
    subsampling_factor: int = 4  # 4 (40 ms) | 6 (60 ms)
    dim: int = MISSING  # LSTM hidden size and residual size
    num_layers: int = MISSING
    conv_channels: int = 32  # of the convolutional subsampling
    dropout: float = 0.1


@dataclass
class DecoderConfig:
    """The RNN-T prediction network."""

    kind: str = "stateless"  # stateless | lstm
    dim: int = MISSING
    context_size: int = 2  # stateless only: how many tokens it sees
    num_layers: int = 1  # lstm only
    dropout: float = 0.1


@dataclass
class AttentionDecoderConfig:
    """The LAS second pass."""

    dim: int = MISSING  # LSTM hidden size
    num_layers: int = 1
    num_heads: int = 4
    dropout: float = 0.1
    encoder_layers: int = 0  # extra LSTM layers on the shared encoder, second pass only
    encoder_bidirectional: bool = True  # of those extra layers


@dataclass
class ModelConfig:
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    joiner_dim: int = MISSING
    attention_decoder: AttentionDecoderConfig = field(default_factory=AttentionDecoderConfig)


@dataclass
class LossConfig:
    """Settings of the task losses, shared by all phases."""

    rnnt_type: str = "modified"  # modified: at most one symbol a frame, as the searches decode | regular
    prune_range: int = 5
    lm_only_scale: float = 0.25
    am_only_scale: float = 0.0
    label_smoothing: float = 0.1


@dataclass
class KdConfig:
    """Settings of the distillation losses, shared by all phases."""

    kind: str = "full"  # full | collapsed
    node_weights: str = "uniform"  # uniform | occupation
    band: str = "student"  # student | teacher: whose simple loss chooses the pruned band
    temperature: float = 1.0
    attention_temperature: float = 1.0


@dataclass
class PhaseConfig:
    """One training phase of one system. Its key in `phases` is `<system>/<phase>`."""

    stage: int = MISSING  # stage of run.sh that trains it
    model: str = MISSING  # teacher | student: which architecture
    report_as: Optional[str] = None  # name under which stages 8 and 9 decode and report it; null: not reported
    init_from: Optional[str] = None  # phase whose weights it starts from
    teacher: Optional[str] = None  # phase whose model is the teacher
    copy_from_teacher: bool = False  # start from the teacher's weights wherever the shapes agree
    train: List[str] = MISSING  # model parts that learn; the others are frozen
    loss_scales: Dict[str, float] = MISSING  # loss term -> scale
    num_epochs: int = MISSING
    base_lr: float = MISSING
    sort_first_epoch: bool = False  # first epoch from short to long
    spec_augment: bool = True
    average: int = 1  # checkpoints of the last so many epochs are averaged into `final.pt`


@dataclass
class TrainConfig:
    """Settings of the training loop, shared by all phases."""

    max_duration: float = MISSING  # seconds of audio in a batch
    num_buckets: int = 10
    num_workers: int = 0
    betas: List[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 1e-6
    clip_grad_norm: float = 0.5  # the loss is a mean per frame, so its gradients are small
    warmup_fraction: float = 0.1  # of all steps; then linear decay to zero
    save_every_n: int = 500  # steps between checkpoints inside an epoch (for resuming)
    keep_last_k: int = 2  # of those
    log_interval: int = 50
    # Encode the training data once with the encoders that do not learn. Needs memory for the whole corpus, and is only
    # done in phases without SpecAugment.
    cache_frozen_encoders: bool = False


@dataclass
class DecodeConfig:
    max_duration: float = 200.0  # seconds of audio in a batch
    beam: int = 4
    nbest: int = 4
    rescore_weights: List[float] = field(
        default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    )
    length_rewards: List[float] = field(default_factory=lambda: [0.0])  # per token; scanned on dev with the weights
    bootstrap_samples: int = 10000


@dataclass
class Config:
    name: str = MISSING
    seed: int = 42
    min_reduction: float = 0.55  # a student must have at least this share of parameters fewer than its teacher
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    teacher: ModelConfig = field(default_factory=ModelConfig)
    student: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    kd: KdConfig = field(default_factory=KdConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    phases: Dict[str, PhaseConfig] = field(default_factory=dict)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


_CHOICES = {
    "corpus.kind": ("mini", "librispeech", "mini_librispeech", "folder"),
    "corpus.synthesis.grammar": ("phrases", "digits"),
    "features.extractor": ("auto", "kaldifeat", "lhotse"),
    "teacher.encoder.subsampling_factor": (4, 6),
    "student.encoder.subsampling_factor": (4, 6),
    "teacher.decoder.kind": ("stateless", "lstm"),
    "student.decoder.kind": ("stateless", "lstm"),
    "loss.rnnt_type": ("modified", "regular"),
    "kd.kind": ("full", "collapsed"),
    "kd.node_weights": ("uniform", "occupation"),
    "kd.band": ("student", "teacher"),
}
_POSITIVE = (
    "tokens.vocab_size",
    "train.clip_grad_norm",
    "train.num_buckets",
    "train.keep_last_k",
    "kd.temperature",
    "kd.attention_temperature",
    "train.max_duration",
    "train.save_every_n",
    "train.log_interval",
    "decode.max_duration",
    "decode.beam",
    "decode.nbest",
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides and check the whole.

    Args:
      path: the YAML file. Its `name` defaults to the file's stem; `base: other.yaml` takes all that it does not
        say itself from a file beside it.
      overrides: e.g. `["train.max_duration=20", "phases.student/rnnt_kd.num_epochs=1"]`.
    Returns:
      A plain `Config` (no OmegaConf objects inside).
    Raises:
      ConfigError: naming the key, what is wrong with it and what would be right.
    """
    path = Path(path)
    raw = _load_yaml(path)
    return _build(raw, overrides, default_name=path.stem, source=str(path))


def _load_yaml(path: Path) -> Any:
    """A YAML file merged over the file that its key `base` names, if it has one."""
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"`--conf` ({path}) must be an existing YAML file; {path.parent} has {near}")
    try:
        raw = OmegaConf.load(path)
    except Exception as e:  # yaml's errors have no common base with OmegaConf's
        raise ConfigError(f"{path} is not valid YAML: {e}") from e
    if not OmegaConf.is_dict(raw):
        raise ConfigError(f"{path} must hold keys and values, as conf/mini.yaml does")
    base = raw.pop("base", None)
    return raw if base is None else OmegaConf.merge(_load_yaml(path.parent / base), raw)


def config_from_dict(resolved: Dict[str, Any]) -> Config:
    """The inverse of `config_to_dict`: rebuild a `Config` out of a checkpoint or a saved `config.yaml`."""
    return _build(OmegaConf.create(resolved), (), default_name="", source="saved config")


def config_to_dict(cfg: Config) -> Dict[str, Any]:
    """A plain nested dict of `cfg`, as stored in checkpoints."""
    return OmegaConf.to_container(OmegaConf.structured(cfg))


def save_config(cfg: Config, path: Path) -> None:
    """Write the resolved config as YAML."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(cfg), path)


def _build(raw: Any, overrides: Sequence[str], default_name: str, source: str) -> Config:
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"override ({item}) must look like key=value, e.g. train.max_duration=20")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), raw, OmegaConf.from_dotlist(list(overrides)))
        if OmegaConf.is_missing(merged, "name"):
            merged.name = default_name
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{source}: these keys must be given: {', '.join(missing)}")
        cfg: Config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as e:
        raise ConfigError(f"{source}: {_explain(e)}") from e
    _validate(cfg)
    return cfg


def _explain(e: OmegaConfBaseException) -> str:
    message = (getattr(e, "msg", None) or str(e)).splitlines()[0]
    key = getattr(e, "full_key", None) or ""
    parent = getattr(e, "parent_node", None)
    known: List[str] = []
    if parent is not None:
        try:
            known = [str(k) for k in parent]
        except Exception:
            known = []
    if known and " not in " in message or "not in '" in message:
        near = difflib.get_close_matches(key.split(".")[-1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        return f"`{key}` is not a key of this config; {hint}"
    return f"`{key}`: {message}"


def _get(cfg: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        cfg = getattr(cfg, part)
        if cfg is None:
            return None
    return cfg


def _validate(cfg: Config) -> None:
    for key, choices in _CHOICES.items():
        value = _get(cfg, key)
        if value is not None and value not in choices:
            raise ConfigError(f"`{key}` ({value}) must be one of {', '.join(map(str, choices))}")
    for key in _POSITIVE:
        if not _get(cfg, key) > 0:
            raise ConfigError(f"`{key}` ({_get(cfg, key)}) must be positive")
    for key in ("corpus.train_parts", "corpus.dev_parts", "corpus.test_parts", "decode.rescore_weights",
                "decode.length_rewards"):  # fmt: skip
        if not _get(cfg, key):
            raise ConfigError(f"`{key}` must have at least one entry")
    if cfg.loss.prune_range < 2:
        raise ConfigError(f"`loss.prune_range` ({cfg.loss.prune_range}) must be at least 2")
    if not 0 <= cfg.loss.label_smoothing < 1:
        raise ConfigError(f"`loss.label_smoothing` ({cfg.loss.label_smoothing}) must be in [0, 1)")
    for which in ("teacher", "student"):
        attention = getattr(cfg, which).attention_decoder
        if attention.dim % attention.num_heads:
            raise ConfigError(
                f"`{which}.attention_decoder.dim` ({attention.dim}) must be a multiple of its num_heads "
                f"({attention.num_heads})"
            )
    if cfg.corpus.kind == "mini" and cfg.corpus.synthesis is None:
        cfg.corpus.synthesis = SynthesisConfig()
    if not 0 <= cfg.min_reduction < 1:
        raise ConfigError(f"`min_reduction` ({cfg.min_reduction}) must be in [0, 1)")
    reported: Dict[str, str] = {}
    for name, phase in cfg.phases.items():
        _validate_phase(cfg, name, phase)
        if phase.report_as:
            if phase.report_as in reported:
                raise ConfigError(
                    f"`phases.{name}.report_as` ({phase.report_as}) must be unique; "
                    f"{reported[phase.report_as]} has it too"
                )
            reported[phase.report_as] = name


def _validate_phase(cfg: Config, name: str, phase: PhaseConfig) -> None:
    where = f"phases.{name}"
    if name.count("/") != 1:
        raise ConfigError(f"`{where}`: a phase must be named <system>/<phase>, e.g. student/rnnt_kd")
    if phase.model not in ("teacher", "student"):
        raise ConfigError(f"`{where}.model` ({phase.model}) must be one of teacher, student")
    for key in ("init_from", "teacher"):
        ref = getattr(phase, key)
        if ref is not None and ref not in cfg.phases:
            raise ConfigError(f"`{where}.{key}` ({ref}) must name a phase: {', '.join(cfg.phases)}")
    for part in phase.train:
        if part not in MODEL_PARTS:
            raise ConfigError(f"`{where}.train` ({part}) must list parts out of {', '.join(MODEL_PARTS)}")
    for term in phase.loss_scales:
        if term not in LOSS_TERMS:
            raise ConfigError(f"`{where}.loss_scales` ({term}) must use terms out of {', '.join(LOSS_TERMS)}")
        if phase.loss_scales[term] < 0:
            raise ConfigError(f"`{where}.loss_scales.{term}` ({phase.loss_scales[term]}) must not be negative")
    scale = {term: phase.loss_scales.get(term, 0) for term in LOSS_TERMS}
    if scale["pruned"] + scale["transducer_kd"] > 0 and scale["simple"] == 0:
        raise ConfigError(
            f"`{where}.loss_scales` must have `simple` beside `pruned` and `transducer_kd`: it chooses the pruned band"
        )
    if scale["transducer_kd"] + scale["attention_kd"] > 0:
        if phase.teacher is None:
            raise ConfigError(f"`{where}.teacher` must name a phase, since its losses distil")
        factors = (cfg.teacher.encoder.subsampling_factor, cfg.student.encoder.subsampling_factor)
        if factors[0] != factors[1]:
            raise ConfigError(
                f"`teacher.encoder.subsampling_factor` and the student's {factors} must be equal to distil"
            )
    if phase.copy_from_teacher and phase.init_from is not None:
        raise ConfigError(f"`{where}` must have either `copy_from_teacher` or `init_from`, not both")
    if not phase.base_lr > 0:
        raise ConfigError(f"`{where}.base_lr` ({phase.base_lr}) must be positive")
    if phase.copy_from_teacher and phase.teacher is None:
        raise ConfigError(f"`{where}.teacher` must name a phase, since `copy_from_teacher` is true")
    if not 1 <= phase.average <= phase.num_epochs:
        raise ConfigError(f"`{where}.average` ({phase.average}) must be from 1 to num_epochs ({phase.num_epochs})")


def phases_of_stage(cfg: Config, stage: int) -> List[str]:
    """The phases that stage `stage` of run.sh trains, in the YAML's order."""
    return [name for name, phase in cfg.phases.items() if phase.stage == stage]
