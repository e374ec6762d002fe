"""Online filter banks by kaldi-native-fbank, the extractor that sherpa-onnx uses."""

from array import array

import kaldi_native_fbank
import numpy as np

from twopass_kd.config.log_mel import HIGH_FREQ


class OnlineFeatures:
    """Log-mel filter banks of audio that comes in pieces; the same values, whatever the pieces.

    Equal to those of stage 2 (Lhotse's extractors with snip_edges false, no dither) up to rounding.
    """

    def __init__(self, num_features: int, sampling_rate: int) -> None:
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = sampling_rate
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = num_features
        options.mel_opts.high_freq = HIGH_FREQ
        self._sampling_rate = sampling_rate
        self._fbank = kaldi_native_fbank.OnlineFbank(options)
        self._discarded = 0

    def accept_waveform(self, samples: np.ndarray) -> None:
        """More audio: (num_samples,) float32 in [-1, 1], any number of them."""
        # It copies element by element, which takes twice as long from a numpy array.
        self._fbank.accept_waveform(self._sampling_rate, array("f", samples.astype(np.float32, copy=False).tobytes()))

    def input_finished(self) -> None:
        """No more audio: the last frames, which reach over its end, become ready."""
        self._fbank.input_finished()

    @property
    def num_ready(self) -> int:
        """Frames that can be read, counted from the first one ever."""
        return self._fbank.num_frames_ready

    def read(self, begin: int, count: int) -> np.ndarray:
        """Frames `begin` to `begin + count`, (count, num_features) float32."""
        frames = [self._fbank.get_frame(begin + i) for i in range(count)]
        return np.concatenate(frames).reshape(count, -1)

    def discard_before(self, frame: int) -> None:
        """Free the memory of the frames before `frame`."""
        if frame > self._discarded:
            self._fbank.pop(frame - self._discarded)
            self._discarded = frame
