#!/usr/bin/env python3
"""Stage 1: Lhotse manifests of a corpus in LibriSpeech's folder layout.

Every utterance is checked first (its audio is decoded to the end); what cannot be used is left out, listed in
`<data>/manifests/left_out.tsv` with the reason and accounted for on the screen. The rest goes through Lhotse's
LibriSpeech recipe, repair and validation into `librispeech_{recordings,supervisions}_<part>.jsonl.gz`; with
`corpus.musan`, MUSAN through Lhotse's recipe into `musan_recordings_{music,speech,noise}.jsonl.gz`.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from lhotse import RecordingSet, SupervisionSet, fix_manifests, validate_recordings_and_supervisions
from lhotse.recipes.librispeech import parse_utterance
from lhotse.recipes.musan import scan_recordings
from tqdm import tqdm

from check_utterances import LeftOut, PartScan, duplicate_ids, scan_part
from twopass_kd.config import Config, ConfigError, load_config

MANIFEST_PREFIX = "librispeech"
MUSAN_PARTS = ("music", "speech", "noise")


def corpus_parts(cfg: Config) -> List[str]:
    """All parts that a config uses, training first, each once."""
    return list(dict.fromkeys([*cfg.corpus.train_parts, *cfg.corpus.dev_parts, *cfg.corpus.test_parts]))


def manifest_path(data_dir: Path, kind: str, part: str) -> Path:
    """Path of a `recordings` or `supervisions` manifest, named as icefall names it."""
    return Path(data_dir) / "manifests" / f"{MANIFEST_PREFIX}_{kind}_{part}.jsonl.gz"


def musan_dir(corpus_dir: Path) -> Path:
    """Where MUSAN is: beside the corpus."""
    return Path(corpus_dir).parent / "musan"


def musan_manifest_path(data_dir: Path, part: str) -> Path:
    """Path of the recordings of a part of MUSAN, named as icefall names it."""
    return Path(data_dir) / "manifests" / f"musan_recordings_{part}.jsonl.gz"


def save_manifest(manifest, path: Path) -> None:
    """Write a Lhotse manifest under a temporary name, then rename it: no half file ever bears the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    manifest.to_file(partial)
    os.replace(partial, path)


def write_left_out(path: Path, left_out: Sequence[LeftOut]) -> None:
    """Write left_out.tsv: a heading, then utterance id, part and reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    rows = [LeftOut("utterance", "part", "reason"), *left_out]
    partial.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def read_left_out(path: Path) -> List[LeftOut]:
    """The rows of left_out.tsv without its heading; none where there is no such file."""
    if not path.is_file():
        return []
    return [LeftOut(*line.split("\t", 2)) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def account(scan: PartScan) -> str:
    """The printed account of a part: how many are used, how many left out for which reason, what was noted."""
    lines = [f"{scan.part}: {len(scan.texts)} utterances used, {len(scan.left_out)} left out"]
    for reason, count in Counter(row.reason for row in scan.left_out).most_common():
        first = next(row.utterance for row in scan.left_out if row.reason == reason)
        lines.append(f"  left out {count}: {reason} (e.g. {first})")
    for note, count in Counter(scan.noted.values()).most_common():
        first = next(name for name, text in scan.noted.items() if text == note)
        lines.append(f"  used {count}: {note} (e.g. {first})")
    return "\n".join(lines)


def check_share(part: str, left_out: Sequence[LeftOut], total: int, max_left_out: float) -> None:
    """Raises ConfigError when more than the share `max_left_out` of a part's `total` utterances is left out."""
    if total == 0:
        raise ConfigError(f"part `{part}` must hold utterances (*.trans.txt beside *.flac), but there are none")
    if len(left_out) > max_left_out * total:
        first = "; ".join(f"{row.utterance}: {row.reason}" for row in left_out[:5])
        raise ConfigError(
            f"`corpus.max_left_out` ({max_left_out:g}) must be at least {len(left_out) / total:.3g} for part `{part}`,"
            f" of which {len(left_out)} of {total} utterances are unusable ({first}); repair the corpus or raise it"
        )


def build_manifests(corpus_dir: Path, scan: PartScan) -> Dict[str, object]:
    """Lhotse's `recordings` and `supervisions` of the usable utterances of a part."""
    part_dir = corpus_dir / scan.part
    recordings, supervisions = [], []
    for name, text in tqdm(scan.texts.items(), desc=f"Manifest {scan.part}", unit="utt", leave=False):
        recording, supervision = parse_utterance(part_dir, f"{name} {text}", {})
        recordings.append(recording)
        supervisions.append(supervision)
    fixed = fix_manifests(RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions))
    validate_recordings_and_supervisions(*fixed)
    return {"recordings": fixed[0], "supervisions": fixed[1]}


def prepare_musan(folder: Path, data_dir: Path) -> None:
    """Manifests of MUSAN's recordings.

    Raises:
      ConfigError: a part of it is missing.
    """
    for part in MUSAN_PARTS:
        recordings = sorted(scan_recordings(folder.resolve() / part), key=lambda recording: recording.id)
        if not recordings:
            raise ConfigError(
                f"`{folder}` must hold MUSAN's {part}/**/*.wav, since `corpus.musan` is true; run stage 0, which"
                " downloads it, or say corpus.musan=false"
            )
        save_manifest(RecordingSet.from_recordings(recordings), musan_manifest_path(data_dir, part))
        print(f"musan {part}: {len(recordings)} recordings", flush=True)


def prepare_manifests(cfg: Config, corpus_dir: Path, data_dir: Path, num_jobs: int = 1) -> Dict[str, PartScan]:
    """Check the parts of `cfg.corpus` and write their manifests and `left_out.tsv` under `<data_dir>/manifests`.

    Args:
      corpus_dir: the folder that contains the parts.
      num_jobs: processes that decode audio.
    Returns:
      part -> what was found in it.
    Raises:
      ConfigError: a part is missing or empty, or more than `corpus.max_left_out` of it is unusable.
    """
    if num_jobs < 1:
        raise ConfigError(f"`nj` ({num_jobs}) must be at least 1")
    if cfg.corpus.musan:
        prepare_musan(musan_dir(corpus_dir), data_dir)
    corpus_dir, parts = Path(corpus_dir).resolve(), corpus_parts(cfg)
    missing = [part for part in parts if not (corpus_dir / part).is_dir()]
    if missing:
        there = sorted(p.name for p in corpus_dir.iterdir() if p.is_dir()) if corpus_dir.is_dir() else []
        raise ConfigError(
            f"`--corpus-dir` ({corpus_dir}) must contain the parts of the config, but {', '.join(missing)} is missing;"
            f" it has: {', '.join(there) or 'no folders'}. Run stage 0, or name the parts that exist in the YAML"
        )
    duplicates = duplicate_ids(corpus_dir, parts)
    scans: Dict[str, PartScan] = {}
    for part in parts:
        corpus = cfg.corpus
        rate = cfg.features.sampling_rate
        scan = scan_part(corpus_dir, part, duplicates, corpus.min_duration, corpus.max_duration, rate, num_jobs)
        scans[part] = scan
        print(account(scan), flush=True)
    left_out_path = Path(data_dir) / "manifests" / "left_out.tsv"
    write_left_out(left_out_path, [row for scan in scans.values() for row in scan.left_out])
    for part, scan in scans.items():
        check_share(part, scan.left_out, len(scan.texts) + len(scan.left_out), cfg.corpus.max_left_out)
    for part, scan in scans.items():
        for kind, manifest in build_manifests(corpus_dir, scan).items():
            save_manifest(manifest, manifest_path(data_dir, kind, part))
    return scans


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conf", type=Path, required=True, help="experiment YAML; its `corpus` names the parts")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that contains the parts")
    parser.add_argument("--data-dir", type=Path, required=True, help="manifests go to <data-dir>/manifests")
    parser.add_argument("--nj", type=int, default=2, help="processes that decode audio (default 2)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    args = parser.parse_args(argv)
    try:
        prepare_manifests(load_config(args.conf, args.overrides), args.corpus_dir, args.data_dir, args.nj)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
