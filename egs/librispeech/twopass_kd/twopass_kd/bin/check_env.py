"""Checks that this Python has what the recipe needs: k2 built for its torch, or fast_rnnt; lhotse; the rest.

    python -m twopass_kd.bin.check_env

Prints one line with the versions and returns 0, or says what is wrong and how to put it right and returns 1.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
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
    "kaldi_native_fbank": "kaldi-native-fbank",
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
    if torch_version.startswith("1.") and not numpy.__version__.startswith("1."):
        raise EnvironmentProblem(
            f"numpy ({numpy.__version__}) must be below 2 with torch {torch_version}; do `pip install 'numpy<2'`"
        )
    backend = _loss_backend(torch_version)
    for module, package in MODULES.items():
        _import(module, package)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", backend, "lhotse", "numpy")]
    return [f"python {platform.python_version()}", *versions]


def _loss_backend(torch_version: str) -> str:
    """The name of what the transducer losses will use; see `rnnt_backend.use_backend`."""
    problems = []
    for backend, problem in (("k2", _k2_problem), ("fast_rnnt", _fast_rnnt_problem)):
        found = problem(torch_version)
        if found is None:
            return backend
        problems.append(found)
    raise EnvironmentProblem(
        f"the transducer losses need k2 or fast_rnnt, and neither works here. {problems[0]}. {problems[1]}. "
        "`make venv` at the repository root installs everything, or activate an environment where one of them imports"
    )


def _k2_problem(torch_version: str) -> str | None:
    if importlib.util.find_spec("k2") is None:
        return "k2 is not installed"
    built_for = torch_version_k2_was_built_for()
    if built_for is not None and torch_version != built_for:
        return (
            f"torch ({torch_version}) must be {built_for}, the version that the installed k2 was built for: "
            f"do `pip install torch=={built_for}`, or install the k2 built for torch {torch_version}"
        )
    try:
        importlib.import_module("k2")
    except Exception as e:  # a wrong wheel fails in many ways
        python = ".".join(platform.python_version_tuple()[:2])
        return (
            f"`import k2` failed ({type(e).__name__}: {e}): with \"No module named '_k2'\" it is the wheel of another "
            f"Python than this {python}: do `pip install --force-reinstall --no-deps -r requirements/k2.txt`"
        )
    return None


def _fast_rnnt_problem(torch_version: str) -> str | None:
    if importlib.util.find_spec("fast_rnnt") is None:
        return "fast_rnnt is not installed (`tools/build_fast_rnnt.sh` builds it for torch 2)"
    try:
        importlib.import_module("fast_rnnt")
    except Exception as e:
        return (
            f"`import fast_rnnt` failed ({type(e).__name__}: {e}): it was built for another torch than this "
            f"{torch_version}: do `tools/build_fast_rnnt.sh PYTHON` again"
        )
    return None


def _import(module: str, package: str):
    try:
        return importlib.import_module(module)
    except Exception as e:
        raise EnvironmentProblem(
            f"`import {module}` failed ({type(e).__name__}: {e}); do `pip install {package}`, "
            f"or `make venv` at the repository root, which pins everything"
        ) from e


def main(argv: Sequence[str] | None = None) -> int:
    description = __doc__.split("\n\n")[0]
    argparse.ArgumentParser(prog="check_env", description=description).parse_args(argv)
    try:
        versions = check_environment()
    except EnvironmentProblem as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print("environment: " + ", ".join(versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
