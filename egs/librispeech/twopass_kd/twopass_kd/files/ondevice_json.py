"""`ondevice.json`: what the second half of stage 10 measured on a machine."""

from enum import Enum

from pydantic import Field

from twopass_kd.files.decode_json import Decoding, Pass
from twopass_kd.files.export_json import LayerChoice, StreamingCheck
from twopass_kd.files.json_model import JsonModel, Number


class RuntimeName(str, Enum):
    """What models are run by, in float32 and in int8."""

    PYTORCH = "pytorch"
    ONNX = "onnx"
    ONNX_INT8 = "onnx-int8"
    SHERPA_ONNX = "sherpa-onnx"
    SHERPA_ONNX_INT8 = "sherpa-onnx-int8"

    __str__ = str.__str__

    @property
    def title(self) -> str:
        """For tables, e.g. `ONNX int8`."""
        return _TITLES[self]


_TITLES = dict(zip(RuntimeName, ("PyTorch", "ONNX", "ONNX int8", "sherpa-onnx", "sherpa-onnx int8")))


class Difference(JsonModel):
    """A paired bootstrap of one system minus another on the same utterances."""

    delta_wer: Number
    """Difference in WER, in absolute percent; below zero where the first system is better."""
    ci95: tuple[Number, Number]
    """Its 95% percentile interval."""
    p: Number
    """Two-sided."""


class Percentiles(JsonModel):
    """Of times, in milliseconds."""

    p50: Number
    """Half of them take no longer."""
    p95: Number
    """95% of them take no longer."""


class PassNumbers(JsonModel):
    """A number for each pass."""

    greedy_search: Number
    """Of greedy search."""
    first_pass: Number
    """Of the transducer's beam search."""
    two_pass: Number | None
    """With rescoring; null where there is none, as in sherpa-onnx."""

    def __getitem__(self, name: Pass) -> Number | None:
        return getattr(self, name)


class DeviceRow(JsonModel):
    """A system on a runtime."""

    system: str
    """A `report_as` name of the config."""
    runtime: RuntimeName
    """What ran it."""
    identity: str
    """Identity of the checkpoint."""
    bytes: int
    """Of the files that the runtime needs."""
    rtf: PassNumbers
    """Seconds of computing for each second of audio."""
    chunk_ms: Percentiles
    """From the arrival of a chunk to its partial text."""
    final_ms: Percentiles | None
    """From the end of speech to the final text."""
    second_pass_share: Number | None
    """Seconds of the second pass over those of the first; null without one."""
    peak_mb: Number
    """Peak resident memory of a fresh process, in 1e6 bytes."""
    wer: dict[str, PassNumbers]
    """WER in percent, by test set."""

    @property
    def last_pass(self) -> Pass:
        """What the runtime does in full."""
        return Pass.FIRST_PASS if self.rtf.two_pass is None else Pass.TWO_PASS


class Agreement(JsonModel):
    """Texts of sherpa-onnx against those of the recipe's own search on the same padded audio."""

    same: int
    """How many are the same."""
    of: int
    """How many were compared."""
    different: list[str]
    """Ids of the first ten that are not."""


class Int8Comparison(JsonModel):
    """A system in int8 against itself in float32; by test set a paired bootstrap for each pass."""

    __pydantic_extra__: dict[str, dict[Pass, Difference]]
    size_ratio: Number | None = None
    """Bytes of the int8 files over the teacher's in float32; null without a teacher."""

    @property
    def sets(self) -> dict[str, dict[Pass, Difference]]:
        """What int8 does to the WER, by test set and pass."""
        return self.__pydantic_extra__


class LongAudio(JsonModel):
    """Memory while one long recording is streamed."""

    minutes: list[Number]
    """Lengths of the recordings."""
    peak_mb: list[Number]
    """Peak resident memory in each, in 1e6 bytes."""


class OnDeviceJson(JsonModel):
    """An ondevice.json."""

    set: str
    """The set whose utterances were timed."""
    timed_utterances: int
    """How many they were."""
    timed_seconds: Number
    """Seconds of their audio."""
    threads: int
    """Threads of each process."""
    chunk_ms: Number
    """Milliseconds of audio in a chunk."""
    decoded_seconds: dict[str, Number]
    """Seconds of audio on which WER was measured, by test set."""
    rows: list[DeviceRow] = Field(min_length=1)
    """Each system on each runtime."""
    agreement: dict[str, dict[str, dict[str, Agreement]]]
    """By system, precision (fp32, int8) and search method."""
    int8: dict[str, Int8Comparison]
    """What int8 changes, by system."""
    long_audio: LongAudio
    """Memory over long audio, of the smallest system in int8."""
    settings: dict[str, Decoding]
    """How each system decodes."""
    quantization: dict[str, LayerChoice]
    """Which layers of each system are in int8."""
    streaming: dict[str, dict[str, StreamingCheck]]
    """Streaming against offline decoding, by system and test set."""
