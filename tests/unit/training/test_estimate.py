"""The estimate counts what really runs, and says what it does not know."""

import gzip
import json
import sys

import pytest
from lhotse import MonoCut

from tiny import TINY_CONF
from twopass_kd.bin import estimate as program
from twopass_kd.config.load import load_config
from twopass_kd.training.estimate import CorpusSize, corpus_size, steps_per_epoch
from twopass_kd.training.step_split import StepSplit

LIBRISPEECH = ["corpus.kind=librispeech", "corpus.train_parts=[train-clean-100]"]


def test_hours_are_known_of_librispeech_with_its_perturbed_copies(tmp_path):
    cfg = load_config(TINY_CONF, [*LIBRISPEECH, "corpus.speed_perturb=[0.5]"])
    size = corpus_size(cfg, tmp_path, tmp_path)
    assert size.seconds == pytest.approx(3 * 100.6 * 3600) and size.num_cuts == 2 * 28539
    assert corpus_size(load_config(TINY_CONF), tmp_path, tmp_path) is None


def write_manifest(path, durations):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as f:
        f.writelines(json.dumps(MonoCut(str(i), 0, d, 0).to_dict()) + "\n" for i, d in enumerate(durations))


def test_hours_are_read_from_manifests_or_from_what_was_measured_of_them(tmp_path):
    cfg = load_config(TINY_CONF, LIBRISPEECH)
    path = tmp_path / "data" / "fbank" / "librispeech_cuts_train-clean-100.jsonl.gz"
    write_manifest(path, [1.5, 2.5])
    assert corpus_size(cfg, tmp_path / "data", tmp_path) == CorpusSize(
        4.0, 2, 2.5, f"{path.parent}, unusable cuts included"
    )

    cache = tmp_path / "tiny" / "train_cuts.json"
    key = {"train": [[path.stat().st_size, path.stat().st_mtime_ns]]}
    cache.parent.mkdir()
    cache.write_text(json.dumps({"key": key, "train_cuts": {"seconds": 1.5, "num_cuts": 1, "longest": 1.4}}))
    assert corpus_size(cfg, tmp_path / "data", tmp_path) == CorpusSize(1.5, 1, 1.4, str(cache))
    for broken in ("", '{"key"', "[]", '{"key": {}}'):  # training measures again
        cache.write_text(broken)
        assert corpus_size(cfg, tmp_path / "data", tmp_path).num_cuts == 2
    write_manifest(path, [1.5, 2.5, 3.0])
    assert corpus_size(cfg, tmp_path / "data", tmp_path).num_cuts == 3


def test_steps_fall_with_ranks_accumulation_and_longer_batches():
    size = CorpusSize(seconds=1000.0, num_cuts=100, longest=10.0, source="")
    splits = [
        StepSplit(1, 1, 25, 0, 0),
        StepSplit(1, 1, 50, 0, 0),
        StepSplit(1, 3, 25, 0, 0),
        StepSplit(4, 1, 25, 0, 0),
    ]
    assert [steps_per_epoch(size, split) for split in splits] == [50, 20, 17, 13]  # 2 utterances in 25 s, 5 in 50 s


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["estimate", "--conf", str(TINY_CONF), *map(str, args)])
    status = program.main()
    return status, capsys.readouterr().out


def test_program_prints_each_phase_the_total_and_how_it_was_computed(tmp_path, monkeypatch, capsys):
    status, text = run(
        monkeypatch,
        capsys,
        "--data-dir",
        tmp_path,
        "--world-size",
        4,
        "--nnodes",
        2,
        "train.ref_duration=240",
        *LIBRISPEECH,
    )
    assert status == 0
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "/" in line.split(" ")[0]}
    assert set(rows) == set(load_config(TINY_CONF).phases)
    assert "ranks: 8" in text and "LibriSpeech's 100.6 h" in text and "assumed, not measured" in text
    hours = [float(row[-1]) for row in rows.values()]
    total = float(text.split("Total: ")[1].split()[0])
    assert total == pytest.approx(sum(hours), abs=0.05 * len(hours) + 0.05)
    assert max(len(line) for line in text.splitlines()) <= 120


def test_program_without_data_or_baseline(tmp_path, monkeypatch, capsys):
    status, text = run(monkeypatch, capsys, "--data-dir", tmp_path, "--no-baseline")
    assert status == 0 and "unknown before stage 2" in text and "Total" not in text
    assert "student_copy" not in text and "student/deep" in text
    assert run(monkeypatch, capsys, "--world-size", 0)[0] == 1


def test_program_shares_a_step_among_ranks_and_says_what_it_was_computed_for(tmp_path, monkeypatch, capsys):
    automatic = ["--data-dir", tmp_path, "train.ref_duration=240", *LIBRISPEECH]
    steps = {}
    for ranks in (1, 4):
        status, text = run(monkeypatch, capsys, *automatic, "--world-size", ranks)
        row = next(line for line in text.splitlines() if line.startswith("teacher/rnnt "))
        assert status == 0 and f" 1 x {240 // ranks} s " in row and "80% of a GPU's 80 GiB, as there is none" in text
        steps[ranks] = int(row.split()[4].replace(",", ""))
    assert steps[4] == pytest.approx(steps[1], rel=0.2)  # a batch holds whole utterances, so short ones are less full
    status, text = run(monkeypatch, capsys, *automatic, "--world-size", 9)
    assert status == 1 and "GPU hours" not in text


def test_program_counts_with_the_memory_of_a_gpu_where_one_is(tmp_path, monkeypatch, capsys):
    """The GPU is made up; a rank of it holds models, optimizer and a part of a step."""
    gib = 0.2
    monkeypatch.setattr(program.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(program.torch.cuda, "get_device_name", lambda: "GPU of a test")
    monkeypatch.setattr(program, "device_memory", lambda device: gib * 2**30)
    options = ["--data-dir", tmp_path, "train.ref_duration=240"]
    status, text = run(monkeypatch, capsys, *options)
    row = next(line for line in text.splitlines() if line.startswith("teacher/rnnt "))
    assert status == 0 and "this GPU of a test's 0.2 GiB" in text and " 1 x 240 s " not in row
