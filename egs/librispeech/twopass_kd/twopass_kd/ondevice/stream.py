"""Streaming two-pass recognition: audio in, partial hypotheses while it comes, the rescored text at its end.

    runtime = open_runtime("exp/mini/export/student")
    recognizer = StreamingRecognizer(runtime, endpoint=EndpointRules())
    stream = recognizer.create_stream()
    for samples in microphone:
        stream.accept_waveform(samples)
        while recognizer.is_ready(stream):
            recognizer.decode([stream])
            if recognizer.is_endpoint(stream):
                print(recognizer.finalize(stream).text)
                recognizer.reset(stream)
        print(recognizer.partial(stream).text)
    stream.input_finished()
    print(recognizer.finalize(stream).text)

Imports neither torch, k2 nor lhotse, unless the model is a PyTorch checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from twopass_kd.config.log_mel import FRAME_SHIFT
from twopass_kd.data.detokenize import detokenize
from twopass_kd.ondevice.endpoint import EndpointRules
from twopass_kd.ondevice.features import OnlineFeatures
from twopass_kd.ondevice.runtime import SOS_EOS, ModelError, ModelInfo, OnnxRuntime, Runtime, States
from twopass_kd.ondevice.search import SearchState, StreamingSearch
from twopass_kd.search.nbest import Hypothesis, NBest, two_pass_scores

METHODS = ("modified_beam_search", "greedy_search")


@dataclass
class Alternative:
    """An entry of the n-best list; the probabilities are natural logarithms.

    `attention_log_prob` is None where there was no second pass, or nothing to choose from; by `score` a second pass
    sorts the list, and a first pass alone as `search.nbest.best_first` does.
    """

    text: str
    log_prob: float
    attention_log_prob: float | None
    score: float


@dataclass
class Result:
    """What was recognised in one utterance, so far or finally.

    Attributes:
      text: the best hypothesis: of the first pass while `is_final` is false, of the second pass then.
      tokens, timestamps: its pieces and when each was emitted, in seconds from the beginning of the audio. A piece may
        be a byte of a letter, `<0xC3>`.
      start, end: the audio that was decoded, in seconds from its beginning.
      first_pass_text: the best hypothesis of the first pass.
      nbest: the alternatives, best first; empty while `is_final` is false.
    """

    text: str
    tokens: list[str]
    timestamps: list[float]
    start: float
    end: float
    is_final: bool
    first_pass_text: str
    nbest: list[Alternative] = field(default_factory=list)


class Stream:
    """One source of audio and how far it has been decoded. `StreamingRecognizer.create_stream` makes it.

    Attributes:
      features: the filter banks of the audio so far.
      position: the feature frame (10 ms) that the next chunk begins with.
      begin: the first feature frame of the utterance.
      states, search: of the encoder and of the first pass, after the last chunk.
      memory: the encoder's output for the second pass, an array (frames, dim) for each chunk of the utterance.
      is_input_finished: no more audio will come.
      is_finalized: the utterance has ended, and the next one has not begun.
    """

    def __init__(self, info: ModelInfo, states: States, search: SearchState) -> None:
        self._info = info
        self.start_audio()
        self.start_utterance(states, search)

    def start_audio(self) -> None:
        """Forget all audio; time begins at zero."""
        self.features = OnlineFeatures(self._info.num_features, self._info.sampling_rate)
        self.is_input_finished = False
        self.position = 0

    def start_utterance(self, states: States, search: SearchState) -> None:
        """Begin an utterance with the audio that has not been decoded yet."""
        self.begin = self.position
        self.states = states
        self.search = search
        self.memory: list[np.ndarray] = []
        self.is_finalized = False

    def accept_waveform(self, samples: np.ndarray) -> None:
        """More audio.

        Args:
          samples: (num_samples,) float in [-1, 1] at the model's sampling rate, any number of them.
        Raises:
          ValueError: if the input is finished, or `samples` are integers, not one-dimensional or not finite.
        """
        if self.is_input_finished:
            raise ValueError("accept_waveform after input_finished: call the recognizer's reset for new audio")
        samples = np.asarray(samples)
        if samples.dtype.kind != "f":
            raise ValueError(f"`samples` ({samples.dtype}) must be floats in [-1, 1]; divide int16 samples by 32768.0")
        samples = samples.astype(np.float32, copy=False)
        if samples.ndim != 1:
            raise ValueError(f"`samples` {samples.shape} must be one channel, (num_samples,); take e.g. samples[:, 0]")
        if not np.isfinite(samples).all():
            raise ValueError("`samples` must be finite, but has NaN or infinity; check where the audio comes from")
        if len(samples):
            self.features.accept_waveform(samples)

    def input_finished(self) -> None:
        """No more audio will come: its last frames become ready. A second call does nothing."""
        if not self.is_input_finished:
            self.is_input_finished = True
            self.features.input_finished()

    def num_outputs_ready(self) -> int:
        """Encoder frames that the next call of `decode` can give: a whole chunk, or at the end what is left."""
        info = self._info
        left = self.features.num_ready - self.position
        if left >= info.chunk_frames:
            return info.chunk_shift // info.subsampling_factor
        if not self.is_input_finished or left < info.receptive_field:
            return 0
        return (left - info.receptive_field) // info.subsampling_factor + 1


class StreamingRecognizer:
    """Decodes any number of streams with one model.

    Fed a whole file, without endpoint rules, a stream gives what offline decoding of the file gives.

    Args:
      runtime: the model, from `open_runtime`.
      method: `modified_beam_search` with the model's own beam, or `greedy_search`.
      endpoint: rules for `is_endpoint`; None never ends an utterance.
    """

    def __init__(
        self, runtime: Runtime, method: str = "modified_beam_search", endpoint: EndpointRules | None = None
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"`method` ({method}) must be one of {', '.join(METHODS)}")
        self.info = runtime.info
        self._runtime = runtime
        self._search = StreamingSearch(runtime, runtime.info.beam if method == METHODS[0] else 1)
        self._endpoint = endpoint
        self._seconds_per_output = runtime.info.subsampling_factor * FRAME_SHIFT

    def create_stream(self) -> Stream:
        """A stream at the beginning of its audio."""
        return Stream(self.info, self._runtime.init_states(1), self._search.start())

    def is_ready(self, stream: Stream) -> bool:
        """Whether `decode` has something to do."""
        return not stream.is_finalized and stream.num_outputs_ready() > 0

    def decode(self, streams: Sequence[Stream]) -> None:
        """Decode one chunk of each stream, all as one batch; those that are not ready stay as they are.

        Raises:
          ValueError: if a stream was finalized and not reset, or is there twice.
        """
        if len({id(s) for s in streams}) < len(streams):
            raise ValueError("`streams` must be different ones, but has one twice; give each once")
        if any(s.is_finalized for s in streams):
            raise ValueError("decode after finalize: call reset first, which begins the next utterance")
        counts = [s.num_outputs_ready() for s in streams]
        pairs = [(s, n) for s, n in zip(streams, counts) if n]
        if not pairs:
            return
        info = self.info
        x = np.zeros((len(pairs), info.chunk_frames, info.num_features), np.float32)
        for row, (stream, _) in zip(x, pairs):
            count = min(info.chunk_frames, stream.features.num_ready - stream.position)
            row[:count] = stream.features.read(stream.position, count)
        stacked = pairs[0][0].states
        if len(pairs) > 1:
            stacked = tuple(np.concatenate(parts, axis=1) for parts in zip(*(s.states for s, _ in pairs)))
        encoder_out, memory, states = self._runtime.encode(x, stacked)
        for i, (stream, n) in enumerate(pairs):
            stream.states = tuple(part[:, i : i + 1] for part in states)
            stream.memory.append(memory[i, :n])
            stream.position += n * info.subsampling_factor
            stream.features.discard_before(min(stream.position, stream.features.num_ready))
        self._search.advance([s.search for s, _ in pairs], [out[:n] for out, (_, n) in zip(encoder_out, pairs)])

    def partial(self, stream: Stream) -> Result:
        """The first pass's best hypothesis so far."""
        return self._result(stream, stream.search.best(), is_final=False)

    def is_endpoint(self, stream: Stream) -> bool:
        """Whether the endpoint rules say that the utterance has ended."""
        if self._endpoint is None:
            return False
        frames = stream.search.best().frames
        silent = stream.search.num_frames - (frames[-1] + 1 if frames else 0)
        return self._endpoint.reached(
            stream.search.num_frames * self._seconds_per_output, silent * self._seconds_per_output, bool(frames)
        )

    def finalize(self, stream: Stream) -> Result:
        """End the utterance: rescore its n-best list with the attention decoder.

        The utterance ends with what `decode` has seen; the audio after that belongs to the next one. After
        `input_finished` the rest of the audio is decoded first, up to an endpoint.

        Raises:
          ValueError: if the stream was finalized already and not reset.
        """
        if stream.is_finalized:
            raise ValueError("finalize after finalize: call reset first, which begins the next utterance")
        while stream.is_input_finished and self.is_ready(stream) and not self.is_endpoint(stream):
            self.decode([stream])
        nbest = stream.search.nbest(self.info.nbest)
        alternatives = self._rescore(stream, nbest)
        stream.is_finalized = True
        order = sorted(range(len(nbest)), key=lambda i: -alternatives[i].score)  # stable: ties go to the first pass
        result = self._result(stream, nbest[order[0]], is_final=True)
        result.first_pass_text = self._text(nbest[0])
        result.nbest = [alternatives[i] for i in order]
        return result

    def reset(self, stream: Stream) -> None:
        """Begin the next utterance: on the audio that follows, or on new audio at time zero where none is left.

        The encoder begins from zero states as it does in training, so that what was said before has no influence.
        """
        if stream.is_input_finished and not stream.num_outputs_ready():
            stream.start_audio()
        stream.start_utterance(self._runtime.init_states(1), self._search.start())

    def _rescore(self, stream: Stream, nbest: NBest) -> list[Alternative]:
        texts = [self._text(hyp) for hyp in nbest]
        if not self.info.second_pass or not stream.memory or len(nbest) == 1:
            return [Alternative(text, hyp.log_prob, None, hyp.log_prob) for text, hyp in zip(texts, nbest)]
        memory = np.concatenate(stream.memory)
        attention = self._runtime.attention_log_probs(memory, [hyp.tokens for hyp in nbest]).tolist()
        scores = two_pass_scores(nbest, attention, self.info.rescore_weight, self.info.length_reward)
        return [Alternative(t, h.log_prob, a, s) for t, h, a, s in zip(texts, nbest, attention, scores)]

    def _result(self, stream: Stream, hyp: Hypothesis, is_final: bool) -> Result:
        start, text = stream.begin * FRAME_SHIFT, self._text(hyp, is_final)
        return Result(
            text=text,
            tokens=[self.info.tokens[k] for k in hyp.tokens],
            timestamps=[round(start + t * self._seconds_per_output, 3) for t in hyp.frames],
            start=round(start, 3),
            end=round(stream.position * FRAME_SHIFT, 3),
            is_final=is_final,
            first_pass_text=text,
        )

    def _text(self, hyp: Hypothesis, is_final: bool = True) -> str:
        return " ".join(detokenize([self.info.tokens[k] for k in hyp.tokens if k != SOS_EOS], is_final).split())


def open_runtime(path: Path, int8: bool = False, num_threads: int = 1) -> Runtime:
    """The model at `path`: an export folder on onnxruntime, or a PyTorch checkpoint (a .pt file, or its folder).

    Raises:
      ModelError: if there is no usable model, naming the file.
    """
    path = Path(path)
    if path.is_dir() and (path / "final.pt").is_file():
        path = path / "final.pt"
    if path.is_dir() and any(path.glob("*.onnx")):
        return OnnxRuntime(path, int8, num_threads)
    if path.suffix != ".pt" or not path.is_file():
        patterns = ("*/encoder.onnx", "*/final.pt", "*/*/encoder.onnx", "*/*/final.pt")
        near = [found.parent for pattern in patterns for found in path.glob(pattern)]
        raise ModelError(
            f"model ({path}) must be an export folder (stage 10 makes exp/<conf>/export/<system>) or a checkpoint of "
            f"ours (final.pt){f'; did you mean {near[0]}?' if near else ''}"
        )
    if int8:
        raise ModelError(f"{path} is a checkpoint, and int8 models are in export folders; export it (stage 10)")
    from twopass_kd.ondevice.torch_runtime import TorchRuntime  # late: a device has no torch

    return TorchRuntime(path, num_threads)
