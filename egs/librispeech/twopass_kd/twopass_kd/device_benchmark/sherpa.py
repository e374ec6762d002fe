"""The real sherpa-onnx on an export folder: its features, its search and its text, for comparison with ours.

It decodes a chunk only once a further feature frame is there, and never a shorter last chunk, so it drops the end of an
utterance: `padding_for_sherpa` appends as much silence as makes it decode everything. Ours, given the same padded
audio, sees exactly the same encoder frames.

Two differences are left. It adds up log-probs in other steps (float32 within a frame, ours float64 between frames), so
exact ties can fall either way. And it calls the joiner for one frame of the beam, ours for several frames: the same in
float32, but an int8 layer scales its input by the largest value in the call, so near ties of int8 models can change.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import sherpa_onnx

    from twopass_kd.ondevice.runtime import ModelInfo

METHODS = ("greedy_search", "modified_beam_search")


def num_feature_frames(num_samples: int, sampling_rate: int) -> int:
    """10 ms frames that kaldi-native-fbank gives with snip_edges false after `input_finished`."""
    shift = sampling_rate // 100
    return (num_samples + shift // 2) // shift


def padding_for_sherpa(num_samples: int, info: "ModelInfo") -> int:
    """How many zeros to append to an utterance so that sherpa-onnx decodes all of it.

    With `chunk_shift * k + chunk_frames + 1` feature frames it decodes k + 1 whole chunks, and they are all the encoder
    frames that ours finds in that audio; k is the smallest that covers the utterance.

    Args:
      num_samples: samples of the utterance at `info.sampling_rate`.
    Returns:
      A number of samples: less than a chunk's duration, or what is missing to the first chunk.
    """
    frames = num_feature_frames(num_samples, info.sampling_rate)
    further_chunks = max(0, -(-(frames - info.chunk_frames - 1) // info.chunk_shift))
    wanted = info.chunk_shift * further_chunks + info.chunk_frames + 1
    shift = info.sampling_rate // 100
    return max(0, wanted * shift - shift // 2 - num_samples)


def pad_for_sherpa(samples: np.ndarray, info: "ModelInfo") -> np.ndarray:
    """`samples` (num_samples,) float32 with the zeros that `padding_for_sherpa` asks for after them."""
    return np.concatenate([samples, np.zeros(padding_for_sherpa(len(samples), info), dtype=np.float32)])


class SherpaRecognizer:
    """`sherpa_onnx.OnlineRecognizer.from_transducer` on the files of an export folder, on one thread, no dither.

    Args:
      folder: an export folder, already checked (sherpa-onnx ends the process where a file is wrong).
      info: of the same export; gives the features and the beam.
      method: greedy_search | modified_beam_search.
      int8: run the *.int8.onnx files.
    Raises:
      ValueError: for an unknown method.
    """

    def __init__(self, folder: Path, info: "ModelInfo", method: str, int8: bool = False) -> None:
        import sherpa_onnx  # late: a process that measures ours must not carry it

        if method not in METHODS:
            raise ValueError(f"`method` ({method}) must be one of {', '.join(METHODS)}")
        self.info = info
        suffix = ".int8.onnx" if int8 else ".onnx"
        parts = {part: str(Path(folder) / f"{part}{suffix}") for part in ("encoder", "decoder", "joiner")}
        self._recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
            tokens=str(Path(folder) / "tokens.txt"),
            **parts,
            num_threads=1,
            sample_rate=info.sampling_rate,
            feature_dim=info.num_features,
            dither=0.0,
            decoding_method=method,
            max_active_paths=info.beam,
        )

    def create_stream(self) -> "sherpa_onnx.OnlineStream":
        return self._recognizer.create_stream()

    def accept_waveform(self, stream: "sherpa_onnx.OnlineStream", samples: np.ndarray) -> None:
        """More audio of a stream: (num_samples,) float32 in [-1, 1] at the model's sampling rate."""
        stream.accept_waveform(self.info.sampling_rate, samples)

    def decode_ready(self, stream: "sherpa_onnx.OnlineStream") -> bool:
        """Decode the chunks that are there; returns whether there was any."""
        decoded = False
        while self._recognizer.is_ready(stream):
            self._recognizer.decode_stream(stream)
            decoded = True
        return decoded

    def text(self, stream: "sherpa_onnx.OnlineStream") -> str:
        """The best hypothesis so far."""
        return " ".join(self._recognizer.get_result(stream).split())

    def tokens(self, stream: "sherpa_onnx.OnlineStream") -> list[str]:
        """The pieces of the best hypothesis so far, with a space where ours have U+2581."""
        return self._recognizer.tokens(stream)

    def finish(self, stream: "sherpa_onnx.OnlineStream", num_samples: int) -> str:
        """The end of the audio, of which there were `num_samples`: pads it, decodes the rest, returns the text."""
        self.accept_waveform(stream, np.zeros(padding_for_sherpa(num_samples, self.info), dtype=np.float32))
        stream.input_finished()
        self.decode_ready(stream)
        return self.text(stream)

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """What `decode` takes of a whole utterance (num_samples,): the samples, padded."""
        return pad_for_sherpa(samples, self.info)

    def decode(self, prepared: Sequence[np.ndarray]) -> list[tuple[str, str]]:
        """Decode whole utterances side by side: of each its text, as the first pass's and as the final one."""
        texts = [self.text(s) for s in self.decode_streams(prepared)]
        return list(zip(texts, texts))

    def decode_streams(self, prepared: Sequence[np.ndarray]) -> list["sherpa_onnx.OnlineStream"]:
        """The same; returns the streams, from which to take text or tokens."""
        streams = [self.create_stream() for _ in prepared]
        for stream, samples in zip(streams, prepared):
            self.accept_waveform(stream, samples)
            stream.input_finished()
        while ready := [s for s in streams if self._recognizer.is_ready(s)]:
            self._recognizer.decode_streams(ready)
        return streams
