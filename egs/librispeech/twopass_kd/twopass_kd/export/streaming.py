"""Utterances through the streaming path as a device takes them: one stream, chunk by chunk."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut

from twopass_kd.data.asr_dataset import cut_text
from twopass_kd.export import ExportError
from twopass_kd.export.onnx_files import TOLERANCE
from twopass_kd.files.export_json import StreamingCheck
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.ondevice.features import OnlineFeatures
from twopass_kd.ondevice.runtime import ModelInfo, Runtime
from twopass_kd.ondevice.search import SearchState, StreamingSearch
from twopass_kd.search.greedy import greedy_search

# Some twenty decodings of so much audio take minutes, even with large models; the sets of mini have less.
MAX_SECONDS = 1800.0


@dataclass
class Utterance:
    """`features`: (T, num_features) float32, as a device computes them."""

    id: str
    words: list[str]
    features: np.ndarray


def load_utterances(cuts: CutSet, info: ModelInfo, max_seconds: float = MAX_SECONDS) -> list[Utterance]:
    """Features of the audio of cuts: all of it, or as many utterances, drawn at random, as `max_seconds` hold.

    Raises:
      ValueError: if audio is missing or has another sampling rate than the model, or there is none.
    """
    chosen, seconds = [], 0.0
    shuffled = list(cuts)
    random.Random(0).shuffle(shuffled)
    for cut in shuffled:
        seconds += cut.duration
        if chosen and seconds > max_seconds:
            break
        if cut.sampling_rate != info.sampling_rate:
            raise ValueError(
                f"cut {cut.id} ({cut.sampling_rate} Hz) must have the model's rate, {info.sampling_rate} Hz"
            )
        fbank = OnlineFeatures(info.num_features, info.sampling_rate)
        fbank.accept_waveform(_load_audio(cut))
        fbank.input_finished()
        if fbank.num_ready:
            chosen.append(Utterance(cut.id, cut_text(cut).split(), fbank.read(0, fbank.num_ready)))
    if not chosen:
        raise ValueError("the dev and test parts must have audio to check the export on; run stages 1 and 2 again")
    return chosen


def _load_audio(cut: Cut) -> np.ndarray:
    """The first channel, (num_samples,) float32."""
    if not cut.has_recording:
        raise ValueError(
            f"cut {cut.id} must have its recording, for devices compute features themselves; use stage 1's"
        )
    try:
        samples = cut.load_audio()[0]
    except Exception as e:  # Lhotse's audio backends have no common error
        problem = str(e).partition("\n")[0].removesuffix(". Details:")  # Lhotse goes on with the whole cut
        raise ValueError(
            f"the audio of cut {cut.id} cannot be read ({problem}); bring it back, or run stages 0 to 2 again, with"
            " --corpus-dir where the corpus is now"
        ) from e
    if not np.isfinite(samples).all():
        raise ValueError(f"the audio of cut {cut.id} must be finite, but has NaN or infinity; write its file again")
    return samples


def encode_utterance(runtime: Runtime, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's two outputs for an utterance, chunk by chunk, each (T', dim of it); the last chunk is padded."""
    info, states = runtime.info, runtime.init_states(1)
    outs, memories, begin = [], [], 0
    while len(features) - begin >= info.receptive_field:
        chunk = features[begin : begin + info.chunk_frames]
        count = (len(chunk) - info.receptive_field) // info.subsampling_factor + 1
        x = np.zeros((1, info.chunk_frames, info.num_features), np.float32)
        x[0, : len(chunk)] = chunk
        out, memory, states = runtime.encode(x, states)
        outs.append(out[0, :count])
        memories.append(memory[0, :count])
        begin += info.chunk_shift
    if not outs:
        return np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)
    return np.concatenate(outs), np.concatenate(memories)


def search_utterance(search: StreamingSearch, info: ModelInfo, encoder_out: np.ndarray) -> SearchState:
    """The first pass over an utterance's (T', joiner_dim), in the chunks that a stream has."""
    step = info.chunk_shift // info.subsampling_factor
    state = search.start()
    for begin in range(0, len(encoder_out), step):
        search.advance([state], [encoder_out[begin : begin + step]])
    return state


@torch.no_grad()
def check_streaming(model: TwoPassModel, runtime: Runtime, utterances: Sequence[Utterance]) -> StreamingCheck:
    """The exported model, chunk by chunk, against the PyTorch model on whole utterances.

    Utterances that are too short for an encoder frame are not compared.

    Raises:
      ExportError: if an encoder output differs by more than 1e-4.
    """
    worst, compared, different = 0.0, 0, []
    search = StreamingSearch(runtime, beam=1)
    for utterance in utterances:
        if len(utterance.features) < runtime.info.receptive_field:
            continue
        x = torch.from_numpy(utterance.features).unsqueeze(0)
        memory, lens, _ = model.encoder(x, torch.tensor([x.size(1)]))
        encoder_out, streamed = encode_utterance(runtime, utterance.features)
        compared += 1
        for got, want in ((encoder_out, model.joiner.encoder_proj(memory)[0]), (streamed, memory[0])):
            difference = float(np.abs(got - want.numpy()).max()) if got.shape == want.shape else float("inf")
            worst = max(worst, difference) if difference == difference else float("inf")
        if not worst <= TOLERANCE:
            raise ExportError(
                f"encoder.onnx in chunks must equal the whole utterance to {TOLERANCE}, but on {utterance.id} it "
                f"differs by {worst:.3g}"
            )
        if (
            search_utterance(search, runtime.info, encoder_out).best().tokens
            != greedy_search(model, memory, lens)[0][0].tokens
        ):
            different.append(utterance.id)
    return StreamingCheck(
        utterances=compared, same_greedy=compared - len(different), different=different, encoder_difference=worst
    )
