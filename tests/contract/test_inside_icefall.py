"""The recipe inside a checkout of icefall, copied or linked to egs/librispeech/twopass_kd."""

import json
import shutil
import subprocess

import pytest

from run_sh import RECIPE, TINY, environment


@pytest.fixture
def checkout(icefall_root, tmp_path):
    """A checkout that can be written into: the real package, and a folder for recipes."""
    root = tmp_path / "icefall"
    (root / "egs" / "librispeech").mkdir(parents=True)
    (root / "icefall").symlink_to(icefall_root / "icefall")
    return root


@pytest.fixture
def copied(checkout):
    recipe = checkout / "egs" / "librispeech" / "twopass_kd"
    ignore = shutil.ignore_patterns("data", "exp", "download", "__pycache__", "*.egg-info")
    shutil.copytree(RECIPE, recipe, ignore=ignore)
    return recipe


@pytest.fixture
def linked(checkout):
    recipe = checkout / "egs" / "librispeech" / "twopass_kd"
    recipe.symlink_to(RECIPE)
    return recipe


def run(recipe, *command):
    """A command in the recipe's folder, with the Python that runs the tests as the active one; what it prints."""
    env = {**environment(), "PWD": str(recipe)}
    done = subprocess.run([*map(str, command)], cwd=recipe, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def where(recipe):
    shell = '. ./path.sh && cd / && python3 -c "import icefall, twopass_kd as t; print(icefall.__file__, t.__file__)"'
    return run(recipe, "bash", "-euc", shell).split()


def test_a_copy_makes_corpus_and_manifests_in_its_own_folder(checkout, copied):
    assert where(copied) == [str(checkout / "icefall" / "__init__.py"), str(copied / "twopass_kd" / "__init__.py")]
    run(copied, "./run.sh", "--conf", TINY, "--stop-stage", 1)
    assert list((copied / "download" / "tiny" / "LibriSpeech").glob("train-*"))
    assert list((copied / "data" / "tiny" / "manifests").glob("librispeech_supervisions_train-*.jsonl.gz"))
    done = json.loads((copied / "data" / "tiny" / ".stages" / "1.done").read_text())
    assert done["stage"] == 1
    assert "Stage 1: done already" in run(copied, "./run.sh", "--conf", TINY, "--stop-stage", 1)


@pytest.mark.parametrize("way", ["copied", "linked"])
def test_help_and_dry_run(checkout, way, request):
    recipe = request.getfixturevalue(way)
    assert run(recipe, "./run.sh", "--help").startswith("Usage: ./run.sh")
    lines = run(recipe, "./run.sh", "--dry-run")
    assert "--conf conf/mini.yaml" in lines and "twopass_kd.bin.train" in lines
    assert where(recipe)[0] == str(checkout / "icefall" / "__init__.py")


def test_a_link_makes_its_files_where_it_is_told(linked, tmp_path):
    dirs = ["--corpus-dir", tmp_path / "corpus", "--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"]
    run(linked, "./run.sh", "--conf", TINY, "--stop-stage", 1, *dirs)
    assert (tmp_path / "data" / "manifests" / "librispeech_supervisions_dev-clean.jsonl.gz").is_file()
