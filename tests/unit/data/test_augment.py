"""What varies the training data: how much, where, and the same for an utterance wherever it is met."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lhotse import SupervisionSegment
from lhotse.supervision import AlignmentItem

from twopass_kd.config.schema import AugmentConfig, FeaturesConfig
from twopass_kd.data.augment import Augmenter
from twopass_kd.data.fbank import make_fbank
from twopass_kd.data.noise import ColouredNoise, add_noise, energy
from twopass_kd.data.pauses import SILENCE, Pause, Pauses, quietest, word_begins

COLOURED = ColouredNoise(FeaturesConfig())
SPEECH = np.random.default_rng(0).normal(-4, 2, (300, 80)).astype(np.float32)
NOTHING = {"noise": 0.0, "gain": 0.0, "pauses": 0.0}


def augmenter(epoch=1, seed=1, sources=(COLOURED,), **settings):
    return Augmenter(AugmentConfig(**settings), seed, epoch, COLOURED, list(sources), None)


def cut(name="utt", words=()):
    """A cut of 3 s whose words begin at so many seconds; "" is a silence."""
    items = [AlignmentItem(symbol, start, 0.3) for symbol, start in words]
    speech = SupervisionSegment(name, name, 0.0, 3.0, alignment={"word": items} if items else None)
    return SimpleNamespace(id=name, supervisions=[speech], num_frames=300)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_is_what_filter_banks_of_such_audio_are(exponent):
    rng = np.random.default_rng(2)
    spectrum, hertz = np.fft.rfft(rng.normal(size=16000 * 8)), np.fft.rfftfreq(16000 * 8, 1 / 16000)
    audio = np.fft.irfft(np.where(hertz < 20, 0, spectrum * np.maximum(hertz, 20.0) ** (-exponent / 2)))
    audio *= 10 ** (-50 / 20) / np.sqrt((audio**2).mean())
    want = make_fbank(FeaturesConfig()).extract(audio.astype(np.float32), 16000)
    noise = COLOURED.of_colour(len(want), exponent, -50.0, random.Random(0))
    assert noise.shape == want.shape and noise.dtype == np.float32
    np.testing.assert_allclose(noise.mean(0)[8:], want.mean(0)[8:], atol=1.0)  # within some 4 dB
    np.testing.assert_allclose(noise.std(0)[8:], want.std(0)[8:], atol=0.3)


def test_noise_is_as_loud_as_the_snr_says():
    noise = COLOURED.draw(len(SPEECH), random.Random(0))
    for snr in (0.0, 20.0):
        mixed = add_noise(SPEECH, noise, snr, energy(SPEECH))
        assert 10 * np.log10(energy(SPEECH) / (energy(mixed) - energy(SPEECH))) == pytest.approx(snr, abs=0.1)


def test_pauses_are_where_and_as_long_as_drawn():
    pauses = Pauses(AugmentConfig(pauses=0.5, max_pause=2.0), seed=1, epoch=1)
    drawn = [pauses.draw(f"utt-{i}") for i in range(400)]
    for kind in ("before", "within", "after"):
        frames = [getattr(pause, kind) for pause in drawn]
        assert 0.4 < np.mean([n > 5 for n in frames]) < 0.6 and 180 < max(frames) <= 200
    assert {pause.before for pause in drawn} >= set(range(6))
    assert all(-80 <= pause.level <= -45 for pause in drawn)
    pause = next(p for p in drawn if p.before and p.within and p.after)
    speech = SPEECH.copy()
    speech[140:155] = -15  # between two words
    longer = pauses.insert(speech, pause, [], COLOURED, random.Random(0))
    assert len(longer) == len(speech) + round(pause.seconds * 100)
    place = pause.before + quietest(speech)
    assert 140 < quietest(speech) < 155
    np.testing.assert_array_equal(longer[pause.before : place], speech[: quietest(speech)])
    np.testing.assert_array_equal(longer[place + pause.within : len(longer) - pause.after], speech[quietest(speech) :])
    for rows in (longer[: pause.before], longer[place : place + pause.within], longer[-pause.after :]):
        assert rows.mean() < speech.mean() and rows.min() >= SILENCE


def test_a_pause_within_is_between_words_where_they_are_known():
    timed = [("", 0.0), ("ONE", 0.1), ("", 0.7), ("TWO", 0.9), ("THREE", 2.0), ("BEYOND", 3.1)]
    assert word_begins(cut(words=timed)) == [90, 200] and word_begins(cut()) == word_begins(cut(words=timed[:2])) == []
    pauses, places = Pauses(AugmentConfig(), 1, 1), set()
    for i in range(20):
        longer = pauses.insert(SPEECH, Pause(0, 50, 0, -60.0, 0.0), [90, 200], COLOURED, random.Random(i))
        place = next(p for p in (90, 200) if np.array_equal(longer[:p], SPEECH[:p]) and longer[p, 0] != SPEECH[p, 0])
        np.testing.assert_array_equal(longer[place + 50 :], SPEECH[place:])
        places.add(place)
    assert places == {90, 200}


@pytest.mark.parametrize("frames", [1, 7, 40, 45])
def test_short_utterances_have_no_pause_within_their_edges(frames):
    assert quietest(SPEECH[:frames]) == 0


def test_augmentation_is_of_seed_epoch_and_utterance_alone():
    x = torch.from_numpy(SPEECH)
    ids = [f"utt-{i}" for i in range(30)]
    first = {i: augmenter()(x, cut(i)) for i in ids}
    one = augmenter()
    assert all(torch.equal(one(x, cut(i)), first[i]) for i in reversed(ids))
    for other in (augmenter(epoch=2), augmenter(seed=2)):
        assert not any(torch.equal(other(x, cut(i)), first[i]) for i in ids)


def test_nothing_is_changed_where_nothing_is_asked_for():
    assert torch.equal(augmenter(**NOTHING)(torch.from_numpy(SPEECH), cut()), torch.from_numpy(SPEECH))


def test_gain_moves_all_values_by_as_much():
    x = torch.from_numpy(SPEECH)
    shifts = [augmenter(**{**NOTHING, "gain": 6.0})(x, cut(f"utt-{i}")) - x for i in range(100)]
    assert all(shift.std() < 1e-5 for shift in shifts)
    decibels = [float(shift.mean()) * 10 / np.log(10) for shift in shifts]
    assert -6 <= min(decibels) < -4 and 4 < max(decibels) <= 6


def test_noise_is_in_as_many_as_asked_for_and_covers_pauses():
    x = torch.from_numpy(SPEECH)
    call = augmenter(noise=0.5, gain=0.0, pauses=0.9, snr=[5.0, 0.0])
    quiet = augmenter(noise=0.0, gain=0.0, pauses=0.9)
    louder = [(call(x, cut(f"utt-{i}")) - quiet(x, cut(f"utt-{i}"))).min() for i in range(200)]
    assert 0.4 < np.mean([bool(value != 0) for value in louder]) < 0.6
