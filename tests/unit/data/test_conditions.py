"""The conditions in which test sets are heard: what is added, where, and how loud."""

from types import SimpleNamespace

import numpy as np
import pytest
from lhotse import SupervisionSegment
from lhotse.supervision import AlignmentItem

from twopass_kd.data.conditions import (
    CONDITIONS,
    EXPONENTS,
    PAUSE_LEVEL,
    Condition,
    coloured_noise,
    mix,
    pause_place,
    rms,
    with_pauses,
)

SPEECH = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)


def test_every_condition_has_a_name_of_its_own():
    names = [condition.name for condition in CONDITIONS]
    assert len(names) == len(set(names)) == 14 and "pause-before-0.5s" in names and "babble-10dB" in names


def test_pauses_are_quiet_and_leave_the_speech_alone():
    condition = Condition("all", before=0.5, within=1.0, after=0.25)
    heard = with_pauses(SPEECH, condition, 16000, 4000, np.random.default_rng(1))
    assert heard.dtype == np.float32 and len(heard) == 16000 * 2.75
    before, first, within, second, after = np.split(heard, np.cumsum([8000, 4000, 16000, 12000]))
    np.testing.assert_array_equal(np.concatenate([first, second]), SPEECH)
    for pause in (before, within, after):
        assert PAUSE_LEVEL[0] - 1 < 20 * np.log10(rms(pause)) < PAUSE_LEVEL[1] + 1


def test_a_pause_within_goes_between_words():
    audio = np.where((np.arange(16000) // 800) % 20 == 7, 0.1, 1.0) * SPEECH  # quiet from 0.35 to 0.4 s
    audio[2000:4000] *= 0.01  # quieter from 0.125 to 0.25 s, in the first quarter
    speech = SupervisionSegment("a", "a", 0.0, 1.0)
    cut = SimpleNamespace(id="a", supervisions=[speech])
    assert 0.3 < pause_place(cut, audio, 16000) / 16000 < 0.45, "in the middle half"
    spans = [(0.0, 0.2), (0.2, 0.25), (0.5, 0.6), (0.6, 1.0)]
    assert 0.3 < pause_place(cut, audio, 16000, spans) / 16000 < 0.45, "between 0.225 and 0.55"
    assert 0.125 < pause_place(cut, audio, 16000, [(0.0, 0.1), (0.2, 0.3)]) / 16000 < 0.25
    assert pause_place(cut, audio, 16000, [(0.50, 0.52), (0.52, 0.54)]) == round(0.52 * 16000), "no tenth of a second"
    known = speech.with_alignment("word", [AlignmentItem("A", 0.1, 0.5), AlignmentItem("B", 0.7, 0.2)])
    assert pause_place(SimpleNamespace(id="a", supervisions=[known]), audio, 16000, spans) == 0.7 * 16000


@pytest.mark.parametrize("snr", [20.0, 5.0])
def test_noise_is_as_loud_as_it_says(snr):
    noise = np.random.default_rng(2).normal(size=16000)
    heard = mix(SPEECH, noise, snr)
    assert 20 * np.log10(rms(SPEECH) / rms(heard - SPEECH)) == pytest.approx(snr, abs=0.01)


def test_white_noise_is_of_unit_power_at_any_length():
    for count in (1, 7, 16001):
        noise = coloured_noise(count, 0.0, np.random.default_rng(4))
        assert len(noise) == count and rms(noise) == pytest.approx(1)


def test_pink_noise_falls_by_three_decibels_an_octave():
    spectrum = np.abs(np.fft.rfft(coloured_noise(160000, EXPONENTS["pink"], np.random.default_rng(3)))) ** 2
    octaves = [spectrum[low * 10 : 2 * low * 10].mean() for low in (250, 500, 1000, 2000)]
    np.testing.assert_allclose(10 * np.diff(np.log10(octaves)), -3.0, atol=0.3)
