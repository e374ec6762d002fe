"""The estimate counts what really runs, and says what it does not know."""

import gzip
import json
import sys

import pytest
import torch
from lhotse import MonoCut
from torch import nn

from tiny import TINY_CONF
from twopass_kd.bin import estimate as program
from twopass_kd.config.load import load_config
from twopass_kd.training import estimate
from twopass_kd.training.estimate import CorpusSize, StepCost, corpus_size, step_cost, steps_per_epoch

LIBRISPEECH = ["corpus.kind=librispeech", "corpus.train_parts=[train-clean-100]"]


def flops_of(layer, *inputs):
    with estimate._counting_layers([layer]) as layers:
        layer(*inputs)
    return sum(flops for flops, _ in layers)


def test_flops_of_layers_are_those_of_their_matrix_products():
    x = torch.randn(2, 7, 3)
    linear = nn.Linear(3, 5)
    assert flops_of(linear, x) == 2 * (2 * 2 * 7 * 3 * 5)  # forward and the weights' gradient
    assert flops_of(linear, x.clone().requires_grad_()) == 3 * (2 * 2 * 7 * 3 * 5)
    assert flops_of(linear.requires_grad_(False), x) == 2 * 2 * 7 * 3 * 5
    lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True).requires_grad_(False)
    assert flops_of(lstm, x) == 2 * 14 * 2 * (4 * 4 * (3 + 4) + 4 * 4 * (8 + 4))
    conv = nn.Conv2d(2, 5, kernel_size=3, stride=2).requires_grad_(False)
    assert flops_of(conv, torch.randn(1, 2, 9, 7)) == 2 * (4 * 3) * 5 * (2 * 3 * 3)
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).requires_grad_(False)
    query, memory = torch.randn(2, 5, 8), torch.randn(2, 11, 6)
    products = 5 * 8 * 8 + 2 * 11 * 6 * 8 + 2 * 5 * 11 * 8 + 5 * 8 * 8  # query; keys, values; attention; output
    assert flops_of(attention, query, memory, memory) == 2 * 2 * products


def test_kept_bytes_are_counted_once_and_without_parameters():
    layer = nn.Linear(10, 10)
    x = torch.randn(4, 10, requires_grad=True)
    with estimate._counting_kept(layer) as kept:
        y = layer(x)  # keeps x, and the weights
        z = torch.tanh(y)  # keeps z
        total = (z[:2] * z[2:]).sum()  # views of z
    assert total.requires_grad and sum(kept.values()) == 2 * 4 * 10 * 4


@pytest.mark.parametrize("phase", ["teacher/rnnt", "student/rnnt_kd"])
def test_cost_is_in_proportion_to_the_audio(phase, monkeypatch):
    cfg = load_config(TINY_CONF)
    once = step_cost(cfg, phase)
    monkeypatch.setattr(estimate, "UTTERANCE_SECONDS", estimate.UTTERANCE_SECONDS / 2)
    half = step_cost(cfg, phase)
    for name in ("kept_bytes", "flops", "largest_bytes"):
        assert getattr(half, name) == pytest.approx(getattr(once, name), rel=0.1), name


def test_cost_tells_parts_that_learn_from_frozen_ones():
    cfg = load_config(TINY_CONF)
    rnnt, las, kd = (step_cost(cfg, name) for name in ("student_copy/rnnt", "student_copy/las", "student/las_kd"))
    assert rnnt.teacher == las.teacher == 0 and kd.teacher == step_cost(cfg, "teacher/rnnt").model > rnnt.model
    assert las.learning < rnnt.learning < rnnt.model == las.model
    assert las.kept_bytes < rnnt.kept_bytes  # the frozen encoder keeps nothing
    assert las.flops < kd.flops
    assert las.learning == kd.learning


def test_memory_counts_copies_only_in_half_precision():
    cost = StepCost(learning=10, model=12, teacher=20, kept_bytes=7.0, largest_bytes=2.0, flops=0.0)
    expected = {"weights": 48, "half-precision copies": 0, "gradients": 40, "Adam": 80, "teacher": 80,
                "activations": 70, "temporaries": 20 * estimate.TEMPORARIES}  # fmt: skip
    assert cost.memory(10.0, "float32") == expected
    assert cost.memory(10.0, "bfloat16") == {**expected, "half-precision copies": 20}


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
    assert corpus_size(cfg, tmp_path / "data", tmp_path) == CorpusSize(4.0, 2, f"{path.parent}, unusable cuts included")

    cache = tmp_path / "tiny" / "train_cuts.json"
    key = {"train": [[path.stat().st_size, path.stat().st_mtime_ns]]}
    cache.parent.mkdir()
    cache.write_text(json.dumps({"key": key, "train_cuts": {"seconds": 1.5, "num_cuts": 1}}))
    assert corpus_size(cfg, tmp_path / "data", tmp_path) == CorpusSize(1.5, 1, str(cache))
    for broken in ("", '{"key"', "[]", '{"key": {}}'):  # training measures again
        cache.write_text(broken)
        assert corpus_size(cfg, tmp_path / "data", tmp_path).num_cuts == 2
    write_manifest(path, [1.5, 2.5, 3.0])
    assert corpus_size(cfg, tmp_path / "data", tmp_path).num_cuts == 3


def test_steps_fall_with_ranks_accumulation_and_longer_batches():
    size = CorpusSize(seconds=1000.0, num_cuts=100, source="")
    steps = {
        words: steps_per_epoch(load_config(TINY_CONF, words.split()), size, ranks=1)
        for words in ("train.max_duration=25", "train.max_duration=50", "train.max_duration=25 train.accum_grad=3")
    }
    assert list(steps.values()) == [50, 20, 17]  # 2 utterances in 25 s, 5 in 50 s
    assert steps_per_epoch(load_config(TINY_CONF, ["train.max_duration=25"]), size, ranks=4) == 13


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["estimate", "--conf", str(TINY_CONF), *map(str, args)])
    status = program.main()
    return status, capsys.readouterr().out


def test_program_prints_each_phase_the_total_and_how_it_was_computed(tmp_path, monkeypatch, capsys):
    status, text = run(monkeypatch, capsys, "--data-dir", tmp_path, "--world-size", 4, "--nnodes", 2, *LIBRISPEECH)
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
