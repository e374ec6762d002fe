#!/usr/bin/env python3
"""Stage 2a: filter-bank features of every part, stored so that icefall can read them.

Reads the manifests of stage 1 and writes `<data>/fbank/librispeech_cuts_<part>.jsonl.gz`: one cut per utterance, its
id that of the utterance, its features (Lilcom-compressed) in `<data>/fbank/librispeech_feats_<part>/`. A part whose
manifests and settings have not changed is not computed again, and one that was interrupted goes on where it was.

With `--shard K/N` it computes every N-th chunk of each part only, from the K-th on, and leaves the rest to other
processes (the tasks of a Slurm array); a last call without it collects all.
"""

import argparse
import gzip
import hashlib
import json
import logging
import multiprocessing
import random
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from lhotse import CutSet, Fbank, FbankConfig, LilcomChunkyWriter, RecordingSet, SupervisionSet
from lhotse.features import FeatureExtractor
from tqdm import tqdm

from prepare_manifests import MANIFEST_PREFIX, corpus_parts, manifest_path, save_manifest
from twopass_kd.config import Config, ConfigError, FeaturesConfig, load_config

HIGH_FREQ = -400.0  # Hz below the Nyquist frequency, as in icefall's recipes
Shard = Tuple[int, int]  # (K, N): chunks K, K + N, K + 2 N...
ALL: Shard = (0, 1)
_CHUNK = 250  # cuts that a process computes and stores in one go
_SAMPLE = 50  # cuts per part whose features are read back


def cuts_path(data_dir: Path, part: str) -> Path:
    """Path of the manifest of cuts with features, named as icefall names it."""
    return Path(data_dir) / "fbank" / f"{MANIFEST_PREFIX}_cuts_{part}.jsonl.gz"


def features_dir(data_dir: Path, part: str) -> Path:
    """Folder of the stored features of a part."""
    return Path(data_dir) / "fbank" / f"{MANIFEST_PREFIX}_feats_{part}"


def has_kaldifeat() -> bool:
    """Whether `import kaldifeat` works; a build for another torch is found but does not load."""
    try:
        import kaldifeat  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def make_extractor(features: FeaturesConfig) -> FeatureExtractor:
    """Kaldifeat's filter banks where that package is installed, else Lhotse's own; both give the same values.

    No dither, 25 ms windows every 10 ms, one frame per 10 ms of audio rounded to the nearest (snip_edges false).

    Raises:
      ConfigError: `features.extractor` is kaldifeat, which is not installed.
    """
    if features.extractor == "kaldifeat" and not has_kaldifeat():
        raise ConfigError("`features.extractor` (kaldifeat) must be importable; install kaldifeat or say auto")
    if features.extractor != "lhotse" and has_kaldifeat():
        from lhotse.features.kaldifeat import KaldifeatFbank, KaldifeatFbankConfig
        from lhotse.features.kaldifeat import KaldifeatFrameOptions as FrameOptions
        from lhotse.features.kaldifeat import KaldifeatMelOptions as MelOptions

        frames = FrameOptions(sampling_rate=features.sampling_rate, dither=0.0, snip_edges=False)
        mel = MelOptions(num_bins=features.num_mel_bins, high_freq=HIGH_FREQ)
        return KaldifeatFbank(KaldifeatFbankConfig(frame_opts=frames, mel_opts=mel))
    return Fbank(
        FbankConfig(
            sampling_rate=features.sampling_rate,
            num_mel_bins=features.num_mel_bins,
            dither=0.0,
            snip_edges=False,
            high_freq=HIGH_FREQ,
        )
    )


def utterance_cuts(data_dir: Path, part: str, sampling_rate: int, speed_perturb: Sequence[float] = ()) -> CutSet:
    """One cut per supervision of a part: first channel, at `sampling_rate` Hz, the cut's id being the supervision's.

    Args:
      speed_perturb: factors of further copies of each cut, whose ids end in `_sp<factor>`; all are shuffled, always
        in the same way.
    Raises:
      ConfigError: the manifests of stage 1 are missing.
    """
    paths = [manifest_path(data_dir, kind, part) for kind in ("recordings", "supervisions")]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"`--data-dir` ({data_dir}) must hold {path.name}; run stage 1, which makes it")
    recordings = RecordingSet.from_file(paths[0])
    recordings = RecordingSet.from_recordings(
        r if r.sampling_rate == sampling_rate else r.resample(sampling_rate) for r in recordings
    )
    cuts = CutSet.from_manifests(recordings=recordings, supervisions=SupervisionSet.from_file(paths[1]))
    trimmed = []
    for cut in cuts.trim_to_supervisions(keep_overlapping=False):
        cut.id = cut.supervisions[0].id
        trimmed.append(cut)
    single = CutSet.from_cuts(trimmed)
    copies = [single.perturb_speed(factor) for factor in speed_perturb]
    every = [cut for cut_set in [single, *copies] for cut in cut_set]
    if copies:
        # A sampler mixes cuts only within its buffer, so the copies must not follow each other as blocks.
        random.Random(0).shuffle(every)
    return CutSet.from_cuts(every)


def _source_digest(data_dir: Path, part: str, settings: Dict) -> str:
    """Changes when the manifests' content or the settings change, and not when a manifest is only written again."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for kind in ("recordings", "supervisions"):
        with gzip.open(manifest_path(data_dir, kind, part)) as f:
            digest.update(f.read())
    return digest.hexdigest()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _make_pool(num_jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # forking a process in which torch has run can hang
    return ProcessPoolExecutor(num_jobs, mp_context=context, initializer=_one_thread)


def _store_chunk(cuts: CutSet, extractor: FeatureExtractor, folder: Path, index: int) -> None:
    """Leaves `feats-<index>.lca` and, written last, `cuts-<index>.jsonl.gz`."""
    stored = cuts.compute_and_store_features(
        extractor=extractor,
        storage_path=folder / f"feats-{index}",
        storage_type=LilcomChunkyWriter,
        num_jobs=1,
        progress_bar=False,
    )
    save_manifest(stored, _chunk_path(folder, index))


def _chunk_path(folder: Path, index: int) -> Path:
    return folder / f"cuts-{index}.jsonl.gz"


def _store(
    cuts: CutSet, extractor: FeatureExtractor, folder: Path, pool: ProcessPoolExecutor, part: str, shard: Shard
) -> List[Path]:
    """Compute and store features of `cuts` in `folder`, chunk by chunk, those of `shard` that are not there yet.

    Returns:
      Manifests of all chunks, also those of other shards, in the order of the cuts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = list(cuts)
    chunks = [CutSet.from_cuts(listed[i : i + _CHUNK]) for i in range(0, len(listed), _CHUNK)]
    paths = [_chunk_path(folder, i) for i in range(len(chunks))]
    wanted = [i for i in range(len(chunks)) if i % shard[1] == shard[0] and not paths[i].is_file()]
    for i in wanted:
        (folder / f"feats-{i}.lca").unlink(missing_ok=True)  # of a process that was killed
    jobs = [pool.submit(_store_chunk, chunks[i], extractor, folder, i) for i in wanted]
    with tqdm(total=sum(len(chunks[i]) for i in wanted), desc=f"Features {part}", unit="cut") as bar:
        for job, i in zip(jobs, wanted):
            job.result()
            bar.update(len(chunks[i]))
    return paths


def validate_features(cuts: CutSet, expected_ids: Sequence[str], features: FeaturesConfig, part: str) -> None:
    """Check that every expected cut has features of the right size, and read a sample of them back.

    Lhotse leaves cuts whose audio cannot be loaded out; here that is an error.

    Raises:
      ValueError: naming the part and the first few utterances.
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
            values = cut.load_features()
            if values.shape != stored or not np.isfinite(values).all():
                raise ValueError(f"part `{part}`, {cut.id}: stored features must be finite and {stored}")


def compute_part(cfg: Config, data_dir: Path, part: str, pool: ProcessPoolExecutor, shard: Shard = ALL) -> bool:
    """Features of one part; False where they were there already, made from the same manifests and settings.

    Features grow in a folder with a temporary name, which holds what they are made from; the manifest of cuts gets its
    name last, so where it is, all is there.
    """
    data_dir = Path(data_dir).resolve()
    factors: List[float] = list(cfg.corpus.speed_perturb) if part in cfg.corpus.train_parts else []
    extractor = make_extractor(cfg.features)
    cuts = utterance_cuts(data_dir, part, cfg.features.sampling_rate, factors)
    settings = {"extractor": extractor.name, "config": extractor.to_dict(), "speed_perturb": factors}
    digest = _source_digest(data_dir, part, settings)
    final, public = features_dir(data_dir, part), cuts_path(data_dir, part)
    record = final / "source.json"
    if public.is_file() and record.is_file() and json.loads(record.read_text())["digest"] == digest:
        return False
    partial = final.with_name(f".partial-{final.name}-{digest[:16]}")
    chunks = _store(cuts, extractor, partial, pool, part, shard)
    if shard != ALL:
        return True
    public.unlink(missing_ok=True)
    for old in (final, *final.parent.glob(f".partial-{final.name}-*")):
        if old != partial:
            shutil.rmtree(old, ignore_errors=True)
    stored = CutSet.from_cuts(cut for path in chunks for cut in CutSet.from_file(path))
    validate_features(stored, [cut.id for cut in cuts], cfg.features, part)
    (partial / "source.json").write_text(json.dumps({"digest": digest, **settings}, indent=1, default=str) + "\n")
    partial.rename(final)
    for path in chunks:
        (final / path.name).unlink()
    for cut in stored:
        cut.features.storage_path = cut.features.storage_path.replace(str(partial), str(final))
    save_manifest(stored, final / "cuts.jsonl.gz")  # what train_bpe.py filters into the public one
    save_manifest(stored, public)
    return True


def parse_shard(text: str) -> Shard:
    """`K/N` as (K, N).

    Raises:
      ValueError: for anything else, or K not below N.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"`--shard` ({text}) must be K/N with K from 0 to N - 1")
    return int(index), int(count)


def compute_fbank(cfg: Config, data_dir: Path, num_jobs: int = 1, shard: Shard = ALL) -> None:
    """Features of all parts of a config, or a shard of their chunks, under `<data_dir>/fbank`.

    Raises:
      ConfigError: stage 1 has not run, or `features.extractor` is not installed.
      ValueError: features came out wrong (`validate_features`).
    """
    if num_jobs < 1:
        raise ConfigError(f"`nj` ({num_jobs}) must be at least 1")
    logging.info("features by %s", type(make_extractor(cfg.features)).__name__)
    with _make_pool(num_jobs) as pool:
        for part in corpus_parts(cfg):
            made = compute_part(cfg, data_dir, part, pool, shard)
            logging.info("%s: %s", part, "features computed" if made else "features are up to date")


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conf", type=Path, required=True, help="experiment YAML; see its `corpus` and `features`")
    parser.add_argument("--data-dir", type=Path, required=True, help="where stage 1 wrote manifests/")
    parser.add_argument("--nj", type=int, default=2, help="processes, of one thread each (default 2)")
    parser.add_argument("--shard", default="0/1", metavar="K/N", help="compute every N-th chunk from the K-th only")
    parser.add_argument("overrides", nargs="*", help="key=value")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        compute_fbank(load_config(args.conf, args.overrides), args.data_dir, args.nj, parse_shard(args.shard))
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
