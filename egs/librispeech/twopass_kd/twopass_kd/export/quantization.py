"""int8 versions of the ONNX files, layer by layer, by onnxruntime's dynamic quantizer."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Set
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from twopass_kd.export.onnx_files import set_metadata

# Operators whose weights become int8, and which of their inputs those are. The two small convolutions stay in float32:
# onnxruntime has no CPU kernel for convolutions with int8 weights.
_WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "LSTM": 1, "Gather": 0}


def quantizable_layers(path: Path) -> dict[str, list[str]]:
    """The layers of an ONNX file that the quantizer can take.

    Returns:
      `<file>/<module>` (e.g. `encoder/layers.0.lstm`) -> names of its nodes.
    """
    proto = onnx.load(str(path))
    part = path.name.split(".")[0]
    weights = {tensor.name for tensor in proto.graph.initializer}
    layers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.op_type in _WEIGHT_INPUT and node.input[_WEIGHT_INPUT[node.op_type]] in weights:
            scope = ".".join(node.name.strip("/").split("/")[:-1])
            layers.setdefault(f"{part}/{scope.removeprefix(part + '.')}", []).append(node.name)
    return layers


def quantize(source: Path, target: Path, keep: Set[str]) -> None:
    """Write the int8 version of an ONNX file: weights int8, one scale per output channel; activations uint8, ranges
    measured at each call.

    Weights get 7 bits (`reduce_range`): with 8, the products of CPUs without VNNI instructions overflow, and the same
    file would recognise differently from one machine to the next.

    Args:
      source: a float32 file of `onnx_files.export_onnx`.
      target: where to; it has the metadata, inputs and outputs of `source`, but says that its precision is int8.
      keep: layers of `quantizable_layers` to leave in float32; with all of them left out, the rest is copied.
    """
    layers = quantizable_layers(source)
    chosen = [node for layer, nodes in layers.items() if layer not in keep for node in nodes]
    if not chosen:
        shutil.copyfile(source, target)
        set_metadata(target, {"precision": "int8"})
        return
    with _without_known_hints():
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul", "LSTM", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # The quantizer turns each Gemm into a MatMul of another name before it looks at the list.
            nodes_to_quantize=[name for node in chosen for name in (node, node + "_MatMul")],
        )
    set_metadata(target, {"precision": "int8"})


# Said of every model that is quantised dynamically. The graph optimiser asked for is not needed, constants are folded.
_KNOWN_HINTS = ("pre-processing before quantization", "Quantization parameters for tensor")


@contextlib.contextmanager
def _without_known_hints() -> Iterator[None]:
    def keep(record: logging.LogRecord) -> bool:
        return not any(hint in record.getMessage() for hint in _KNOWN_HINTS)

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)
