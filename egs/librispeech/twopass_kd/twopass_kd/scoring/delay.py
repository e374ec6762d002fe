"""When a word appears: how long after it was said the transducer emits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twopass_kd.config.log_mel import FRAME_SHIFT
from twopass_kd.files.decode_json import Delay
from twopass_kd.files.write import write_text_atomically
from twopass_kd.scoring.wer import align_words

RECEPTIVE_FIELD = 7  # input frames that an encoder frame sees (models.encoder.Conv2dSubsampling), checked by a test
WORD_BEGIN = "\u2581"


@dataclass(frozen=True)
class TimedWord:
    """A word and when it begins and ends, in seconds; a recognised one: its first and its last token."""

    word: str
    start: float
    end: float


def heard_until(frame: int, subsampling_factor: int) -> float:
    """Seconds of audio that encoder frame `frame` needs, without the wait for its chunk to be full."""
    return (frame * subsampling_factor + RECEPTIVE_FIELD) * FRAME_SHIFT


def timed_words(
    pieces: Sequence[str], frames: Sequence[int], words: Sequence[str], subsampling_factor: int
) -> list[TimedWord] | None:
    """The words of a hypothesis, each with the time at which its tokens are emitted.

    Args:
      pieces: BPE pieces; one that begins a word begins with U+2581.
      frames: for each the encoder frame that emitted it.
      words: what they spell.
    Returns:
      None where pieces and words do not go together, as with `<unk>` in them.
    """
    groups: list[list[int]] = []
    for piece, frame in zip(pieces, frames):
        if piece.startswith(WORD_BEGIN) or not groups:
            groups.append([])
        groups[-1].append(frame)
    if len(groups) != len(words):
        return None
    return [
        TimedWord(word, heard_until(own[0], subsampling_factor), heard_until(own[-1], subsampling_factor))
        for word, own in zip(words, groups)
    ]


def word_delays(refs: Mapping[str, Sequence[TimedWord]], hyps: Mapping[str, Sequence[TimedWord]]) -> np.ndarray:
    """(N, 2) seconds by which the first and the last token of each right word come after its beginning and its end.

    Args:
      refs: by utterance, when its words are said.
      hyps: by utterance, what is recognised; utterances that are not in both are left out.
    """
    found = []
    for name, hyp in hyps.items():
        ref = refs.get(name)
        if ref is None:
            continue
        i = j = 0
        for r, h in align_words([word.word for word in ref], [word.word for word in hyp]):
            if r is not None and r == h:
                found.append((hyp[j].start - ref[i].start, hyp[j].end - ref[i].end))
            i, j = i + (r is not None), j + (h is not None)
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def describe_delays(delays: np.ndarray) -> Delay | None:
    """What is kept of `word_delays`; None where there is no right word."""
    if not len(delays):
        return None
    p50, p90, p99 = np.percentile(delays[:, 1], [50, 90, 99])
    start, end = delays.mean(axis=0)
    start_variance, end_variance = delays.var(axis=0)
    return Delay(
        words=len(delays),
        p50=p50,
        p90=p90,
        p99=p99,
        start_mean=start,
        end_mean=end,
        start_variance=start_variance,
        end_variance=end_variance,
    )


def write_delay_summary(path: Path, setting: str, delay: Delay) -> None:
    """A `symbol-delay-summary-` file, as icefall's decode.py leaves it where it knows both ends of words."""
    mean = f"({delay.start_mean:.3f}, {delay.end_mean:.3f})"
    variance = f"({delay.start_variance:.3f}, {delay.end_variance:.3f})"
    lines = ("settings\t(start, end) symbol-delay (s) (start, end)", f"{setting}\tmean: {mean}, variance: {variance}")
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))
