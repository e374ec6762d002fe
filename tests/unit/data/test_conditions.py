"""The conditions in which test sets are heard: what is added, where, and how loud."""

import numpy as np
import pytest

from twopass_kd.data.conditions import (
    CONDITIONS,
    EXPONENTS,
    PAUSE_LEVEL,
    Condition,
    coloured_noise,
    mix,
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
