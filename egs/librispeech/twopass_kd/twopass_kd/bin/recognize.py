"""twopass-recognize: speech to text with an exported model or a checkpoint, from files or a microphone."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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

In JSON, times are seconds from the beginning of the file, log-probs natural logarithms, `score` is what the second pass
sorts the n-best list by; `timestamps` are when each of `tokens` was recognised, `time` is how much audio went in.

Files are read by soundfile: wav, flac, ...; any sampling rate (resampled) and number of channels (the first is
used). Speech is cut into segments where the speaker pauses (1.2 s of silence) or after 20 s; each gets its second
pass and, where shown, its [start - end] in seconds. Text goes to standard output, remarks and errors to standard
error. In lines, a line feed or tab in a file's name is shown as \\n or \\t; JSON has the name itself.

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
        "files",
        nargs="+",
        metavar="FILE",
        help="recordings; `-` is standard input: raw 16-bit mono samples at the model's rate, 16 kHz",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="show hypotheses while the audio goes in; on a terminal at the pace of speech",
    )
    parser.add_argument(
        "--chunk-ms",
        type=_whole_number(60000),
        metavar="MS",
        help="with --stream: audio that goes in at once (default: 100); the model has steps of its own (mini: 240)",
    )
    parser.add_argument(
        "--nbest", type=_whole_number(1000), metavar="N", help="show the N best of each segment, with scores"
    )
    parser.add_argument("--json", action="store_true", help="JSON: an object per file; with --stream one per change")
    parser.add_argument("--int8", action="store_true", help="the export folder's 8-bit model")
    parser.add_argument(
        "--method",
        choices=("modified_beam_search", "greedy_search"),
        default="modified_beam_search",
        help="of the first pass (default: %(default)s)",
    )
    parser.add_argument(
        "--num-threads", type=_whole_number(1024), default=1, metavar="N", help="threads of the model (default: 1)"
    )
    return parser


def _whole_number(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"({text}) must be a whole number from 1 to {most}")
        return int(text)

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.chunk_ms and not args.stream:
        parser.error("argument --chunk-ms: must come with --stream; add it")
    if args.files.count(STDIN) > 1:
        parser.error("argument FILE: `-` (standard input) must be given once; remove the others")
    if sys.stdout is None or sys.stderr is None:
        return 1  # closed by the caller: nowhere to print, not even this
    if STDIN in args.files and sys.stdin is None:
        parser.error("argument FILE: `-` (standard input) must be open; pipe audio into it")
    # Ctrl-C ends a recording also where a script has started us in the background, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # UTF-8 whatever the locale; names of files that are not are printed as they are.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        sys.stderr.reconfigure(encoding="utf-8", errors="surrogateescape")
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
        from twopass_kd.config.log_mel import FRAME_SHIFT
        from twopass_kd.ondevice.audio import Chunks, Note, at_pace_of_speech, read_chunks, read_raw_chunks
        from twopass_kd.ondevice.endpoint import EndpointRules
        from twopass_kd.ondevice.printing import make_printer
        from twopass_kd.ondevice.stream import StreamingRecognizer, open_runtime
        from twopass_kd.ondevice.transcriber import Transcriber

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
        chunks = read_chunks(name, info.sampling_rate, seconds, note)
        return at_pace_of_speech(chunks, info.sampling_rate) if args.stream and sys.stdout.isatty() else chunks

    # 8-bit runtimes scale activations by the largest of the batch, so that a file's text would depend on its company.
    at_once = 1 if args.stream or args.int8 else FILES_AT_ONCE
    failures = Transcriber(recognizer, printer, open_chunks).run(args.files, at_once)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
