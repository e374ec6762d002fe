"""Transcripts, errors and tokens: what icefall writes we read, and the other way round."""

import io
import shutil

import pytest

from fake_experiment import transcripts
from icefall_teachers import TEXTS, run_in_recipe
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.scoring.wer import corpus_wer, read_recogs, write_decoding_results

ROWS = [*transcripts(60, 0.3, seed=1), ("z-1", ["IT'S", "NAÏVE"], []), ("z-2", ["A"], ["A", 'SAY "X"'])]


@pytest.fixture(scope="module")
def icefall_utils(icefall_root):
    return pytest.importorskip("icefall.utils")


def test_icefall_counts_the_same_errors_in_our_recogs(icefall_utils, tmp_path):
    """Its errs file, from what our recogs file says, is ours byte for byte."""
    write_decoding_results(tmp_path, "test-clean", "greedy_search", ROWS)
    theirs = io.StringIO()
    rows = read_recogs(tmp_path / "recogs-test-clean-greedy_search.txt")
    wer = icefall_utils.write_error_stats(theirs, "test-clean", rows)
    assert (tmp_path / "errs-test-clean-greedy_search.txt").read_text() == theirs.getvalue()
    summary = (tmp_path / "wer-summary-test-clean-greedy_search.txt").read_text()
    assert summary == f"settings\tWER\ngreedy_search\t{wer}\n"
    assert 10 < wer == pytest.approx(corpus_wer(ROWS).wer, abs=0.005)


def test_recogs_are_the_same_file(icefall_utils, tmp_path):
    write_decoding_results(tmp_path, "s", "x", ROWS)
    icefall_utils.store_transcripts(tmp_path / "theirs.txt", sorted(ROWS))
    assert (tmp_path / "theirs.txt").read_bytes() == (tmp_path / "recogs-s-x.txt").read_bytes()
    assert read_recogs(tmp_path / "theirs.txt") == sorted(ROWS)


def test_files_are_those_of_icefalls_decode_py(icefall_recipes, tmp_path):
    """zipformer/decode.py's own functions, given the same transcripts: three files, byte for byte."""
    script = tmp_path / "save.py"
    script.write_text(
        f"""from pathlib import Path
from decode import save_asr_output, save_wer_results
from icefall.utils import AttributeDict

params = AttributeDict(res_dir=Path({str(tmp_path)!r}), suffix="greedy_search")
for save in (save_asr_output, save_wer_results):
    save(params, "test-clean", {{"greedy_search": {sorted(ROWS)!r}}})
""",
        encoding="utf-8",
    )
    run_in_recipe(icefall_recipes / "zipformer", script)
    write_decoding_results(tmp_path / "ours", "test-clean", "greedy_search", ROWS)
    ours = sorted((tmp_path / "ours").iterdir())
    assert len(ours) == 3
    for path in ours:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_icefall_reads_our_tokens(icefall_utils, lang_dir):
    tokenizer = Tokenizer(lang_dir)
    table = pytest.importorskip("k2").SymbolTable.from_file(str(lang_dir / "tokens.txt"))
    assert icefall_utils.num_tokens(table) + 1 == tokenizer.vocab_size == 40
    assert [table["<blk>"], table["<sos/eos>"], table["<unk>"]] == [0, 1, 2]
    assert [table[i] for i in range(40)] == tokenizer.pieces


def test_icefall_makes_its_lexicon_in_our_lang_folder(icefall_recipes, lang_dir, tmp_path):
    """Its prepare_lang_bpe.py adds disambiguation symbols to tokens.txt; ours stay the same, and so does the BPE."""
    lang = tmp_path / "lang_bpe_40"
    shutil.copytree(lang_dir, lang)
    words = sorted({word for line in (lang / "transcript_words.txt").read_text().splitlines() for word in line.split()})
    listed = ["<eps>", "!SIL", "<SPOKEN_NOISE>", "<UNK>", *words, "#0", "<s>", "</s>"]
    (lang / "words.txt").write_text("".join(f"{word} {i}\n" for i, word in enumerate(listed)))
    run_in_recipe(icefall_recipes, "local/prepare_lang_bpe.py", "--lang-dir", lang)
    assert "#0" in (lang / "tokens.txt").read_text()
    assert Tokenizer(lang).digest() == Tokenizer(lang_dir).digest()

    assert pytest.importorskip("icefall.lexicon").Lexicon(lang).tokens == list(range(1, 40))
    compiler = pytest.importorskip("icefall.bpe_graph_compiler").BpeCtcTrainingGraphCompiler(lang)
    assert compiler.texts_to_ids(TEXTS) == Tokenizer(lang_dir).encode(TEXTS)
