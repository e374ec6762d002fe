"""Verdicts on claims: what is shown, what is refuted, and what takes more speakers."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fake_experiment import transcripts
from small_corpus import small_config
from twopass_kd.config.schema import ClaimConfig
from twopass_kd.files.decode_json import Pass
from twopass_kd.scoring.claims import judge_claims, wild_cluster_p
from twopass_kd.scoring.verdicts import verdict

PART = "test-clean"


def claim(kind="superior", **settings):
    return ClaimConfig(system="student", against="teacher", kind=kind, sets=[PART], **settings)


def judge(claims, student, teacher, speakers=None, **more):
    cfg = replace(small_config("decode.bootstrap_samples=2000", "claims=[]"), claims=claims)
    systems = {"student": student, "teacher": teacher, **more}
    passes = {
        name: {PART: {Pass.GREEDY_SEARCH: rows, Pass.FIRST_PASS: rows, Pass.TWO_PASS: rows}}
        for name, rows in systems.items()
        if rows is not None
    }
    return judge_claims(cfg, [passes], {PART: speakers or {}})


def rows(rate, seed, num_utts=200):
    return transcripts(num_utts, rate, seed)


@pytest.mark.parametrize(
    "asked, student, teacher, expected",
    [
        (claim(), 0.05, 0.2, "shown"),
        (claim(), 0.2, 0.05, "refuted"),
        (claim(), 0.1, 0.1, "undecided"),
        (claim("non_inferior", margin_relative=0.5), 0.1, 0.1, "shown"),
        (claim("non_inferior", margin_relative=0.1), 0.2, 0.1, "refuted"),
        (claim("non_inferior", margin_points=5.0), 0.11, 0.1, "shown"),
        (claim("non_inferior", margin_points=1.0), 0.2, 0.1, "refuted"),
    ],
)
def test_verdicts(asked, student, teacher, expected):
    (found,) = judge([asked], rows(student, 1), rows(teacher, 2))
    assert found.verdict == expected and found.clusters == 200 and found.by_speaker is False
    assert found.ci95[0] < found.delta_wer < found.ci95[1]
    assert (found.times is None) == (expected != "undecided")
    assert f": {expected} ({found.delta_wer:+.2f}, 95% CI " in verdict(found)


def test_margins_are_of_the_other_systems_wer():
    relative, points = judge(
        [claim("non_inferior", margin_relative=0.1), claim("non_inferior", margin_points=0.7)],
        rows(0.1, 1),
        rows(0.2, 2),
    )
    errors = sum(a != b for _, ref, hyp in rows(0.2, 2) for a, b in zip(ref, hyp))
    assert points.margin == 0.7 and 0.1 * 15 < relative.margin < 0.1 * 25 and errors > 0
    assert verdict(relative).startswith("student's two-pass WER is less than 10% above teacher's: shown (")
    assert verdict(points).startswith("student's two-pass WER is less than 0.7 points above teacher's: shown (")


def test_a_system_equal_to_its_teacher_is_not_inferior_and_not_superior():
    same = rows(0.1, 1)
    non_inferior, superior = judge([claim("non_inferior", margin_relative=0.1), claim()], same, list(reversed(same)))
    assert non_inferior.verdict == "shown" and superior.verdict == "undecided" and superior.p == 1.0
    assert verdict(superior).endswith("; at this difference more than 1000 times as many would be needed")


def test_p_values_are_corrected_for_the_number_of_claims():
    claims = [claim(), claim("non_inferior", margin_points=0.5), claim("non_inferior", margin_points=1.0)]
    alone = [judge([one], rows(0.09, 1), rows(0.1, 2))[0] for one in claims]
    together = judge(claims, rows(0.09, 1), rows(0.1, 2))
    assert [one.p for one in alone] == [one.p for one in together] == [one.p_holm for one in alone]
    first, second, third = sorted(together, key=lambda one: one.p)
    assert first.p_holm == pytest.approx(min(1, 3 * first.p))
    assert second.p_holm == pytest.approx(min(1, max(2 * second.p, first.p_holm)))
    assert third.p_holm == pytest.approx(max(third.p, second.p_holm))


def test_speakers_are_drawn_whole():
    """One of ten speakers has all of the errors: utterances would show what speakers do not."""
    student = rows(0.0, 1)
    teacher = [(i, ref, ["X"] * len(ref) if n < 20 else ref) for n, (i, ref, _) in enumerate(student)]
    speakers = {cut_id: f"speaker-{n // 20}" for n, (cut_id, _, _) in enumerate(student)}
    (by_utterance,), (by_speaker,) = (judge([claim()], student, teacher, s) for s in ({}, speakers))
    assert by_utterance.verdict == "shown" and by_speaker.verdict == "undecided"
    assert by_speaker.by_speaker is True and by_speaker.clusters == 10
    assert by_speaker.ci95[0] < by_utterance.ci95[0] and ", 10 speakers); " in verdict(by_speaker)
    assert "times as many would decide it in four of five cases, if the difference stays" in verdict(by_speaker)


@pytest.mark.parametrize("per_speaker", [50, 200])
def test_fewer_than_five_speakers_show_nothing(per_speaker):
    student, teacher = rows(0.0, 1), rows(0.3, 2)
    speakers = {cut_id: f"speaker-{n // per_speaker}" for n, (cut_id, _, _) in enumerate(student)}
    (found,) = judge([claim()], student, teacher, speakers)
    assert found.verdict == "undecided" and found.p is None and found.p_holm is None
    assert verdict(found).endswith("200 utterances); fewer than five speakers show nothing")


def test_names_that_are_no_speakers_are_not_drawn():
    student, teacher = rows(0.0, 1), rows(0.3, 2)
    ids = [cut_id for cut_id, _, _ in student]
    one_each = {cut_id: cut_id for cut_id in ids}
    unknown = {cut_id: f"speaker-{n // 10}" for n, cut_id in enumerate(ids[:-1])}
    for speakers in (one_each, unknown):
        (found,) = judge([claim()], student, teacher, speakers)
        assert found.by_speaker is False and found.clusters == 200 and found.verdict == "shown"


def test_the_p_of_five_that_all_say_the_same_is_that_of_five_coins():
    assert wild_cluster_p(np.full(5, -1.0), 20000, seed=0) == pytest.approx(2**-4, abs=0.005)
    assert wild_cluster_p(np.array([3.0, -1.0]), 20000, seed=0) == pytest.approx(1.0, abs=0.01), "3 - 1 or 3 + 1"
    assert wild_cluster_p(np.zeros(7), 100, seed=0) == 1.0


def test_equal_systems_are_rarely_told_apart_by_few_speakers():
    """Eight speakers of two systems with one error rate that differs from speaker to speaker: 5% may be called."""
    rng, called = np.random.default_rng(0), 0
    for trial in range(400):
        called += wild_cluster_p(rng.normal(size=8) * rng.uniform(0.5, 2, 8), 999, seed=trial) < 0.05
    assert called / 400 < 0.08


def test_so_many_times_the_speakers_decide_it():
    (few,) = judge([claim()], rows(0.08, 1, 60), rows(0.13, 2, 60))
    assert few.verdict == "undecided"
    many = [
        [(f"{n}-{cut_id}", ref, hyp) for n in range(math.ceil(few.times)) for cut_id, ref, hyp in rows(rate, seed, 60)]
        for rate, seed in ((0.08, 1), (0.13, 2))
    ]
    (found,) = judge([claim()], *many)
    assert found.delta_wer == pytest.approx(few.delta_wer) and found.verdict in ("shown", "refuted")


def test_more_claims_take_more_speakers():
    claims = [claim(), claim("non_inferior", margin_points=0.01)]
    alone, (together, _) = judge(claims[:1], rows(0.1, 1), rows(0.1, 2))[0], judge(claims, rows(0.1, 1), rows(0.1, 2))
    assert together.p == alone.p and together.times >= alone.times
    together.times = 277.3
    assert "; 277 times as many would decide it" in verdict(together)


def judge_seeds(asked, pairs, *settings, speakers=None):
    """Of each seed the transcripts of student and teacher."""
    cfg = replace(small_config("decode.bootstrap_samples=2000", "claims=[]", *settings), claims=[asked])
    seeds = [
        {name: {PART: dict.fromkeys(Pass, of)} for name, of in zip(("student", "teacher"), pair, strict=True)}
        for pair in pairs
    ]
    return judge_claims(cfg, seeds, {PART: speakers or {}})[0]


@pytest.mark.parametrize(
    "asked, student, expected",
    [
        (claim(), 0.05, "shown"),
        (claim(), 0.3, "refuted"),
        (claim("non_inferior", margin_relative=0.5), 0.15, "shown"),
        (claim("non_inferior", margin_points=1.0), 0.15, "undecided"),
    ],
)
def test_verdicts_over_seeds(asked, student, expected):
    found = judge_seeds(asked, [(rows(student, 10 + n), rows(0.15, 20 + n)) for n in range(3)])
    assert found.verdict == expected and found.seeds == 3 and found.clusters == 200
    assert found.delta_wer == pytest.approx(np.mean(found.by_seed))
    assert found.ci95[0] < found.delta_wer < found.ci95[1]
    assert "200 utterances, 3 seeds)" in verdict(found)
    alone = "; neither more seeds nor more speakers alone would decide it, if the difference stays"
    assert verdict(found).endswith(alone) == (expected == "undecided")


def test_two_seeds_show_nothing_and_one_of_several_does_not_either():
    pairs = [(rows(0.0, n), rows(0.3, 10 + n)) for n in range(2)]
    nothing = "; fewer than three seeds show nothing"
    found = judge_seeds(claim(), pairs)
    assert found.verdict == "undecided" and found.p is None and verdict(found).endswith(nothing)
    one = judge_seeds(claim(), pairs[:1], "seeds=[1, 2, 3]")
    assert one.verdict == "undecided" and one.p is None and one.seeds == 1 and verdict(one).endswith(nothing)
    (alone,) = judge([claim()], *pairs[0])
    assert judge_seeds(claim(), pairs[:1]) == alone and alone.seeds == 1


def test_a_difference_that_only_one_seed_has_is_not_shown():
    same = [(rows(0.1, n), rows(0.1, n)) for n in range(2)]
    found = judge_seeds(claim(), [*same, (rows(0.0, 3), rows(0.1, 2))])
    assert found.verdict == "undecided" and found.by_seed[:2] == [0.0, 0.0] and found.by_seed[2] < -5
    assert found.seeds_needed > 3


def test_where_speakers_differ_and_seeds_do_not_more_seeds_do_not_help():
    student = rows(0.0, 1)
    speakers = {cut_id: f"speaker-{n // 20}" for n, (cut_id, _, _) in enumerate(student)}
    teacher = [(i, ref, ["X"] * len(ref) if n < 20 else ref) for n, (i, ref, _) in enumerate(student)]
    found = judge_seeds(claim(), [(student, teacher)] * 3, speakers=speakers)
    assert found.verdict == "undecided" and found.seeds_needed is None and found.times > 1
    assert 0.2 < found.p < 0.5  # one speaker of ten differs: t is 1


def test_seeds_that_were_decoded_on_other_utterances_are_an_error():
    pairs = [(rows(0.1, n), rows(0.2, 10 + n)) for n in range(3)]
    pairs[2] = tuple(of[:-1] for of in pairs[2])
    with pytest.raises(ValueError, match="is in one system's transcripts only"):
        judge_seeds(claim(), pairs)


def test_a_set_of_one_utterance_shows_nothing():
    found = judge_seeds(claim(), [(rows(0.0, n, 1), rows(0.9, 10 + n, 1)) for n in range(3)])
    assert found.verdict == "undecided" and found.p is None


def test_a_seed_without_one_of_the_systems_is_left_out():
    cfg = replace(small_config("decode.bootstrap_samples=100", "claims=[]"), claims=[claim()])
    both = {name: {PART: dict.fromkeys(Pass, rows(0.1, n))} for n, name in enumerate(("student", "teacher"))}
    (found,) = judge_claims(cfg, [both, {"teacher": both["teacher"]}], {})
    assert found.seeds == 1 and len(found.by_seed) == 1


def test_a_system_that_was_not_decoded_or_has_no_second_pass():
    asked = [claim(), claim("non_inferior", margin_points=50.0)]
    for found in judge(asked, rows(0.1, 1), None):
        assert found.verdict == "not measured" and found.p is None
        assert verdict(found).endswith(": not measured, since one of them was not decoded")
    cfg = replace(small_config("decode.bootstrap_samples=100", "claims=[]"), claims=asked)
    first_only = {Pass.FIRST_PASS: rows(0.1, 2), Pass.TWO_PASS: None}
    both = {Pass.FIRST_PASS: rows(0.2, 1), Pass.TWO_PASS: rows(0.05, 3)}
    found = judge_claims(cfg, [{"student": {PART: both}, "teacher": {PART: first_only}}], {})
    assert [one.pass_name for one in found] == [Pass.FIRST_PASS] * 2 and found[0].delta_wer > 0
