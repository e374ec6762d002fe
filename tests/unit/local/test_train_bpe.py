"""Tests of local/train_bpe.py."""

import gzip
import unicodedata

import pytest
from lhotse import CutSet

from compute_fbank import compute_fbank
from prepare_manifests import prepare_manifests
from small_corpus import PARTS, small_config, write_utterance
from train_bpe import part_texts, train_bpe, train_bpe_model, write_lang
from twopass_kd.config.schema import ConfigError
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.files.layout import cuts_path
from twopass_kd.scoring.wer import corpus_wer

TEXTS = ["THE OLD CAPTAIN FOUND A GOLDEN MIRROR", "SHE WALKED BEHIND THE CASTLE", "THREE DAYS LATER"]


def test_write_lang_has_icefalls_ids_and_files(tmp_path):
    write_lang(tmp_path / "lang_bpe_40", TEXTS, 40)
    lines = (tmp_path / "lang_bpe_40" / "tokens.txt").read_text().splitlines()
    assert lines[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"] and len(lines) == 40
    assert [line.split()[1] for line in lines] == [str(i) for i in range(40)]
    assert (tmp_path / "lang_bpe_40" / "transcript_words.txt").read_text().splitlines() == TEXTS
    assert Tokenizer(tmp_path / "lang_bpe_40").vocab_size == 40


def test_write_lang_same_bytes_wherever_and_whenever(tmp_path):
    for name in ("a", "b c"):
        write_lang(tmp_path / name, TEXTS, 40)
    write_lang(tmp_path / "a", TEXTS, 40)
    for file in ("bpe.model", "tokens.txt", "transcript_words.txt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b c" / file).read_bytes()


def test_train_bpe_model_too_large_says_the_largest_that_works():
    with pytest.raises(ConfigError, match=r"`tokens.vocab_size` \(500\) must be at most (\d+)") as caught:
        train_bpe_model(TEXTS, 500)
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert train_bpe_model(TEXTS, largest)
    with pytest.raises(ConfigError, match=f"must be at most {largest}"):
        train_bpe_model(TEXTS, largest + 1)


def test_train_bpe_model_too_small_says_the_smallest_that_works():
    with pytest.raises(ConfigError, match=r"`tokens.vocab_size` \(5\) must be at least (\d+)") as caught:
        train_bpe_model(TEXTS, 5)
    smallest = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert train_bpe_model(TEXTS, smallest)


def test_train_bpe_model_without_text():
    with pytest.raises(ConfigError, match="there is no text"):
        train_bpe_model([], 50)


def test_part_texts_missing_manifest_names_the_stage(tmp_path):
    with pytest.raises(ConfigError, match="librispeech_supervisions_train-clean.jsonl.gz; run stage 1"):
        list(part_texts(tmp_path, "train-clean"))


def test_texts_are_learnt_and_scored_in_one_form(tmp_path, caplog):
    """sentencepiece normalised what the model learnt, and references were scored raw: up to 100% WER."""
    lines = {
        "NFD": unicodedata.normalize("NFD", "L'ÉTÉ À LA CAMPAGNE"), "Korean": unicodedata.normalize("NFD", "한국 말"),
        "Persian": "می\u200cخواهم کتاب\u200cها", "Thai": "ทำ งาน น้ำ", "ordinal": "EL 1º DE MAYO", "wide": "Ａ ﬁ",
    }  # fmt: skip
    for n, part in enumerate(PARTS):
        for i, text in enumerate([*lines.values(), "À"] if n == 2 else lines.values()):
            write_utterance(tmp_path / "corpus" / part, f"{n}-1-{i:04d}", f"{text} Ω" if i == 6 else text, 4.0)
    cfg = small_config("tokens.vocab_size=70")
    prepare_manifests(cfg, tmp_path / "corpus", tmp_path / "data")
    compute_fbank(cfg, tmp_path / "data", num_jobs=1)
    lang_dir = train_bpe(cfg, tmp_path / "data")
    tokenizer = Tokenizer(lang_dir)
    rows = []
    for cut in CutSet.from_file(cuts_path(tmp_path / "data", "test-clean")):
        reference = cut.supervisions[0].text
        assert tokenizer.normalize([reference]) == [reference]
        rows.append((cut.id, reference.split(), tokenizer.decode(tokenizer.encode([reference]))[0].split()))
    assert corpus_wer(rows[:6]).wer == 0
    assert [row[1] for row in rows[:2]] == [["L'ÉTÉ", "À", "LA", "CAMPAGNE"], ["한국", "말"]]
    assert (lang_dir / "not_spelt.tsv").read_text(encoding="utf-8") == "2-1-0006\ttest-clean\tΩ\n"
    assert "test-clean: 1 of 7 transcripts have letters that no token spells (Ω)" in caplog.text

    cfg.tokens.normalization = "NFKC"
    prepare_manifests(cfg, tmp_path / "corpus", tmp_path / "data")
    assert [text for _, text in part_texts(tmp_path / "data", "test-clean")][4:6] == ["EL 1O DE MAYO", "A FI"]


@pytest.mark.parametrize("text", ['"text": ""', '"text": null', '"words": "A"'])
def test_part_texts_without_a_text_names_the_line(tmp_path, text):
    path = tmp_path / "manifests" / "librispeech_supervisions_train-clean.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(b'{"id": "a", "text": "A"}\n{"id": "b", %s}\n' % text.encode()))
    with pytest.raises(ConfigError, match=f"{path}, line 2, b: must have a text"):
        list(part_texts(tmp_path, "train-clean"))


@pytest.mark.parametrize("spoil, said", [
    (lambda content: content[:-9], "must be a whole gzipped manifest"),
    (lambda content: gzip.compress(gzip.decompress(content) + b"[1]\n"), "line 2: must be a supervision"),
    (lambda content: gzip.compress(gzip.decompress(content)[:-9]), "line 1: must be a supervision"),
])  # fmt: skip
def test_part_texts_of_a_spoilt_manifest_name_it(tmp_path, spoil, said):
    path = tmp_path / "manifests" / "librispeech_supervisions_train-clean.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(spoil(gzip.compress(b'{"id": "a", "text": "A"}\n')))
    with pytest.raises(ValueError, match=f"{path}.* {said}"):
        list(part_texts(tmp_path, "train-clean"))
