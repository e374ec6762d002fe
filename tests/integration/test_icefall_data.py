"""run.sh on what icefall's prepare.sh leaves: trains from --stage 3 on, and writes nothing into it."""

import shutil
import stat

import pytest

from icefall_data import VOCAB_SIZE, prepare, snapshot
from run_sh import TINY, error, ok
from twopass_kd.models.checkpoint import load_checkpoint

TOKENS = f"tokens.vocab_size={VOCAB_SIZE}"


@pytest.fixture(params=[True, False], ids=["perturbed", "plain"])
def recipe(request, tmp_path):
    """icefall's recipe, which nobody may write to; with copies at other speeds and MUSAN, or without."""
    folder = tmp_path / "ice fall" / "ASR"
    prepare(folder, speed_perturb=request.param, musan=request.param)
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield folder, request.param
    for path, mode in modes.items():
        path.chmod(mode)


def test_run_sh_trains_on_icefalls_data_and_leaves_it_alone(recipe, tmp_path):
    folder, perturbed = recipe
    before = snapshot(folder)
    options = ["--conf", TINY, "--data-dir", folder / "data", "--exp-dir", tmp_path / "exp", TOKENS,
               "corpus.speed_perturb=[0.9,1.1]", "phases.teacher/rnnt.num_epochs=1",
               "phases.teacher/rnnt.average=1"]  # fmt: skip
    if perturbed:
        options += ["corpus.musan=true"]
    said = ok(*options, "--stage", 3, "--stop-stage", 3)
    content = load_checkpoint(tmp_path / "exp" / "tiny" / "teacher" / "rnnt" / "final.pt")
    assert content["vocab_size"] == VOCAB_SIZE
    assert "Checking " in said and ("8 of them at another speed" in said) == perturbed
    assert ("warning: `corpus.speed_perturb`" in said) == (not perturbed)
    assert snapshot(folder) == before

    again = ok(*options, "--stage", 3, "--stop-stage", 3)
    assert "Stage 3: done already" in again and "Checking" not in again
    for stage in (0, 1, 2):
        said = error(*options, "--stage", stage, "--stop-stage", 2)
        assert "which run.sh did not make" in said and "start at --stage 3" in said
    assert snapshot(folder) == before


@pytest.mark.parametrize("left", ["manifests", f"lang_bpe_{VOCAB_SIZE}", "fbank/musan_cuts.jsonl.gz"])
def test_run_sh_replaces_nothing_where_features_are_not_there(tmp_path, left):
    data_dir = prepare(tmp_path / "ASR", speed_perturb=False, musan=True)
    for path in data_dir.iterdir():
        if path.name != left.split("/")[0]:
            shutil.rmtree(path)
    for path in data_dir.glob("fbank/librispeech_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = snapshot(tmp_path / "ASR")
    options = ["--conf", TINY, "--data-dir", data_dir, "--exp-dir", tmp_path / "exp", TOKENS]
    for stage in (0, 1, 2):
        said = error(*options, "--stage", stage, "--stop-stage", stage)
        assert f"has {left}" in said and "which run.sh did not make" in said and "another --data-dir" in said
    assert snapshot(tmp_path / "ASR") == before


def test_run_sh_says_all_that_is_wrong_before_it_trains(tmp_path):
    data_dir = prepare(tmp_path / "ASR", speed_perturb=False)
    for part in ("dev-clean", "test-other"):
        (data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz").unlink()
    said = error("--conf", TINY, "--data-dir", data_dir, "--exp-dir", tmp_path / "exp", "--stage", 3)
    for name in ("lang_bpe_50", "librispeech_cuts_dev-clean.jsonl.gz", "librispeech_cuts_test-other.jsonl.gz"):
        assert f"{name} is missing" in said
    assert not (tmp_path / "exp" / "tiny" / "teacher").exists()
    said = error("--conf", TINY, "--data-dir", data_dir, "--exp-dir", tmp_path / "exp", "--stage", 3, "--stop-stage", 3)
    assert "dev-clean.jsonl.gz is missing" in said and "test-other" not in said
