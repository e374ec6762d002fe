"""Searches against slow one-utterance references written with plain loops."""

import itertools
import math

import pytest
import torch

from tiny import lively, tiny_model
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.search.nbest import Hypothesis, best_first
from twopass_kd.search.rescoring import attention_log_probs, rescore_with_attention_decoder

KINDS = ("stateless", "lstm")
SILENT = (0, 2)  # blank and unk


def frame_log_probs(model, encoder_frame, tokens):
    """log P(next | frame, tokens) from the full forward pass of the decoder."""
    decoder_out = model.decoder(torch.tensor([[0, *tokens]]))[:, -1]
    return model.joiner(encoder_frame.unsqueeze(0), decoder_out).log_softmax(-1)[0]


def slow_greedy(model, encoder_out):
    tokens, frames, log_prob = [], [], 0.0
    for t, frame in enumerate(encoder_out):
        value, best = frame_log_probs(model, frame, tokens).max(0)
        log_prob += float(value)
        if int(best) not in SILENT:
            tokens.append(int(best))
            frames.append(t)
    return Hypothesis(tokens, log_prob, frames)


def slow_beam(model, encoder_out, beam):
    hyps = {(): 0.0}
    for frame in encoder_out:
        candidates = []
        for tokens, score in hyps.items():
            for k, value in enumerate(frame_log_probs(model, frame, tokens).tolist()):
                candidates.append((score + value, tokens if k in SILENT else (*tokens, k)))
        hyps = {}
        for score, tokens in sorted(candidates, reverse=True)[:beam]:
            old = hyps.get(tokens, -math.inf)
            hyps[tokens] = float(torch.logaddexp(torch.tensor(old), torch.tensor(score)))
    return list(hyps.items())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_search_equals_slow_reference(kind):
    model = lively(tiny_model(decoder=kind))
    encoder_out, lens = torch.randn(4, 12, 16), torch.tensor([12, 7, 1, 10])
    got = greedy_search(model, encoder_out, lens)
    assert sum(len(n[0].tokens) for n in got) > 5
    for nbest, x, n in zip(got, encoder_out, lens):
        want = slow_greedy(model, x[:n])
        assert (nbest[0].tokens, nbest[0].frames) == (want.tokens, want.frames)
        assert nbest[0].log_prob == pytest.approx(want.log_prob, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam", [1, 3, 6])
def test_modified_beam_search_equals_slow_reference(kind, beam):
    model = lively(tiny_model(decoder=kind, seed=1), scale=2.0)
    encoder_out, lens = torch.randn(3, 9, 16), torch.tensor([9, 6, 1])
    got = modified_beam_search(model, encoder_out, lens, beam=beam, nbest=beam)
    for nbest, x, n in zip(got, encoder_out, lens):
        context_size = 2 if kind == "stateless" else 1
        want = sorted(slow_beam(model, x[:n], beam), key=lambda item: -item[1] / (context_size + len(item[0])))
        assert [tuple(h.tokens) for h in nbest] == [tokens for tokens, _ in want]
        assert [h.log_prob for h in nbest] == pytest.approx([score for _, score in want], abs=1e-4)


@torch.no_grad()
def test_beam_of_everything_equals_the_sum_over_all_alignments():
    model = lively(tiny_model(vocab_size=4))
    encoder_out = torch.randn(1, 3, 16)
    totals = {}
    for alignment in itertools.product(range(4), repeat=3):
        score, tokens = 0.0, ()
        for frame, k in zip(encoder_out[0], alignment):
            score += float(frame_log_probs(model, frame, tokens)[k])
            tokens = tokens if k in SILENT else (*tokens, k)
        totals[tokens] = float(torch.logaddexp(torch.tensor(totals.get(tokens, -math.inf)), torch.tensor(score)))
    (nbest,) = modified_beam_search(model, encoder_out, torch.tensor([3]), beam=64, nbest=100)
    assert {tuple(h.tokens): h.log_prob for h in nbest} == pytest.approx(totals, abs=1e-4)
    assert sum(math.exp(h.log_prob) for h in nbest) == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_nbest_is_sorted_distinct_and_emits_in_order():
    model = lively(tiny_model(seed=2), scale=2.0)
    for nbest in modified_beam_search(model, torch.randn(3, 15, 16), torch.tensor([15, 12, 3]), beam=5, nbest=3):
        assert 1 <= len(nbest) <= 3
        assert nbest == best_first(nbest[::-1], context_size=2)
        assert len({tuple(h.tokens) for h in nbest}) == len(nbest)
        for h in nbest:
            assert len(h.frames) == len(h.tokens) and h.frames == sorted(set(h.frames))


@torch.no_grad()
def test_attention_log_probs_equal_one_by_one():
    model = tiny_model()
    encoder_out, lens = torch.randn(2, 8, 16), torch.tensor([8, 5])
    nbests = [[Hypothesis(t, 0.0, []) for t in ([3, 4, 5], [], [6])], [Hypothesis([7], 0.0, [])]]
    got = attention_log_probs(model, encoder_out, lens, nbests, sos_id=1, eos_id=1)
    assert [len(row) for row in got] == [3, 1]
    for b, nbest in enumerate(nbests):
        for hyp, value in zip(nbest, got[b]):
            x, n = encoder_out[b : b + 1, : lens[b]], lens[b : b + 1]
            log_probs = model.attention_decoder(x, n, torch.tensor([[1, *hyp.tokens]])).log_softmax(-1)[0]
            want = sum(float(log_probs[i, k]) for i, k in enumerate([*hyp.tokens, 1]))
            assert value == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    "weight, length_reward, want", [(0.0, 0.0, 0), (1.0, 0.0, 1), (0.5, 0.0, 1), (0.1, 0.0, 0), (0.0, 2.0, 2)]
)
def test_rescoring_interpolates(weight, length_reward, want):
    nbest = [Hypothesis([1], -1.0, []), Hypothesis([2], -2.0, []), Hypothesis([1, 2, 3], -3.0, [])]
    assert rescore_with_attention_decoder(nbest, [-5.0, -1.0, -9.0], weight, length_reward) is nbest[want]


def test_best_first_goes_by_the_log_prob_per_token():
    short, long, other = (
        Hypothesis([5], -3.0, [0]),
        Hypothesis([5, 6, 7, 8], -4.0, [0, 1, 2, 3]),
        Hypothesis([4, 6], -4.0, [0, 1]),
    )
    assert best_first([short, long], context_size=2) == [long, short]  # -0.67 against -1
    assert best_first([short, other], context_size=2) == [short, other]  # -1 both: as they were
