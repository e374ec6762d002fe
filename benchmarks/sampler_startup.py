"""What it costs to start, and to resume, an epoch over a large corpus: seconds and memory of one rank.

    python benchmarks/sampler_startup.py [--cuts 300000] [--world-sizes 1 2] [--conf ...librispeech_960h.yaml]

Manifests of that many made-up cuts (shared out to the configuration's train parts by LibriSpeech's sizes, with texts of
random words) and of MUSAN's windows are written to a temporary folder; there are no features. Each row is measured in a
process of its own: `first time` looks at all cuts once (its answer is kept), `start` is all that comes between the
imports and the first batch of an epoch, `resume` is that and going through the first half of the epoch. Memory is the
largest resident set, in all and above that after the imports.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from common import in_new_process, make_parser, peak_extra_bytes, read_config, status_bytes

from train_bpe import write_lang
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import open_tokenizer

HOURS = {"train-clean-100": 100.0, "train-clean-360": 360.0, "train-other-500": 500.0}
MUSAN_CUTS = 39000  # 109 hours by 10 s
TARGETS = {"start": (5.0, 500.0), "resume": (10.0, 500.0)}  # seconds, MB above the imports


def line(cut: str, seconds: float, text: str, part: str) -> str:
    """A cut as stage 2 writes it."""
    frames, samples = round(100 * seconds), round(16000 * seconds)
    span = {"start": 0.0, "duration": seconds, "channel": 0}
    speech = {"id": cut, "recording_id": cut, **span, "text": text, "language": "English", "speaker": "1034"}
    features = {
        "type": "kaldi-fbank",
        "num_frames": frames,
        "num_features": 80,
        "frame_shift": 0.01,
        "sampling_rate": 16000,
        "start": 0,
        "duration": seconds,
        "storage_type": "lilcom_chunky",
        "storage_path": f"data/fbank/librispeech_feats_{part}/feats-0.lca",
        "storage_key": "0,40000,33000",
        "channels": 0,
    }
    recording = {
        "id": cut,
        "sources": [{"type": "file", "channels": [0], "source": f"download/LibriSpeech/{part}/{cut}.flac"}],
        "sampling_rate": 16000,
        "num_samples": samples,
        "duration": seconds,
        "channel_ids": [0],
    }
    whole = {"id": cut, **span, "supervisions": [speech], "features": features, "recording": recording}
    return json.dumps({**whole, "type": "MonoCut"}) + "\n"


def write_manifest(path: Path, name: str, num_cuts: int, words: list[str], rng: random.Random) -> None:
    """Cuts of 2 to 17 s, most of them long, with 2.7 words a second: much as LibriSpeech has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", compresslevel=6) as f:
        for i in range(num_cuts):
            seconds = round(2 + 15 * rng.betavariate(3, 1.2), 2)
            text = " ".join(rng.choices(words, k=max(1, int(2.7 * seconds))))
            cut = f"{rng.randrange(9999)}-{rng.randrange(99999)}-{i:06d}"
            f.write(line(cut, seconds, text, name))


def write_data(data_dir: Path, args: argparse.Namespace) -> None:
    cfg = read_config(args.conf)
    rng = random.Random(0)
    words = ["".join(rng.choices("ETAOINSHRDLUCMFW", k=rng.randint(2, 9))) for _ in range(5000)]
    write_lang(data_dir / f"lang_bpe_{cfg.tokens.vocab_size}", words, cfg.tokens.vocab_size)
    hours = {part: HOURS.get(part, 1.0) for part in cfg.corpus.train_parts}
    sizes = {part: round(args.cuts * hours[part] / sum(hours.values())) for part in hours}
    for part, size in {**{part: 100 for part in cfg.corpus.dev_parts}, **sizes}.items():
        write_manifest(data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz", part, size, words, rng)
    if cfg.corpus.musan:
        write_manifest(data_dir / "fbank" / "musan_cuts.jsonl.gz", "musan", MUSAN_CUTS, words[:1], rng)


def first_batch(args: argparse.Namespace, data_dir: Path, world_size: int, skip: int) -> AsrDataModule:
    """What a rank of a training does before it loads the features of its first batch."""
    cfg = read_config(args.conf, ["train.num_workers=0"])  # workers load features, of which there are none
    tokenizer = open_tokenizer(cfg, data_dir)
    factor = cfg.models["student"].encoder.subsampling_factor
    data = AsrDataModule(cfg, data_dir, tokenizer, factor, world_size - 1, world_size)
    data.measure_train(data_dir / "train_cuts.json")
    next(iter(data.train_loader(epoch=1, skip=skip).sampler))
    return data


def batches_in_epoch(args: argparse.Namespace, data_dir: Path, world_size: int) -> int:
    data = first_batch(args, data_dir, world_size, skip=0)
    return sum(1 for _ in data.train_loader(epoch=1).sampler)


def measured(args: argparse.Namespace, data_dir: Path, world_size: int, skip: int) -> tuple[float, float, float]:
    """Seconds and MB of memory, above what the process had before and in all, of `first_batch`."""
    before, begin = status_bytes("VmRSS"), time.perf_counter()
    extra = peak_extra_bytes(lambda: first_batch(args, data_dir, world_size, skip))
    return time.perf_counter() - begin, extra / 2**20, (before + extra) / 2**20


def main() -> None:
    parser = make_parser(__doc__, conf="librispeech_960h")
    parser.add_argument("--cuts", type=int, default=300000, help="training cuts")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2], help="numbers of ranks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        print(f"writing manifests of {args.cuts} cuts", file=sys.stderr)
        write_data(data_dir, args)
        rows: dict[str, tuple[float, float, float]] = {}
        rows["first time"] = in_new_process(measured, args, data_dir, 1, 0)
        for world_size in args.world_sizes:
            half = in_new_process(batches_in_epoch, args, data_dir, world_size) // 2
            for name, skip in (("start", 0), ("resume", half)):
                row = f"{name}, {world_size} rank{'s' * (world_size > 1)}"
                rows[row] = in_new_process(measured, args, data_dir, world_size, skip)
    print(f"{args.cuts} cuts, {args.conf.stem}\n")
    print("| | seconds | MB above the imports | MB in all |\n|---|---:|---:|---:|")
    for name, (seconds, extra, total) in rows.items():
        print(f"| {name} | {seconds:.1f} | {extra:.0f} | {total:.0f} |")
    print("\ntargets: " + "; ".join(f"{name} {s:g} s, {mb:g} MB" for name, (s, mb) in TARGETS.items()))


if __name__ == "__main__":
    main()
