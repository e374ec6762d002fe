"""What prepare.sh of icefall's LibriSpeech recipe leaves, made with Lhotse and sentencepiece as there, but small."""

import gzip
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
from lhotse import CutSet, Fbank, FbankConfig, LilcomChunkyWriter, RecordingSet
from lhotse.features import FeatureExtractor
from lhotse.recipes import prepare_librispeech

from small_corpus import PARTS, WORDS, write_corpus, write_musan

VOCAB_SIZE = 36


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """icefall's programs run in their recipe's folder; paths in manifests are relative to it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def prepare(recipe: Path, speed_perturb: bool = True, musan: bool = False, count: int = 4) -> Path:
    """Make `<recipe>/download` and `<recipe>/data`; returns the latter. The parts are those of tests/conf/tiny.yaml."""
    write_corpus(recipe / "download" / "LibriSpeech", count=count, seconds=2.5)
    with inside(recipe):
        manifests = prepare_librispeech("download/LibriSpeech", dataset_parts=PARTS, output_dir="data/manifests")
        for part in PARTS:
            cuts = CutSet.from_manifests(**manifests[part])
            if speed_perturb and "train" in part:
                cuts = cuts + cuts.perturb_speed(0.9) + cuts.perturb_speed(1.1)
            store_features(cuts, part, num_jobs=2 if "train" in part else 1)
        lines = gzip.decompress(Path(f"data/fbank/librispeech_cuts_{PARTS[0]}.jsonl.gz").read_bytes())
        lines = lines.splitlines(keepends=True)
        random.Random(0).shuffle(lines)
        Path("data/fbank/librispeech_cuts_train-all-shuf.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
        write_lang(Path(f"data/lang_bpe_{VOCAB_SIZE}"), [s.text for s in manifests[PARTS[0]]["supervisions"]] + WORDS)
        if musan:
            write_musan(Path("download/musan"))
            cuts = CutSet.from_manifests(recordings=RecordingSet.from_dir("download/musan", "*.wav"))
            cuts = CutSet.from_cuts(cut for cut in cuts.cut_into_windows(10.0) if cut.duration > 5)
            cuts = cuts.compute_and_store_features(fbank(), "data/fbank/musan_feats", storage_type=LilcomChunkyWriter)
            cuts.to_file("data/fbank/musan_cuts.jsonl.gz")
    return recipe / "data"


def fbank() -> FeatureExtractor:
    return Fbank(FbankConfig(num_mel_bins=80))


def store_features(cuts: CutSet, part: str, num_jobs: int = 1, extractor: FeatureExtractor | None = None) -> None:
    """Features and cuts of a part, in the folder that is the current one."""
    with ThreadPoolExecutor(num_jobs) as executor:  # threads leave the same files as processes
        cuts = cuts.compute_and_store_features(
            extractor=extractor or fbank(),
            storage_path=f"data/fbank/librispeech_feats_{part}",
            num_jobs=num_jobs,
            executor=executor if num_jobs > 1 else None,
            storage_type=LilcomChunkyWriter,
        )
    cuts.to_file(f"data/fbank/librispeech_cuts_{part}.jsonl.gz")


def write_lang(lang_dir: Path, texts: Sequence[str]) -> None:
    """A unigram model under the name bpe.model, and a tokens.txt with the disambiguation symbols of a lexicon."""
    lang_dir.mkdir(parents=True)
    (lang_dir / "transcript_words.txt").write_text("".join(f"{text}\n" for text in texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lang_dir / "transcript_words.txt"), vocab_size=VOCAB_SIZE, model_type="unigram",
        model_prefix=str(lang_dir / f"unigram_{VOCAB_SIZE}"), character_coverage=1.0, unk_id=2, bos_id=-1, eos_id=-1,
        user_defined_symbols=["<blk>", "<sos/eos>"], minloglevel=2,
    )  # fmt: skip
    (lang_dir / f"unigram_{VOCAB_SIZE}.model").rename(lang_dir / "bpe.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(lang_dir / "bpe.model"))
    tokens = [*(model.id_to_piece(i) for i in range(model.get_piece_size())), "#0", "#1"]
    (lang_dir / "tokens.txt").write_text("".join(f"{token} {i}\n" for i, token in enumerate(tokens)))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder in it, with size and time of change: equal where nothing was written."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in [folder, *folder.rglob("*")]}


def edit_cuts(data_dir: Path, part: str, change) -> None:
    """Let `change` alter each cut of a manifest in place."""
    path = data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz"
    cuts = CutSet.from_file(path).to_eager()
    for cut in cuts:
        change(cut)
    cuts.to_file(path)
