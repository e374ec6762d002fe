"""The graph LG: against the n-gram model as its ARPA file has it, read with plain loops."""

import math

import pytest
import torch

from train_bpe import write_lang
from twopass_kd.config.schema import ConfigError
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.search.lm_graph import compile_lg, load_lg, spell, train_arpa

pytest.importorskip("k2", reason="graphs need k2")

TEXTS = ["THE OLD CAR", "THE OLD CARS", "OLD CARS", "A CAR", "THE CAR", "A OLD CAR", "CARS", "A THE CAR CARS"]
ARPA = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-99 <s> -0.30103
-0.5 </s>
-0.7 CAR -0.2
-0.9 CARS -0.1
-1.1 THE -0.4

\\2-grams:
-0.25 <s> THE
-0.3 THE CAR
-0.6 THE CARS
-0.15 CAR </s>

\\end\\
"""


@pytest.fixture(scope="module")
def lang_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "lang_bpe_20"
    write_lang(folder, TEXTS, 20)
    return folder


def read_arpa(path):
    """{n-gram: (log10 prob, log10 back-off)}"""
    grams, order = {}, 0
    for line in path.read_text().splitlines():
        if line.endswith("-grams:"):
            order = int(line[1:-7])
        elif order and line and not line.startswith("\\"):
            prob, *rest = line.split()
            grams[tuple(rest[:order])] = float(prob), float(rest[order]) if len(rest) > order else 0.0
    return grams


def sentence_score(grams, words):
    """Natural log-prob of a sentence: for each word the best of all ways to back off, as a graph has them."""

    def word_score(history, word):
        found = [grams[(*history, word)][0]] if (*history, word) in grams else []
        if history:
            found.append(grams.get(history, (0.0, 0.0))[1] + word_score(history[1:], word))
        return max(found)

    order = max(map(len, grams))
    row, total = ["<s>", *words, "</s>"], 0.0
    for i in range(1, len(row)):
        total += word_score(tuple(row[max(0, i - order + 1) : i]), row[i])
    return total * math.log(10)


def graph_score(arcs, tokens, end):
    """The best path of a graph for tokens; -inf where there is none."""
    states = {0: 0.0}
    scores = arcs[:, 3].contiguous().view(torch.float32).tolist()
    rows = list(zip(*arcs[:, :3].t().tolist(), scores))
    for token in [*tokens, end, -1]:
        reached = {}
        for src, dst, label, score in rows:
            if label == token and src in states:
                reached[dst] = max(reached.get(dst, -math.inf), states[src] + score)
        states = reached
    return max(states.values(), default=-math.inf)


@pytest.mark.parametrize("words", ["", "CAR", "THE CAR", "THE CARS", "CARS THE THE CAR", "CAR CARS"])
def test_lg_has_the_scores_of_the_arpa_file(words, lang_dir, tmp_path):
    (tmp_path / "G.arpa").write_text(ARPA)
    tokenizer = Tokenizer(lang_dir)
    arcs = compile_lg(tmp_path / "G.arpa", tokenizer)
    want = sentence_score(read_arpa(tmp_path / "G.arpa"), words.split())
    assert graph_score(arcs, tokenizer.encode([words])[0], tokenizer.unk_id) == pytest.approx(want, abs=1e-4)


def test_lg_takes_whole_words_of_the_model_only(lang_dir, tmp_path):
    (tmp_path / "G.arpa").write_text(ARPA)
    tokenizer = Tokenizer(lang_dir)
    arcs = compile_lg(tmp_path / "G.arpa", tokenizer)
    assert (arcs[:, 2] != 0).all() and (arcs[:, 2] < tokenizer.vocab_size).all()  # no epsilon, no back-off label
    for words in ("OLD", "THE OLD CAR"):
        assert graph_score(arcs, tokenizer.encode([words])[0], tokenizer.unk_id) == -math.inf
    (tokens,) = tokenizer.encode(["THE"])
    assert len(tokens) == 1 or graph_score(arcs, tokens[:-1], tokenizer.unk_id) == -math.inf


def test_trained_arpa_is_a_distribution_that_lg_keeps(lang_dir, tmp_path):
    tokenizer = Tokenizer(lang_dir)
    train_arpa(lang_dir / "transcript_words.txt", 2, tmp_path / "G.arpa", tokenizer)
    grams = read_arpa(tmp_path / "G.arpa")
    words = [gram[0] for gram in grams if len(gram) == 1 and gram[0] not in ("<s>",)]
    assert sum(10 ** grams[(w,)][0] for w in words) == pytest.approx(1.0, abs=1e-3)
    arcs = compile_lg(tmp_path / "G.arpa", tokenizer)
    for text in TEXTS:
        want = sentence_score(grams, text.split())
        assert graph_score(arcs, tokenizer.encode([text])[0], tokenizer.unk_id) == pytest.approx(want, abs=1e-3)


def test_lexicon_leaves_out_what_cannot_be_spelt(lang_dir, caplog):
    words = {"<eps>": 0, "CAR": 1, "QUIZ": 2, "#0": 3, "<s>": 4, "</s>": 5}
    tokenizer = Tokenizer(lang_dir)
    assert spell(words, tokenizer) == {1: tokenizer.encode(["CAR"])[0]}
    assert "1 of 2 words cannot be spelt, e.g. QUIZ" in caplog.text


def test_lg_is_kept_until_text_or_settings_change(lang_dir, tmp_path):
    folder = tmp_path / "lang"
    write_lang(folder, TEXTS, 20)
    tokenizer = Tokenizer(folder)
    graphs = tmp_path / "graphs"
    first = load_lg(graphs, tokenizer, None, order=2)
    assert {p.name for p in folder.iterdir()} == {"bpe.model", "tokens.txt", "transcript_words.txt"}
    assert {p.name for p in graphs.iterdir()} == {"G.arpa", "LG.pt"}
    made = (graphs / "LG.pt").stat().st_mtime_ns
    assert torch.equal(load_lg(graphs, tokenizer, None, order=2), first)
    assert (graphs / "LG.pt").stat().st_mtime_ns == made
    assert not torch.equal(load_lg(graphs, tokenizer, None, order=1), first)
    (tmp_path / "own.arpa").write_text(ARPA)
    own = load_lg(graphs, tokenizer, tmp_path / "own.arpa", order=2)
    assert torch.equal(own, compile_lg(tmp_path / "own.arpa", tokenizer))
    (folder / "transcript_words.txt").write_text("OLD CARS\n" * 3)
    assert len(load_lg(graphs, tokenizer, None, order=2)) < len(first)


def test_lg_errors_name_the_file_and_the_setting(lang_dir, tmp_path):
    tokenizer = Tokenizer(lang_dir)
    with pytest.raises(ConfigError, match=r"no.arpa is missing.* correct `decode.arpa`"):
        load_lg(tmp_path, tokenizer, tmp_path / "no.arpa", 3)
    with pytest.raises(ConfigError, match=r"transcript_words.txt is missing.* run stage 2"):
        tokenizer.lang_dir = tmp_path
        load_lg(tmp_path, tokenizer, None, 3)
    (tmp_path / "bad.arpa").write_text("no n-grams here\n")
    with pytest.raises(ConfigError, match=r"`decode.arpa` \(.*bad.arpa\) must be an n-gram model in ARPA format"):
        compile_lg(tmp_path / "bad.arpa", tokenizer)
    (tmp_path / "other.arpa").write_text(ARPA.replace("CARS", "qs").replace("CAR", "qx").replace("THE", "qy"))
    with pytest.raises(ConfigError, match="must have words that 20 tokens can spell"):
        compile_lg(tmp_path / "other.arpa", tokenizer)
