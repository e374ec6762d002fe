"""The settings of an experiment: typed dataclasses with their defaults. `config.py` reads and checks them.

Imports neither torch nor k2.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

LOSS_TERMS = ("simple", "pruned", "ctc", "transducer_kd", "attention", "attention_kd")
SEARCHES = ("fast_beam_search", "fast_beam_search_LG", "fast_beam_search_hotwords")
MODEL_PARTS = ("encoder", "decoder", "joiner", "attention_decoder", "simple_heads", "ctc_head")
EXTERNAL_TEACHER = "external_teacher"  # stands for it where `phases.*.teacher` names a phase otherwise


class ConfigError(ValueError):
    """What the user's YAML or overrides got wrong, and what to do about it."""


@dataclass
class SynthesisConfig:
    """How stage 0 makes synthetic speech (corpora of kind `mini` only)."""

    grammar: str = "phrases"  # phrases | digits
    num_sentences: int = 2100  # training sentences
    num_fragments: int = 500  # training fragments of 1-4 words; short ones matter for convergence
    num_dev: int = 200
    num_test: int = 280  # utterances in each test part
    num_train_voices: int = 62
    num_dev_voices: int = 8
    num_test_voices: int = 8


@dataclass
class CorpusConfig:
    """A corpus, which has a folder for each part, and the parts of it that are used."""

    kind: str = "folder"  # mini | librispeech | mini_librispeech | folder
    train_parts: list[str] = MISSING
    dev_parts: list[str] = MISSING
    test_parts: list[str] = MISSING
    max_left_out: float = 0.01  # share of utterances that may be left out as unusable before it is an error
    min_duration: float = 0.3  # seconds; shorter utterances are left out
    max_duration: float = 30.0  # seconds; longer utterances are left out
    speed_perturb: list[float] = field(default_factory=list)  # extra copies of the train cuts, e.g. [0.9, 1.1]
    musan: bool = False  # mix MUSAN (OpenSLR 17; `musan` beside the corpus) into half of the train cuts, at 10 to 20 dB
    synthesis: SynthesisConfig | None = None


@dataclass
class FeaturesConfig:
    extractor: str = "auto"  # auto | kaldifeat | lhotse; auto takes kaldifeat where it is installed
    num_mel_bins: int = 80
    sampling_rate: int = 16000


@dataclass
class TokensConfig:
    vocab_size: int = 500  # BPE pieces, blank included
    # NFC | NFKC: Unicode's form of all text (transcripts, references, n-grams, hotwords). NFC: one way to write a
    # letter; NFKC: also one for letters that look alike (full width, ligatures, ordinals), and breaks Thai vowels up.
    normalization: str = "NFC"


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
class ExternalTeacherConfig:
    """A trained transducer that takes the place of `teacher`, which is not trained then."""

    path: str | None = None  # TorchScript of icefall's export.py, icefall's pretrained.pt, or a checkpoint of ours
    recipe: str | None = None  # for pretrained.pt: the icefall recipe that built it, e.g. .../ASR/zipformer
    options: str = ""  # of that recipe's train.py, where not its defaults, e.g. --causal 1 --chunk-size 16
    tokens: str | None = None  # its tokens.txt; null: beside `path`, or in icefall's places near it


@dataclass
class LossConfig:
    """Settings of the task losses, shared by all phases."""

    backend: str = "auto"  # k2 | fast_rnnt: whose recursions, which give the same values; auto: the first that imports
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
    # In the transducer the student's frame t learns from the teacher's frame t - frame_shift: above 0 for a teacher
    # that emits earlier, as one that hears the whole utterance may. bin/scan_frame_shift.py finds it on dev.
    frame_shift: int = 0
    teacher_precision: str | None = None  # float32 | bfloat16 | float16; null: as train.precision


@dataclass
class PhaseConfig:
    """One training phase of one system. Its key in `phases` is `<system>/<phase>`."""

    stage: int = MISSING  # stage of run.sh that trains it
    model: str = MISSING  # teacher | student: which architecture
    report_as: str | None = None  # name under which stages 8 and 9 decode and report it; null: not reported
    init_from: str | None = None  # phase whose weights it starts from
    teacher: str | None = None  # phase whose model is the teacher; with an external teacher, that one instead
    copy_from_teacher: bool = False  # start from the teacher's weights wherever the shapes agree
    train: list[str] = MISSING  # model parts that learn; the others are frozen
    loss_scales: dict[str, float] = MISSING  # loss term -> scale
    num_epochs: int = MISSING
    base_lr: float = MISSING
    sort_first_epoch: bool = False  # first epoch from short to long; for small corpora, whose cuts fit into memory
    spec_augment: bool = True
    cpu_ranks: int = 1  # on a CPU and without --world-size: processes that share each batch of train.max_duration
    average: int = 1  # checkpoints of the last so many epochs are averaged into `final.pt`


@dataclass
class TrainConfig:
    """Settings of the training loop, shared by all phases."""

    max_duration: float = MISSING  # seconds of audio in a batch of one rank
    accum_grad: int = 1  # batches of each rank whose gradients make one step
    precision: str = "float32"  # float32 | bfloat16 | float16: of matrix products on GPUs; all else is float32
    num_buckets: int = 10
    num_workers: int = 0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 1e-6
    clip_grad_norm: float = 0.5  # the loss is a mean per frame, so its gradients are small
    warmup_fraction: float = 0.1  # of all steps; then linear decay to zero
    save_every_n: int = 500  # steps between checkpoints inside an epoch (for resuming)
    keep_last_k: int = 2  # of those
    keep_last_epochs: int = 10  # epoch-N.pt that stay, beside the best one; at least the phase's `average`
    log_interval: int = 50
    # Encode the training data once with the encoders that do not learn. Needs memory for the whole corpus, and is only
    # done in phases without SpecAugment that have more epochs than one.
    cache_frozen_encoders: bool = False


@dataclass
class DecodeConfig:
    max_duration: float = 200.0  # seconds of audio in a batch
    beam: int = 4
    nbest: int = 4
    rescore_weights: list[float] = field(
        default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    )
    length_rewards: list[float] = field(default_factory=lambda: [0.0])  # per token; scanned on dev with the weights
    bootstrap_samples: int = 10000
    # Further searches, by k2: fast_beam_search, fast_beam_search_LG (words of an n-gram), fast_beam_search_hotwords.
    # Without k2 stage 8 leaves them out and says so.
    searches: list[str] = field(default_factory=list)
    # `report_as` names of the systems that they decode; null: those of stage 10 whose `decoder.kind` is stateless.
    search_systems: list[str] | None = None
    fast_beam: float = 4.0  # nats
    max_contexts: int = 4  # of an utterance in a frame
    max_states: int = 24  # pairs of context and graph state of an utterance in a frame
    lm_scales: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.1, 0.2])  # of LG; one is chosen on dev
    arpa: str | None = None  # n-gram model of LG; null: one is trained on the transcripts that the tokens come from
    lm_order: int = 3  # of that one
    hotwords: list[str] = field(default_factory=list)  # phrases, as transcripts spell them
    hotword_score: float = 1.0  # nats for each token of a hotword


@dataclass
class ExportConfig:
    """What stage 10 takes to the device and measures there."""

    systems: list[str] | None = None  # `report_as` names; null: those of teacher and student that are reported
    chunk_size: int = 4  # encoder frames per call of the streaming encoder: latency against speed
    decoded_seconds: float = 3600.0  # of each test set, for the WER; of a longer one evenly spaced utterances
    timed_utterances: int = 40  # of the first test set, for speed and latency


@dataclass
class SlurmJobConfig:
    """What one kind of job asks of Slurm; the words are sbatch's."""

    partition: str | None = None
    time: str = "24:00:00"  # trainings and features that need longer go on in the next job by themselves
    cpus: int = 8  # of each rank
    gpus: int = 0  # of each rank
    mem: str = "32G"  # of each node
    options: list[str] = field(default_factory=list)  # further options, e.g. [--account=speech, --exclude=node7]


@dataclass
class SlurmConfig:
    """The jobs of `run.sh --launcher slurm`."""

    cpu: SlurmJobConfig = field(default_factory=SlurmJobConfig)  # stages 0-2, 9 and 10
    gpu: SlurmJobConfig = field(default_factory=lambda: SlurmJobConfig(gpus=1, mem="64G"))  # stages 3-8
    feature_jobs: int = 8  # tasks of the array that computes features


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
    external_teacher: ExternalTeacherConfig = field(default_factory=ExternalTeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    kd: KdConfig = field(default_factory=KdConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
