"""Verdicts on claims: what is shown, what is refuted, and what takes more speakers."""

import random
from dataclasses import replace

import pytest

from fake_experiment import transcripts
from small_corpus import small_config
from twopass_kd.config.schema import ClaimConfig
from twopass_kd.files.decode_json import Pass
from twopass_kd.scoring.claims import judge_claims
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
    return judge_claims(cfg, passes, {PART: speakers or {}})


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
    assert verdict(superior).endswith("; at this difference no sample would decide it")


def test_p_values_are_corrected_for_the_number_of_claims():
    claims = [claim(), claim("non_inferior", margin_points=0.5), claim("non_inferior", margin_points=1.0)]
    alone = [judge([one], rows(0.09, 1), rows(0.1, 2))[0] for one in claims]
    together = judge(claims, rows(0.09, 1), rows(0.1, 2))
    assert [one.p for one in alone] == [one.p for one in together] == sorted((one.p for one in alone), reverse=True)
    assert [one.p_holm for one in alone] == [one.p for one in alone]
    assert together[2].p_holm == pytest.approx(min(1, 3 * alone[2].p))
    assert together[1].p_holm == pytest.approx(min(1, max(2 * alone[1].p, 3 * alone[2].p)))


def test_speakers_are_drawn_whole():
    """One of ten speakers has all of the errors: utterances would show what speakers do not."""
    student = rows(0.0, 1)
    teacher = [(i, ref, ["X"] * len(ref) if n < 20 else ref) for n, (i, ref, _) in enumerate(student)]
    speakers = {cut_id: f"speaker-{n // 20}" for n, (cut_id, _, _) in enumerate(student)}
    (by_utterance,), (by_speaker,) = (judge([claim()], student, teacher, s) for s in ({}, speakers))
    assert by_utterance.verdict == "shown" and by_speaker.verdict == "undecided"
    assert by_speaker.by_speaker is True and by_speaker.clusters == 10
    assert by_speaker.ci95[0] < by_utterance.ci95[0] and by_speaker.ci95[1] == 0.0
    assert "times as many speakers would decide it, if the difference stays" in verdict(by_speaker)
    four = {cut_id: f"speaker-{n // 50}" for n, (cut_id, _, _) in enumerate(student)}
    assert judge([claim()], student, teacher, four)[0].by_speaker is False, "too few to draw"


def test_so_many_times_the_speakers_decide_it():
    (few,) = judge([claim()], rows(0.08, 1, 60), rows(0.13, 2, 60))
    assert few.verdict == "undecided"
    many = [
        [(f"{n}-{cut_id}", ref, hyp) for n in range(round(few.times)) for cut_id, ref, hyp in rows(rate, seed, 60)]
        for rate, seed in ((0.08, 1), (0.13, 2))
    ]
    random.Random(0).shuffle(many[0])
    (found,) = judge([claim()], *many)
    assert found.delta_wer == pytest.approx(few.delta_wer) and found.verdict in ("shown", "refuted")


def test_a_system_that_was_not_decoded_or_has_no_second_pass():
    asked = [claim(), claim("non_inferior", margin_points=50.0)]
    for found in judge(asked, rows(0.1, 1), None):
        assert found.verdict == "not measured" and found.p is None
        assert verdict(found).endswith(": not measured, since one of them was not decoded")
    cfg = replace(small_config("decode.bootstrap_samples=100", "claims=[]"), claims=asked)
    first_only = {Pass.FIRST_PASS: rows(0.1, 2), Pass.TWO_PASS: None}
    both = {Pass.FIRST_PASS: rows(0.2, 1), Pass.TWO_PASS: rows(0.05, 3)}
    found = judge_claims(cfg, {"student": {PART: both}, "teacher": {PART: first_only}}, {})
    assert [one.pass_name for one in found] == [Pass.FIRST_PASS] * 2 and found[0].delta_wer > 0
