#!/usr/bin/env python3
"""Stage 1: Lhotse manifests of a corpus, of LibriSpeech's or any folder layout.

Every utterance is checked first (its audio is decoded to the end); what cannot be used is left out, listed in
`<data>/manifests/left_out.tsv` with the reason and accounted for on the screen. The rest goes, as Lhotse's LibriSpeech
recipe would have it and through Lhotse's repair and validation, into `librispeech_{recordings,supervisions}_<part>
.jsonl.gz`, and the CRC-32 of its files into `librispeech_checksums_<part>.tsv`; with `corpus.musan`, MUSAN goes into
`musan_recordings_{music,speech,noise}.jsonl.gz`.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lhotse import (
    Recording,
    RecordingSet,
    SupervisionSegment,
    SupervisionSet,
    fix_manifests,
    validate_recordings_and_supervisions,
)
from tqdm import tqdm

from check_utterances import OTHER_FORMAT, PartScan, scan_part, why_no_file
from command import add_num_jobs, make_parser, run
from find_utterances import (
    OTHER_AUDIO_SUFFIXES,
    PartFiles,
    audio_files,
    duplicate_ids,
    find_part,
    require_transcripts,
)
from left_out import LeftOut, left_out_path, tally, tally_left_out, write_left_out
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.files.layout import MUSAN_PARTS, checksums_path, manifest_path, musan_manifest_path
from twopass_kd.files.write import printable, write_text_atomically


def corpus_parts(cfg: Config) -> list[str]:
    """All parts that a config uses, training first, each once."""
    return list(dict.fromkeys([*cfg.corpus.train_parts, *cfg.corpus.dev_parts, *cfg.corpus.test_parts]))


def musan_dir(corpus_dir: Path) -> Path:
    """Where MUSAN is: beside the corpus, or beside the link to it."""
    return Path(os.path.abspath(corpus_dir)).parent / "musan"


def save_manifest(manifest, path: Path) -> None:
    """Write a Lhotse manifest under a temporary name, then rename it: no half file ever bears the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    manifest.to_file(partial)
    os.replace(partial, path)


def account(scan: PartScan) -> str:
    """The printed account of a part: how many are used, how many left out for which reason, what was noted."""
    there = f"of {scan.num_files} audio files and {scan.num_lines} transcript lines"
    lines = [
        f"{scan.part}: {len(scan.texts)} utterances used, {len(scan.left_out)} left out, {there}",
        *tally_left_out(scan.left_out),
        *tally("used", ((note, name) for name, note in scan.noted.items())),
        *tally("passed over", scan.remarks),
    ]
    return "\n".join(lines)


def check_share(scan: PartScan, max_left_out: float, listed: Path) -> None:
    """Raises ConfigError when more than the share `max_left_out` of a part's utterances, or all, is left out.

    Args:
      listed: where all of them are listed.
    """
    left_out, total = scan.left_out, len(scan.texts) + len(scan.left_out)
    first = printable("; ".join(f"{row.utterance}: {row.reason}" for row in left_out[:5]))
    first += f"; all are in {listed}" if len(left_out) > 5 else ""
    if not scan.texts:
        raise ConfigError(f"part `{scan.part}` must have usable utterances, but none of {total} is ({first})")
    if len(left_out) > max_left_out * total:
        raise ConfigError(
            f"`corpus.max_left_out` ({max_left_out:g}) must be at least {len(left_out) / total:.3g} for part"
            f" `{scan.part}`, of which {len(left_out)} of {total} utterances are unusable ({first}); repair the corpus"
            " or raise it"
        )


def build_manifests(scan: PartScan) -> dict[str, object]:
    """Lhotse's `recordings` and `supervisions` of the usable utterances of a part, as Lhotse's recipe has them."""
    recordings, supervisions = [], []
    for name, text in tqdm(scan.texts.items(), desc=f"Manifest {scan.part}", unit="utt", leave=False):
        recording = Recording.from_file(scan.audio[name], recording_id=name)
        recordings.append(recording)
        supervisions.append(
            SupervisionSegment(
                id=name,
                recording_id=name,
                start=0.0,
                duration=recording.duration,
                channel=0,
                text=text,
                language="English",
                speaker=name.partition("-")[0],
                alignment={"word": scan.alignments[name]} if name in scan.alignments else None,
            )
        )
    fixed = fix_manifests(RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions))
    validate_recordings_and_supervisions(*fixed)
    return {"recordings": fixed[0], "supervisions": fixed[1]}


def prepare_musan(folder: Path, data_dir: Path) -> list[LeftOut]:
    """Manifests of MUSAN's recordings.

    Returns:
      What of it cannot be used.
    Raises:
      ConfigError: a part of it is missing, or nothing in it can be used.
    """
    all_left_out: list[LeftOut] = []
    for part in MUSAN_PARTS:
        below, remarks = folder.resolve() / part, []
        files = audio_files(below, remarks) if below.is_dir() else []
        if not files:
            raise ConfigError(
                f"`{folder}` must hold MUSAN's {part}/**/*.wav, since `corpus.musan` is true; run stage 0, which"
                " downloads it, or say corpus.musan=false"
            )
        recordings: dict[str, Recording] = {}
        left_out: list[LeftOut] = []
        for path in files:
            try:
                recording = _musan_recording(path)
                if recording.id in recordings:
                    raise ValueError(f"duplicate id: {path} and {recordings[recording.id].sources[0].source}")
                recordings[recording.id] = recording
            except ValueError as e:
                left_out.append(LeftOut(path.stem, f"musan/{part}", str(e)))
        lines = [f"musan {part}: {len(recordings)} recordings used, {len(left_out)} left out"]
        print("\n".join([*lines, *tally_left_out(left_out), *tally("passed over", remarks)]), flush=True)
        if not recordings:
            raise ConfigError(
                f"`{folder}` must hold usable recordings, but of its {part} none is; {printable(left_out[0].reason)}"
            )
        in_order = [recordings[name] for name in sorted(recordings)]
        save_manifest(RecordingSet.from_recordings(in_order), musan_manifest_path(data_dir, part))
        all_left_out += left_out
    return all_left_out


def _musan_recording(path: Path) -> Recording:
    """The recording of a file; raises ValueError, saying why it cannot be used."""
    if path.suffix.lower() in OTHER_AUDIO_SUFFIXES:
        raise ValueError(f"{OTHER_FORMAT}: {path}")
    try:
        reason = why_no_file(path)
        recording = Recording.from_file(path) if reason is None else None
    except Exception as e:  # what reads audio has errors of many kinds
        first_line, *_ = str(e).splitlines() or [type(e).__name__]
        raise ValueError(f"not a readable audio file: {first_line}") from e
    if recording is None:
        raise ValueError(reason)
    if recording.num_samples == 0:
        raise ValueError("audio without samples")
    return recording


def prepare_manifests(cfg: Config, corpus_dir: Path, data_dir: Path, num_jobs: int = 1) -> dict[str, PartScan]:
    """Check the parts of `cfg.corpus` and write their manifests and `left_out.tsv` under `<data_dir>/manifests`.

    Args:
      corpus_dir: the folder that contains the parts.
      num_jobs: processes that decode audio.
    Returns:
      part -> what was found in it.
    Raises:
      ConfigError: a part is missing or empty (`find_parts`), or more than `corpus.max_left_out` of it is unusable.
      OSError: the data folder cannot be written.
    """
    left_out = prepare_musan(musan_dir(corpus_dir), data_dir) if cfg.corpus.musan else []
    corpus_dir = Path(corpus_dir).resolve()
    found = find_parts(corpus_dir, corpus_parts(cfg), cfg.tokens.normalization)
    duplicates = duplicate_ids(found)
    corpus, rate = cfg.corpus, cfg.features.sampling_rate
    scans: dict[str, PartScan] = {}
    for part, files in found.items():
        scan = scan_part(part, files, duplicates, corpus.min_duration, corpus.max_duration, rate, num_jobs)
        scans[part] = scan
        left_out += scan.left_out
        print(account(scan), flush=True)
    write_left_out(data_dir, left_out)
    listed = left_out_path(data_dir)
    if left_out:
        used = sum(len(scan.texts) for scan in scans.values())
        logging.warning("%d utterances used, %d left out: %s says why", used, len(left_out), listed)
    for scan in scans.values():
        check_share(scan, corpus.max_left_out, listed)
    for part, scan in scans.items():
        for kind, manifest in build_manifests(scan).items():
            save_manifest(manifest, manifest_path(data_dir, kind, part))
        checksums = "".join(f"{name}\t{scan.checksums[name]:08x}\n" for name in sorted(scan.checksums))
        write_text_atomically(checksums_path(data_dir, part), checksums)
    return scans


def find_parts(corpus_dir: Path, parts: Sequence[str], normalization: str) -> dict[str, PartFiles]:
    """Part -> what lies in it.

    Raises:
      ConfigError: a part is missing, cannot be read or has no transcripts.
    """
    missing = [part for part in parts if not (corpus_dir / part).is_dir()]
    if missing:
        there = sorted(p.name for p in corpus_dir.iterdir() if p.is_dir()) if corpus_dir.is_dir() else []
        named = [f"{part} (no folder)" if os.path.lexists(corpus_dir / part) else part for part in missing]
        raise ConfigError(
            f"`--corpus-dir` ({corpus_dir}) must contain the parts of the config, but {', '.join(named)} is missing;"
            f" it has: {', '.join(there) or 'no folders'}. Run stage 0, or name the parts that exist in the YAML"
        )
    found = {part: find_part(corpus_dir / part, normalization) for part in parts}
    for part, files in found.items():
        require_transcripts(part, files)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that contains the parts")
    parser.add_argument("--data-dir", type=Path, required=True, help="manifests go to <data-dir>/manifests")
    add_num_jobs(parser)
    return run(parser, argv, lambda cfg, args: prepare_manifests(cfg, args.corpus_dir, args.data_dir, args.nj))


if __name__ == "__main__":
    sys.exit(main())
