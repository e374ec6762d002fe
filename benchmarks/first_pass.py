"""Our streaming first pass on onnxruntime against sherpa-onnx's, on the same model files, audio and one thread.

    python benchmarks/first_pass.py EXPORT_DIR AUDIO... [--int8] [--repeats 7] [--limit 40]

Recordings go in one after the other by chunks of the encoder's step, with a partial text after each decode; both get
the same padded audio, so that they decode the same encoder frames. The two take turns within each round; printed are
medians of the rounds, as real-time factors, their ratio, the wait for the final text after the recording nearest to
5 s, and the cost of the second pass. An AUDIO that is a folder stands for the wav and flac files below it.
"""

from collections.abc import Callable
from pathlib import Path

from common import make_parser, median_seconds

from find_utterances import audio_files
from twopass_kd.config.environment import describe_environment
from twopass_kd.device_benchmark.measure import time_utterances
from twopass_kd.device_benchmark.recipe_recognizer import RecipeRecognizer
from twopass_kd.device_benchmark.sherpa import SherpaRecognizer, pad_for_sherpa
from twopass_kd.ondevice.audio import read_chunks
from twopass_kd.ondevice.runtime import OnnxRuntime

METHODS = ("greedy_search", "modified_beam_search")


def recordings(paths: list[Path]) -> list[Path]:
    found = []
    for path in paths:
        below = audio_files(path, []) if path.is_dir() else [path]
        found += [p for p in below if p == path or p.suffix.lower() in (".wav", ".flac")]
    return found


def main() -> None:
    parser = make_parser(__doc__, conf=None)
    parser.add_argument("export_dir", type=Path, help="e.g. exp/mini/export/student")
    parser.add_argument("audio", type=Path, nargs="+", help="recordings, or folders of them")
    parser.add_argument("--int8", action="store_true", help="the *.int8.onnx files")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--limit", type=int, default=40, help="recordings at most")
    args = parser.parse_args()
    runtime = OnnxRuntime(args.export_dir, args.int8)
    info = runtime.info
    files = recordings(args.audio)[: args.limit]
    audios = [pad_for_sherpa(next(read_chunks(str(path), info.sampling_rate, 3600.0)), info) for path in files]
    seconds = sum(map(len, audios)) / info.sampling_rate

    def timed(recognizer: object) -> Callable[[], object]:
        return lambda: time_utterances(recognizer, audios)

    variants = {}
    for method in METHODS:
        variants[f"ours, {method}"] = timed(RecipeRecognizer(runtime, method))
        variants[f"sherpa-onnx, {method}"] = timed(SherpaRecognizer(args.export_dir, info, method, args.int8))
    if info.second_pass:
        variants["ours, two-pass"] = timed(RecipeRecognizer(runtime, METHODS[1], second_pass=True))
    found = median_seconds(variants, args.repeats)

    print(f"{len(audios)} recordings, {seconds:.1f} s with padding, one thread, {args.repeats} rounds; "
          f"{args.export_dir.name}{', int8' if args.int8 else ''}")  # fmt: skip
    print(describe_environment())
    for name, value in found.items():
        print(f"{name:36}  RTF {value / seconds:.5f}")
    for method in METHODS:
        print(f"ours / sherpa-onnx, {method}: {found[f'ours, {method}'] / found[f'sherpa-onnx, {method}']:.3f}")
    finals = time_utterances(RecipeRecognizer(runtime, METHODS[1], second_pass=True), audios).finals
    near = min(range(len(audios)), key=lambda i: abs(len(audios[i]) / info.sampling_rate - 5.0))
    length = len(audios[near]) / info.sampling_rate
    print(f"final text {1000 * finals[near]:.2f} ms after the end of a recording of {length:.1f} s")
    if info.second_pass:
        print(f"two-pass / first pass: {found['ours, two-pass'] / found[f'ours, {METHODS[1]}']:.3f}")


if __name__ == "__main__":
    main()
