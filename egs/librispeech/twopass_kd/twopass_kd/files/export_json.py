"""`export/<system>/export.json`: what stage 10 exported, how, and what its checks found."""

from twopass_kd.files.decode_json import Decoding
from twopass_kd.files.json_model import JsonModel, Number


class ExportSettings(Decoding):
    """How an exported model decodes."""

    chunk_size: int
    """Encoder frames for each call."""


class StreamingCheck(JsonModel):
    """Streaming on onnxruntime against decoding whole utterances on PyTorch, on one set."""

    utterances: int
    """How many were compared."""
    same_greedy: int
    """How many of them have the same text by greedy search."""
    different: list[str]
    """Ids of the others."""
    encoder_difference: Number
    """Largest absolute difference of the encoder's outputs."""


class Int8Wer(JsonModel):
    """WER on the dev sets, in percent."""

    fp32: Number
    """In float32."""
    int8: Number
    """As exported."""
    all_int8: Number
    """With all layers in int8."""


class LayerScan(JsonModel):
    """What a layer costs that is alone in int8."""

    layer: str
    """`<file>/<module>`, e.g. `encoder/layers.0.lstm`."""
    wer: Number
    """WER on the dev sets, in percent."""
    errors: int
    """Word errors more than in float32."""


class LayerStep(JsonModel):
    """A choice of layers that was tried."""

    left_out: list[str]
    """Layers in float32."""
    wer: Number
    """WER on the dev sets, in percent."""
    p: Number
    """Of a paired bootstrap against float32, two-sided."""


class LayerChoice(JsonModel):
    """Which layers are in int8, and why."""

    dev_parts: list[str]
    """The sets that it was chosen on."""
    wer: Int8Wer
    """What the choice costs."""
    layers: int
    """How many layers can be in int8."""
    scan: list[LayerScan] = []
    """Each layer alone; empty where no words are lost with all in int8."""
    left_out: list[str]
    """Layers that stay in float32, the one that costs most first."""
    steps: list[LayerStep] = []
    """The choices that were tried, the last one taken."""
    utterances: int = 0
    """Of the dev sets."""
    words: int = 0
    """Reference words of the dev sets."""


class ExportJson(JsonModel):
    """An export.json."""

    system: str
    """A `report_as` name of the config."""
    phase: str
    """The phase that trained the system last."""
    identity: str
    """Identity of the checkpoint that was exported."""
    key: str
    """Stands for model, data and settings; the same key means that nothing has to be exported again."""
    weights_digest: str
    """Digest of the checkpoint's weights."""
    settings: ExportSettings
    """How it decodes."""
    files: dict[str, int]
    """Bytes of each file by its name."""
    checks: dict[str, Number]
    """Largest absolute difference of each file's outputs from the PyTorch model's."""
    streaming: dict[str, StreamingCheck]
    """Streaming against offline decoding, by test set."""
    int8: LayerChoice
    """Which layers are in int8."""
