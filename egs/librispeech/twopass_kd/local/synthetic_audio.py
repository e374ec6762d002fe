"""Makes one utterance of a synthetic corpus: espeak-ng's voice, a random speaker size, trimming, noise, level."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

from espeak import SAMPLING_RATE as ESPEAK_RATE
from espeak import Espeak

SAMPLING_RATE = 16000
_FRAME = SAMPLING_RATE // 100
_SILENCE_DB = -45.0  # of a 10 ms frame, relative to the loudest one: espeak-ng's silences are digital zeros


@dataclass(frozen=True)
class Style:
    """Ranges from which each utterance of a part draws."""

    snr_db: tuple[float, float]
    warp: tuple[float, float] = (1.0, 1.0)  # on the source's sampling rate: formants, pitch and tempo move together
    rate: tuple[int, int] = (130, 190)  # words per minute
    pitch: tuple[int, int] = (30, 70)  # espeak-ng's 0-99


TRAIN_STYLE = Style(snr_db=(15.0, 30.0), warp=(0.88, 1.14))
CLEAN_STYLE = Style(snr_db=(15.0, 30.0))
NOISY_STYLE = Style(snr_db=(10.0, 15.0))


def utterance_rng(seed: int, utterance_id: str) -> np.random.Generator:
    """The random numbers of one utterance, whatever process makes it."""
    digest = hashlib.sha256(f"{seed}/{utterance_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def trim_silence(samples: np.ndarray, before: int, after: int) -> np.ndarray:
    """Keep (or pad with zeros to) `before` and `after` samples around the speech.

    Args:
      samples: (num_samples,) float at 16 kHz.
    Returns:
      (before + speech + after,) of the same dtype. Speech is everything from the first to the last 10 ms frame
      within 45 dB of the loudest.
    """
    count = len(samples) // _FRAME
    power = (samples[: count * _FRAME].reshape(count, _FRAME) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (_SILENCE_DB / 10))
    start, end = loud[0] * _FRAME, (loud[-1] + 1) * _FRAME
    pad_before, pad_after = max(0, before - start), max(0, end + after - len(samples))
    padded = np.pad(samples, (pad_before, pad_after))
    return padded[start + pad_before - before : end + pad_before + after]


def coloured_noise(count: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) float noise of unit power whose spectrum falls as 1 / f ** exponent (0 white, 1 pink, 2 brown)."""
    padded = next_fast_len(count)  # a prime length takes ten times as long
    spectrum = np.fft.rfft(rng.standard_normal(padded))
    spectrum *= np.maximum(np.fft.rfftfreq(padded), 50 / SAMPLING_RATE) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, padded)[:count]
    return noise / np.sqrt((noise**2).mean())


def make_utterance(
    espeak: Espeak, text: str, language: str, variant: str, style: Style, rng: np.random.Generator
) -> np.ndarray:
    """Speak `text` in a random manner within `style`.

    Returns:
      (num_samples,) float32 in (-1, 1) at 16 kHz, peak between 0.3 and 0.9.
    """
    rate, pitch = int(rng.integers(*style.rate, endpoint=True)), int(rng.integers(*style.pitch, endpoint=True))
    raw = espeak.speak(text.lower(), language, variant, rate, pitch, seed=int(rng.integers(2**31)))
    ratio = Fraction(SAMPLING_RATE / (ESPEAK_RATE * rng.uniform(*style.warp))).limit_denominator(150)
    speech = resample_poly(raw, ratio.numerator, ratio.denominator)
    before, after = rng.integers(SAMPLING_RATE // 12, SAMPLING_RATE // 4, size=2)
    speech = trim_silence(speech, int(before), int(after))
    noise = coloured_noise(len(speech), rng.uniform(0.0, 1.5), rng)
    power = (speech[before:-after] ** 2).mean()
    mixed = speech + noise * np.sqrt(power / 10 ** (rng.uniform(*style.snr_db) / 10))
    return (mixed * (rng.uniform(0.3, 0.9) / np.abs(mixed).max())).astype(np.float32)
