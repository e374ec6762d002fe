"""Every search against exhaustive search: plain loops over all alignments of a lattice of a few frames and tokens."""

import importlib.util
import itertools
import math
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tiny import lively, tiny_model
from twopass_kd.bin.decode import describe_search
from twopass_kd.config.schema import ConfigError
from twopass_kd.search.choose_on_dev import choose_scales
from twopass_kd.search.fast_beam import fast_beam_search
from twopass_kd.search.graphs import DecodingGraph, end_with, hotword_graph, pack_arcs, trivial_graph
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.methods import why_no_further_searches
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.search.nbest import Hypothesis, best_first, two_pass_scores

V, BLANK, UNK = 5, 0, 2
FRAMES = (4, 3, 1)
ALL = {"beam": 1e3, "max_contexts": 1000, "max_states": 1000, "nbest": 130}  # nothing is pruned
BIGRAM = {  # a language model over tokens 3 and 4 alone: log-probs given the token before (None at the ends)
    None: {3: -0.3, 4: -1.6, None: -2.0},
    3: {3: -2.5, 4: -0.4, None: -1.0},
    4: {3: -0.9, 4: -1.2, None: -0.5},
}
PHRASES, REWARD = [[3, 4], [4, 4, 1]], 0.7


def bigram_graph():
    state = {None: 0, 3: 1, 4: 2}
    arcs = [(state[a], state[b] if b else 3, b or -1, p) for a, row in BIGRAM.items() for b, p in row.items()]
    return end_with(pack_arcs(arcs), UNK)


def bigram_score(tokens):
    row = [None, *tokens, None]
    return sum(BIGRAM.get(a, {}).get(b, -math.inf) for a, b in zip(row, row[1:]))


def hotword_score(tokens):
    found = sum(
        len(phrase) for phrase in PHRASES for i in range(len(tokens)) if list(tokens[i : i + len(phrase)]) == phrase
    )
    return REWARD * found


def no_score(tokens):
    return 0.0


def ambiguous_graph():
    """The bigram's, with a worse path beside each arc, as n-grams have by their back-offs."""
    arcs = bigram_graph()
    worse = arcs[arcs[:, 2] != -1].clone()
    worse[:, 3] = (worse[:, 3].view(torch.float32) - 0.2).view(torch.int32)
    both = torch.cat([arcs, worse])
    return both[both[:, 0].argsort(stable=True)]


def graph_search(arcs):
    pytest.importorskip("k2", reason="searches on graphs need k2")
    return partial(fast_beam_search, graph=DecodingGraph(arcs), **ALL)


METHODS = {  # search, what its graph adds to a token sequence
    "greedy": (lambda: greedy_search, no_score),
    "modified_beam": (lambda: partial(modified_beam_search, beam=625, nbest=130), no_score),
    "fast_beam": (lambda: graph_search(trivial_graph(V, UNK)), no_score),
    "fast_beam_bigram": (lambda: graph_search(bigram_graph()), bigram_score),
    "fast_beam_ambiguous": (lambda: graph_search(ambiguous_graph()), bigram_score),
    "fast_beam_hotwords": (lambda: graph_search(hotword_graph(PHRASES, REWARD, V, UNK)), hotword_score),
}


def alignments(model, encoder_out):
    """(tokens, log-prob, frames) of every way through the lattice; blank and unk say nothing."""
    contexts = list(itertools.product(range(V), repeat=2))
    decoder_out = model.decoder(torch.tensor(contexts), need_pad=False)
    logits = model.joiner(encoder_out.unsqueeze(1), decoder_out.transpose(0, 1))
    table = [dict(zip(contexts, rows)) for rows in logits.log_softmax(-1).tolist()]
    for labels in itertools.product(range(V), repeat=len(encoder_out)):
        tokens, frames, log_prob = (), [], 0.0
        for t, label in enumerate(labels):
            log_prob += table[t][(0, 0, *tokens)[-2:]][label]
            if label not in (BLANK, UNK):
                tokens, frames = (*tokens, label), [*frames, t]
        yield tokens, log_prob, frames


def exhaustive(model, encoder_out, graph_score):
    """tokens -> `Hypothesis`, of all that the graph allows."""
    found = defaultdict(list)
    for tokens, log_prob, frames in alignments(model, encoder_out):
        if graph_score(tokens) > -math.inf:
            found[tokens].append((log_prob, frames))
    return {
        tokens: Hypothesis(
            list(tokens), math.log(sum(math.exp(p) for p, _ in paths)), max(paths)[1], graph_score(tokens)
        )
        for tokens, paths in found.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_search_equals_exhaustive_search(name, seed):
    build, graph_score = METHODS[name]
    model = lively(tiny_model(vocab_size=V, seed=seed), scale=1.5)
    encoder_out, lens = torch.randn(len(FRAMES), max(FRAMES), 16), torch.tensor(FRAMES)
    for nbest, x, n in zip(build()(model, encoder_out, lens), encoder_out, lens):
        if name == "greedy":  #: frame by frame the best label, not the best sequence
            (got,) = nbest
            paths = alignments(model, x[:n])
            same = [p for tokens, p, frames in paths if [*tokens] == got.tokens and frames == got.frames]
            assert got.log_prob == pytest.approx(max(same), abs=1e-4)
            continue
        wanted = exhaustive(model, x[:n], graph_score)
        expected = best_first(list(wanted.values()), model.decoder.context_size)[: ALL["nbest"]]
        assert [h.tokens for h in nbest] == [h.tokens for h in expected]
        assert [h.log_prob for h in nbest] == pytest.approx([h.log_prob for h in expected], abs=1e-4)
        assert [h.graph_score for h in nbest] == pytest.approx([h.graph_score for h in expected], abs=1e-4)
        for h in nbest:
            assert len(h.frames) == len(h.tokens) and h.frames == sorted(set(h.frames))
            assert all(0 <= t < n for t in h.frames)


@torch.no_grad()
def test_a_hotword_wins_where_it_loses_without():
    model = lively(tiny_model(vocab_size=V, seed=3), scale=1.5)
    encoder_out, lens = torch.randn(1, 3, 16), torch.tensor([3])  # room for it once
    (plain,) = graph_search(trivial_graph(V, UNK))(model, encoder_out, lens)
    hotword = next(h.tokens for h in plain[1:] if len({*h.tokens}) == 2)
    (rewarded,) = graph_search(hotword_graph([hotword], 3.0, V, UNK))(model, encoder_out, lens)
    assert plain[0].tokens != hotword and rewarded[0].tokens == hotword
    assert rewarded[0].graph_score == pytest.approx(6.0, abs=1e-4)
    # With the probability of the model alone the second pass goes on as before, and keeps the reward.
    same = next(h for h in plain if h.tokens == hotword)
    assert rewarded[0].log_prob == pytest.approx(same.log_prob, abs=1e-4)
    assert two_pass_scores(rewarded[:1], [-1.0], 0.5)[0] == pytest.approx(0.5 * same.log_prob - 0.5 + 6.0, abs=1e-4)


@torch.no_grad()
def test_fast_beam_search_is_the_same_alone_and_in_a_padded_batch():
    model = lively(tiny_model(vocab_size=V, seed=5), scale=3.0)
    encoder_out, lens = torch.randn(3, 12, 16), torch.tensor([12, 9, 2])
    small = {"beam": 8.0, "max_contexts": 6, "max_states": 12, "nbest": 3}
    search = partial(graph_search(trivial_graph(V, UNK)), **small)
    for nbest, x, n in zip(search(model, encoder_out, lens), encoder_out, lens):
        (alone,) = search(model, x[None, :n], n[None])
        assert [(h.tokens, h.frames) for h in alone] == [(h.tokens, h.frames) for h in nbest]
        assert [h.log_prob for h in alone] == pytest.approx([h.log_prob for h in nbest], abs=1e-4)


@torch.no_grad()
def test_final_scores_outside_of_the_beam_are_kept():
    # All ends cost more than the beam is wide; and the contexts that end are as many as are kept.
    model = lively(tiny_model(vocab_size=V, seed=3), scale=1.5)
    arcs = trivial_graph(V, UNK)
    arcs[arcs[:, 2] == UNK, 3] = torch.tensor([-6.0]).view(torch.int32)
    search = partial(graph_search(arcs), beam=4.0, max_contexts=4, max_states=24, nbest=4)
    (nbest,) = search(model, torch.randn(1, 4, 16), torch.tensor([4]))
    assert len(nbest) == 4 and [h.graph_score for h in nbest] == pytest.approx([-6.0] * 4, abs=1e-4)


@torch.no_grad()
def test_a_graph_without_a_whole_sentence_gives_what_there_is():
    model = lively(tiny_model(vocab_size=V))
    arcs = end_with(pack_arcs([(0, 1, 3, 0.0), (1, 2, 3, 0.0), (2, 3, 3, 0.0), (3, 4, -1, 0.0)]), UNK)
    (nbest,) = graph_search(arcs)(model, torch.randn(1, 2, 16), torch.tensor([2]))
    assert {tuple(h.tokens) for h in nbest} == {(), (3,), (3, 3)}


def test_a_scale_that_was_not_chosen_is_told_too():
    made = {"fast_beam_search": {1.0: None}, "fast_beam_search_LG": {0.5: None}}
    scales, scans = choose_scales(None, None, None, None, made)
    told = {name: describe_search(name, {}, {}, None, scales[name], scans[name])["lm_scale"] for name in made}
    assert told == {"fast_beam_search": None, "fast_beam_search_LG": 0.5}


def test_another_decoder_is_a_config_error():
    model = tiny_model(decoder="lstm", vocab_size=V)
    with pytest.raises(ConfigError, match=r"`decoder.kind` \(lstm\) must be stateless for fast_beam_search"):
        fast_beam_search(model, torch.randn(1, 2, 16), torch.tensor([2]), SimpleNamespace())


def test_without_k2_the_error_says_what_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    with pytest.raises(ImportError, match="a decoding graph needs k2"):
        DecodingGraph(trivial_graph(V, UNK))


def test_without_k2_the_further_searches_have_a_reason_to_be_left_out(monkeypatch):
    assert (why_no_further_searches() is None) == (importlib.util.find_spec("k2") is not None)
    monkeypatch.setitem(sys.modules, "k2", None)
    assert why_no_further_searches().startswith("fast_beam_search needs k2, which does not import here")
