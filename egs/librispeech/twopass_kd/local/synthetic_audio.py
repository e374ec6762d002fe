"""Makes one utterance of a synthetic corpus: espeak-ng's voice, a random speaker size, trimming, noise, level."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from espeak import SAMPLING_RATE as ESPEAK_RATE
from espeak import Espeak
from twopass_kd.data.conditions import coloured_noise

SAMPLING_RATE = 16000
_FRAME = SAMPLING_RATE // 100
_PAUSES = 0.15  # share of the utterances that begin with a long pause; as many have one in them, as many after them
_SILENCE_DB = -45.0  # of a 10 ms frame, relative to the loudest one: espeak-ng's silences are digital zeros


@dataclass(frozen=True)
class Style:
    """Ranges from which each utterance of a part draws."""

    snr_db: tuple[float, float]
    warp: tuple[float, float] = (1.0, 1.0)  # on the source's sampling rate: formants, pitch and tempo move together
    rate: tuple[int, int] = (130, 190)  # words per minute
    pause: tuple[float, float] = (0.25, 2.0)  # seconds; before, within and after the words, each in some utterances
    pitch: tuple[int, int] = (30, 70)  # espeak-ng's 0-99


@dataclass
class Utterance:
    """What `make_utterance` returns.

    Attributes:
      samples: (num_samples,) float32 in (-1, 1) at 16 kHz, peak between 0.3 and 0.9.
      words: seconds at which each word begins and ends. It ends where the next one begins, or a pause before that.
    """

    samples: np.ndarray
    words: list[tuple[float, float]]


TRAIN_STYLE = Style(snr_db=(15.0, 30.0), warp=(0.88, 1.14))
CLEAN_STYLE = Style(snr_db=(15.0, 30.0))
NOISY_STYLE = Style(snr_db=(10.0, 15.0))


def utterance_rng(seed: int, utterance_id: str) -> np.random.Generator:
    """The random numbers of one utterance, whatever process makes it."""
    digest = hashlib.sha256(f"{seed}/{utterance_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def find_speech(samples: np.ndarray) -> tuple[int, int]:
    """Where speech begins and ends: with the first and the last 10 ms frame within 45 dB of the loudest.

    Args:
      samples: (num_samples,) float at 16 kHz.
    """
    count = len(samples) // _FRAME
    power = (samples[: count * _FRAME].reshape(count, _FRAME) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (_SILENCE_DB / 10))
    return int(loud[0]) * _FRAME, int(loud[-1] + 1) * _FRAME


def make_utterance(
    espeak: Espeak, text: str, language: str, variant: str, style: Style, rng: np.random.Generator
) -> Utterance:
    """Speak `text` in a random manner within `style`."""
    rate, pitch = int(rng.integers(*style.rate, endpoint=True)), int(rng.integers(*style.pitch, endpoint=True))
    raw = espeak.speak(text.lower(), language, variant, rate, pitch, seed=int(rng.integers(2**31)))
    ratio = Fraction(SAMPLING_RATE / (ESPEAK_RATE * rng.uniform(*style.warp))).limit_denominator(150)
    speech = resample_poly(raw.samples, ratio.numerator, ratio.denominator)
    begin, end = find_speech(speech)
    starts = [min(max(round(sample * ratio) - begin, 0), end - begin) for sample in raw.starts]
    words = list(zip(starts, [*starts[1:], end - begin]))
    speech = speech[begin:end]
    power = (speech**2).mean()
    before, within, after = _draw_pauses(len(words), style, rng)
    if within:
        first = int(rng.integers(1, len(words)))  # the word before which the pause is
        place = words[first][0]
        speech = np.insert(speech, place, np.zeros(within))
        words = words[:first] + [(start + within, stop + within) for start, stop in words[first:]]
    speech = np.pad(speech, (before, after))
    noise = coloured_noise(len(speech), rng.uniform(0.0, 1.5), rng)
    mixed = speech + noise * np.sqrt(power / 10 ** (rng.uniform(*style.snr_db) / 10))
    samples = (mixed * (rng.uniform(0.3, 0.9) / np.abs(mixed).max())).astype(np.float32)
    return Utterance(
        samples, [((before + start) / SAMPLING_RATE, (before + stop) / SAMPLING_RATE) for start, stop in words]
    )


def _draw_pauses(num_words: int, style: Style, rng: np.random.Generator) -> tuple[int, int, int]:
    """Samples of silence before the words, between two of them, and after them."""
    before, after = rng.integers(SAMPLING_RATE // 12, SAMPLING_RATE // 4, size=2)
    long = [int(SAMPLING_RATE * rng.uniform(*style.pause)) * int(rng.random() < _PAUSES) for _ in range(3)]
    return long[0] or int(before), long[1] if num_words > 1 else 0, long[2] or int(after)
