"""The cuts that stage 2 computes features for, and where it puts them."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lhotse import CutSet, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.cut import Cut
from lhotse.features import FeatureExtractor

from prepare_manifests import corpus_parts
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.cut_checks import UniqueIds, has_half_characters, is_name
from twopass_kd.data.cut_lines import manifest_lines, without_folders
from twopass_kd.data.manifest_fields import RecordingFields, SupervisionFields, find_problem
from twopass_kd.data.noise import MAX_SECONDS, MIN_SECONDS
from twopass_kd.files.layout import (
    MUSAN_PARTS,
    checksums_path,
    cuts_path,
    features_dir,
    manifest_path,
    musan_cuts_path,
    musan_features_dir,
    musan_manifest_path,
)

_TOLERANCE = 0.01  # seconds that a supervision may be longer than its recording, which may be rounded
_FIELDS = {SupervisionSet: SupervisionFields, RecordingSet: RecordingFields}

Manifest = TypeVar("Manifest", RecordingSet, SupervisionSet)


class UtteranceCuts:
    """One cut per supervision of a part: first channel, at `sampling_rate` Hz, the cut's id being the supervision's.

    Copies at other speeds are made when they are asked for.

    Args:
      speed_perturb: factors of further copies of each cut, whose ids end in `_sp<factor>`; all are shuffled, always
        in the same way.
    """

    def __init__(self, data_dir: Path, part: str, sampling_rate: int, speed_perturb: Sequence[float] = ()) -> None:
        recordings = _read_recordings([manifest_path(data_dir, "recordings", part)], sampling_rate)
        path = manifest_path(data_dir, "supervisions", part)
        supervisions, unique = _read_manifest(path, SupervisionSet), UniqueIds()
        for number, supervision in enumerate(supervisions, start=1):
            unique.add(supervision.id, path, number)
            problem = _supervision_problem(supervision, recordings)
            if problem is not None:
                raise ConfigError(f"{path}, line {number}, {supervision.id}: {problem}; mend the manifests")
            rest = recordings[supervision.recording_id].duration - supervision.start
            supervision.duration = min(supervision.duration, rest)
        cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
        self._single: list[Cut] = []
        for cut in cuts.trim_to_supervisions(keep_overlapping=False):
            cut.id = cut.supervisions[0].id
            self._single.append(cut)
        self._order = [(factor, i) for factor in (None, *speed_perturb) for i in range(len(self._single))]
        if speed_perturb:
            # A sampler mixes cuts only within its buffer, so the copies must not follow each other as blocks.
            random.Random(0).shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: slice) -> list[Cut]:
        """The cuts of a slice."""
        chosen = [(factor, self._single[i]) for factor, i in self._order[index]]
        return [cut if factor is None else cut.perturb_speed(factor) for factor, cut in chosen]


def musan_cuts(manifests: Sequence[Path], sampling_rate: int) -> list[Cut]:
    """MUSAN in windows of 10 s, as icefall has it; what is left of a recording is one too if longer than 5 s."""
    cuts = []
    for whole in CutSet.from_manifests(recordings=_read_recordings(manifests, sampling_rate)):
        for number, window in enumerate(whole.cut_into_windows(MAX_SECONDS)):
            window.id = f"{whole.recording.id}-{number}"
            if window.duration > MIN_SECONDS:
                cuts.append(window)
    return cuts


def _supervision_problem(supervision: SupervisionSegment, recordings: RecordingSet) -> str | None:
    """Why a supervision cannot become a cut; Lhotse passes over what is not within the recording."""
    name, start, end = supervision.recording_id, supervision.start, supervision.start + supervision.duration
    if not is_name(supervision.id):
        return "its id must be text without tabs and line breaks"
    if name not in recordings:
        return f"must be of a recording that is there, and {name} is not"
    recording = recordings[name]
    if not (0 <= start < end <= recording.duration + _TOLERANCE):
        return f"lasts from {start} to {end} s and its recording {recording.duration} s, but must lie in it"
    if supervision.channel not in recording.channel_ids:
        return f"is of channel {supervision.channel} and its recording has {recording.channel_ids}"
    if has_half_characters(str(supervision.text)):
        return f"its text ({supervision.text!a}) must be whole characters, not halves of UTF-16"
    return None


def _read_recordings(paths: Sequence[Path], sampling_rate: int) -> RecordingSet:
    found, unique = [], UniqueIds()
    for path in paths:
        for number, recording in enumerate(_read_manifest(path, RecordingSet), start=1):
            unique.add(recording.id, path, number)
            if not (recording.sources and min(recording.sampling_rate, recording.num_samples, recording.duration) > 0):
                raise ConfigError(f"{path}, line {number}, {recording.id}: must have sources and samples; mend it")
            found.append(recording if recording.sampling_rate == sampling_rate else recording.resample(sampling_rate))
    return RecordingSet.from_recordings(found)


def _read_manifest(path: Path, kind: type[Manifest]) -> Manifest:
    """A manifest of one kind, read to its end.

    Raises:
      ConfigError: it is not, or cut short, or a field is of another type.
    """
    try:
        for number, line in enumerate(manifest_lines(path), start=1):
            problem = find_problem(json.loads(line), _FIELDS[kind])
            if problem is not None:
                raise ValueError(f"line {number}: {problem}")
        return kind.from_file(path).to_eager()
    except Exception as e:  # Lhotse's errors have no common base
        raise ConfigError(f"{path} must be a whole {kind.__name__} ({type(e).__name__}: {e}); make it anew") from e


@dataclass
class FeatureSet:
    """Cuts whose features are stored together.

    Attributes:
      name: a part of the corpus, or `musan`.
      folder: gets the features when all are there.
      public: gets the manifest of the cuts with features.
      manifests: what the cuts are made from.
      checksums: of their audio, if stage 1 made the manifests.
      settings: what else the features depend on.
      make_cuts: gives the cuts, in their order: something with a length that can be sliced.
    """

    name: str
    folder: Path
    public: Path
    manifests: list[Path]
    checksums: list[Path]
    settings: dict[str, Any]
    make_cuts: Callable[[], Any]

    def digests(self) -> dict[str, str]:
        """`digest` changes with the manifests' content, the audio or the settings, and not when a manifest is only
        written again, or data or corpus are moved; `places` when they are.

        Raises:
          ConfigError: the manifests of stage 1 are missing.
        """
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        places = hashlib.sha256(str(self.folder).encode())
        known = self._knows_audio()
        for path in self.checksums if known else ():
            digest.update(path.read_bytes())
        for path in self.manifests:
            if not path.is_file():
                raise ConfigError(f"`--data-dir` ({path.parents[1]}) must hold {path.name}; run stage 1")
            for line in manifest_lines(path):
                digest.update(without_folders(line) if known else line)
                places.update(line)
        return {"digest": digest.hexdigest(), "places": places.hexdigest()}

    def _knows_audio(self) -> bool:
        """Whether stage 1 made the manifests; else audio is known by nothing but its path."""
        return all(path.is_file() for path in self.checksums)

    def audio_paths(self) -> dict[str, str]:
        """Name of each audio file -> its path; empty where the cuts have the paths that are in the manifests."""
        if not self._knows_audio():  # files of a user may have one name, in several folders
            return {}
        recordings = (json.loads(line) for path in self.manifests for line in manifest_lines(path))
        sources = (source["source"] for recording in recordings for source in recording.get("sources", []))
        return {Path(path).name: path for path in sources}


def feature_sets(cfg: Config, data_dir: Path, extractor: FeatureExtractor) -> list[FeatureSet]:
    """All parts of a config, and MUSAN if it wants it."""
    data_dir = Path(data_dir).resolve()
    rate = cfg.features.sampling_rate
    settings = {"extractor": extractor.name, "config": extractor.to_dict()}
    sets = []
    for part in corpus_parts(cfg):
        factors = list(cfg.corpus.speed_perturb) if part in cfg.corpus.train_parts else []
        sets.append(
            FeatureSet(
                name=part,
                folder=features_dir(data_dir, part),
                public=cuts_path(data_dir, part),
                manifests=[manifest_path(data_dir, kind, part) for kind in ("recordings", "supervisions")],
                checksums=[checksums_path(data_dir, part)],
                settings={**settings, "speed_perturb": factors},
                make_cuts=partial(UtteranceCuts, data_dir, part, rate, factors),
            )
        )
    if cfg.corpus.musan:
        manifests = [musan_manifest_path(data_dir, part) for part in MUSAN_PARTS]
        folder, public = musan_features_dir(data_dir), musan_cuts_path(data_dir)
        sets.append(FeatureSet("musan", folder, public, manifests, [], settings, partial(musan_cuts, manifests, rate)))
    return sets
