"""Recognises files with a streaming recogniser: reads, decodes, ends utterances, hands all to a printer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from twopass_kd.config.log_mel import FRAME_SHIFT
from twopass_kd.ondevice.audio import AudioError, Chunks, Note
from twopass_kd.ondevice.printing import Printer, Transcript
from twopass_kd.ondevice.stream import Result, Stream, StreamingRecognizer


@dataclass
class _Piece:
    """Audio for at most one call of the encoder."""

    samples: np.ndarray
    heard: float  # seconds of audio that had been read when it was taken
    ends_chunk: bool


@dataclass(eq=False)
class _Job:
    """A file that is being recognised.

    Attributes:
      index: its place among the files that were given.
      pieces: its audio that has not been read yet.
      piece: the audio that is decoded in this step; None: the audio has ended.
      shown: the latest partial hypothesis.
      is_silent: whether all samples of this segment were zero.
    """

    index: int
    transcript: Transcript
    stream: Stream
    pieces: Iterator[_Piece]
    piece: _Piece | None = None
    shown: str = ""
    is_silent: bool = True


def _split(chunks: Chunks, piece_size: int, sampling_rate: int) -> Iterator[_Piece]:
    """Cut chunks into pieces of at most `piece_size` samples.

    With no more audio than the encoder advances by in a call, at most one call is ready at a time. So endpoints are
    looked for after each, and segments do not depend on the size of the chunks.
    """
    samples = 0
    for chunk in chunks:
        samples += len(chunk)
        for begin in range(0, len(chunk), piece_size):
            end = begin + piece_size
            yield _Piece(chunk[begin:end], samples / sampling_rate, end >= len(chunk))


class Transcriber:
    """Recognises files, several at once as one batch, and prints them in the order in which they were given.

    Args:
      recognizer: with endpoint rules.
      printer: of what is recognised, of remarks and errors.
      open_chunks: gives the audio of a file and takes a function for remarks on it, as `audio.read_chunks` does.
    """

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        printer: Printer,
        open_chunks: Callable[[str, Note], Chunks],
    ) -> None:
        self._recognizer = recognizer
        self._printer = printer
        self._open_chunks = open_chunks
        self._jobs: list[_Job] = []
        self._ended: dict[int, Transcript | None] = {}  # not printed yet: an earlier file is still being decoded
        self._next_to_print = 0
        self._failures = 0

    def run(self, files: Sequence[str], at_once: int) -> int:
        """Recognise all files, at most `at_once` at a time; a file that cannot be read does not stop the others.

        Returns:
          The number of files that failed.
        Raises:
          KeyboardInterrupt: after printing what was recognised so far.
        """
        waiting = iter(enumerate(files))
        try:
            while True:
                self._jobs += [self._start(i, name) for i, name in islice(waiting, at_once - len(self._jobs))]
                if not self._jobs:
                    return self._failures
                self._step()
        except KeyboardInterrupt:
            self._interrupted()
            raise

    def _start(self, index: int, name: str) -> _Job:
        info = self._recognizer.info
        piece_size = round(info.chunk_shift * FRAME_SHIFT * info.sampling_rate)
        chunks = self._open_chunks(name, lambda message: self._printer.note(f"{name}: {message}"))
        pieces = _split(chunks, piece_size, info.sampling_rate)
        return _Job(index, Transcript(name), self._recognizer.create_stream(), pieces)

    def _step(self) -> None:
        """The next piece of each file."""
        for job in list(self._jobs):
            try:
                job.piece = next(job.pieces, None)
                if job.piece is not None:
                    job.stream.accept_waveform(job.piece.samples)
            except Exception as e:  # the others must not suffer, whatever it is
                self._failures += 1
                known = isinstance(e, AudioError)
                self._printer.error(str(e) if known else f"`{job.transcript.file}` cannot be read ({e!r}); convert it")
                if job.transcript.heard:  # what came before is worth its text, as with a file that was cut
                    job.piece = None
                else:
                    self._close(job, None)
                    continue
            if job.piece is None:
                self._finish(job)
            else:
                job.transcript.heard = job.piece.heard
                job.is_silent = job.is_silent and not job.piece.samples.any()
        self._recognizer.decode([job.stream for job in self._jobs])
        for job in self._jobs:
            if self._recognizer.is_endpoint(job.stream):
                self._finalize(job)
                self._recognizer.reset(job.stream)
            if self._printer.wants_partials and job.piece.ends_chunk and not job.is_silent:
                text = self._recognizer.partial(job.stream).text
                if text != job.shown:
                    job.shown = text
                    self._printer.partial(job.transcript, text)

    def _finalize(self, job: _Job) -> Result:
        result = self._recognizer.finalize(job.stream)
        if job.is_silent:  # models are not trained on zeros, and make up words
            result = replace(result, text="", tokens=[], timestamps=[], first_pass_text="", nbest=[])
        job.shown = ""
        job.is_silent = job.piece is None or not job.piece.samples.any()  # some of it has not been decoded yet
        if result.text:
            self._printer.segment(job.transcript, result)
            job.transcript.num_segments += 1
            if self._printer.keeps_segments:
                job.transcript.segments.append(result)
        return result

    def _finish(self, job: _Job) -> None:
        """The end of a file's audio."""
        job.stream.input_finished()
        result = self._finalize(job)
        while job.stream.num_outputs_ready():  # an endpoint came before the end
            self._recognizer.reset(job.stream)
            result = self._finalize(job)
        transcript, info = job.transcript, self._recognizer.info
        if not transcript.num_segments:
            shortest = info.receptive_field * FRAME_SHIFT
            if 0 < transcript.heard < shortest:
                reason = f"too short: {transcript.heard:.3f} s, and the model sees {shortest:.2f} s at a time"
                self._printer.note(f"{transcript.file}: {reason}")
            elif transcript.heard:
                self._printer.note(f"{transcript.file}: nothing was recognised in {transcript.heard:.1f} s")
            self._printer.segment(transcript, replace(result, start=0.0, nbest=[]))
        self._close(job, transcript)

    def _close(self, job: _Job, transcript: Transcript | None) -> None:
        """Done with a file; None: it failed and nothing is printed of it."""
        self._jobs.remove(job)
        self._ended[job.index] = transcript
        while self._next_to_print in self._ended:
            done = self._ended.pop(self._next_to_print)
            self._next_to_print += 1
            if done is not None:
                self._printer.end(done)

    def _interrupted(self) -> None:
        """Print what was recognised so far."""
        for job in self._jobs:
            if not job.stream.is_finalized:
                self._finalize(job)
            self._printer.note(f"{job.transcript.file}: interrupted after {job.transcript.heard:.1f} s")
            self._ended[job.index] = job.transcript
        for _, transcript in sorted(self._ended.items()):
            if transcript is not None:
                self._printer.end(transcript)
