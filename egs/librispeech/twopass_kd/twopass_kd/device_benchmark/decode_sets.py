"""What one runtime recognises in a list of utterances, by every search it has; nothing is timed."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from twopass_kd.config.cli import exit_status
from twopass_kd.device_benchmark.runtimes import open_recognizers, runtime_parser
from twopass_kd.device_benchmark.sherpa import pad_for_sherpa
from twopass_kd.device_benchmark.utterances import Utterance, read_audio, read_utterances
from twopass_kd.files.write import write_text_atomically

_BATCH = 16  # utterances decoded side by side in float32

Texts = dict[str, dict[str, dict[str, str]]]  # set -> pass -> utterance id -> text


def decode_sets(
    model: Path,
    runtime: str,
    utterances: Sequence[Utterance],
    padded_sets: Sequence[str] = (),
    chunk_size: int | None = None,
) -> dict[str, Texts]:
    """Decode all utterances.

    Args:
      model, runtime, chunk_size: see `open_recognizers`.
      padded_sets: sets that ours decodes once more, padded as sherpa-onnx needs it (`device_benchmark.sherpa`).
    Returns:
      `texts`, with the passes greedy_search, first_pass and, where there is one, two_pass; `padded_texts` of those
      sets, with greedy_search and first_pass.
    """
    recognizers = {name: make() for name, make in open_recognizers(model, runtime, chunk_size).items()}
    deployed = next(iter(recognizers))
    texts: Texts = {u.set: {name: {} for name in recognizers} for u in utterances}
    padded: Texts = {name: {"greedy_search": {}, "first_pass": {}} for name in padded_sets}
    rate = recognizers[deployed].info.sampling_rate
    # An int8 layer scales its input by the largest value in the batch, so there a stream's company would matter.
    size = 1 if runtime.endswith("int8") else _BATCH
    with tqdm(total=len(utterances), desc=f"{runtime}, decoding", unit="utt") as bar:
        for name, batch in _batches(utterances, size):
            audios = [read_audio(u, rate) for u in batch]
            prepared = [recognizers[deployed].prepare(samples) for samples in audios]
            found = {"greedy_search": [first for first, _ in recognizers["greedy_search"].decode(prepared)]}
            found["first_pass"], found[deployed] = zip(*recognizers[deployed].decode(prepared))
            for pass_name, batch_texts in found.items():
                texts[name][pass_name].update(zip((u.id for u in batch), batch_texts))
            if name in padded:
                info = recognizers[deployed].info
                prepared = [recognizers[deployed].prepare(pad_for_sherpa(samples, info)) for samples in audios]
                for pass_name, by_id in padded[name].items():
                    found_padded = recognizers[pass_name].decode(prepared)
                    by_id.update((u.id, first) for u, (first, _) in zip(batch, found_padded))
            bar.update(len(batch))
    return {"texts": texts, "padded_texts": padded}


def _batches(utterances: Sequence[Utterance], size: int) -> Iterator[tuple[str, list[Utterance]]]:
    """Of one set each, and of similar lengths, so that little is padded."""
    ordered = sorted(utterances, key=lambda u: (u.set, u.duration))
    for name, group in groupby(ordered, key=lambda u: u.set):
        members = list(group)
        for i in range(0, len(members), size):
            yield name, members[i : i + size]


def get_parser() -> argparse.ArgumentParser:
    parser = runtime_parser("python -m twopass_kd.device_benchmark.decode_sets", __doc__)
    parser.add_argument(
        "--padded", nargs="*", default=[], metavar="SET", help="sets to decode once more, padded for sherpa-onnx"
    )
    return parser


def main() -> int:
    parser = get_parser()
    args = parser.parse_args()
    if args.padded and args.runtime.startswith("sherpa-onnx"):
        parser.error(f"--padded is for ours; {args.runtime} always pads")

    def job() -> None:
        utterances = read_utterances(args.utterances)
        texts = decode_sets(args.model, args.runtime, utterances, args.padded, args.chunk_size)
        write_text_atomically(args.out, json.dumps(texts, ensure_ascii=False) + "\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
