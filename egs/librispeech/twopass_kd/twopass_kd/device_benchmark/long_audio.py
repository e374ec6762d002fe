"""Peak memory of a long recording streamed through a model, in a process of its own.

The recording is the given utterances over and over with pauses between them, made while it is streamed. Endpoint
rules cut it into utterances; each gets its second pass.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from twopass_kd.config.cli import exit_status
from twopass_kd.device_benchmark.measure import peak_memory_mb
from twopass_kd.device_benchmark.utterances import Utterance, read_audio, read_utterances
from twopass_kd.files.write import write_text_atomically
from twopass_kd.ondevice.endpoint import EndpointRules
from twopass_kd.ondevice.stream import StreamingRecognizer, open_runtime

_CHUNK_SECONDS = 0.2
_PAUSE_SECONDS = 1.5  # longer than the rule for silence after speech


def long_recording(utterances: Sequence[Utterance], seconds: float, sampling_rate: int) -> Iterator[np.ndarray]:
    """Pieces of audio, (num_samples,) float32 in [-1, 1], of together `seconds`: utterances and pauses in turn."""
    left = round(seconds * sampling_rate)
    pause = np.zeros(round(_PAUSE_SECONDS * sampling_rate), dtype=np.float32)
    for utterance in cycle(utterances):
        for piece in (read_audio(utterance, sampling_rate), pause):
            yield piece[:left]
            left -= len(piece[:left])
            if not left:
                return


def stream_long(model: Path, int8: bool, utterances: Sequence[Utterance], minutes: float) -> dict[str, Any]:
    """Stream `minutes` of audio through an export; to be called in a fresh process.

    Returns:
      minutes, peak_mb, and num_utterances that the endpoint rules made of it.
    """
    runtime = open_runtime(model, int8)
    recognizer = StreamingRecognizer(runtime, endpoint=EndpointRules())
    stream = recognizer.create_stream()
    size = round(_CHUNK_SECONDS * runtime.info.sampling_rate)
    count = 0
    with tqdm(total=round(60 * minutes), desc="long recording", unit="s") as bar:
        for piece in long_recording(utterances, 60 * minutes, runtime.info.sampling_rate):
            for i in range(0, len(piece), size):
                stream.accept_waveform(piece[i : i + size])
                while recognizer.is_ready(stream):
                    recognizer.decode([stream])
                    if recognizer.is_endpoint(stream):
                        recognizer.finalize(stream)
                        recognizer.reset(stream)
                        count += 1
                recognizer.partial(stream)
            bar.update(len(piece) / runtime.info.sampling_rate)
    stream.input_finished()
    recognizer.finalize(stream)
    return {"minutes": minutes, "peak_mb": peak_memory_mb(), "num_utterances": count + 1}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m twopass_kd.device_benchmark.long_audio", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="export folder")
    parser.add_argument("--int8", action="store_true", help="take the *.int8.onnx files")
    parser.add_argument("--utterances", type=Path, required=True, metavar="FILE", help="list that stage 10 writes")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    return parser


def main() -> int:
    args = get_parser().parse_args()

    def job() -> None:
        if not args.minutes > 0:
            raise ValueError(f"`--minutes` ({args.minutes}) must be positive")
        measured = stream_long(args.model, args.int8, read_utterances(args.utterances), args.minutes)
        write_text_atomically(args.out, json.dumps(measured) + "\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
