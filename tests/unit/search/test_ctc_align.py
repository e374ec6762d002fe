"""Forced alignment by CTC against all paths there are, and what has none."""

from itertools import groupby, product

import pytest
import torch

from twopass_kd.search.ctc_align import ctc_align

FRAMES, VOCAB = 6, 4


def best_path(log_probs, tokens):
    """The most probable of all V ** T paths that collapse to `tokens`, by trying them."""
    best, found = -float("inf"), None
    for path in product(range(VOCAB), repeat=len(log_probs)):
        if [k for k, _ in groupby(path) if k != 0] == tokens:
            score = float(log_probs[range(len(path)), path].sum())
            best, found = max((best, found), (score, path))
    return found


def frames_of(path):
    """First and last frame of each token of a path."""
    runs, t = [], 0
    for token, run in groupby(path):
        size = len(list(run))
        if token != 0:
            runs.append((t, t + size - 1))
        t += size
    return runs


@pytest.mark.parametrize("seed", range(4))
def test_alignment_is_the_best_of_all_paths(seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(3, FRAMES, VOCAB, generator=generator).mul(2).log_softmax(-1)
    texts, lens = [[1, 1, 2], [3], [2, 1]], [6, 4, 5]
    tokens = torch.tensor([text + [0] * (3 - len(text)) for text in texts])
    first, last = ctc_align(log_probs, torch.tensor(lens), tokens, torch.tensor([3, 1, 2]))
    for b, text in enumerate(texts):
        want = frames_of(best_path(log_probs[b, : lens[b]], text))
        assert list(zip(first[b].tolist(), last[b].tolist()))[: len(text)] == want
        assert first[b, len(text) :].tolist() == last[b, len(text) :].tolist() == [-1] * (3 - len(text))


def test_text_that_no_path_can_say_has_no_frames():
    log_probs = torch.randn(1, 3, VOCAB).log_softmax(-1)
    first, last = ctc_align(log_probs, torch.tensor([3]), torch.tensor([[1, 1, 1]]), torch.tensor([3]))
    assert first.tolist() == last.tolist() == [[-1, -1, -1]]


def test_alignment_equals_k2s():
    k2 = pytest.importorskip("k2", reason="compares with k2 itself")
    log_probs = torch.randn(1, 30, VOCAB, generator=torch.Generator().manual_seed(9)).mul(3).log_softmax(-1)
    text = [1, 2, 2, 3, 1]
    graph = k2.ctc_graph([text])
    dense = k2.DenseFsaVec(log_probs, torch.tensor([[0, 0, 30]], dtype=torch.int32))
    path = k2.shortest_path(k2.intersect_dense(graph, dense, output_beam=100.0), use_double_scores=True)
    first, last = ctc_align(log_probs, torch.tensor([30]), torch.tensor([text]), torch.tensor([5]))
    assert list(zip(first[0].tolist(), last[0].tolist())) == frames_of(path.labels[:-1].tolist())
