"""Small LibriSpeech-layout folders and configs for the tests of `local/`."""

from pathlib import Path

import numpy as np
import soundfile

from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config

TINY_YAML = Path(__file__).parents[1] / "conf" / "tiny.yaml"
PARTS = ("train-clean", "dev-clean", "test-clean", "test-other")
WORDS = "THE OLD CAPTAIN FOUND A GOLDEN MIRROR BEHIND HER CASTLE YESTERDAY AND WALKED HOME".split()


def small_config(*overrides: str) -> Config:
    return load_config(TINY_YAML, overrides)


def write_utterance(
    part_dir: Path, name: str, text: str | None, seconds: float = 1.0, rate: int = 16000, channels: int = 1
) -> Path:
    """Noise as audio, and a line in the transcript of its chapter unless `text` is None."""
    speaker, chapter, _ = name.split("-")
    folder = part_dir / speaker / chapter
    folder.mkdir(parents=True, exist_ok=True)
    seed = sum(name.encode())
    samples = np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels)).clip(-1, 1)
    path = folder / f"{name}.flac"
    soundfile.write(path, samples, rate, format="FLAC")
    if text is not None:
        with open(folder / f"{speaker}-{chapter}.trans.txt", "a", encoding="utf-8") as f:
            f.write(f"{name} {text}\n")
    return path


def write_musan(folder: Path) -> None:
    """Noise in MUSAN's layout, of 12, 7 and 16.5 s: windows of 10 s, 7 s, 10 s and 6.5 s, and 2 s that are left."""
    for part, seconds in {"music": 12.0, "speech": 7.0, "noise": 16.5}.items():
        (folder / part / "fma").mkdir(parents=True)
        samples = np.random.default_rng(len(part)).normal(0, 0.3, int(16000 * seconds)).clip(-1, 1)
        soundfile.write(folder / part / "fma" / f"{part}-fma-0000.wav", samples, 16000)


def write_corpus(root: Path, count: int = 4, seconds: float = 0.8) -> dict[str, Path]:
    """`count` good utterances, from `seconds` upwards, in each of the parts of tiny.yaml; returns part -> folder."""
    folders = {}
    for index, part in enumerate(PARTS):
        folders[part] = root / part
        for number in range(count):
            text = " ".join(WORDS[(index + number) % 5 : (index + number) % 5 + 3 + number % 4])
            write_utterance(folders[part], f"{index + 1}0-{index + 1}00-{number:04d}", text, seconds + 0.1 * number)
    return folders
