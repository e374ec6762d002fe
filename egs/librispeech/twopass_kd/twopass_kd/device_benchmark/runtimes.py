"""The recognizers that are compared: ours on three runtimes, sherpa-onnx on two of them."""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twopass_kd.device_benchmark.sherpa import SherpaRecognizer

RUNTIMES = ("pytorch", "onnx", "onnx-int8", "sherpa-onnx", "sherpa-onnx-int8")  # as `RuntimeName` has them
METHODS = {"greedy_search": "greedy_search", "first_pass": "modified_beam_search", "two_pass": "modified_beam_search"}


def runtime_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with what every process that measures a runtime is told, to which its own options are added."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("model", type=Path, metavar="MODEL", help="export folder; for the runtime pytorch a final.pt")
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    parser.add_argument("--chunk-size", type=int, metavar="N", help="encoder frames per call, for pytorch only")
    parser.add_argument("--utterances", type=Path, required=True, metavar="FILE", help="list that stage 10 writes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    return parser


def open_recognizers(model: Path, runtime: str, chunk_size: int | None = None) -> dict[str, Callable[[], Any]]:
    """How to make the recognizer of each pass that `model` has on `runtime`; the first one is what would be deployed.

    Args:
      model: an export folder; for the runtime `pytorch` a checkpoint.
      runtime: one of `RUNTIMES`.
      chunk_size: encoder frames for each call, for `pytorch`; an export has its own.
    Returns:
      pass (greedy_search | first_pass | two_pass) -> function that gives an `RecipeRecognizer` or a `SherpaRecognizer`.
    Raises:
      ValueError: if `model` is missing, broken or of the other kind.
    """
    int8 = runtime.endswith("int8")
    if runtime.startswith("sherpa-onnx"):
        # Read in a process of its own: onnxruntime's memory is none of sherpa-onnx's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            info = SimpleNamespace(**pool.submit(_read_info, model, int8).result())
        passes = ("first_pass", "greedy_search")
        return {name: lambda name=name: SherpaRecognizer(model, info, METHODS[name], int8) for name in passes}
    from twopass_kd.device_benchmark.recipe_recognizer import (
        RecipeRecognizer,  # late, since these bring onnxruntime or torch
    )

    if Path(model).is_dir() == (runtime == "pytorch"):
        wanted = "a checkpoint (final.pt)" if runtime == "pytorch" else "an export folder"
        raise ValueError(f"`MODEL` ({model}) must be {wanted} for the runtime {runtime}")
    if runtime == "pytorch":
        from twopass_kd.ondevice.torch_runtime import TorchRuntime

        loaded = TorchRuntime(model, chunk_size=chunk_size)
    else:
        from twopass_kd.ondevice.runtime import OnnxRuntime

        loaded = OnnxRuntime(model, int8)
    passes = ("two_pass", "first_pass", "greedy_search") if loaded.info.second_pass else ("first_pass", "greedy_search")
    return {name: lambda name=name: RecipeRecognizer(loaded, METHODS[name], name == "two_pass") for name in passes}


def _read_info(model: Path, int8: bool) -> dict[str, Any]:
    from twopass_kd.ondevice.runtime import OnnxRuntime

    return asdict(OnnxRuntime(model, int8).info)
