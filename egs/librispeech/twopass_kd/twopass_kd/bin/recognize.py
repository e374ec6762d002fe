"""twopass-recognize: speech to text with an exported model or a checkpoint, from files or a microphone."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Optional, Sequence

PROG = "twopass-recognize"
STDIN = "-"
FILES_AT_ONCE = 16  # decoded as one batch when not streaming
EXAMPLES = """\
examples:
  one line per file: its name, a tab, its text
    %(prog)s exp/mini/export/student a.flac b.wav
  8-bit weights; segments, times and n-best lists as JSON
    %(prog)s exp/mini/export/student --int8 --json *.wav
  a checkpoint, hypotheses as they grow
    %(prog)s exp/mini/student/deep/final.pt --stream a.wav
  a microphone, until Ctrl-C
    arecord -q -f S16_LE -r 16000 -c 1 -t raw | %(prog)s exp/mini/export/student --stream -

Files are read by soundfile: wav, flac, ...; any sampling rate (resampled) and number of channels (the first is
used). Speech is cut into segments where the speaker pauses (1.2 s of silence) or after 20 s; each gets its second
pass and, where shown, its [start - end] in seconds. Text goes to standard output, remarks and errors to standard
error.

exit status: 0 all went well, 1 the model or a file failed (the other files are still recognised), 2 wrong usage,
130 Ctrl-C (what was recognised so far is printed)
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Two-pass speech recognition: a streaming transducer, rescored by the attention decoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="an export folder (stage 10) or a checkpoint (.pt file or its folder)"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="recordings; `-` is raw 16-bit mono audio on standard input"
    )
    parser.add_argument("--stream", action="store_true", help="show hypotheses while the audio goes in, in chunks")
    parser.add_argument(
        "--chunk-ms", type=_at_least_one, metavar="MS", help="with --stream: length of a chunk (default: 100)"
    )
    parser.add_argument("--nbest", type=_at_least_one, metavar="N", help="show the N best of each segment, with scores")
    parser.add_argument("--json", action="store_true", help="JSON: an object per file; with --stream one per change")
    parser.add_argument("--int8", action="store_true", help="the export folder's 8-bit model")
    parser.add_argument(
        "--method",
        choices=("modified_beam_search", "greedy_search"),
        default="modified_beam_search",
        help="of the first pass (default: %(default)s)",
    )
    parser.add_argument(
        "--num-threads", type=_at_least_one, default=1, metavar="N", help="threads of the model (default: 1)"
    )
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"({text}) must be a whole number from 1")
    return int(text)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.chunk_ms and not args.stream:
        parser.error("argument --chunk-ms: must come with --stream; add it")
    if args.files.count(STDIN) > 1:
        parser.error("argument FILE: `-` (standard input) must be given once; remove the others")
    if STDIN in args.files and sys.stdin is None:
        parser.error("argument FILE: `-` (standard input) must be open; pipe audio into it")
    try:
        sys.stdout.reconfigure(errors="surrogateescape")  # names that are not UTF-8 are printed as they are
        return _recognize(args, parser)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # e.g. `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except OSError as e:
        print(f"{PROG}: error: {e}; check where the output goes (free disk space?)", file=sys.stderr)
        return 1


def _recognize(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    interrupt = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # imports that are interrupted raise anything
    try:
        # Imported here: --help and a wrong option answer at once.
        from twopass_kd.ondevice.audio import Chunks, Note, read_chunks, read_raw_chunks
        from twopass_kd.ondevice.endpoint import EndpointRules
        from twopass_kd.ondevice.features import FRAME_SHIFT
        from twopass_kd.ondevice.printing import make_printer
        from twopass_kd.ondevice.transcriber import Transcriber
        from twopass_kd.stream import StreamingRecognizer, open_runtime

        runtime = open_runtime(args.model, args.int8, args.num_threads)
    except (ValueError, OSError) as e:
        print(f"{PROG}: error: {e}", file=sys.stderr)
        return 1
    except ImportError as e:
        print(f"{PROG}: error: {e}; install it, or take an export folder, which needs no PyTorch", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, interrupt)
    info = runtime.info
    if args.nbest and args.method == "greedy_search" and args.nbest > 1:
        parser.error(f"argument --nbest: ({args.nbest}) must be 1 with --method greedy_search; lower it")
    if args.nbest and args.nbest > info.nbest:
        parser.error(f"argument --nbest: ({args.nbest}) must be from 1 to {info.nbest}, this model's beam; lower it")
    recognizer = StreamingRecognizer(runtime, args.method, EndpointRules())
    printer = make_printer(args.stream, args.json, args.nbest, len(args.files) > 1)
    seconds = (args.chunk_ms or 100) / 1000 if args.stream else info.chunk_shift * FRAME_SHIFT

    def open_chunks(name: str, note: Note) -> Chunks:
        if name == STDIN:
            return read_raw_chunks(sys.stdin.buffer, info.sampling_rate, seconds, note)
        return read_chunks(name, info.sampling_rate, seconds, note)

    # 8-bit runtimes scale activations by the largest of the batch, so that a file's text would depend on its company.
    at_once = 1 if args.stream or args.int8 else FILES_AT_ONCE
    failures = Transcriber(recognizer, printer, open_chunks).run(args.files, at_once)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
