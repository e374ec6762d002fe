"""Speed, latency and memory of one runtime, in a process of its own, on one thread.

Audio arrives as from a microphone, in chunks of the model's chunk duration, one utterance after the other. Memory is
the peak after loading and timing what would be deployed, before anything else is loaded.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from twopass_kd.config.cli import exit_status
from twopass_kd.device_benchmark.runtimes import METHODS, open_recognizers, runtime_parser
from twopass_kd.device_benchmark.sherpa import SherpaRecognizer, padding_for_sherpa
from twopass_kd.device_benchmark.utterances import Utterance, read_audio, read_utterances
from twopass_kd.files.write import write_text_atomically

_ROUNDS = 3  # the utterances are decoded so many times; the fastest counts, as what else runs can only slow it down


@dataclass
class Timing:
    """Of a list of utterances with one search, in seconds."""

    audio: float = 0.0  # decoded; with sherpa-onnx's padding
    computing: float = 0.0
    chunks: list[float] = field(default_factory=list)  # from a chunk's arrival to the partial text after it
    finals: list[float] = field(default_factory=list)  # from the end of speech to the final text

    @property
    def rtf(self) -> float:
        return self.computing / self.audio


def time_utterances(recognizer: Any, audios: Iterable[np.ndarray]) -> Timing:
    """Stream utterances one after the other, in chunks of the duration by which the encoder moves on.

    Only chunks that led to a decode count in `chunks`: the first of an utterance does not, since the encoder waits
    for frames that reach over its end.

    Args:
      recognizer: an `RecipeRecognizer` or a `SherpaRecognizer`.
      audios: samples of each utterance, (num_samples,) float32 in [-1, 1].
    """
    timing, clock, info = Timing(), time.perf_counter, recognizer.info
    size = info.chunk_shift * info.sampling_rate // 100
    for samples in audios:
        stream = recognizer.create_stream()
        for i in range(0, len(samples), size):
            begin = clock()
            recognizer.accept_waveform(stream, samples[i : i + size])
            decoded = recognizer.decode_ready(stream)
            if decoded:
                recognizer.text(stream)
            seconds = clock() - begin
            timing.computing += seconds
            if decoded:
                timing.chunks.append(seconds)
        begin = clock()
        recognizer.finish(stream, len(samples))
        timing.finals.append(clock() - begin)
        timing.computing += timing.finals[-1]
        padding = padding_for_sherpa(len(samples), info) if isinstance(recognizer, SherpaRecognizer) else 0
        timing.audio += (len(samples) + padding) / info.sampling_rate
    return timing


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in 1e6 bytes (VmHWM; getrusage's may be that of the parent)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status must have VmHWM; measure on Linux")


def measure(
    model: Path, runtime: str, utterances: Sequence[Utterance], chunk_size: int | None = None
) -> dict[str, Any]:
    """Time `utterances` on one runtime; to be called in a fresh process, for the memory.

    Args:
      model, runtime, chunk_size: see `open_recognizers`.
    Returns:
      rtf, chunk_ms, final_ms, second_pass_share and peak_mb as a row of ondevice.json has them; seconds (of the
      utterances) and chunk_duration_ms.
    Raises:
      ValueError: see `open_recognizers`; if no utterance is longer than two chunks.
    """
    factories = open_recognizers(model, runtime, chunk_size)
    deployed = next(iter(factories))
    recognizers: dict[str, Any] = {}
    timings: dict[str, list[Timing]] = {name: [] for name in factories}
    peak = None
    rounds = [name for _ in range(_ROUNDS) for name in factories]
    for name in tqdm(rounds, desc=f"{runtime}, timing", unit="pass"):
        if name not in recognizers:
            recognizers[name] = factories[name]()
            rate = recognizers[name].info.sampling_rate
            time_utterances(recognizers[name], [read_audio(utterances[0], rate)])  # warm-up
            recognizers[name].attention_seconds = 0.0
        # Read one by one, so that they do not count as the recognizer's memory.
        timings[name].append(time_utterances(recognizers[name], (read_audio(u, rate) for u in utterances)))
        peak = peak or peak_memory_mb()
    best = {name: min(found, key=lambda t: t.computing) for name, found in timings.items()}
    share = None
    if deployed == "two_pass":
        second = recognizers[deployed].attention_seconds
        share = second / (sum(t.computing for t in timings[deployed]) - second)
    return {
        "rtf": {name: best[name].rtf if name in best else None for name in METHODS},
        "chunk_ms": _percentiles(best["first_pass"].chunks),
        "final_ms": _percentiles(best[deployed].finals),
        "second_pass_share": share,
        "peak_mb": peak,
        "seconds": sum(u.duration for u in utterances),
        "chunk_duration_ms": 10 * recognizers[deployed].info.chunk_shift,
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        raise ValueError("the timed utterances must be longer than two chunks; take longer ones")
    return {f"p{q}": 1000 * float(np.percentile(seconds, q)) for q in (50, 95)}


def get_parser() -> argparse.ArgumentParser:
    parser = runtime_parser("python -m twopass_kd.device_benchmark.measure", __doc__)
    parser.add_argument("--timed", type=int, required=True, metavar="N", help="so many, from the first on, are timed")
    return parser


def main() -> int:
    args = get_parser().parse_args()

    def job() -> None:
        measured = measure(args.model, args.runtime, read_utterances(args.utterances)[: args.timed], args.chunk_size)
        write_text_atomically(args.out, json.dumps(measured, indent=2) + "\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
