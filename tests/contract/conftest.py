"""The real icefall for the contract tests: a checkout that `ICEFALL_ROOT` names, or the one that can be imported."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from icefall_teachers import TEXTS, make_icefall_teacher
from train_bpe import write_lang

HOW = "set ICEFALL_ROOT to a checkout of icefall and `pip install -r requirements/icefall.txt`"


@pytest.fixture(scope="session")
def icefall_root() -> Path:
    """The checkout, importable in this process; skips the test where there is none."""
    named = os.environ.get("ICEFALL_ROOT")
    if named is not None:
        root = Path(named).resolve()
        assert (root / "icefall" / "__init__.py").is_file(), f"`ICEFALL_ROOT` ({named}) must be an icefall checkout"
        if str(root) not in sys.path:
            sys.path.append(str(root))
    elif importlib.util.find_spec("icefall") is None:
        pytest.skip(f"needs icefall: {HOW}")
    try:
        return Path(importlib.import_module("icefall").__file__).resolve().parents[1]
    except ImportError as e:
        assert named is None, f"icefall in `ICEFALL_ROOT` ({named}) cannot be imported: {e}; {HOW}"
        pytest.skip(f"icefall cannot be imported ({e}): {HOW}")


@pytest.fixture(scope="session")
def icefall_recipes(icefall_root) -> Path:
    """egs/librispeech/ASR of the checkout; skips where icefall was installed without it."""
    recipes = icefall_root / "egs" / "librispeech" / "ASR"
    if not recipes.is_dir():
        pytest.skip(f"icefall at {icefall_root} has no egs/librispeech/ASR: {HOW}")
    return recipes


@pytest.fixture(scope="session")
def lang_dir(tmp_path_factory) -> Path:
    """A lang folder of 40 tokens, made by stage 2's code."""
    folder = tmp_path_factory.mktemp("lang") / "lang_bpe_40"
    write_lang(folder, TEXTS, 40)
    return folder


@pytest.fixture(scope="session")
def icefall_teacher(icefall_recipes, lang_dir, tmp_path_factory):
    """kind -> `IcefallTeacher`: a tiny transducer with random weights, exported by icefall's own export.py."""
    made = {}

    def make(kind: str):
        if kind not in made:
            made[kind] = make_icefall_teacher(kind, icefall_recipes, lang_dir, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make
