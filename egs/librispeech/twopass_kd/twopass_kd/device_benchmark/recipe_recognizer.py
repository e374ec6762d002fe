"""Our streaming recognizer behind the calls that are measured; `SherpaRecognizer` has the same."""

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twopass_kd.ondevice.features import OnlineFeatures
from twopass_kd.ondevice.runtime import Runtime
from twopass_kd.ondevice.stream import Stream, StreamingRecognizer


class RecipeRecognizer:
    """`StreamingRecognizer` without endpoint rules, its second pass timed or left out.

    Args:
      runtime: the model; stays as it is.
      method: greedy_search | modified_beam_search.
      second_pass: whether `finish` rescores with the attention decoder, where the model has one.
    """

    def __init__(self, runtime: Runtime, method: str, second_pass: bool = False) -> None:
        self.attention_seconds = 0.0  # spent in the attention decoder so far
        runtime = copy.copy(runtime)
        runtime.info = dataclasses.replace(runtime.info, second_pass=second_pass and runtime.info.second_pass)
        runtime.attention_log_probs = self._timed(runtime.attention_log_probs)
        self.info = runtime.info
        self._recognizer = StreamingRecognizer(runtime, method)

    def _timed(self, function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args)
            self.attention_seconds += time.perf_counter() - begin
            return result

        return call

    def create_stream(self) -> Stream:
        return self._recognizer.create_stream()

    def accept_waveform(self, stream: Stream, samples: np.ndarray) -> None:
        """More audio of a stream: (num_samples,) float32 in [-1, 1] at the model's sampling rate."""
        stream.accept_waveform(samples)

    def decode_ready(self, stream: Stream) -> bool:
        """Decode the chunks that are there; returns whether there was any."""
        decoded = False
        while self._recognizer.is_ready(stream):
            self._recognizer.decode([stream])
            decoded = True
        return decoded

    def text(self, stream: Stream) -> str:
        """The best hypothesis so far."""
        return self._recognizer.partial(stream).text

    def finish(self, stream: Stream, num_samples: int) -> str:
        """The end of the audio, of which there were `num_samples`: decodes the rest, returns the final text."""
        stream.input_finished()
        return self._recognizer.finalize(stream).text

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """What `decode` takes of a whole utterance (num_samples,): its features (T, num_features) float32.

        They take longer than the search, and several searches can share them.
        """
        features = OnlineFeatures(self.info.num_features, self.info.sampling_rate)
        features.accept_waveform(samples)
        features.input_finished()
        return features.read(0, features.num_ready)

    def decode(self, prepared: Sequence[np.ndarray]) -> list[tuple[str, str]]:
        """Decode whole utterances side by side: of each the first pass's text and the final one."""
        streams = [self.create_stream() for _ in prepared]
        for stream, frames in zip(streams, prepared):
            stream.features = _StoredFeatures(frames)
            stream.input_finished()
        while ready := [s for s in streams if self._recognizer.is_ready(s)]:
            self._recognizer.decode(ready)
        results = [self._recognizer.finalize(s) for s in streams]
        return [(result.first_pass_text, result.text) for result in results]


class _StoredFeatures:
    """In the place of a stream's `OnlineFeatures`: those of a whole utterance, computed before."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self.num_ready = len(frames)

    def input_finished(self) -> None:
        pass

    def read(self, begin: int, count: int) -> np.ndarray:
        return self._frames[begin : begin + count]

    def discard_before(self, frame: int) -> None:
        pass
