"""Checks that this Python has what the recipe needs, and that a small training step runs on each GPU.

    python -m twopass_kd.bin.check_env [--conf conf/mini.yaml [key=value ...]]

Prints a line with the versions and one for each GPU and returns 0, or says what is wrong and how to put it right and
returns 1. `--conf` names the loss backend and the precision that are tried on the GPUs.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# module -> the name pip knows it by
MODULES = {
    "lhotse": "lhotse",
    "sentencepiece": "sentencepiece",
    "kaldialign": "kaldialign",
    "pydantic": "pydantic",
    "soundfile": "soundfile",
    "lilcom": "lilcom",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "tqdm": "tqdm",
    "torch.utils.tensorboard": "tensorboard six",
    "kaldilm": "kaldilm",
    "kaldingram": "kaldingram",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "safetensors": "safetensors",
    "sherpa_onnx": "sherpa-onnx",
    "soxr": "soxr",
}


class EnvironmentProblem(RuntimeError):
    """What is wrong with the environment, and the fix."""


def torch_version_k2_was_built_for() -> str | None:
    """The torch version recorded in the installed k2, e.g. `1.13.1`, read without importing k2; None without k2."""
    spec = importlib.util.find_spec("k2")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        record = Path(folder) / "torch_version.py"
        if record.is_file():
            match = re.search(r'^k2_torch_version\s*=\s*"([^"+]+)', record.read_text(), re.MULTILINE)
            if match:
                return match.group(1)
    return None


def check_environment() -> list[str]:
    """Import all that the recipe needs.

    Returns:
      The versions found, e.g. `["python 3.11.7", "torch 1.13.1", "k2 1.23.4", ...]`.
    Raises:
      EnvironmentProblem: naming the first thing that is wrong, and the fix.
    """
    torch_version = _import("torch", "torch").__version__.split("+")[0]
    numpy = _import("numpy", "numpy")
    if tuple(map(int, torch_version.split(".")[:2])) < (2, 3) and not numpy.__version__.startswith("1."):
        raise EnvironmentProblem(
            f"numpy ({numpy.__version__}) must be below 2 with torch {torch_version}; do `pip install 'numpy<2'`"
        )
    packages = ["torch", "lhotse", "numpy"]
    if importlib.util.find_spec("k2") is not None:
        _check_k2(torch_version)
        packages.insert(1, "k2")
    for module, package in MODULES.items():
        _import(module, package)
    return [f"python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in packages)]


def check_gpus(conf: Path | None, overrides: Sequence[str]) -> list[str]:
    """A small training step on each GPU, as the config has it; where torch sees none and one is there, a warning.

    Returns:
      What was found, a line each.
    Raises:
      EnvironmentProblem: the first GPU that cannot run it, and the fix.
    """
    import torch  # these import only where `check_environment` found nothing

    from twopass_kd.config.load import load_config
    from twopass_kd.stages.commands import visible_gpus
    from twopass_kd.training.gpu_probe import Gpu, try_training_step, what_to_do, why_none

    if not torch.cuda.is_available():
        visible = visible_gpus()
        if not visible:
            return []
        try:
            torch.cuda.init()
            said = ""
        except Exception as e:
            said = str(e)
        there = f"GPU {', '.join(visible)} of this machine"
        return [f"warning: {there} will not be used, and training LibriSpeech on a CPU takes weeks: {why_none(said)}"]
    cfg = load_config(conf, overrides) if conf else None
    settings = (cfg.loss.backend, cfg.train.precision) if cfg else ()
    lines = []
    for index in range(torch.cuda.device_count()):
        gpu, started = Gpu.of_torch(index), time.monotonic()
        try:
            backend = try_training_step(torch.device("cuda", index), *settings)
        except Exception as e:  # torch, cuDNN, k2 and Triton have errors of their own
            raise EnvironmentProblem(what_to_do(str(e), gpu)) from e
        seconds = time.monotonic() - started
        lines.append(f"{gpu}: a small training step works, its losses on {backend} ({seconds:.1f} s)")
    return lines


def _check_k2(torch_version: str) -> None:
    built_for = torch_version_k2_was_built_for()
    if built_for is not None and torch_version != built_for:
        raise EnvironmentProblem(
            f"torch ({torch_version}) must be {built_for}, the version that the installed k2 was built for: "
            f"do `pip install torch=={built_for}`, or install the k2 built for torch {torch_version}, or do without k2 "
            "(`pip uninstall k2`)"
        )
    try:
        importlib.import_module("k2")
    except Exception as e:  # a wrong wheel fails in many ways
        python = ".".join(platform.python_version_tuple()[:2])
        raise EnvironmentProblem(
            f"`import k2` failed ({type(e).__name__}: {e}): with \"No module named '_k2'\" it is the wheel of another "
            f"Python than this {python}: do `pip install --force-reinstall --no-deps -r requirements/k2.txt`, or do "
            "without k2 (`pip uninstall k2`)"
        ) from e


def _import(module: str, package: str):
    try:
        return importlib.import_module(module)
    except Exception as e:
        raise EnvironmentProblem(
            f"`import {module}` failed ({type(e).__name__}: {e}); do `pip install {package}`, "
            f"or `make venv` at the repository root, which pins everything"
        ) from e


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="check_env", description=__doc__.split("\n\n")[0])
    parser.add_argument("--conf", type=Path, help="YAML of an experiment (default: loss.backend=auto in float32)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. loss.backend=torch")
    args = parser.parse_args(argv)
    try:
        versions = check_environment()
        print("environment: " + ", ".join(versions))
        for line in check_gpus(args.conf, args.overrides):
            print(line)
    except (EnvironmentProblem, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
