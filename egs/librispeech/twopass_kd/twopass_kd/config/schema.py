"""The settings of an experiment: their types, defaults, meanings, and what they may be.

`load.py` reads them and has the rules between sections; docs/settings.md is made from here. Imports neither torch nor
k2.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from twopass_kd.config.types import (
    Bool,
    EachOnce,
    Filled,
    Float,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    PhaseName,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Range,
    Share,
    Text,
    Whole,
    as_sbatch_takes_it,
    folder_beside,
)

LossTerm = Literal["simple", "pruned", "ctc", "transducer_kd", "attention", "attention_kd"]
PassName = Literal["greedy_search", "first_pass", "two_pass"]
Search = Literal["fast_beam_search", "fast_beam_search_LG", "fast_beam_search_hotwords"]
ModelPart = Literal["encoder", "decoder", "joiner", "attention_decoder", "simple_heads", "ctc_head"]
Precision = Literal["float32", "bfloat16", "float16"]
LOSS_TERMS, MODEL_PARTS = get_args(LossTerm), get_args(ModelPart)
EXTERNAL_TEACHER = "external_teacher"  # stands for it where `phases.*.teacher` names a phase otherwise

ExperimentName = Annotated[Text, folder_beside("fbank", "manifests", "LibriSpeech", "musan")]
Parts = Annotated[list[Annotated[Text, folder_beside("musan")]], Filled, EachOnce]
SystemName = Annotated[Text, folder_beside("measured")]
Systems = Annotated[list[Text], EachOnce] | None  # `report_as` names
SlurmTime = Annotated[Text, as_sbatch_takes_it(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED", "24:00:00 or 2-00")]
SlurmMemory = Annotated[Text, as_sbatch_takes_it(r"\d+[KMGT]?", "64G")]
STRICT = ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """What the user's YAML or overrides got wrong, and what to do about it."""


def setting(default: Any, meaning: str | None = None) -> Any:
    """A setting's default (`...`: it must be given) and what it means."""
    return Field(default, description=meaning)


def section() -> Any:
    """The default of a section that is left out: that of each of its settings."""
    return Field(default_factory=dict, validate_default=True)


@dataclass(config=STRICT)
class SynthesisConfig:
    """How stage 0 makes synthetic speech (corpora of kind `mini` only)."""

    grammar: Literal["phrases", "digits"] = "phrases"
    num_sentences: PositiveInt = setting(2100, "training sentences")
    num_fragments: NonNegativeInt = setting(500, "training fragments of 1-4 words; short ones matter for convergence")
    num_dev: PositiveInt = setting(200, "utterances in each dev part")
    num_test: PositiveInt = setting(280, "utterances in each test part")
    num_train_voices: Int = setting(62, "synthetic speakers")
    num_dev_voices: Int = 8
    num_test_voices: Int = 8
    seed: NonNegativeInt = setting(42, "of what is said, by whom and how")


@dataclass(config=STRICT)
class CorpusConfig:
    """A corpus, which has a folder for each part, and the parts of it that are used."""

    kind: Literal["mini", "an4", "librispeech", "mini_librispeech", "folder"] = "folder"
    train_parts: Parts = setting(...)
    dev_parts: Parts = setting(...)
    test_parts: Parts = setting(...)
    max_left_out: NonNegativeFloat = setting(0.01, "share of utterances that may be left out as unusable")
    min_duration: NonNegativeFloat = setting(0.3, "seconds; shorter utterances are left out")
    max_duration: PositiveFloat = setting(30.0, "seconds; longer utterances are left out")
    speed_perturb: list[PositiveFloat] = setting([], "extra copies of the train cuts, e.g. [0.9, 1.1]")
    musan: Bool = setting(False, "mix `musan` beside the corpus (OpenSLR 17) into half of the train cuts, at 10-20 dB")
    synthesis: SynthesisConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "CorpusConfig":
        if self.min_duration >= self.max_duration:
            limits = self.min_duration, self.max_duration
            raise ValueError("`min_duration` ({:g}) must be below `corpus.max_duration` ({:g})".format(*limits))
        if self.kind == "mini" and self.synthesis is None:
            self.synthesis = SynthesisConfig()
        return self


@dataclass(config=STRICT)
class FeaturesConfig:
    """Log-mel filterbanks."""

    extractor: Literal["auto", "kaldifeat", "lhotse"] = setting("auto", "auto takes kaldifeat where it is installed")
    num_mel_bins: Annotated[int, Field(ge=7), Whole] = setting(80, "the encoder's first layers see 7 at once")
    sampling_rate: PositiveInt = setting(16000, "Hz")


@dataclass(config=STRICT)
class TokensConfig:
    """The tokens, and the text that they are made from."""

    vocab_size: PositiveInt = setting(500, "BPE pieces, blank included")
    normalization: Literal["NFC", "NFKC"] = setting(
        "NFC",
        "Unicode's form of all text (transcripts, references, n-grams, hotwords). NFC: one way to write a letter; NFKC:"
        " also one for letters that look alike (full width, ligatures, ordinals), and breaks Thai vowels up",
    )


@dataclass(config=STRICT)
class EncoderConfig:
    """The shared encoder: convolutions, then an LSTM."""

    subsampling_factor: Annotated[Literal[4, 6], Whole] = setting(4, "4 (40 ms) or 6 (60 ms)")
    dim: PositiveInt = setting(..., "LSTM hidden size and residual size")
    num_layers: PositiveInt = setting(..., "LSTM layers")
    conv_channels: PositiveInt = setting(32, "of the convolutional subsampling")
    dropout: Share = 0.1


@dataclass(config=STRICT)
class DecoderConfig:
    """The RNN-T prediction network."""

    kind: Literal["stateless", "lstm"] = "stateless"
    dim: PositiveInt = setting(...)
    context_size: PositiveInt = setting(2, "stateless only: how many tokens it sees")
    num_layers: PositiveInt = setting(1, "lstm only")
    dropout: Share = 0.1


@dataclass(config=STRICT)
class AttentionDecoderConfig:
    """The LAS second pass."""

    dim: PositiveInt = setting(..., "LSTM hidden size")
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 4
    dropout: Share = 0.1
    encoder_layers: NonNegativeInt = setting(0, "extra LSTM layers on the shared encoder, second pass only")
    encoder_bidirectional: Bool = setting(True, "of those extra layers")

    @model_validator(mode="after")
    def _check(self) -> "AttentionDecoderConfig":
        if self.dim % self.num_heads:
            raise ValueError(f"`dim` ({self.dim}) must be a multiple of its num_heads ({self.num_heads})")
        return self


@dataclass(config=STRICT)
class ModelConfig:
    """The architecture of a model."""

    encoder: EncoderConfig = section()
    decoder: DecoderConfig = section()
    joiner_dim: PositiveInt = setting(..., "size at which encoder and decoder are joined")
    attention_decoder: AttentionDecoderConfig = section()


@dataclass(config=STRICT)
class ExternalTeacherConfig:
    """A trained transducer that takes the place of `teacher`, which is not trained then."""

    path: Text | None = setting(None, "icefall's TorchScript (export.py) or pretrained.pt, or a checkpoint of ours")
    recipe: Text | None = setting(None, "for pretrained.pt: the icefall recipe that built it, e.g. .../ASR/zipformer")
    options: Text = setting("", "of that recipe's train.py, where not its defaults, e.g. --causal 1 --chunk-size 16")
    tokens: Text | None = setting(None, "its tokens.txt; null: beside `path`, or in icefall's places near it")

    @model_validator(mode="after")
    def _check(self) -> "ExternalTeacherConfig":
        if self.path is None and (self.recipe or self.options or self.tokens):
            raise ValueError("`path` must be given with its other keys (run.sh: --teacher FILE)")
        if self.options and self.recipe is None:
            raise ValueError("`recipe` must be given with `external_teacher.options`, which are its")
        return self


@dataclass(config=STRICT)
class LossConfig:
    """Settings of the task losses, shared by all phases."""

    backend: Literal["auto", "k2", "triton", "fast_rnnt", "torch"] = setting(
        "auto", "whose recursion over the lattice; auto: the first that runs on the device, triton on GPUs only"
    )
    rnnt_type: Literal["modified", "regular"] = setting("modified", "modified: at most one symbol a frame, as decoded")
    prune_range: Annotated[int, Field(ge=2), Whole] = setting(5, "symbols of the pruned band in a frame")
    lm_only_scale: NonNegativeFloat = setting(0.25, "of the decoder alone in the simple loss")
    am_only_scale: NonNegativeFloat = setting(0.0, "of the encoder alone in the simple loss")
    delay_penalty: NonNegativeFloat = setting(
        0.0,
        "nats by which the transducer losses punish a token for each frame that it comes later; from `train.warm_step`"
        " on in a phase without `init_from`",
    )
    label_smoothing: Share = setting(0.1, "of the attention decoder's cross-entropy")


@dataclass(config=STRICT)
class KdConfig:
    """Settings of the distillation losses, shared by all phases."""

    temperature: PositiveFloat = setting(1.0, "of the transducer's distributions")
    attention_temperature: PositiveFloat = setting(1.0, "of the attention decoder's")
    frame_shift: Int = setting(
        0,
        "in the transducer the student's frame t learns from the teacher's frame t - frame_shift: above 0 for a teacher"
        " that emits earlier, as one that hears the whole utterance may; bin/scan_frame_shift.py finds it on dev",
    )
    teacher_precision: Precision | None = setting(None, "null: as train.precision")


@dataclass(config=STRICT)
class PhaseConfig:
    """One training phase of one system. Its key in `phases` is `<system>/<phase>`."""

    stage: Int = setting(..., "stage of run.sh that trains it")
    model: Text = setting(..., "whose architecture, out of `models`")
    report_as: SystemName | None = setting(None, "name under which it is decoded and reported; null: it is not")
    init_from: Text | None = setting(None, "phase whose weights it starts from")
    teacher: Text | None = setting(None, "phase whose model is the teacher; with an external teacher, that one instead")
    copy_from_teacher: Bool = setting(False, "start from the teacher's weights wherever the shapes agree")
    train: list[ModelPart] = setting(..., "model parts that learn; the others are frozen")
    loss_scales: dict[LossTerm, NonNegativeFloat] = setting(..., "loss term -> scale")
    start_scales: dict[LossTerm, NonNegativeFloat] = setting(
        {}, "loss term -> its scale in the first step, from which it goes to `loss_scales` within `train.warm_step`"
    )
    num_epochs: PositiveInt = setting(..., "passes over the training data")
    base_lr: PositiveFloat = setting(..., "the highest learning rate, at the end of the warm-up")
    sort_first_epoch: Bool = setting(False, "first epoch from short to long; for corpora that fit into memory")
    spec_augment: Bool = setting(True, "SpecAugment on the training data")
    cpu_ranks: PositiveInt = setting(1, "on a CPU, without --world-size: processes that share each batch")
    average: NonNegativeFloat = setting(
        0.0, "epochs at the end over which the running mean of the parameters makes `final.pt`; 0: the last parameters"
    )


@dataclass(config=STRICT)
class AugmentConfig:
    """How features of the training data vary from epoch to epoch, beside SpecAugment, which a phase has or not."""

    after: Share = setting(
        0.2, "of the epochs of a phase without `init_from`: the first ones, in which features are as they are"
    )
    noise: Share = setting(
        0.5, "of the utterances: mixed with coloured noise, babble of others, or MUSAN (`corpus.musan`)"
    )
    snr: Range = setting([0.0, 20.0], "dB, of the speech over that noise")
    gain: NonNegativeFloat = setting(10.0, "dB by which utterances are made louder or quieter at most")
    pauses: Share = setting(0.2, "of the utterances: a pause before them, as many in them, as many after them")
    max_pause: NonNegativeFloat = setting(2.5, "seconds of each")
    pause_level: Range = setting([-80.0, -45.0], "dBFS, of the noise in pauses")

    @property
    def longest_pauses(self) -> float:
        """Seconds by which an utterance becomes longer at most."""
        shift = 0.05  # five frames, where there is no pause before (data.pauses.SHIFTS)
        return 3 * self.max_pause + shift if self.pauses > 0 else 0.0


@dataclass(config=STRICT)
class TrainConfig:
    """Settings of the training loop, shared by all phases."""

    ref_duration: PositiveFloat = setting(
        ..., "seconds of audio in a step, over all ranks, that `base_lr` is tuned for"
    )
    max_duration: PositiveFloat | None = setting(
        None,
        "seconds of audio in a batch of one rank, which scales learning rates by the root of the step's seconds over"
        " `ref_duration`; null: the ranks share `ref_duration`, in batches that fit into memory",
    )
    accum_grad: PositiveInt | None = setting(
        None, "with `max_duration`: batches of each rank whose gradients make one step; null: 1"
    )
    precision: Precision = setting("float32", "of matrix products on GPUs; all else is float32")
    num_buckets: PositiveInt = setting(10, "of utterances of like length, from which batches are taken")
    num_workers: NonNegativeInt = setting(0, "processes of each rank that load data; 0: the rank itself")
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = setting([0.9, 0.98], "AdamW's two")
    weight_decay: NonNegativeFloat = setting(1e-6, "AdamW's")
    clip_grad_scale: PositiveFloat = setting(2.0, "times the median norm of the last 100 gradients: the largest norm")
    clip_grad_norm: PositiveFloat | None = setting(
        None, "the largest norm, whatever the median is; for trainings so short that the fall of the first norms counts"
    )
    warmup_fraction: Share = setting(0.1, "of all steps; then linear decay to zero")
    warm_step: PositiveInt = setting(2000, "steps until each loss term has its full scale (`phases.*.start_scales`)")
    save_every_n: PositiveInt = setting(500, "steps between checkpoints inside an epoch (for resuming)")
    keep_last_k: PositiveInt = setting(2, "how many of those stay")
    keep_last_epochs: PositiveInt = setting(10, "epoch-N.pt that stay, beside the best")
    log_interval: PositiveInt = setting(50, "steps between lines of the log")

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.accum_grad is not None and self.max_duration is None:
            raise ValueError(f"`accum_grad` ({self.accum_grad}) must be given with `train.max_duration`, or be null")
        if self.accum_grad is None and self.max_duration is not None:
            self.accum_grad = 1
        return self


@dataclass(config=STRICT)
class DecodeConfig:
    """Decoding of dev and test sets, in stage 8."""

    max_duration: PositiveFloat = setting(200.0, "seconds of audio in a batch")
    beam: PositiveInt = setting(4, "hypotheses of modified_beam_search")
    nbest: PositiveInt = setting(4, "hypotheses that the second pass rescores")
    rescore_weights: Annotated[list[Float], Filled] = setting(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], "of the second pass; one is chosen on dev"
    )
    length_rewards: Annotated[list[Float], Filled] = setting([0.0], "per token; scanned on dev with the weights")
    condition_seconds: NonNegativeFloat = setting(
        300.0, "of each test set, evenly spaced utterances, are decoded in noise and with pauses too; 0: none"
    )
    bootstrap_samples: PositiveInt = setting(10000, "for the confidence intervals and the tests of claims")
    searches: Annotated[list[Search], EachOnce] = setting(
        [],
        "further searches, by k2: fast_beam_search, fast_beam_search_LG (words of an n-gram),"
        " fast_beam_search_hotwords; without k2 stage 8 leaves them out and says so",
    )
    search_systems: Systems = setting(None, "that they decode; null: those of stage 10 with a stateless decoder")
    fast_beam: PositiveFloat = setting(4.0, "nats")
    max_contexts: PositiveInt = setting(4, "of an utterance in a frame")
    max_states: PositiveInt = setting(24, "pairs of context and graph state of an utterance in a frame")
    lm_scales: list[NonNegativeFloat] = setting([0.01, 0.05, 0.1, 0.2], "of LG; one is chosen on dev")
    arpa: Text | None = setting(None, "n-gram of LG; null: trained on the transcripts that the tokens come from")
    lm_order: PositiveInt = setting(3, "of that one")
    hotwords: list[Text] = setting([], "phrases, as transcripts spell them")
    hotword_score: NonNegativeFloat = setting(1.0, "nats for each token of a hotword")

    @model_validator(mode="after")
    def _check(self) -> "DecodeConfig":
        if "fast_beam_search_LG" in self.searches and not self.lm_scales:
            raise ValueError("`lm_scales` must have at least one entry for fast_beam_search_LG")
        if "fast_beam_search_hotwords" in self.searches and not any(phrase.strip() for phrase in self.hotwords):
            raise ValueError("`hotwords` must have at least one phrase for fast_beam_search_hotwords")
        return self


@dataclass(config=STRICT)
class ClaimConfig:
    """What is claimed of two systems before they are measured. Stage 9 says of each test set whether it is shown."""

    system: Text = setting(..., "a `report_as` name")
    against: Text = setting(..., "that of the system it is compared with")
    kind: Literal["non_inferior", "superior"] = setting(
        ..., "WER above the other's by less than the margin, or below the other's"
    )
    pass_: PassName = Field(
        "two_pass",
        alias="pass",
        description="whose WERs are compared; where one of the two has no second pass, the first stands for it",
    )
    margin_relative: PositiveShare | None = setting(
        None, "of `non_inferior`: a share of the other's WER, e.g. 0.1 for 10%"
    )
    margin_points: PositiveFloat | None = setting(None, "instead of it: points of WER")
    sets: Annotated[list[Text], Filled, EachOnce] | None = setting(None, "test sets; null: all")

    @model_validator(mode="after")
    def _check(self) -> "ClaimConfig":
        given = [name for name in ("margin_relative", "margin_points") if getattr(self, name) is not None]
        if self.system == self.against:
            raise ValueError(f"`against` ({self.against}) must be another system than `system`")
        if self.kind == "non_inferior" and len(given) != 1:
            what = f"but {' and '.join(given)} are both there" if given else "but neither is there"
            raise ValueError(f"`kind` (non_inferior) must have either margin_relative or margin_points, {what}")
        if self.kind == "superior" and given:
            raise ValueError(f"`{given[0]}` must not be given for `kind: superior`, which has no margin")
        return self


@dataclass(config=STRICT)
class ExportConfig:
    """What stage 10 takes to the device and measures there."""

    systems: Systems = setting(
        None, "`report_as` names; null: those of teacher and student that are reported; []: stage 10 does nothing"
    )
    chunk_size: PositiveInt = setting(4, "encoder frames per call of the streaming encoder: latency against speed")
    decoded_seconds: PositiveFloat = setting(3600.0, "of each test set, evenly spaced utterances, for the WER")
    timed_utterances: PositiveInt = setting(40, "of the first test set, for speed and latency")
    long_minutes: Annotated[list[PositiveFloat], Filled] = setting(
        [1.0, 30.0], "lengths of the recordings that are streamed, for the memory of the smallest system in int8"
    )


@dataclass(config=STRICT)
class SlurmJobConfig:
    """What one kind of job asks of Slurm; the words are sbatch's."""

    partition: Text | None = None
    time: SlurmTime = setting("24:00:00", "trainings and features that need longer go on in the next job")
    cpus: PositiveInt = setting(8, "of each rank")
    gpus: NonNegativeInt = setting(0, "of each rank")
    mem: SlurmMemory = setting("32G", "of each node")
    options: list[Text] = setting([], "further options, e.g. [--account=speech, --exclude=node7]")


@dataclass(config=STRICT)
class SlurmGpuJobConfig(SlurmJobConfig):
    """The same with a GPU."""

    gpus: NonNegativeInt = setting(1, "of each rank")
    mem: SlurmMemory = setting("64G", "of each node")


@dataclass(config=STRICT)
class SlurmConfig:
    """The jobs of `run.sh --launcher slurm`: `cpu` of stages 0-2, 9 and 10, `gpu` of stages 3-8."""

    cpu: SlurmJobConfig = section()
    gpu: SlurmGpuJobConfig = section()
    feature_jobs: PositiveInt = setting(8, "tasks of the array that computes features")


@dataclass(config=STRICT)
class Config:
    """The settings of an experiment."""

    name: ExperimentName = setting(..., "of the experiment's folder; that of the YAML file, where it has none")
    seed: NonNegativeInt = setting(42, "of everything random, but for a synthetic corpus")
    seeds: Annotated[list[NonNegativeInt], EachOnce] = setting(
        [], "one experiment for each of them instead, in a folder of its own, and a report on all; [] for `seed` alone"
    )
    min_reduction: Share = setting(
        0.55,
        "a model that learns from another must have at least this share of parameters fewer than the first teacher",
    )
    corpus: CorpusConfig = section()
    features: FeaturesConfig = section()
    tokens: TokensConfig = section()
    models: Annotated[dict[Text, ModelConfig], Filled] = setting(
        ..., "by name; an external teacher takes the place of the one that is called `teacher`"
    )
    external_teacher: ExternalTeacherConfig = section()
    loss: LossConfig = section()
    kd: KdConfig = section()
    augment: AugmentConfig = section()
    train: TrainConfig = section()
    phases: dict[PhaseName, PhaseConfig] = section()
    decode: DecodeConfig = section()
    claims: list[ClaimConfig] = setting([], "declared before the results are known; stage 9 judges them")
    export: ExportConfig = section()
    slurm: SlurmConfig = section()
