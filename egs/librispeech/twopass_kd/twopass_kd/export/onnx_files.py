"""The model as four ONNX files: the three of sherpa-onnx's streaming LSTM transducer and one for the second pass.

Names, shapes and metadata of encoder.onnx, decoder.onnx and joiner.onnx are those that sherpa-onnx's
OnlineLstmTransducerModel reads; it ignores the encoder's fourth output, `memory`, and attention_decoder.onnx.
"""

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twopass_kd.config.schema import ConfigError
from twopass_kd.export import ExportError
from twopass_kd.models.attention_decoder import AttentionDecoder
from twopass_kd.models.decoder import StatelessDecoder
from twopass_kd.models.encoder import Conv2dSubsampling
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.ondevice.torch_runtime import chunk_sizes

OPSET = 13
TOLERANCE = 1e-4

# What the tracer says of this model and is known to be right: the check for too short input is for Python callers, and
# LSTMs with a batch of any size are given their states or start from zeros of that size.
_HARMLESS = (
    "Converting a tensor to a Python boolean",
    "Exporting a model to ONNX with a batch_size other than 1",
    "The shape inference of prim::Constant type is missing",
    "You are using the legacy TorchScript-based ONNX export",
)


class OnnxEncoder(nn.Module):
    """x (N, T, num_features), two states (L, N, dim) -> projected output, the new states, unprojected output."""

    def __init__(self, model: TwoPassModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.encoder_proj = model.joiner.encoder_proj

    def forward(self, x: Tensor, state0: Tensor, state1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lens = torch.zeros(x.size(0), dtype=torch.int64)  # no frame is padding; the lengths are dropped
        memory, _, (next_state0, next_state1) = self.encoder(x, lens, (state0, state1))
        return self.encoder_proj(memory), next_state0, next_state1, memory


class OnnxDecoder(nn.Module):
    """y (N, context_size) int64 -> projected output (N, joiner_dim).

    The convolution sees exactly its kernel, so it is a matrix product, which runtimes run and quantise better.
    sherpa-onnx starts with a context of [-1, ..., 0]; its -1 means blank here, as in icefall's decoders.
    """

    def __init__(self, model: TwoPassModel) -> None:
        super().__init__()
        weight = model.decoder.conv.weight.detach()  # (dim out, dim in, context_size)
        self.embedding = model.decoder.embedding
        self.conv = _linear(weight.transpose(1, 2).flatten(1), None)
        self.decoder_proj = model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        return self.decoder_proj(F.relu(self.conv(self.embedding(y.clamp(min=0)).flatten(1))))


class OnnxJoiner(nn.Module):
    """Two projected inputs (N, joiner_dim) -> logits (N, V)."""

    def __init__(self, model: TwoPassModel) -> None:
        super().__init__()
        self.output_linear = model.joiner.output_linear

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


class OnnxAttentionDecoder(nn.Module):
    """memory (1, T, dim), inputs and targets (N, U) int64 -> log P_att(targets | audio), (N,), in nats.

    `AttentionDecoder.forward` for one utterance and the gathering of `losses.attention`, with the multi-head attention
    written out: torch's exports as many shape computations and hides its weights from the quantiser.
    """

    def __init__(self, decoder: AttentionDecoder) -> None:
        super().__init__()
        self.encoder_layers = decoder.encoder_layers
        self.embedding = decoder.embedding
        self.lstm = decoder.lstm
        self.hidden = decoder.hidden
        self.output_linear = decoder.output_linear
        attention = decoder.attention
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        self.query, self.key, self.value = (_linear(w.detach(), b.detach()) for w, b in zip(weights, biases))
        self.out_proj = _linear(attention.out_proj.weight.detach(), attention.out_proj.bias.detach())
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim

    def forward(self, memory: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.encoder_layers is not None:
            memory = self.encoder_layers(memory)[0]
        prefix = self.lstm(self.embedding(inputs))[0]  # (N, U, dim)
        query = self._heads(self.query(prefix) * self.head_dim**-0.5)
        key, value = self._heads(self.key(memory)), self._heads(self.value(memory))
        context = torch.matmul(torch.matmul(query, key.transpose(1, 2)).softmax(-1), value)  # (heads, N * U, head_dim)
        context = self.out_proj(context.transpose(0, 1).reshape(prefix.shape))
        hidden = torch.tanh(self.hidden(torch.cat([prefix, context], dim=-1)))
        log_probs = self.output_linear(hidden).log_softmax(-1)
        log_probs = log_probs.gather(2, targets.clamp(min=0).unsqueeze(2))
        return (log_probs * (targets >= 0).unsqueeze(2)).sum((1, 2))

    def _heads(self, x: Tensor) -> Tensor:
        """(..., dim) -> (heads, everything before, head_dim)."""
        return x.reshape(-1, self.num_heads, self.head_dim).transpose(0, 1)


def _linear(weight: Tensor, bias: Any) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None)
    linear.weight.data = weight.clone()
    if bias is not None:
        linear.bias.data = bias.clone()
    return linear


def wrappers(model: TwoPassModel, second_pass: bool) -> dict[str, nn.Module]:
    """The modules that the ONNX files are made of, by file name without suffix; in eval mode.

    Raises:
      ConfigError: if the prediction network has a state of its own (`decoder.kind` lstm).
    """
    if not isinstance(model.decoder, StatelessDecoder):
        raise ConfigError(
            "`decoder.kind` (lstm) must be stateless to be exported: the streaming runtimes give the decoder the last "
            "tokens and keep no state of it; train a model with decoder.kind=stateless"
        )
    parts: dict[str, nn.Module] = {
        "encoder": OnnxEncoder(model),
        "decoder": OnnxDecoder(model),
        "joiner": OnnxJoiner(model),
    }
    if second_pass:
        parts["attention_decoder"] = OnnxAttentionDecoder(model.attention_decoder)
    return {name: module.eval() for name, module in parts.items()}


def chunk_metadata(model: TwoPassModel, chunk_size: int, sampling_rate: int) -> dict[str, str]:
    """The encoder's metadata for calls of `chunk_size` encoder frames: sherpa-onnx's keys, then ours."""
    chunk_frames, chunk_shift = chunk_sizes(model.encoder, chunk_size)
    values = {
        "model_type": "lstm",
        "version": 1,
        "model_author": "twopass_kd",
        "decode_chunk_len": chunk_shift,
        "T": chunk_frames,
        "num_encoder_layers": model.encoder.num_layers,
        "d_model": model.encoder.dim,
        "rnn_hidden_size": model.encoder.dim,
        "subsampling_factor": model.encoder.subsampling_factor,
        "num_features": model.encoder.mvn.mean.numel(),
        "sampling_rate": sampling_rate,
    }
    return {key: str(value) for key, value in values.items()}


def export_onnx(
    model: TwoPassModel, second_pass: bool, folder: Path, metadata: dict[str, dict[str, str]]
) -> dict[str, float]:
    """Write the ONNX files and run each against the PyTorch model.

    Args:
      model: in eval mode, on the CPU.
      second_pass: whether to write attention_decoder.onnx.
      folder: an existing folder.
      metadata: for each file (name without suffix) what to store in it besides what its shapes say.
    Returns:
      File name -> largest absolute difference from PyTorch.
    Raises:
      ConfigError: if the model cannot be exported.
      ExportError: naming a file that differs by more than 1e-4.
    """
    shapes = {
        "encoder": {},
        "decoder": {"vocab_size": model.vocab_size, "context_size": getattr(model.decoder, "context_size", 0)},
        "joiner": {"joiner_dim": model.joiner.output_linear.in_features},
        "attention_decoder": {},
    }
    differences = {}
    for name, module in wrappers(model, second_pass).items():
        path = Path(folder) / f"{name}.onnx"
        _write(module, name, _inputs(model, name, batch=1, length=2), path)
        entries = {**{k: str(v) for k, v in shapes[name].items()}, **metadata[name]}
        set_metadata(path, entries)
        differences[path.name] = check_onnx(model, module, path)
    return differences


_NAMES: dict[str, tuple[list[str], list[str]]] = {
    "encoder": (["x", "state0", "state1"], ["encoder_out", "next_state0", "next_state1", "memory"]),
    "decoder": (["y"], ["decoder_out"]),
    "joiner": (["encoder_out", "decoder_out"], ["logit"]),
    "attention_decoder": (["memory", "inputs", "targets"], ["log_prob"]),
}
_AXES: dict[str, dict[str, dict[int, str]]] = {
    "encoder": {
        "x": {0: "N", 1: "T"},
        "state0": {1: "N"},
        "state1": {1: "N"},
        "encoder_out": {0: "N", 1: "T_out"},
        "next_state0": {1: "N"},
        "next_state1": {1: "N"},
        "memory": {0: "N", 1: "T_out"},
    },
    "decoder": {"y": {0: "N"}, "decoder_out": {0: "N"}},
    "joiner": {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}, "logit": {0: "N"}},
    "attention_decoder": {
        "memory": {1: "T"},
        "inputs": {0: "N", 1: "U"},
        "targets": {0: "N", 1: "U"},
        "log_prob": {0: "N"},
    },
}


def _write(module: nn.Module, name: str, inputs: tuple[Tensor, ...], path: Path) -> None:
    # Newer torch has a second exporter, which this model does not need, and takes it unless told.
    legacy = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        torch.onnx.export(
            module,
            inputs,
            str(path),
            opset_version=OPSET,
            input_names=_NAMES[name][0],
            output_names=_NAMES[name][1],
            dynamic_axes=_AXES[name],
            **legacy,
        )


def set_metadata(path: Path, entries: dict[str, str]) -> None:
    """Add entries to the metadata of an ONNX file, or replace those of the same name."""
    proto = onnx.load(str(path))
    kept = {prop.key: prop.value for prop in proto.metadata_props}
    del proto.metadata_props[:]
    for key, value in {**kept, **entries}.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def _inputs(model: TwoPassModel, name: str, batch: int, length: int) -> tuple[Tensor, ...]:
    """Random inputs of an ONNX file; `length` counts encoder frames, or tokens."""
    dim, joiner_dim = model.encoder.dim, model.joiner.output_linear.in_features
    if name == "encoder":
        frames = Conv2dSubsampling.receptive_field + model.encoder.subsampling_factor * (length - 1)
        states = (torch.randn_like(state) for state in model.encoder.init_states(batch))
        return (torch.randn(batch, frames, model.encoder.mvn.mean.numel()), *states)
    if name == "decoder":
        return (torch.randint(model.vocab_size, (batch, model.decoder.context_size)),)
    if name == "joiner":
        return torch.randn(batch, joiner_dim), torch.randn(batch, joiner_dim)
    targets = torch.randint(model.vocab_size, (batch, length))
    targets[0, length // 2 + 1 :] = -1
    return torch.randn(1, 3 * length, dim), torch.randint(model.vocab_size, (batch, length)), targets


@torch.no_grad()
def check_onnx(model: TwoPassModel, module: nn.Module, path: Path) -> float:
    """The largest absolute difference of an ONNX file from its PyTorch module on random inputs of several sizes (per
    token, where the output is the log-prob of all tokens).

    Raises:
      ExportError: if it is above 1e-4, or not a number.
    """
    name = path.name.split(".")[0]
    worst = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch, length in ((1, 1), (1, 7), (3, 4), (4, 23)):
            inputs = _inputs(model, name, batch, length)
            expected = module(*inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            terms = length if name == "attention_decoder" else 1  # its output is a sum over so many tokens
            for got, want in zip(run_onnx(path, inputs), expected):
                difference = float(np.abs(got - want.numpy()).max()) if got.shape == want.shape else float("inf")
                worst = max(worst, difference / terms) if difference == difference else float("inf")
    if worst > TOLERANCE:
        raise ExportError(f"{path.name} must equal the PyTorch model to {TOLERANCE}, but differs by {worst:.3g}")
    return worst


def check_finite(model: TwoPassModel, path: Path) -> None:
    """Run a quantised file on random inputs.

    Raises:
      ExportError: if it gives anything but finite numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch, length in ((1, 4), (3, 5)):
            outputs = run_onnx(path, _inputs(model, path.name.split(".")[0], batch, length))
            if not all(np.isfinite(array).all() for array in outputs):
                raise ExportError(f"{path.name} must give finite numbers, but does not; leave its layers out of int8")


def run_onnx(path: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """The outputs of an ONNX file of this recipe, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})
