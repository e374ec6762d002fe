"""espeak-ng from its wheel (`espeakng-loader`), called through ctypes: text and a voice in, samples out.

The library keeps state from one utterance to the next (flutter, echo), so the same text does not give the same
samples twice in one process. The same calls in a fresh process do, since `Espeak.speak` seeds both of the library's
sources of random numbers: its own (breath; else seeded with the time of day) and C's `rand` (klatt noise).
"""

import ctypes
import os
import re
from dataclasses import dataclass
from itertools import count as count_up
from itertools import takewhile
from pathlib import Path

import numpy as np

try:
    import espeakng_loader
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e}; synthetic speech needs it: pip install espeakng-loader") from e

SAMPLING_RATE = 22050  # Hz, of everything that espeak-ng gives
_SYNCHRONOUS, _RATE, _VOLUME, _PITCH, _UTF8 = 2, 1, 2, 3, 1
_VOLUME_PERCENT = 45  # of 100: at full volume several voices overflow inside the library
_LIST_TERMINATED, _WORD = 0, 1  # kinds of events


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def voice_variants() -> list[str]:
    """Names of the voice variants in the wheel (104 in espeakng-loader 0.2.4), sorted."""
    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@dataclass
class Spoken:
    """What `Espeak.speak` returns.

    Attributes:
      samples: (num_samples,) float32 in [-1, 1] at `SAMPLING_RATE`, with the silences that espeak-ng puts around it.
      starts: the sample at which each word begins, words as `str.split` has them.
    """

    samples: np.ndarray
    starts: list[int]


class Espeak:
    """The speech synthesiser; one per process, since the library has global state.

    Raises:
      OSError: the library does not start.
    """

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self._libc = ctypes.CDLL(None)
        data = espeakng_loader.get_data_path()
        rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), 0)
        if rate != SAMPLING_RATE:
            raise OSError(f"espeak-ng did not start from {data}: it answered {rate}; reinstall espeakng-loader")
        self._voice = ""
        self._pieces: list[bytes] = []
        self._words: dict[int, int] = {}  # position of a word's first letter in the text -> sample
        self._callback = _CALLBACK(self._receive)  # kept alive: the library holds only its address
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        for event in takewhile(lambda event: event.type != _LIST_TERMINATED, map(events.__getitem__, count_up())):
            if event.type == _WORD:
                self._words[event.text_position - 1] = event.sample
        return 0

    def _set_voice(self, language: str, variant: str) -> None:
        voice = f"{language}+{variant}"
        if voice == self._voice:
            return  # loading a voice reads its dictionary again: half of the time of a short utterance
        if all(self._lib.espeak_SetVoiceByName(name.encode()) for name in (voice, f"en+{variant}")):
            raise OSError(f"espeak-ng cannot load the voice {voice}")
        self._voice = voice

    def speak(self, text: str, language: str, variant: str, rate: int, pitch: int, seed: int) -> Spoken:
        """Speak a text.

        Args:
          text: what to say; lower case, since espeak-ng spells some upper-case words out.
          language: e.g. `en-us`; `en` takes its place where the pair of language and variant does not load.
          variant: one of `voice_variants()`.
          rate: words per minute.
          pitch: 0-99.
          seed: of the library's random numbers.
        Raises:
          OSError: the voice does not load or no sound came out.
        """
        self._set_voice(language, variant)
        self._lib.espeak_SetParameter(_RATE, rate, 0)
        self._lib.espeak_SetParameter(_PITCH, pitch, 0)
        self._lib.espeak_SetParameter(_VOLUME, _VOLUME_PERCENT, 0)
        self._libc.srand(ctypes.c_uint(seed))
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._pieces, self._words = [], {}
        encoded = text.encode()
        self._lib.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self._pieces), dtype=np.int16).astype(np.float32) / 32768
        if not samples.any():
            raise OSError(f"espeak-ng gave no sound for {text!r} by {self._voice}")
        return Spoken(samples, self._starts(text))

    def _starts(self, text: str) -> list[int]:
        """The sample at which each word of the text begins; that of the word before where they are spoken as one."""
        starts = [0]
        for word in re.finditer(r"\S+", text):
            starts.append(self._words.get(word.start(), starts[-1]))
        return starts[1:]
