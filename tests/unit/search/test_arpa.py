"""Tests of twopass_kd/search/arpa.py: what users' ARPA files may look like."""

import gzip
import unicodedata

import pytest
import torch

from train_bpe import write_lang
from twopass_kd.config.schema import ConfigError
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.search.arpa import normalise_arpa
from twopass_kd.search.lm_graph import compile_lg, load_lg, train_arpa

pytest.importorskip("k2", reason="graphs need k2")

GOOD = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.6\t</s>
-0.5\tTHE\t-0.2
-0.7\tCAPTAIN\t-0.2

\\2-grams:
-0.3\t<s> THE
-0.4\tTHE CAPTAIN
-0.5\tCAPTAIN </s>
-0.9\tTHE </s>

\\end\\
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "lang_bpe_20"
    write_lang(folder, ["THE CAPTAIN", "A CAPTAIN"], 20)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def arcs(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.arpa"
    path.write_text(GOOD)
    return compile_lg(path, tokenizer)


@pytest.mark.parametrize(
    "content",
    [
        GOOD.replace("\n", "\r\n").encode(),
        gzip.compress(GOOD.encode(), mtime=0),
        GOOD.encode("utf-8-sig"),
        GOOD.replace("\t", "  ").encode(),
        GOOD.replace("2=4", "2=9").encode(),
        GOOD.replace("2=4", "2=1").encode(),
        GOOD.replace("-99", "-inf").encode(),
        GOOD.replace("THE </s>", "THE </s>\t0").encode(),
        ("made by hand\n\n" + GOOD).encode(),
        GOOD.replace("\\end\\", "-0.1\tTHE #0\n-0.1\t<eps> THE\n\\end\\").encode(),
    ],
    ids=["windows", "gzip", "mark", "blanks", "too few", "too many", "-inf", "last back-off", "header", "reserved"],
)
def test_arpa_is_read_where_it_can_be(content, arcs, tokenizer, tmp_path):
    (tmp_path / "x.arpa").write_bytes(content)
    assert torch.equal(compile_lg(tmp_path / "x.arpa", tokenizer), arcs)


@pytest.mark.parametrize("space", "\u00a0\u0085\u2028\x1c")
def test_arpa_words_with_other_spaces_are_one_word(space, tokenizer, tmp_path):
    (tmp_path / "x.arpa").write_text(GOOD.replace("CAPTAIN", f"CAP{space}TAIN"), encoding="utf-8")
    assert len(compile_lg(tmp_path / "x.arpa", tokenizer))


def test_arpa_without_a_start_gets_one(arcs, tokenizer, tmp_path):
    text = GOOD.replace("-99\t<s>\t-0.3\n", "").replace("-0.3\t<s> THE\n", "")
    (tmp_path / "x.arpa").write_text(text)
    normalise_arpa(tmp_path / "x.arpa", tmp_path / "clean.arpa")
    assert "ngram 1=5\nngram 2=3\n" in (tmp_path / "clean.arpa").read_text()
    assert len(compile_lg(tmp_path / "x.arpa", tokenizer))


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\0\1\2" * 100, "must be text, but is a binary file"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0", "is a binary of KenLM's; give the ARPA file"),
        (b"<!DOCTYPE html><html>", "is a web page, as a failed download leaves"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (gzip.compress(GOOD.encode(), mtime=0)[:100], "is cut short or damaged"),
        (GOOD.encode("utf-16"), "is UTF-16; convert it"),
        (GOOD.replace("CAPTAIN", "CAPT\u00c4IN").encode("latin-1"), r"line 10: must be UTF-8 text.*0xc4.*CAPTÄIN"),
        (b"no n-grams here\n", "must be an n-gram model in ARPA format"),
        (GOOD[: len(GOOD) // 2].encode(), r"is cut short: it ends in line \d+ without"),
        (GOOD.replace("-0.6\t</s>\n", "").encode(), "must have `</s>` among its 1-grams"),
        (GOOD.split("\n\\2")[0].encode() + b"\n\\end\\\n", r"line 12: must have a section \\2-grams:"),
        (GOOD.replace("\tCAPTAIN\t", "\tCAP\tTAIN\t").encode(), r"line 10 \('-0.7.tCAP.*\): must be a log10"),
        (GOOD.replace("-0.5\tTHE", "x\tTHE").encode(), "line 9 .*must have numbers around its words, not x"),
        (GOOD.replace("-0.5\tTHE", "nan\tTHE").encode(), "line 9 .*must have numbers around its words, not nan"),
        (GOOD.replace("-0.5\tTHE", "0.5\tTHE").encode(), "line 9 .*must have a log10 probability of at most 0"),
        (GOOD.replace("-0.9\tTHE </s>", "-0.9\tTHE CAPTAIN").encode(), "line 16 .*must not be there twice"),
        (GOOD.replace("ngram 2=4", "ngram 3=4").encode(), "line 3 .*must be `ngram 2=COUNT`"),
        (GOOD.replace("\\2-grams", "\\3-grams").encode(), "line 12 .*must be of the next order"),
    ],
)
def test_arpa_errors_name_file_line_and_remedy(content, match, tokenizer, tmp_path):
    (tmp_path / "x.arpa").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"`decode.arpa` \(.*x\.arpa\).*{match}"):
        compile_lg(tmp_path / "x.arpa", tokenizer)


def test_arpa_that_is_a_folder(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        compile_lg(tmp_path, tokenizer)


def test_trained_arpa_takes_any_text(tokenizer, tmp_path):
    texts = "L'ÉTÉ À PARIS\n\nÀ PARIS\n<s> NOUS </s>\n"
    (tmp_path / "good.txt").write_text(texts, encoding="utf-8")
    decomposed = unicodedata.normalize("NFD", texts)  # the words get the form that the tokens learn
    (tmp_path / "windows.txt").write_text("\ufeff" + decomposed, encoding="utf-8", newline="\r\n")
    for order in (1, 3):
        for name in ("good", "windows"):
            train_arpa(tmp_path / f"{name}.txt", order, tmp_path / f"{name}.arpa", tokenizer)
        arpa = (tmp_path / "good.arpa").read_text(encoding="utf-8")
        assert (tmp_path / "windows.arpa").read_text(encoding="utf-8") == arpa
        words = {line.split("\t")[1] for line in arpa.split("\\1-grams:")[1].split("\n\n")[0].split("\n") if line}
        assert words == {"L'ÉTÉ", "À", "PARIS", "NOUS", "<s>", "</s>"}


@pytest.mark.parametrize(
    "content, match",
    [
        ("ÉTÉ\n".encode("latin-1"), "line 1: must be UTF-8 text"),
        (b"", "is empty"),
        (b"\n \n", "must have words to train an n-gram model on; run stage 2 again"),
    ],
)
def test_trained_arpa_names_the_text_that_is_none(content, match, tokenizer, tmp_path):
    (tmp_path / "transcript_words.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=f"transcript_words.txt.*{match}"):
        train_arpa(tmp_path / "transcript_words.txt", 2, tmp_path / "G.arpa", tokenizer)


def test_lg_that_was_cut_short_is_made_again(tokenizer, tmp_path):
    (tmp_path / "x.arpa").write_text(GOOD)
    arcs = load_lg(tmp_path / "graphs", tokenizer, tmp_path / "x.arpa", 2)
    for content in (b"", (tmp_path / "graphs" / "LG.pt").read_bytes()[:100]):
        (tmp_path / "graphs" / "LG.pt").write_bytes(content)
        assert torch.equal(load_lg(tmp_path / "graphs", tokenizer, tmp_path / "x.arpa", 2), arcs)
