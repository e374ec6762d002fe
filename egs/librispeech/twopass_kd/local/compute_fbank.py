#!/usr/bin/env python3
"""Stage 2a: filter-bank features of every part, stored so that icefall can read them.

Reads the manifests of stage 1 and writes `<data>/fbank/librispeech_cuts_<part>.jsonl.gz`: one cut per utterance, its
id that of the utterance, its features (Lilcom-compressed) in `<data>/fbank/librispeech_feats_<part>/`; with
`corpus.musan` also `musan_cuts.jsonl.gz` and `musan_feats/`. What has not changed in manifests and settings is not
computed again, and what was interrupted goes on: features are computed in chunks, each with a manifest that is written
last, in a folder named after what they are made from. Several calls with --shard may fill it at once.
"""

import argparse
import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet, LilcomChunkyWriter
from lhotse.cut import Cut
from lhotse.features import FeatureExtractor
from tqdm import tqdm

from command import add_num_jobs, make_parser, run
from feature_sets import FeatureSet, feature_sets
from twopass_kd.config.log_mel import HIGH_FREQ
from twopass_kd.config.schema import Config, ConfigError, FeaturesConfig
from twopass_kd.data.asr_dataset import load_features
from twopass_kd.data.cut_lines import manifest_lines
from twopass_kd.data.fbank import make_fbank
from twopass_kd.files.write import write_text_atomically

_CHUNK = 250  # cuts that a process computes and stores in one go
_RECORD = "source.json"  # in the folder of features: what they were made of
_SAMPLE = 10  # cuts per chunk whose features are read back


def why_no_kaldifeat() -> str | None:
    """Why `import kaldifeat` fails, as it does where it was built for another torch; None where it works."""
    try:
        import kaldifeat  # noqa: F401
    except (ImportError, OSError) as e:
        return " ".join(str(e).split())
    return None


def make_extractor(features: FeaturesConfig) -> FeatureExtractor:
    """Kaldifeat's filter banks where that package works, else Lhotse's own; both give the same values.

    Raises:
      ConfigError: `features.extractor` is kaldifeat, which does not work.
    """
    problem = why_no_kaldifeat()
    if features.extractor == "kaldifeat" and problem is not None:
        raise ConfigError(
            f"`features.extractor` (kaldifeat) must be importable ({problem}); do `make kaldifeat`, or say auto"
        )
    if features.extractor != "lhotse" and problem is None:
        from lhotse.features.kaldifeat import KaldifeatFbank, KaldifeatFbankConfig
        from lhotse.features.kaldifeat import KaldifeatFrameOptions as FrameOptions
        from lhotse.features.kaldifeat import KaldifeatMelOptions as MelOptions

        logging.info("features by kaldifeat, which works here (`features.extractor` is %s)", features.extractor)
        frames = FrameOptions(sampling_rate=features.sampling_rate, dither=0.0, snip_edges=False)
        mel = MelOptions(num_bins=features.num_mel_bins, high_freq=HIGH_FREQ)
        return KaldifeatFbank(KaldifeatFbankConfig(frame_opts=frames, mel_opts=mel))
    reason = "as `features.extractor` says" if features.extractor == "lhotse" else f"without kaldifeat: {problem}"
    logging.info("features by Lhotse's Fbank, %s", reason)
    return make_fbank(features)


def _make_pool(num_jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # forking a process in which torch has run can hang
    return ProcessPoolExecutor(num_jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


def _store_chunk(
    cuts: list[Cut],
    index: int,
    partial: Path,
    extractor: FeatureExtractor,
    features: FeaturesConfig,
    name: str,
) -> None:
    """Features of a chunk in `partial`, and then its manifest.

    Both get their names when they are complete, so that it does no harm if another process computes the same chunk.
    """
    with tempfile.TemporaryDirectory(dir=partial, prefix=".tmp-") as tmp:
        try:
            stored = list(
                CutSet.from_cuts(cuts).compute_and_store_features(  # one by one: benchmarks/features.py shows why
                    extractor=extractor,
                    storage_path=Path(tmp) / f"feats-{index}",
                    storage_type=LilcomChunkyWriter,
                    num_jobs=1,
                    progress_bar=False,
                )
            )
        except OSError:
            raise
        except Exception as e:  # what reads audio has errors of many kinds
            problem = str(e).partition("\n")[0]  # Lhotse goes on with the whole cut
            raise ValueError(
                f"part `{name}`: features of one of the {len(cuts)} cuts from {cuts[0].id} on cannot be computed"
                f" ({type(e).__name__}: {problem}); mend its recording"
            ) from e
        validate_features(stored, [cut.id for cut in cuts], features, name)
        archive, manifest = f"feats-{index}.lca", _chunk_manifest(Path(tmp), index)
        for cut in stored:
            cut.features.storage_path = archive
        CutSet.from_cuts(stored).to_file(manifest)
        os.replace(Path(tmp) / archive, partial / archive)
        os.replace(manifest, partial / manifest.name)


def _chunk_manifest(folder: Path, index: int) -> Path:
    return folder / f"cuts-{index}.jsonl.gz"


def validate_features(cuts: Sequence[Cut], expected_ids: Sequence[str], features: FeaturesConfig, part: str) -> None:
    """Check that every expected cut has features of the right size, and read a sample of them back.

    Lhotse leaves cuts whose audio cannot be loaded out; here that is an error.

    Raises:
      ValueError: naming the part and the first few utterances, or the one whose features cannot be read.
    """
    got = {cut.id for cut in cuts}
    lost = [name for name in expected_ids if name not in got]
    if lost:
        raise ValueError(f"part `{part}`: {len(lost)} cuts must have features and have none: {', '.join(lost[:5])}")
    every = max(1, len(expected_ids) // _SAMPLE)
    for index, cut in enumerate(cuts):
        frames = round(cut.duration * 100)
        stored = (cut.features.num_frames, cut.features.num_features)  # cut.num_frames follows from its duration
        if abs(stored[0] - frames) > 1 or stored[1] != features.num_mel_bins:
            raise ValueError(
                f"part `{part}`, {cut.id}: features must be ({frames}, {features.num_mel_bins}), not {stored}"
            )
        if index % every == 0:
            load_features(cut)


def compute_set(
    wanted: FeatureSet,
    extractor: FeatureExtractor,
    features: FeaturesConfig,
    pool: ProcessPoolExecutor,
    num_jobs: int,
    shard: tuple[int, int] | None = None,
) -> bool:
    """Features of one set; False where they were there already, made from the same manifests and settings.

    Args:
      shard: (k, n): only chunks k, k + n, k + 2n, ..., which wait for a call without to be put together.
    """
    digests = wanted.digests()
    record = _read_record(wanted)
    complete = record.get("digest") == digests["digest"] and all(
        (wanted.folder / f"feats-{i}.lca").is_file() for i in range(record["chunks"])
    )
    if not complete:
        # Its name says what is in it, so that nothing of other settings, or of chunks cut otherwise, is taken for it.
        name = hashlib.sha256(f"{digests['digest']} {_CHUNK}".encode()).hexdigest()[:16]
        partial = wanted.folder.with_name(f".partial-{wanted.folder.name}-{name}")
        partial.mkdir(parents=True, exist_ok=True)
        num_chunks = _compute_chunks(wanted, partial, extractor, features, pool, num_jobs, shard or (0, 1))
        if shard is None:
            record = {"digest": digests["digest"], "chunks": num_chunks, **wanted.settings}
            _put_together(wanted, partial, record)
    if shard is None and not (record.get("places") == digests["places"] and wanted.public.is_file()):
        _publish(wanted)
        _write_record(wanted.folder, {**record, "places": digests["places"]})
    return not complete


def _read_record(wanted: FeatureSet) -> dict[str, Any]:
    """What the features that are there were made of; empty where there are none."""
    try:
        return dict(json.loads((wanted.folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_text_atomically(folder / _RECORD, json.dumps(record, indent=1, default=str) + "\n")


def _publish(wanted: FeatureSet) -> None:
    """Write into the manifest where features and audio are now, and copy it to where it is read."""
    manifest, audio = wanted.folder / "cuts.jsonl.gz", wanted.audio_paths()
    partial = manifest.with_name(f".partial-{manifest.name}")
    with gzip.open(partial, "wt", encoding="utf-8", compresslevel=6) as f:
        for line in manifest_lines(manifest):
            cut = json.loads(line)
            cut["features"]["storage_path"] = str(wanted.folder / Path(cut["features"]["storage_path"]).name)
            for source in cut["recording"]["sources"]:
                source["source"] = audio.get(Path(source["source"]).name, source["source"])
            print(json.dumps(cut, ensure_ascii=False), file=f)
    os.replace(partial, manifest)
    copy = wanted.public.with_name(f".partial-{wanted.public.name}")
    shutil.copyfile(manifest, copy)
    os.replace(copy, wanted.public)


def _compute_chunks(
    wanted: FeatureSet,
    partial: Path,
    extractor: FeatureExtractor,
    features: FeaturesConfig,
    pool: ProcessPoolExecutor,
    num_jobs: int,
    shard: tuple[int, int],
) -> int:
    """Compute the chunks of `shard` that are not there yet; returns the number of all chunks."""
    cuts = wanted.make_cuts()
    num_chunks = -(-len(cuts) // _CHUNK)
    mine = range(shard[0], num_chunks, shard[1])
    to_do = [i for i in mine if not _chunk_manifest(partial, i).is_file()]
    running: set[Future] = set()
    with tqdm(total=len(mine), initial=len(mine) - len(to_do), desc=f"Features {wanted.name}", unit="chunk") as bar:
        while to_do or running:
            while to_do and len(running) < 2 * num_jobs:  # enough to keep the processes busy
                index = to_do.pop(0)
                chunk = cuts[index * _CHUNK : (index + 1) * _CHUNK]
                running.add(pool.submit(_store_chunk, chunk, index, partial, extractor, features, wanted.name))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for job in done:
                job.result()
                bar.update()
    return num_chunks


def _put_together(wanted: FeatureSet, partial: Path, record: dict[str, Any]) -> None:
    """Make the folder of all chunks the final one, instead of what other settings left."""
    manifests = [_chunk_manifest(partial, i) for i in range(record["chunks"])]
    with open(partial / "cuts.jsonl.gz", "wb") as out:  # what filter_cuts.py filters into the public one
        for path in manifests:
            out.write(path.read_bytes())  # gzipped files one after the other are a gzipped file
    _write_record(partial, record)
    wanted.public.unlink(missing_ok=True)
    for left in [*partial.glob(".tmp-*"), wanted.folder]:
        shutil.rmtree(left, ignore_errors=True)
    partial.rename(wanted.folder)
    for path in manifests:
        (wanted.folder / path.name).unlink()
    for left in wanted.folder.parent.glob(f".partial-{wanted.folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def compute_fbank(cfg: Config, data_dir: Path, num_jobs: int = 1, shard: tuple[int, int] | None = None) -> None:
    """Features of all parts of a config, under `<data_dir>/fbank`.

    Args:
      shard: (k, n): a share of the work only; a call without does what is left and puts all together.
    Raises:
      ConfigError: stage 1 has not run, or `features.extractor` is not installed.
      ValueError: features came out wrong (`validate_features`).
    """
    extractor = make_extractor(cfg.features)
    with _make_pool(num_jobs) as pool:
        for wanted in feature_sets(cfg, data_dir, extractor):
            made = compute_set(wanted, extractor, cfg.features, pool, num_jobs, shard)
            logging.info("%s: %s", wanted.name, "features computed" if made else "features are up to date")


def parse_shard(text: str) -> tuple[int, int]:
    """(k, n) of "k/n".

    Raises:
      ConfigError: it is not of that form, or k is not below n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"`--shard` ({text}) must be K/N with K from 0 to N - 1, e.g. 0/8")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="where stage 1 wrote manifests/")
    add_num_jobs(parser)
    parser.add_argument(
        "--shard",
        metavar="K/N",
        help="compute only chunk K (from 0) of every N; several may run at once, and a call without puts all together",
    )

    def work(cfg: Config, args: argparse.Namespace) -> None:
        compute_fbank(cfg, args.data_dir, args.nj, parse_shard(args.shard) if args.shard is not None else None)

    return run(parser, argv, work)


if __name__ == "__main__":
    sys.exit(main())
