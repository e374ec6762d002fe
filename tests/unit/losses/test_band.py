"""The choice of the band and the arcs on it equal k2's (or those of fast_rnnt, which are the same), bit for bit."""

import importlib

import pytest
import torch

from twopass_kd.losses.band import band_arcs, prune_ranges
from twopass_kd.losses.transducer import make_boundary, simple_transducer_loss

TYPES = ("modified", "regular")
V = 11
# T, S, frames and symbols of each utterance.
CASES = {
    "lengths differ": (40, 12, [40, 31, 12, 25], [12, 5, 12, 1]),
    "no symbols": (20, 6, [20, 20, 1, 7], [6, 0, 0, 0]),
    "a symbol in each frame": (9, 9, [9, 4, 1], [9, 4, 1]),
    "fewer symbols than the band": (15, 2, [15, 10], [2, 1]),
    "one frame": (1, 1, [1], [1]),
    "lengths alike": (30, 10, [30] * 5, [10] * 5),
}


@pytest.fixture(scope="module")
def k2():
    for name in ("k2", "fast_rnnt"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("compares with k2 or fast_rnnt themselves")


def batch(case, rnnt_type, seed=0, scale=1.0):
    """Symbols, boundary and occupations of random logits."""
    T, S, x_lens, y_lens = CASES[case]
    g = torch.Generator().manual_seed(seed)
    am, lm = (scale * torch.randn(len(x_lens), n, V, generator=g) for n in (T, S + 1))
    symbols = torch.randint(1, V, (len(x_lens), S), generator=g)
    boundary = make_boundary(torch.tensor(x_lens), torch.tensor(y_lens))
    _, arcs = simple_transducer_loss(am, lm, symbols, boundary, rnnt_type=rnnt_type)
    return symbols, boundary, arcs


def with_symbols(boundary):
    """For fast_rnnt, which refuses utterances without; where there is one symbol or none, the result is the same."""
    return torch.cat((boundary[:, :2], boundary[:, 2:3].clamp(min=1), boundary[:, 3:]), dim=1)


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("prune_range", [2, 3, 5, 20])
@pytest.mark.parametrize("case", CASES)
def test_ranges_are_k2s(k2, case, prune_range, rnnt_type):
    for seed, scale in enumerate([0.1, 1.0, 5.0, 30.0]):
        _, boundary, arcs = batch(case, rnnt_type, seed, scale)
        px_grad, py_grad = ((x * 4096).round() / 4096 for x in arcs)  # so that sums are exact in whatever order
        found = prune_ranges(px_grad, py_grad, boundary, prune_range)
        contiguous = (px_grad.contiguous(), py_grad.contiguous())
        expected = k2.get_rnnt_prune_ranges(*contiguous, with_symbols(boundary), prune_range)
        assert found.dtype == torch.int64 and torch.equal(found, expected)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_ranges_of_occupations_that_are_noise_are_k2s(k2, rnnt_type):
    """Whose maxima jump to and fro, so that the bounds have to be made monotonic and without leaps."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        T, S, boundary = 25, 14, make_boundary(torch.tensor([25, 20, 14]), torch.tensor([14, 9, 14]))
        px_grad = torch.rand(3, S, T + (rnnt_type == "regular"), generator=g)
        py_grad = torch.rand(3, S + 1, T, generator=g)
        for prune_range in (2, 4, 7):
            found = prune_ranges(px_grad, py_grad, boundary, prune_range)
            assert torch.equal(found, k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, prune_range))


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_arcs_are_k2s(k2, case, rnnt_type):
    symbols, boundary, arcs = batch(case, rnnt_type)
    ranges = prune_ranges(*arcs, boundary, 4)
    logits = torch.randn(*ranges.shape, V, requires_grad=True)
    px, py = band_arcs(logits, symbols, ranges, boundary, 0, rnnt_type)
    expected_px, expected_py = k2.get_rnnt_logprobs_pruned(
        logits, symbols, ranges, 0, with_symbols(boundary), rnnt_type
    )
    assert torch.equal(py, expected_py) and px.shape == expected_px.shape
    if rnnt_type == "regular":  # later frames are outside the boundary, and k2 leaves them as they are
        frames = torch.arange(px.shape[2])
        later = (frames > boundary[:, 3:]).unsqueeze(1)
        assert (px[(frames >= boundary[:, 3:]).unsqueeze(1).expand_as(px)] == -torch.inf).all()
        expected_px = expected_px.masked_fill(later, -torch.inf)
    assert torch.equal(px, expected_px)
    px_weights, py_weights = torch.randn_like(px), torch.randn_like(py)

    def gradient(px, py):
        loss = (px.masked_fill(px.isinf(), 0) * px_weights).sum() + (py.masked_fill(py.isinf(), 0) * py_weights).sum()
        return torch.autograd.grad(loss, logits)

    torch.testing.assert_close(gradient(px, py), gradient(expected_px, expected_py))


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_gradcheck_of_the_arcs(rnnt_type):
    symbols, boundary, arcs = batch("lengths differ", rnnt_type)
    ranges = prune_ranges(*arcs, boundary, 3)[:, :6]
    logits = torch.randn(*ranges.shape, V, dtype=torch.float64, requires_grad=True)

    def finite_arcs(x):
        return [arc[arc.isfinite()] for arc in band_arcs(x, symbols, ranges, boundary, 0, rnnt_type)]

    assert torch.autograd.gradcheck(finite_arcs, logits)


def test_prune_range_of_one_is_an_error():
    _, boundary, arcs = batch("lengths differ", "modified")
    with pytest.raises(ValueError, match=r"`prune_range` \(1\) must be at least 2"):
        prune_ranges(*arcs, boundary, 1)
