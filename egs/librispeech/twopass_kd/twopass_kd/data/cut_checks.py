"""What every cut is asked before it is trained on or scored, whoever made its manifest."""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lhotse import MonoCut
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

from twopass_kd.config.log_mel import FRAME_SHIFT
from twopass_kd.config.schema import FeaturesConfig

LOG_MEL = ("kaldi-fbank", "fbank", "kaldifeat-fbank", "kaldi-native-fbank")  # as Kaldi has them
_TOLERANCE = 2e-3  # seconds, as in lhotse's validate_for_asr
_NO_NAME = ("Cc", "Cs", "Zl", "Zp")  # control characters, half characters, line and paragraph separators
_FRAMES_TOLERANCE = 2  # by which the features of a cut may be longer or shorter than it


def is_name(value: Any) -> bool:
    """Whether a value can be an id, which is written into lines and fields."""
    return isinstance(value, str) and value != "" and not any(unicodedata.category(c) in _NO_NAME for c in value)


def has_half_characters(text: str) -> bool:
    """Whether halves of UTF-16 are in a text, as an escape of JSON can put them there; no file takes them."""
    return re.search("[\ud800-\udfff]", text) is not None


def cut_faults(cut: Cut, features: FeaturesConfig, has_text: bool = True) -> Iterator[str]:
    """Why a cut can be neither trained on nor scored, as far as its manifest tells; says both sides, and what to do.

    Args:
      has_text: whether it is to have a transcript (MUSAN has none).
    """
    if not is_name(cut.id):
        yield f"its id ({cut.id!r}) must be text without tabs and line breaks; rename it (`CutSet.modify_ids`)"
    if not isinstance(cut, MonoCut):
        yield f"must be a MonoCut with features, not a {type(cut).__name__}: do `lhotse feat extract-cuts`"
        return
    if not 0 < cut.duration < math.inf:
        yield f"lasts {cut.duration} s; mend or remove it"
    if has_text:
        yield from _supervision_faults(cut)
    yield from _feature_faults(cut, features)


def _supervision_faults(cut: Cut) -> Iterator[str]:
    if len(cut.supervisions) != 1:
        yield f"must have one supervision, not {len(cut.supervisions)}; do `lhotse cut trim-to-supervisions` first"
        return
    (speech,) = cut.supervisions
    if not isinstance(speech.text, (str, type(None))):
        yield f"its text ({speech.text!r}) must be text"
    elif not (speech.text or "").strip():
        yield "has no text"
    elif has_half_characters(speech.text):
        yield f"its text ({speech.text!a}) must be whole characters, not halves of UTF-16; write it anew"
    if not (abs(speech.start) <= _TOLERANCE and 0 < speech.duration <= cut.duration + _TOLERANCE - speech.start):
        yield (
            f"is {cut.duration} s long and its supervision lasts from {speech.start} to {speech.end} s, but must begin"
            " with the cut and end in it; do `lhotse cut trim-to-supervisions` first"
        )


def _feature_faults(cut: Cut, features: FeaturesConfig) -> Iterator[str]:
    if not cut.has_features:
        yield "must be a MonoCut with features, not a MonoCut without: do `lhotse feat extract-cuts`"
        return
    stored = cut.features
    if stored.type not in LOG_MEL:
        yield f"features must be log-mel filter banks ({', '.join(LOG_MEL)}), not {stored.type}; compute them anew"
    if stored.num_features != features.num_mel_bins:
        yield (
            f"has {stored.num_features} values per frame and `features.num_mel_bins` is {features.num_mel_bins};"
            f" say features.num_mel_bins={stored.num_features}"
        )
    if stored.sampling_rate != features.sampling_rate:
        yield (
            f"was computed at {stored.sampling_rate} Hz and `features.sampling_rate` is {features.sampling_rate};"
            f" say features.sampling_rate={stored.sampling_rate}"
        )
    if abs(stored.frame_shift - FRAME_SHIFT) > 1e-6:
        yield f"must have a frame each {FRAME_SHIFT} s, not {stored.frame_shift} s; compute the features anew"
    within = _FRAMES_TOLERANCE * FRAME_SHIFT + _TOLERANCE
    begin, end = stored.start, stored.start + stored.duration
    if not (begin - within <= cut.start and cut.start + cut.duration <= end + within):
        yield (
            f"lasts from {cut.start:.2f} to {cut.start + cut.duration:.2f} s and its features from {begin:.2f} to"
            f" {end:.2f} s, but must lie in them; compute them anew"
        )


def frames_fault(cut: Cut, num_frames: int, num_features: int) -> str | None:
    """Why features that were read, of so many frames and values per frame, are not those of the cut; else None."""
    expected = round(cut.duration / FRAME_SHIFT)
    if abs(num_frames - expected) > _FRAMES_TOLERANCE:
        return f"must have about {expected} frames of features, and has {num_frames}"
    if num_features != cut.num_features:
        return f"must have {cut.num_features} values per frame, and has {num_features}"
    return None


def alignment_fault(items: Sequence[AlignmentItem], text: str) -> str | None:
    """Why the words of an alignment cannot be those of a transcript; None where they can, whatever their case."""
    if [item.symbol.upper() for item in items] != text.upper().split():
        return "alignment of another text"
    times = [time for item in items for time in (item.start, item.end)]
    if not all(math.isfinite(time) for time in times) or times != sorted(times):
        return "alignment whose times do not go forward"
    return None


class UniqueIds:
    """Sees to it that no id comes twice: caches, left-out lists and paired tests are by id."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._seen: dict[str, int] = {}  # numbers, since there may be a million

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, cut_id: str, path: Path, line: int) -> None:
        """Raises ValueError where the id is known, naming both lines."""
        if not self._paths or self._paths[-1] != path:
            self._paths.append(path)
        here = len(self._paths) - 1 << 32 | line
        first = self._seen.setdefault(cut_id, here)
        if first != here:
            raise ValueError(
                f"`{cut_id}` must be the id of one cut, and is that of two: line {first & 0xFFFFFFFF} of"
                f" {self._paths[first >> 32]}, line {line} of {path}; remove one, or rename the cuts of a source"
                " (`CutSet.modify_ids`)"
            )
