import os
import random
from collections.abc import Sequence
from pathlib import Path

import kaldialign
import numpy as np
import pytest

from fake_experiment import transcripts
from twopass_kd.files.ondevice_json import Difference
from twopass_kd.scoring.wer import (
    align_words,
    corpus_wer,
    error_counts,
    paired_bootstrap,
    read_recogs,
    score_wer,
    write_decoding_results,
)

SMALL = [
    ("b-2", ["THE", "CAT", "SAT"], ["THE", "HAT", "SAT", "DOWN"]),
    ("a-1", ["GO", "HOME", "NOW"], ["GO", "NOW"]),
    ("c-3", ["IT'S", "*", "LATE"], ["IT'S", "*", "LATE"]),
]


def slow_edit_distance(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """Textbook dynamic programme, independent of kaldialign."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, start=1):
        above, row = row, [i]
        for j, h in enumerate(hyp, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != h)))
    return row[-1]


def random_words(rng: random.Random, longest: int) -> list[str]:
    return rng.choices("ABCDE", k=rng.randint(0, longest))


def test_corpus_wer_equals_slow_dynamic_programme():
    rng = random.Random(1)
    rows = [(str(i), random_words(rng, 9), random_words(rng, 9)) for i in range(300)]
    stats = corpus_wer(rows)
    errors = sum(slow_edit_distance(ref, hyp) for _, ref, hyp in rows)
    words = sum(len(ref) for _, ref, _ in rows)
    assert stats.ins + stats.dels + stats.subs == errors
    assert stats.wer == pytest.approx(100 * errors / words)
    assert (stats.ref_words, stats.num_utts) == (words, 300)


def test_align_words_rebuilds_both_sides_with_minimum_errors():
    rng = random.Random(2)
    for _ in range(200):
        ref, hyp = random_words(rng, 8), random_words(rng, 8)
        pairs = align_words(ref, hyp)
        assert [r for r, _ in pairs if r is not None] == ref
        assert [h for _, h in pairs if h is not None] == hyp
        assert sum(r != h for r, h in pairs) == slow_edit_distance(ref, hyp)


def test_error_counts_names_each_kind():
    assert error_counts(SMALL).tolist() == [[1, 0, 1, 3], [0, 1, 0, 3], [0, 0, 0, 3]]


def test_corpus_wer_star_in_the_text_is_a_word():
    stats = corpus_wer([("a", ["*", "B"], ["B"])])
    assert (stats.dels, stats.ins, stats.subs) == (1, 0, 0)


@pytest.mark.parametrize("rows", [[], [("a", [], ["X"])]])
def test_corpus_wer_without_reference_words_is_an_error(rows):
    with pytest.raises(ValueError, match="must have reference words"):
        corpus_wer(rows)


def test_write_decoding_results_formats(tmp_path: Path):
    stats = write_decoding_results(tmp_path, "test-clean", "greedy_search", SMALL)
    assert stats.wer == pytest.approx(100 * 3 / 9)
    recogs = (tmp_path / "recogs-test-clean-greedy_search.txt").read_text().splitlines()
    assert recogs[:2] == ["a-1:\tref=['GO', 'HOME', 'NOW']", "a-1:\thyp=['GO', 'NOW']"]
    assert recogs[4] == """c-3:\tref=["IT'S", '*', 'LATE']"""
    summary = (tmp_path / "wer-summary-test-clean-greedy_search.txt").read_text()
    assert summary == "settings\tWER\ngreedy_search\t33.33\n"
    errs = (tmp_path / "errs-test-clean-greedy_search.txt").read_text()
    assert errs.splitlines() == [
        "%WER = 33.33",
        "Errors: 1 insertions, 1 deletions, 1 substitutions, over 9 reference words (7 correct)",
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",
        "a-1:\tGO (HOME->*) NOW",
        "b-2:\tTHE (CAT->HAT) SAT (*->DOWN)",
        "c-3:\tIT'S * LATE",
        "",
        "SUBSTITUTIONS: count ref -> hyp",
        "1   CAT -> HAT",
        "",
        "DELETIONS: count ref",
        "1   HOME",
        "",
        "INSERTIONS: count hyp",
        "1   DOWN",
        "",
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
        "HOME   0 1 1 0",
        "HAT   0 1 0 1",
        "DOWN   0 1 0 1",
        "CAT   0 1 1 0",
        "THE   1 0 1 1",
        "SAT   1 0 1 1",
        "NOW   1 0 1 1",
        "LATE   1 0 1 1",
        "IT'S   1 0 1 1",
        "GO   1 0 1 1",
        "*   1 0 1 1",
    ]
    assert sorted(os.listdir(tmp_path)) == [
        f"{kind}-test-clean-greedy_search.txt" for kind in ("errs", "recogs", "wer-summary")
    ]


def test_write_decoding_results_joins_successive_errors(tmp_path: Path):
    write_decoding_results(tmp_path, "s", "x", [("a", ["ONE", "TWO", "SIX"], ["WON", "TOO", "SIX"])])
    assert "a:\t(ONE TWO->WON TOO) SIX\n" in (tmp_path / "errs-s-x.txt").read_text()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([SMALL[0], SMALL[0]], "b-2 must come once"),
        ([("a", "GO HOME", ["GO"])], "must be lists of words"),
        ([("a\n", ["GO"], ["GO"])], "without newlines"),
    ],
)
def test_write_decoding_results_bad_input_leaves_no_file(tmp_path: Path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_decoding_results(tmp_path, "s", "x", rows)
    assert os.listdir(tmp_path) == []


def test_read_recogs_round_trip(tmp_path: Path):
    rows = [("é-1", ["NAÏVE", "O'CLOCK", 'SAY "X"', "日本"], []), ("z:2", [], ["A\tB", "C\u2028D"]), *SMALL]
    write_decoding_results(tmp_path, "s", "x", rows)
    assert read_recogs(tmp_path / "recogs-s-x.txt") == sorted(rows)


@pytest.mark.parametrize(
    "text, line",
    [
        ("a:\tref=['A']\na:\thyp=['A'\n", 2),
        ("a:\tref=['A']\na:\thyp=[__import__('os')]\n", 2),
        ("a:\tref=['A']\nb:\thyp=['A']\n", 2),
        ("a:\thyp=['A']\na:\tref=['A']\n", 1),
        ("a:\tref=['A']\n", 2),
        ("a:\tref=['A']\na:\thyp=[1]\n", 2),
        ("a:\tref=['A']\na:\thyp=['A']\n\n", 3),
        ("a:\tref=['A']\na:\thyp=['A']\na:\tref=['A']\na:\thyp=['A']\n", 3),
    ],
)
def test_read_recogs_malformed_names_file_and_line(tmp_path: Path, text: str, line: int):
    path = tmp_path / "recogs-s-x.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"recogs-s-x\.txt, line {line}: .*must"):
        read_recogs(path)


def test_bootstrap_wer_is_deterministic_and_covers_the_estimate():
    rows = transcripts(200, 0.15, seed=3)
    first = score_wer(rows, 2000, seed=1)
    assert first == score_wer(rows, 2000, seed=1)
    assert first.ci95 != score_wer(rows, 2000, seed=2).ci95
    assert first.wer == corpus_wer(rows).wer
    assert first.ci95[0] < first.wer < first.ci95[1]


def test_bootstrap_wer_agrees_with_kaldialign():
    rows = transcripts(400, 0.15, seed=4)
    ours = score_wer(rows, 10000, seed=0).ci95
    theirs = kaldialign.bootstrap_wer_ci([r for _, r, _ in rows], [h for *_, h in rows], replications=10000, seed=0)
    assert ours == pytest.approx([100 * theirs["ci95min"], 100 * theirs["ci95max"]], abs=0.15)


def test_bootstrap_wer_interval_covers_the_true_rate_about_as_often_as_it_says():
    """Each of 200 test sets has i.i.d. errors at a known rate: 95% of the intervals should hold it."""
    rng = np.random.default_rng(0)
    rate, held = 0.2, 0
    for trial in range(200):
        wrong = rng.random((150, 5)) < rate
        rows = [(str(i), ["A"] * 5, ["B" if w else "A" for w in row]) for i, row in enumerate(wrong)]
        low, high = score_wer(rows, 400, seed=trial).ci95
        held += low <= 100 * rate <= high
    assert 0.89 <= held / 200 <= 0.99


def test_bootstrap_wer_survives_resamples_of_empty_references_only():
    result = score_wer([("a", ["A"], ["A"]), ("b", [], [])], 200, seed=0)
    assert (result.wer, result.ci95) == (0.0, (0.0, 0.0))


def test_bootstrap_wer_needs_samples():
    with pytest.raises(ValueError, match=r"`num_samples` \(0\) must be positive"):
        score_wer(SMALL, 0, seed=0)


def test_paired_bootstrap_of_a_system_with_itself():
    rows = transcripts(50, 0.2, seed=5)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert paired_bootstrap(rows, shuffled, 500, seed=0) == Difference(delta_wer=0.0, ci95=(0.0, 0.0), p=1.0)


def test_paired_bootstrap_sign_and_significance():
    good, bad = transcripts(200, 0.05, seed=6), transcripts(200, 0.2, seed=7)
    worse, better = paired_bootstrap(good, bad, 2000, seed=0), paired_bootstrap(bad, good, 2000, seed=0)
    assert worse.delta_wer == pytest.approx(corpus_wer(bad).wer - corpus_wer(good).wer)
    assert worse.ci95[0] > 0 and worse.p < 0.01
    assert better.delta_wer == pytest.approx(-worse.delta_wer) and better.ci95[1] < 0


def test_paired_bootstrap_p_of_a_case_that_can_be_counted():
    """Two utterances, `b` 3 errors worse on one and 1 better on the other: of the four equally likely draws one has
    a difference below zero, so that the two-sided p is 2/4."""
    a = [("1", ["A"] * 9, ["A"] * 9), ("2", ["A"] * 9, ["A"] * 8 + ["B"])]
    b = [("1", ["A"] * 9, ["A"] * 6 + ["B"] * 3), ("2", ["A"] * 9, ["A"] * 9)]
    result = paired_bootstrap(a, b, 20000, seed=0)
    assert result.p == pytest.approx(0.5, abs=0.02)
    assert result.ci95 == pytest.approx([-100 * 2 / 18, 100 * 6 / 18])


def test_paired_bootstrap_rarely_calls_equal_systems_different():
    """Two systems with one error rate: p < 0.05 in about 5% of the test sets."""
    called = 0
    for trial in range(200):
        a, b = (transcripts(60, 0.2, seed=1000 + 2 * trial + k, set_seed=trial) for k in (0, 1))
        called += paired_bootstrap(a, b, 400, seed=trial).p < 0.05
    assert called / 200 <= 0.11


def test_paired_bootstrap_is_narrower_than_unpaired_where_errors_are_shared():
    """The same hard utterances for both systems: their difference is far more certain than either WER."""
    a = [(str(i), ["A"] * 10, ["B"] * 10 if i % 4 == 0 else ["A"] * 10) for i in range(100)]
    b = [(i, ref, hyp[:-1] + ["C"] if int(i) % 10 == 1 else hyp) for i, ref, hyp in a]
    low, high = paired_bootstrap(a, b, 2000, seed=0).ci95
    single = score_wer(a, 2000, seed=0).ci95
    assert high - low < 0.2 * (single[1] - single[0])


def changed(kind: str) -> tuple[list, list]:
    a = [("1", ["A"], ["A"]), ("2", ["B"], ["B"]), ("3", ["C"], ["C"])]
    b = [list(row) for row in a]
    if kind == "id":
        b[1][0] = "2x"
    elif kind == "ref":
        b[1][1] = ["X"]
    else:
        b.pop()
    return a, [tuple(row) for row in b]


@pytest.mark.parametrize(
    "kind, message", [("id", "cut 2 is in one"), ("ref", "cut 2 must have the same reference"), ("less", "cut 3 is in")]
)
def test_paired_bootstrap_of_different_sets_names_the_first_mismatch(kind: str, message: str):
    a, b = changed(kind)
    for first, second in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=message):
            paired_bootstrap(first, second, 10, seed=0)
