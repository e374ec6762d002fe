"""Tests of local/synthesize_corpus.py and its modules: tiny corpora, real espeak-ng."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="the synthetic corpus needs espeakng-loader")

import soundfile
from lhotse.recipes.librispeech import parse_alignments

import grammar as grammar_module
from grammar import draw_texts
from synthesize_corpus import Parts, _make_chapter, main, plan_corpus, synthesize_corpus
from synthetic_audio import find_speech
from twopass_kd.config.schema import SynthesisConfig
from voices import TRAIN_ONLY, UNINTELLIGIBLE, draw_voices

COUNTS = SynthesisConfig("phrases", 14, 6, 4, 4, num_train_voices=3, num_dev_voices=2, num_test_voices=2, seed=5)
PARTS = Parts("train-clean", "dev-clean", ("test-clean", "test-other"))


def contents(root: Path):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthesis") / "LibriSpeech"
    assert synthesize_corpus(out, COUNTS, PARTS, num_jobs=2)
    return out


def transcripts(part_dir: Path):
    lines = [line for path in part_dir.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


def vocabulary():
    """All words of the grammar `phrases`."""
    lists = [value for name, value in vars(grammar_module).items() if name[:2] != "__" and isinstance(value, list)]
    return {word for words in lists for word in " ".join(words).split()} | {"LATER"}


def test_synthesize_corpus_layout_is_librispeech(corpus):
    speakers = (corpus / "SPEAKERS.TXT").read_text()
    chapters = (corpus / "CHAPTERS.TXT").read_text()
    for part, count in (("train-clean", 20), ("dev-clean", 4), ("test-clean", 4), ("test-other", 4)):
        texts = transcripts(corpus / part)
        assert len(texts) == count
        for name, text in texts.items():
            speaker, chapter, number = name.split("-")
            path = corpus / part / speaker / chapter / f"{name}.flac"
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
            assert 0.3 < info.frames / 16000 < 10 and len(number) == 4
            assert text == text.upper() and set(text.split()) <= vocabulary()
            assert f"\n{speaker} " in speakers and f"\n{chapter} " in chapters


def test_synthesize_corpus_audio_is_loud_enough_and_not_clipped(corpus):
    for path in corpus.rglob("*.flac"):
        samples, _ = soundfile.read(path)
        assert 0.29 < np.abs(samples).max() < 0.91 and np.sqrt((samples**2).mean()) > 0.01, path


def test_synthesize_corpus_parts_share_neither_speakers_nor_sentences_nor_voices(corpus):
    parts = ["train-clean", "dev-clean", "test-clean", "test-other"]
    texts = [set(transcripts(corpus / part).values()) for part in parts]
    speakers = [{path.name for path in (corpus / part).iterdir()} for part in parts]
    chapters = plan_corpus(COUNTS, PARTS)
    voices = [{c.variant for c in chapters if c.part == part} for part in parts]
    for groups, size in ((texts, 32), (speakers, 9), (voices, 9)):
        assert len(set.union(*groups)) == sum(map(len, groups)) == size


def test_synthesize_corpus_same_bytes_for_any_number_of_processes_and_other_bytes_for_another_seed(corpus, tmp_path):
    synthesize_corpus(tmp_path / "one", COUNTS, PARTS, num_jobs=1)
    assert contents(tmp_path / "one") == contents(corpus)
    synthesize_corpus(tmp_path / "other", replace(COUNTS, seed=6), PARTS, num_jobs=2)
    assert transcripts(tmp_path / "other" / "train-clean") != transcripts(corpus / "train-clean")


def test_espeak_every_voice_is_reproducible_in_a_fresh_process(tmp_path):
    # Voices with breath draw random numbers that the library seeds with the time of day unless told otherwise.
    counts = SynthesisConfig("digits", 80, 0, 1, 1, num_train_voices=80, num_dev_voices=1, num_test_voices=1)
    for name in ("first", "second"):
        synthesize_corpus(tmp_path / name, counts, Parts("train", "dev", ("test",)), num_jobs=2)
    assert "+f3\n" in (tmp_path / "first" / "SPEAKERS.TXT").read_text()
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_synthesize_corpus_finished_one_is_kept_and_another_is_an_error(corpus, tmp_path):
    before = contents(corpus)
    assert not synthesize_corpus(corpus, COUNTS, PARTS, num_jobs=1)
    with pytest.raises(ValueError, match="seed 5 there, 6 now; remove it or name another folder"):
        synthesize_corpus(corpus, replace(COUNTS, seed=6), PARTS)
    assert contents(corpus) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds other files"):
        synthesize_corpus(tmp_path / "mine", COUNTS, PARTS)


def test_synthesize_corpus_left_over_of_an_interrupted_run_is_replaced(tmp_path):
    (tmp_path / "out.partial" / "train").mkdir(parents=True)
    (tmp_path / "out.partial" / "train" / "half").write_text("")
    counts = SynthesisConfig("digits", 2, 0, 1, 1, num_train_voices=1, num_dev_voices=1, num_test_voices=1)
    assert synthesize_corpus(tmp_path / "out", counts, Parts("train", "dev", ("test",)))
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out" / "train" / "half").exists()


def test_main_makes_the_digits_of_its_yaml_and_names_errors(tmp_path, capsys):
    conf = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf"
    counts = {"sentences": 4, "fragments": 2, "dev": 2, "test": 2, "train_voices": 2, "dev_voices": 1, "test_voices": 1}
    overrides = [f"corpus.synthesis.num_{name}={count}" for name, count in counts.items()]
    digits = ["--conf", str(conf / "digits.yaml"), "corpus.synthesis.seed=3", *overrides]
    assert main([*digits, "--corpus-dir", str(tmp_path / "digits")]) == 0
    made = json.loads((tmp_path / "digits" / "corpus.json").read_text())
    assert made["parts"] == {"train": "train", "dev": "dev", "test": ["test"]} and made["seed"] == 3
    words = " ".join(
        text for part in ("train", "dev", "test") for text in transcripts(tmp_path / "digits" / part).values()
    )
    assert set(words.split()) <= set("ZERO OH ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split())
    assert "en-us" not in (tmp_path / "digits" / "SPEAKERS.TXT").read_text()
    assert main([*digits, "corpus.synthesis.num_test_voices=900", "--corpus-dir", str(tmp_path / "x")]) == 1
    assert "`num_test_voices` (900) must be from 1 to" in capsys.readouterr().err
    recorded = ["--conf", str(conf / "librispeech_100h.yaml"), "--corpus-dir", str(tmp_path / "x")]
    assert main(recorded) == 1 and "`corpus.synthesis` must be given" in capsys.readouterr().err


@pytest.mark.parametrize("grammar", ["phrases", "digits"])
def test_draw_texts_distinct_and_of_the_right_length(grammar):
    used = {"NINE"}
    texts = draw_texts(grammar, 300, 60, used, random.Random(1))
    assert len(set(texts)) == 360 and "NINE" not in texts and set(texts) <= used
    assert all(3 <= len(text.split()) <= 13 for text in texts[:300])
    assert all(1 <= len(text.split()) <= 4 for text in texts[300:])


def test_draw_texts_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="`fragments` .20000. must be fewer"):
        draw_texts("digits", 0, 20000, set(), random.Random(1))
    with pytest.raises(ValueError, match="`grammar` .poems. must be one of"):
        draw_texts("poems", 1, 0, set(), random.Random(1))


def test_draw_voices_tests_get_no_twins_of_training_voices():
    train, dev, test = draw_voices([("a", 60), ("b", 8), ("c", 8)], random.Random(2))
    assert len({*train, *dev, *test}) == 76
    assert not {*dev, *test} & TRAIN_ONLY and not {*train, *dev, *test} & UNINTELLIGIBLE


def test_speech_is_found_between_silences():
    samples = np.zeros(16000, dtype=np.float32)
    samples[4000:8000] = 0.5
    assert find_speech(samples) == (4000, 8000)


def test_words_are_where_the_alignment_says(corpus):
    """A word is louder than the pauses, and the words of an utterance are those of its transcript."""
    long_pauses = 0
    for path in sorted(corpus.rglob("*.alignment.txt")):
        texts = transcripts(path.parent)
        for name, items in parse_alignments(path).items():
            words = [item for item in items if item.symbol]
            assert [item.symbol for item in words] == texts[name].split()
            samples, rate = soundfile.read(path.parent / f"{name}.flac")
            assert words[-1].end <= len(samples) / rate and all(item.duration >= 0 for item in words)
            quiet = [item for item in items if not item.symbol and item.duration > 0.25]
            long_pauses += len(quiet)
            power = {item: (samples[int(item.start * rate) : int(item.end * rate)] ** 2).mean() for item in quiet}
            speech = (samples[int(words[0].start * rate) : int(words[-1].end * rate)] ** 2).max()
            assert all(value < speech / 10 for value in power.values())
    assert long_pauses > 0


def test_synthesize_corpus_names_the_file_that_a_full_disk_keeps_from_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile, "write", full_disk)
    chapter = next(c for c in plan_corpus(COUNTS, PARTS) if c.part == "dev-clean")
    with pytest.raises(OSError, match=r"/dev-clean/.*\.flac cannot be written \(System error\); is the disk full\?"):
        _make_chapter((tmp_path, 5, chapter))


def full_disk(*args, **kwargs):
    raise soundfile.LibsndfileError(2)
