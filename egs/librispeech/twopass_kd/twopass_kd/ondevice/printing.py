"""How twopass-recognize shows what it hears: lines, a terminal line that is rewritten, or JSON."""

import json
import re
import shutil
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from twopass_kd.ondevice.stream import Result


@dataclass
class Transcript:
    """What has been recognised of one file.

    Attributes:
      file: its name as given; `-` is standard input.
      shown_file: the name on one line, its control characters as \\n, \\t, ...
      heard: seconds of audio read so far.
      num_segments: final results in which something was said.
      segments: these results, where the printer keeps them.
    """

    file: str
    heard: float = 0.0
    num_segments: int = 0
    segments: list[Result] = field(default_factory=list)

    @property
    def shown_file(self) -> str:
        return _on_one_line(self.file)

    @property
    def text(self) -> str:
        return " ".join(s.text for s in self.segments)


class Printer:
    """Prints transcripts to standard output, each line flushed; notes and errors to standard error.

    Args:
      nbest: alternatives to show for each segment; None: none as text, all as JSON.
    """

    wants_partials = False
    keeps_segments = False  # live audio has no end, and what it says is printed at once

    def __init__(self, nbest: int | None = None) -> None:
        self.nbest = nbest

    def partial(self, transcript: Transcript, text: str) -> None:
        """The hypothesis has changed."""

    def segment(self, transcript: Transcript, result: Result) -> None:
        """A segment is final. Also called, with an empty result, at the end of a file without any text."""

    def end(self, transcript: Transcript) -> None:
        """A file has ended; called in the order in which the files were given."""

    def note(self, message: str) -> None:
        """Something that the user should know."""
        print(_on_one_line(message), file=sys.stderr, flush=True)

    def error(self, message: str) -> None:
        """A file has failed."""
        self.note(f"twopass-recognize: error: {message}")

    def _print_nbest(self, result: Result) -> None:
        for rank, a in enumerate(result.nbest[: self.nbest or 0], start=1):
            scores = f"{a.score:9.3f}"
            if a.attention_log_prob is not None:
                scores += f"  (first pass {a.log_prob:.3f}, second pass {a.attention_log_prob:.3f})"
            print(f"    {rank}. {scores}  {a.text}", flush=True)


class LinePrinter(Printer):
    """One line per file: its name, a tab, its text. With n-best lists its segments and their alternatives below."""

    keeps_segments = True

    def end(self, transcript: Transcript) -> None:
        print(f"{transcript.shown_file}\t{transcript.text}", flush=True)
        if self.nbest:
            for result in transcript.segments:
                print(f"  {_span(result)} {result.text}", flush=True)
                self._print_nbest(result)


class JsonPrinter(Printer):
    """One JSON object per file."""

    keeps_segments = True

    def end(self, transcript: Transcript) -> None:
        _print_json(
            {
                "file": transcript.file,
                "duration": round(transcript.heard, 3),
                "text": transcript.text,
                "segments": [_result_fields(s, self.nbest) for s in transcript.segments],
            }
        )


class SegmentPrinter(Printer):
    """One line per segment as soon as it is final: file, tab, [start - end], tab, text."""

    def segment(self, transcript: Transcript, result: Result) -> None:
        print(f"{transcript.shown_file}\t{_span(result)}\t{result.text}", flush=True)
        self._print_nbest(result)


class EventPrinter(Printer):
    """One JSON object for each change of a hypothesis and each final segment."""

    wants_partials = True

    def partial(self, transcript: Transcript, text: str) -> None:
        _print_json({**self._event("partial", transcript), "text": text})

    def segment(self, transcript: Transcript, result: Result) -> None:
        _print_json({**self._event("final", transcript), **_result_fields(result, self.nbest)})

    @staticmethod
    def _event(kind: str, transcript: Transcript) -> dict[str, Any]:
        where = {"file": transcript.file, "segment": transcript.num_segments, "time": round(transcript.heard, 3)}
        return {"event": kind, **where}


class TerminalPrinter(Printer):
    """The growing hypothesis on one line that is rewritten; final segments stay, with their times.

    Args:
      show_files: print each file's name above its segments.
    """

    wants_partials = True

    def __init__(self, nbest: int | None = None, show_files: bool = False) -> None:
        super().__init__(nbest)
        self._show_files = show_files
        self._file: str | None = None
        self._width = 0  # columns in use on the line that is rewritten

    def partial(self, transcript: Transcript, text: str) -> None:
        self._name(transcript)
        room = max(shutil.get_terminal_size().columns - 1, 1)  # a full line would wrap, and stay
        line = text if len(text) <= room else "…" + text[len(text) - room + 1 :]
        sys.stdout.write("\r" + line.ljust(self._width))
        if len(line) < self._width:
            sys.stdout.write("\r" + line)  # the cursor at the end of what is said
        sys.stdout.flush()
        self._width = len(line)

    def segment(self, transcript: Transcript, result: Result) -> None:
        self._name(transcript)
        self._clear()
        print(f"{_span(result)} {result.text}", flush=True)
        self._print_nbest(result)

    def note(self, message: str) -> None:
        self._clear()
        super().note(message)

    def _name(self, transcript: Transcript) -> None:
        if self._show_files and self._file != transcript.file:
            self._file = transcript.file
            print(f"{transcript.shown_file}:", flush=True)

    def _clear(self) -> None:
        if self._width:
            sys.stdout.write("\r" + " " * self._width + "\r")
            sys.stdout.flush()
            self._width = 0


def make_printer(stream: bool, as_json: bool, nbest: int | None, several_files: bool) -> Printer:
    """The printer for these options; whether standard output is a terminal decides how `stream` is shown."""
    if not stream:
        return JsonPrinter(nbest) if as_json else LinePrinter(nbest)
    if as_json:
        return EventPrinter(nbest)
    if sys.stdout.isatty():
        return TerminalPrinter(nbest, show_files=several_files)
    return SegmentPrinter(nbest)


def _on_one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


def _span(result: Result) -> str:
    return f"[{result.start:.2f} - {result.end:.2f}]"


def _result_fields(result: Result, nbest: int | None) -> dict[str, Any]:
    return {
        "text": result.text,
        "start": result.start,
        "end": result.end,
        "tokens": result.tokens,
        "timestamps": result.timestamps,
        "first_pass_text": result.first_pass_text,
        "nbest": [asdict(a) for a in result.nbest[:nbest]],
    }


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, default=float), flush=True)
