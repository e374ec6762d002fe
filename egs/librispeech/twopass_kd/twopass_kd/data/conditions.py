"""The conditions in which test sets are heard once more: with pauses of quiet noise, and in loud noise.

Noise is mixed into the audio here, not into features as for training, and it is of other utterances and draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse import Fbank
from lhotse.cut import Cut
from torch import Tensor

from twopass_kd.data.asr_dataset import AsrDataset

PAUSE_LEVEL = (-70.0, -50.0)  # dBFS, of the noise in pauses
TALKERS = 5  # of babble
EXPONENTS = {"white": 0.0, "pink": 1.0}  # a in a spectrum of 1 / f^a

Span = tuple[float, float]


@dataclass(frozen=True)
class Condition:
    """One way in which each utterance of a set is heard.

    Attributes:
      name: in tables and names of files.
      before, within, after: seconds of a pause.
      noise: white | pink | babble, over all of it at `snr` dB; None: none.
    """

    name: str
    before: float = 0.0
    within: float = 0.0
    after: float = 0.0
    noise: str | None = None
    snr: float = 0.0


CLEAN = Condition("clean")
PAUSES = [
    *(Condition(f"pause-before-{seconds:g}s", before=seconds) for seconds in (0.5, 1.0, 2.0)),
    Condition("pause-within-1s", within=1.0),
    Condition("pause-after-1s", after=1.0),
]
NOISES = [
    Condition(f"{noise}-{snr}dB", noise=noise, snr=float(snr))
    for noise in (*EXPONENTS, "babble")
    for snr in (20, 10, 5)
]
CONDITIONS = [*PAUSES, *NOISES]


class ConditionDataset(AsrDataset):
    """Maps a CutSet (one batch) to a `Batch` of what is heard in a condition.

    What an utterance gets depends on its id and the condition alone.

    Args:
      fbank: computes the features; of stage 2's settings.
      voices: utterances of the set whose babble it is.
      aligned: cut id -> (begin, end) of its words in seconds, as an aligner says.
      **kwargs: of `AsrDataset`.
    """

    def __init__(
        self,
        condition: Condition,
        fbank: Fbank,
        voices: Sequence[Cut],
        aligned: Mapping[str, Sequence[Span]],
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.condition, self.fbank, self.aligned = condition, fbank, aligned
        self.voices = [(cut, load_audio(cut)) for cut in voices] if condition.noise == "babble" else []

    def load(self, cut: Cut) -> Tensor:
        rate = self.fbank.config.sampling_rate
        rng = np.random.default_rng([*cut.id.encode(), *self.condition.name.encode()])
        audio = load_audio(cut)
        audio = with_pauses(
            audio, self.condition, rate, pause_place(cut, audio, rate, self.aligned.get(cut.id, ())), rng
        )
        if self.condition.noise is not None:
            audio = mix(audio, self._noise(len(audio), cut, rng), self.condition.snr)
        return torch.from_numpy(np.asarray(self.fbank.extract(audio, rate)))

    def _noise(self, count: int, cut: Cut, rng: np.random.Generator) -> np.ndarray:
        if self.condition.noise in EXPONENTS:
            return coloured_noise(count, EXPONENTS[self.condition.noise], rng)
        others = [audio for other, audio in self.voices if speaker_of(other) != speaker_of(cut)]
        others = others or [audio for other, audio in self.voices if other.id != cut.id]
        if not others:
            raise ValueError(f"{cut.id} must not be the only utterance of its set, for babble of others")
        chosen = rng.permutation(len(others))[:TALKERS]
        return sum(np.resize(others[i], count) / rms(others[i]) for i in chosen)


def speaker_of(cut: Cut) -> str | None:
    return cut.supervisions[0].speaker


def load_audio(cut: Cut) -> np.ndarray:
    """(num_samples,) float32.

    Raises:
      ValueError: naming the cut whose audio cannot be read.
    """
    try:
        return cut.load_audio()[0]
    except Exception as e:  # each backend has errors of its own
        raise ValueError(
            f"the audio of {cut.id} cannot be read ({type(e).__name__}: {str(e).partition(chr(10))[0]}); bring it back,"
            " or say decode.condition_seconds=0"
        ) from e


def pause_place(cut: Cut, audio: np.ndarray, rate: int, aligned: Sequence[Span] = ()) -> int:
    """The sample of a cut's audio before which a pause within goes: between two words near the middle.

    Where the manifest says when they begin, it is that; else it is in the quietest tenth of a second, of what lies
    between the middles of two words that an aligner found, or of the middle half.
    """
    words = (cut.supervisions[0].alignment or {}).get("word", [])
    if len(words) > 1:
        return round(words[len(words) // 2].start * rate)
    begin, end = len(audio) // 4, len(audio) - len(audio) // 4
    if len(aligned) > 1:
        half = len(aligned) // 2
        begin, end = (round(sum(span) / 2 * rate) for span in aligned[half - 1 : half + 1])
    window = rate // 10
    if end - begin < window:
        return (begin + end) // 2
    power = np.convolve(audio[begin:end].astype(np.float64) ** 2, np.ones(window), "valid")
    return begin + int(power.argmin()) + window // 2


def with_pauses(audio: np.ndarray, condition: Condition, rate: int, place: int, rng: np.random.Generator) -> np.ndarray:
    """Audio (num_samples,) with the pauses of a condition, the one within before sample `place`."""
    sizes = [round(seconds * rate) for seconds in (condition.before, condition.within, condition.after)]
    level = 10 ** (rng.uniform(*PAUSE_LEVEL) / 20)
    before, within, after = (level * rng.standard_normal(size).astype(np.float32) for size in sizes)
    return np.concatenate([before, audio[:place], within, audio[place:], after])


def coloured_noise(count: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) float noise of unit power with a spectrum of 1 / f^exponent, flat below 50 Hz at 16 kHz."""
    padded = 1 << count.bit_length()  # a prime length takes ten times as long
    spectrum = np.fft.rfft(rng.standard_normal(padded))
    spectrum *= np.maximum(np.fft.rfftfreq(padded), 50 / 16000) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, padded)[:count]
    return noise / rms(noise)


def rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) or 1.0


def mix(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Speech with noise of as many samples, `snr` dB below it; float32."""
    return (speech + noise * (rms(speech) / rms(noise) * 10 ** (-snr / 20))).astype(np.float32)
