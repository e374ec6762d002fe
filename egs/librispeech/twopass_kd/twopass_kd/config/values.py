"""The values that settings may have, one by one; config.py checks those that depend on each other."""

from typing import Any

from twopass_kd.config.schema import Config, ConfigError

_CHOICES = {
    "corpus.kind": ("mini", "librispeech", "mini_librispeech", "folder"),
    "corpus.synthesis.grammar": ("phrases", "digits"),
    "tokens.normalization": ("NFC", "NFKC"),
    "features.extractor": ("auto", "kaldifeat", "lhotse"),
    "teacher.encoder.subsampling_factor": (4, 6),
    "student.encoder.subsampling_factor": (4, 6),
    "teacher.decoder.kind": ("stateless", "lstm"),
    "student.decoder.kind": ("stateless", "lstm"),
    "loss.backend": ("auto", "k2", "fast_rnnt"),
    "loss.rnnt_type": ("modified", "regular"),
    "kd.kind": ("full", "collapsed"),
    "kd.node_weights": ("uniform", "occupation"),
    "kd.band": ("student", "teacher"),
    "kd.teacher_precision": ("float32", "bfloat16", "float16"),
    "train.precision": ("float32", "bfloat16", "float16"),
}
_MODEL_SIZES = ("encoder.dim", "encoder.num_layers", "encoder.conv_channels", "decoder.dim", "decoder.context_size",
                "decoder.num_layers", "joiner_dim", "attention_decoder.dim", "attention_decoder.num_layers",
                "attention_decoder.num_heads")  # fmt: skip
_POSITIVE = (
    *(f"corpus.synthesis.num_{what}" for what in ("sentences", "dev", "test")),
    *(f"{which}.{size}" for which in ("teacher", "student") for size in _MODEL_SIZES),
    "corpus.max_duration",
    "corpus.speed_perturb",
    "features.num_mel_bins",
    "features.sampling_rate",
    "decode.bootstrap_samples",
    "tokens.vocab_size",
    "train.clip_grad_norm",
    "train.num_buckets",
    "train.keep_last_k",
    "train.keep_last_epochs",
    "train.accum_grad",
    "kd.temperature",
    "kd.attention_temperature",
    "train.max_duration",
    "train.save_every_n",
    "train.log_interval",
    "decode.max_duration",
    "decode.beam",
    "decode.nbest",
    "decode.fast_beam",
    "decode.max_contexts",
    "decode.max_states",
    "decode.lm_order",
    "export.chunk_size",
    "export.decoded_seconds",
    "export.timed_utterances",
    "slurm.cpu.cpus",
    "slurm.gpu.cpus",
    "slurm.feature_jobs",
)
_NOT_NEGATIVE = (
    "seed",
    "corpus.max_left_out",
    "corpus.min_duration",
    "corpus.synthesis.num_fragments",
    "loss.lm_only_scale",
    "loss.am_only_scale",
    "teacher.attention_decoder.encoder_layers",
    "student.attention_decoder.encoder_layers",
    "train.num_workers",
    "train.weight_decay",
    "decode.lm_scales",
    "decode.hotword_score",
    "slurm.cpu.gpus",
    "slurm.gpu.gpus",
)
_BELOW_ONE = (
    *(f"{which}.{part}.dropout" for which in ("teacher", "student")
      for part in ("encoder", "decoder", "attention_decoder")),
    "min_reduction",
    "loss.label_smoothing",
    "train.betas",
    "train.warmup_fraction",
)  # fmt: skip


def check_values(cfg: Config) -> None:
    """Check the settings that have choices or a range; of lists, each entry.

    Raises:
      ConfigError: naming the key, its value and what it may be.
    """
    for key, choices in _CHOICES.items():
        value = value_of(cfg, key)
        if value is not None and value not in choices:
            raise ConfigError(f"`{key}` ({value}) must be one of {', '.join(map(str, choices))}")
    for keys, within, says in (
        (_POSITIVE, lambda value: value > 0, "be positive"),
        (_NOT_NEGATIVE, lambda value: value >= 0, "not be negative"),
        (_BELOW_ONE, lambda value: 0 <= value < 1, "be in [0, 1)"),
    ):
        for key in keys:
            value = value_of(cfg, key)
            for number in value if isinstance(value, list) else [value]:
                if number is not None and not within(number):
                    raise ConfigError(f"`{key}` ({number}) must {says}")
    if cfg.features.num_mel_bins < 7:
        raise ConfigError(
            f"`features.num_mel_bins` ({cfg.features.num_mel_bins}) must be at least 7, which the encoder's first"
            " layers see at once"
        )
    if len(cfg.train.betas) != 2:
        raise ConfigError(f"`train.betas` ({cfg.train.betas}) must be two numbers")
    if cfg.corpus.min_duration >= cfg.corpus.max_duration:
        raise ConfigError(
            f"`corpus.min_duration` ({cfg.corpus.min_duration:g}) must be below `corpus.max_duration`"
            f" ({cfg.corpus.max_duration:g})"
        )


def value_of(cfg: Config, key: str) -> Any:
    """The value of a dotted key; None below what is null."""
    value: Any = cfg
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
