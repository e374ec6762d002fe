"""The model as the streaming recogniser sees it, and its implementation on onnxruntime."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from twopass_kd.data.tokens_file import read_pieces

States = tuple[np.ndarray, np.ndarray]

SOS_EOS = 1
IGNORE_ID = -1  # pads the second pass's targets
PARTS = ("encoder", "decoder", "joiner", "attention_decoder")


class ModelError(ValueError):
    """A model on disk that cannot be used; says which file and what to do."""


@dataclass(frozen=True)
class ModelInfo:
    """What a recogniser has to know of a model.

    Attributes:
      num_features, sampling_rate: filter banks per frame; Hz.
      subsampling_factor: feature frames (10 ms) for each encoder frame.
      chunk_frames, chunk_shift: feature frames that a call of the encoder reads, and by which the next call moves on
        (sherpa-onnx's T and decode_chunk_len).
      context_size: tokens that the stateless decoder sees.
      tokens: pieces by id: `<blk>`, `<sos/eos>`, `<unk>`, then the others.
      second_pass: whether there is an attention decoder; the four after it say how to rescore with it.
    """

    num_features: int
    sampling_rate: int
    subsampling_factor: int
    chunk_frames: int
    chunk_shift: int
    context_size: int
    vocab_size: int
    tokens: tuple[str, ...]
    second_pass: bool
    rescore_weight: float
    length_reward: float
    beam: int
    nbest: int

    @property
    def receptive_field(self) -> int:
        """Feature frames that one encoder frame sees."""
        return self.chunk_frames - self.chunk_shift + self.subsampling_factor


class Runtime(Protocol):
    """A two-pass model behind numpy arrays; all float arrays are float32."""

    info: ModelInfo

    def init_states(self, batch: int) -> States:
        """Hidden and cell states of new streams, two zero arrays (L, batch, dim)."""

    def encode(self, x: np.ndarray, states: States) -> tuple[np.ndarray, np.ndarray, States]:
        """The next chunk of each stream: features (N, T, num_features) and states to the encoder's output for the
        joiner, (N, T', joiner_dim), projected; that for the second pass, (N, T', dim); and the new states."""

    def decode(self, context: np.ndarray) -> np.ndarray:
        """Last tokens (N, context_size) int64 to decoder output (N, joiner_dim), projected."""

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        """Two (N, joiner_dim) to logits (N, V); the caller may overwrite them."""

    def attention_log_probs(self, memory: np.ndarray, hyps: Sequence[Sequence[int]]) -> np.ndarray:
        """log P_att(tokens, eos | audio) in nats, (len(hyps),), for memory (T, dim) of a whole utterance, T > 0."""


class OnnxRuntime:
    """An export folder (see `twopass_kd.export`) on onnxruntime.

    Args:
      folder: with encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt and, for a second pass, attention_decoder.onnx.
      int8: take the *.int8.onnx files.
      num_threads: for one call of the model.
    Raises:
      ModelError: naming a file that is missing, unreadable or from another export than the others.
    """

    def __init__(self, folder: Path, int8: bool = False, num_threads: int = 1) -> None:
        self._folder = Path(folder)
        suffix = ".int8.onnx" if int8 else ".onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions = {}
        for part in PARTS:
            path = self._folder / f"{part}{suffix}"
            if part != "attention_decoder" or path.is_file():
                # What the second pass of a long utterance takes goes back.
                options.enable_cpu_mem_arena = part != "attention_decoder"
                self._sessions[part] = _open_session(path, options)
        metadata = {part: s.get_modelmeta().custom_metadata_map for part, s in self._sessions.items()}
        try:
            self.info = _read_info(self._folder, suffix, metadata)
            encoder = metadata["encoder"]
            self._state_shapes = [
                (int(encoder["num_encoder_layers"]), int(encoder[size])) for size in ("d_model", "rnn_hidden_size")
            ]
            _check_info(self.info, self._state_shapes, self._sessions["encoder"])
        except ModelError:
            raise
        except (KeyError, ValueError) as e:
            raise ModelError(f"{folder} has metadata that were edited ({e!r}); export it again (stage 10)") from e

    def init_states(self, batch: int) -> States:
        hidden, cell = (np.zeros((layers, batch, dim), np.float32) for layers, dim in self._state_shapes)
        return hidden, cell

    def encode(self, x: np.ndarray, states: States) -> tuple[np.ndarray, np.ndarray, States]:
        feed = {"x": x, "state0": states[0], "state1": states[1]}
        names = ["encoder_out", "memory", "next_state0", "next_state1"]
        encoder_out, memory, hidden, cell = self._sessions["encoder"].run(names, feed)
        return encoder_out, memory, (hidden, cell)

    def decode(self, context: np.ndarray) -> np.ndarray:
        return self._sessions["decoder"].run(["decoder_out"], {"y": context})[0]

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        return self._sessions["joiner"].run(["logit"], {"encoder_out": encoder_out, "decoder_out": decoder_out})[0]

    def attention_log_probs(self, memory: np.ndarray, hyps: Sequence[Sequence[int]]) -> np.ndarray:
        inputs, targets = attention_inputs(hyps)
        feed = {"memory": memory[None], "inputs": inputs, "targets": targets}
        return self._sessions["attention_decoder"].run(["log_prob"], feed)[0]


def attention_inputs(hyps: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """What the attention decoder reads (sos, tokens) and must say (tokens, eos): two (N, longest + 1) int64.

    Inputs are padded with eos, targets with -1, as `losses.attention.make_attention_targets` has them.
    """
    width = 1 + max(map(len, hyps))
    inputs = np.full((len(hyps), width), SOS_EOS, np.int64)
    targets = np.full((len(hyps), width), IGNORE_ID, np.int64)
    for row, tokens in enumerate(hyps):
        inputs[row, 1 : 1 + len(tokens)] = tokens
        targets[row, : len(tokens)] = tokens
        targets[row, len(tokens)] = SOS_EOS
    return inputs, targets


def _open_session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ModelError(f"{path} must exist; export the model again (stage 10)")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's errors have no common base
        raise ModelError(f"{path} is cut short or no ONNX model ({type(e).__name__}: {e}); export it again") from e


def _check_info(
    info: ModelInfo, state_shapes: Sequence[tuple[int, int]], encoder: onnxruntime.InferenceSession
) -> None:
    """Raises ValueError where what the metadata say cannot be true of the encoder."""
    for name, value in asdict(info).items():
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if (is_count and value < 1) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name} {value}")
    if info.chunk_shift > info.chunk_frames:
        raise ValueError(f"decode_chunk_len {info.chunk_shift}, T {info.chunk_frames}")
    shapes = {i.name: i.shape for i in encoder.get_inputs()}
    found = (shapes["x"][2], *((shape[0], shape[2]) for shape in (shapes["state0"], shapes["state1"])))
    if found != (info.num_features, *state_shapes):
        raise ValueError(f"features and states {(info.num_features, *state_shapes)}, the model has {found}")


def _read_info(folder: Path, suffix: str, metadata: dict[str, dict[str, str]]) -> ModelInfo:
    def get(part: str, key: str) -> str:
        if key not in metadata[part]:
            raise ModelError(
                f"{folder / (part + suffix)} has no metadata `{key}`: it is not the {part} of an export of this "
                "recipe; export the model again (stage 10)"
            )
        return metadata[part][key]

    def same(key: str, value: str, of: str) -> None:
        for part in metadata:
            if get(part, key) != value:
                raise ModelError(
                    f"{folder / (part + suffix)} is not of the same export as {of} beside it (`{key}` differs); "
                    "copy the whole folder, or export again"
                )

    for part, key in (("encoder", "decode_chunk_len"), ("decoder", "context_size"), ("joiner", "joiner_dim")):
        get(part, key)  # a file under another's name is told as that
    same("export_id", get("encoder", "export_id"), f"encoder{suffix}")
    precision = "int8" if suffix.startswith(".int8") else "float32"
    for part in metadata:
        if get(part, "precision") != precision:
            raise ModelError(
                f"{folder / (part + suffix)} must be the {precision} file, but it is the {get(part, 'precision')} one "
                "under its name; copy the whole folder, or export again"
            )
    second_pass = "attention_decoder" in metadata
    if get("encoder", "second_pass") == "1" and not second_pass:
        raise ModelError(f"{folder / ('attention_decoder' + suffix)} must exist; export the model again (stage 10)")
    tokens_path = folder / "tokens.txt"
    tokens = tuple(read_pieces(tokens_path, str(tokens_path), "export the model again (stage 10)", ModelError))
    vocab_size = int(get("decoder", "vocab_size"))
    if len(tokens) != vocab_size:
        raise ModelError(
            f"{tokens_path} has {len(tokens)} tokens, but the model {vocab_size}; copy the one it was exported with"
        )
    same("tokens_sha256", hashlib.sha256(tokens_path.read_bytes()).hexdigest(), "tokens.txt")
    how = metadata["attention_decoder"] if second_pass else {}
    return ModelInfo(
        num_features=int(get("encoder", "num_features")),
        sampling_rate=int(get("encoder", "sampling_rate")),
        subsampling_factor=int(get("encoder", "subsampling_factor")),
        chunk_frames=int(get("encoder", "T")),
        chunk_shift=int(get("encoder", "decode_chunk_len")),
        context_size=int(get("decoder", "context_size")),
        vocab_size=vocab_size,
        tokens=tokens,
        second_pass=second_pass,
        rescore_weight=float(how.get("rescore_weight", 0.0)),
        length_reward=float(how.get("length_reward", 0.0)),
        beam=int(get("encoder", "beam")),
        nbest=int(get("encoder", "nbest")),
    )
