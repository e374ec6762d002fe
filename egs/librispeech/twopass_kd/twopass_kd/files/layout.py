"""Where stages leave their files, under icefall's names (docs/corpus.md and docs/training.md list them).

`data_dir` is what --data-dir names; `experiment` is `<exp-dir>/<conf>`.
"""

from pathlib import Path

MUSAN_PARTS = ("music", "speech", "noise")


def manifest_path(data_dir: Path, kind: str, part: str) -> Path:
    """Lhotse's manifest of a part: `kind` is recordings or supervisions."""
    return Path(data_dir) / "manifests" / f"librispeech_{kind}_{part}.jsonl.gz"


def checksums_path(data_dir: Path, part: str) -> Path:
    """The checksums of a part's audio files: lines of utterance id, tab, CRC-32 as 8 hex digits; by id."""
    return Path(data_dir) / "manifests" / f"librispeech_checksums_{part}.tsv"


def musan_manifest_path(data_dir: Path, part: str) -> Path:
    """The recordings of a part of MUSAN."""
    return Path(data_dir) / "manifests" / f"musan_recordings_{part}.jsonl.gz"


def cuts_path(data_dir: Path, part: str) -> Path:
    """The cuts of a part, with their features."""
    return Path(data_dir) / "fbank" / f"librispeech_cuts_{part}.jsonl.gz"


def features_dir(data_dir: Path, part: str) -> Path:
    """The features that the cuts of a part point to."""
    return Path(data_dir) / "fbank" / f"librispeech_feats_{part}"


def musan_cuts_path(data_dir: Path) -> Path:
    """MUSAN's cuts of 5 to 10 s, with their features."""
    return Path(data_dir) / "fbank" / "musan_cuts.jsonl.gz"


def musan_features_dir(data_dir: Path) -> Path:
    """The features that MUSAN's cuts point to."""
    return Path(data_dir) / "fbank" / "musan_feats"


def lang_path(data_dir: Path, vocab_size: int) -> Path:
    """bpe.model, tokens.txt and transcript_words.txt."""
    return Path(data_dir) / f"lang_bpe_{vocab_size}"


def final_path(experiment: Path, phase: str) -> Path:
    """The trained model of a phase."""
    return Path(experiment) / phase / "final.pt"


def decode_dir(experiment: Path, system: str) -> Path:
    """What stage 8 leaves of a system: decode.json, and texts in icefall's formats."""
    return Path(experiment) / "decode" / system


def export_dir(experiment: Path, system: str) -> Path:
    """What stage 10 exports of a system."""
    return Path(experiment) / "export" / system
