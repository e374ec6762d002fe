"""Online log-mel filter banks in numpy.

kaldi-native-fbank gives the same, but takes audio element by element, as Python's floats, and gives its frames one by
one.
"""

import numpy as np

from twopass_kd.config.log_mel import FRAME_SHIFT, mel, mel_edges

FRAME_LENGTH = 0.025  # seconds
PREEMPHASIS = 0.97
FLOOR = np.finfo(np.float32).eps  # of a bin's energy
BLOCK = 512  # frames computed at once, for the memory's sake


class OnlineFeatures:
    """Log-mel filter banks of audio that comes in pieces; the same values, whatever the pieces.

    Equal to those of stage 2 (Lhotse's and Kaldi's with snip_edges false, no dither) up to rounding.
    """

    def __init__(self, num_features: int, sampling_rate: int) -> None:
        self._shift, self._length = round(sampling_rate * FRAME_SHIFT), round(sampling_rate * FRAME_LENGTH)
        self._fft = 1 << (self._length - 1).bit_length()
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self._length) / (self._length - 1))
        self._window = (hann**0.85).astype(np.float32)  # Kaldi's "povey" window
        self._mel_bank = MelBank(num_features, self._fft, sampling_rate)
        self._audio = np.zeros(0, np.float32)  # that frames to come reach over
        self._num_samples = 0
        self._rows = np.zeros((0, num_features), np.float32)
        self._discarded = 0  # frames before those

    def accept_waveform(self, samples: np.ndarray) -> None:
        """More audio: (num_samples,) float32 in [-1, 1], any number of them."""
        audio = np.concatenate([self._audio, samples.astype(np.float32, copy=False)])
        mirrored = self._mirrored
        if self._num_samples < mirrored <= self._num_samples + len(samples):  # the first frame begins before the audio
            audio = np.concatenate([audio[:mirrored][::-1], audio])
        self._num_samples += len(samples)
        if self._num_samples >= mirrored:
            audio = self._compute(audio)
        self._audio = audio

    def input_finished(self) -> None:
        """No more audio: the last frames, which reach over its end, become ready."""
        left = (self._num_samples + self._shift // 2) // self._shift - self.num_ready
        if left > 0:
            before = self._mirrored if self._num_samples < self._mirrored else 0
            after = (left - 1) * self._shift + self._length - len(self._audio) - before
            self._compute(np.pad(self._audio, (before, max(after, 0)), "symmetric"), left)

    @property
    def num_ready(self) -> int:
        """Frames that can be read, counted from the first one ever."""
        return self._discarded + len(self._rows)

    def read(self, begin: int, count: int) -> np.ndarray:
        """Frames `begin` to `begin + count`, (count, num_features) float32.

        Raises:
          IndexError: they are not there yet, or were discarded.
        """
        if not self._discarded <= begin <= begin + count <= self.num_ready:
            raise IndexError(
                f"frames {begin} to {begin + count} must be within {self._discarded} to {self.num_ready}, those before"
                " have been removed"
            )
        return self._rows[begin - self._discarded : begin - self._discarded + count]

    def discard_before(self, frame: int) -> None:
        """Free the memory of the frames before `frame`."""
        if frame > self._discarded:
            self._rows = self._rows[frame - self._discarded :].copy()
            self._discarded = frame

    @property
    def _mirrored(self) -> int:
        """Samples of the first frame that lie before the audio; in Kaldi the audio's mirror image stands there."""
        return (self._length - self._shift) // 2

    def _compute(self, audio: np.ndarray, count: int | None = None) -> np.ndarray:
        """Make rows of the frames in `audio`, or of so many of them; returns what later frames reach over."""
        if count is None:
            count = max(0, (len(audio) - self._length) // self._shift + 1)
        if count:
            emphasized = audio.copy()
            emphasized[1:] -= PREEMPHASIS * audio[:-1]
            frames, emphasized = self._frames(audio, count), self._frames(emphasized, count)
            blocks = [self._log_mel(frames[i : i + BLOCK], emphasized[i : i + BLOCK]) for i in range(0, count, BLOCK)]
            self._rows = np.concatenate([self._rows, *blocks])
        return audio[count * self._shift :].copy()

    def _frames(self, audio: np.ndarray, count: int) -> np.ndarray:
        """The first `count` frames, (count, length), which share the memory of `audio`."""
        step = audio.itemsize
        return np.ndarray((count, self._length), audio.dtype, audio, 0, (self._shift * step, step))

    def _log_mel(self, frames: np.ndarray, emphasized: np.ndarray) -> np.ndarray:
        """Of frames (N, length) and the same after pre-emphasis: (N, num_features) float32.

        The mean, which comes off before pre-emphasis in Kaldi, comes off after it, so that samples in several frames
        are emphasized once. In float64 from the transform on.
        """
        rest = 1 - PREEMPHASIS
        windowed = emphasized - frames.sum(axis=1, keepdims=True) * np.float32(rest / self._length)
        windowed[:, 0] += rest * frames[:, 0] - emphasized[:, 0]  # there is no sample before the first
        windowed *= self._window
        spectrum = np.fft.rfft(windowed, self._fft)[:, :-1]
        energies = self._mel_bank(spectrum.real**2 + spectrum.imag**2)
        return np.log(np.maximum(energies, FLOOR).astype(np.float32))


class MelBank:
    """Kaldi's triangular filters. A bin lies in two of them at most, rising in one and falling in the one before.

    Sums over neighbouring bins: a matrix product takes longer, and numpy shares it among threads that nobody asked for.
    """

    def __init__(self, num_features: int, fft: int, sampling_rate: int) -> None:
        edges = mel_edges(num_features, sampling_rate)
        bins = mel(np.arange(fft // 2) * sampling_rate / fft)
        edge = np.searchsorted(edges, bins, side="right") - 1  # the last one that is not above the bin
        rising = (bins - edges[edge]) / (edges[1] - edges[0])
        inside = (edge >= 0) & (edge <= num_features)
        self._weights = np.where(inside, [rising, 1 - rising], 0.0)[:, None]  # (2, 1, bins)
        begins = np.searchsorted(bins, edges)
        self._begins = begins[:-1].clip(max=len(bins) - 1)
        self._has_bins = np.diff(begins) > 0  # of each interval between edges; reduceat gives others a bin

    def __call__(self, power: np.ndarray) -> np.ndarray:
        """Power (N, fft / 2) to energies (N, num_features), both float64."""
        rising, falling = np.add.reduceat(power * self._weights, self._begins, axis=2) * self._has_bins
        return rising[:, :-1] + falling[:, 1:]
