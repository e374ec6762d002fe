"""Every backend's recursion over the lattice: against the sum over all paths, against each other, on edge cases."""

import pytest
import torch

from lattices import EDGES, INF, LATER, TYPES, lattice
from twopass_kd.losses import rnnt_backend
from twopass_kd.losses.rnnt_backend import transducer_recursion


@pytest.fixture(params=["k2", "fast_rnnt", "torch"])
def backend(request):
    """Each backend that runs on CPUs, in turn; Triton's kernels have their own tests."""
    if request.param != "torch":
        pytest.importorskip(request.param)
    rnnt_backend.use_backend(request.param)
    yield request.param
    rnnt_backend.use_backend()


def run(px, py, boundary):
    """What the recursion gives, and the gradient of a weighted sum of it."""
    px, py = (x.detach().requires_grad_() for x in (px, py))
    log_prob, occupations = transducer_recursion(px, py, boundary)
    assert not any(x.requires_grad for x in occupations)
    weights = torch.arange(1, len(log_prob) + 1).to(log_prob.dtype)
    return [log_prob.detach(), *occupations, *torch.autograd.grad((log_prob * weights).sum(), (px, py))]


def sum_over_paths(px, py, boundary, rnnt_type):
    """Log-probs and occupations by listing all paths, arc by arc; for lattices of a few nodes."""
    px_grad, py_grad = torch.zeros_like(px), torch.zeros_like(py)
    takes_frame = int(rnnt_type == "modified")

    def walk(b, s, t, log_prob, arcs):
        if (s, t) == (int(boundary[b, 2]), int(boundary[b, 3])):
            yield log_prob, arcs
        if t < boundary[b, 3]:
            yield from walk(b, s, t + 1, log_prob + float(py[b, s, t]), [*arcs, (py_grad, s, t)])
        if s < boundary[b, 2] and t + takes_frame <= boundary[b, 3]:
            yield from walk(b, s + 1, t + takes_frame, log_prob + float(px[b, s, t]), [*arcs, (px_grad, s, t)])

    log_probs = []
    for b, (begin_symbol, begin_frame, *_) in enumerate(boundary.tolist()):
        paths = list(walk(b, begin_symbol, begin_frame, 0.0, []))
        log_probs.append(torch.tensor([p for p, _ in paths], dtype=px.dtype).logsumexp(0))
        for log_prob, arcs in paths:
            for grad, s, t in arcs:
                grad[b, s, t] += float((log_prob - log_probs[-1]).exp())
    return torch.stack(log_probs), px_grad, py_grad


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("padding", [None, -INF, 1e30, float("nan")], ids=str)
@pytest.mark.parametrize("case", [*EDGES, *LATER])
def test_equals_the_sum_over_all_paths(backend, case, padding, rnnt_type):
    T, S, boundary = {**EDGES, **LATER}[case]
    px, py, boundary = lattice(rnnt_type, boundary, T, S, padding=padding)
    log_prob, px_grad, py_grad, *gradients = run(px, py, boundary)
    expected = sum_over_paths(px, py, boundary, rnnt_type)
    torch.testing.assert_close((log_prob, px_grad, py_grad), expected)
    weights = torch.arange(1, len(boundary) + 1).reshape(-1, 1, 1)
    torch.testing.assert_close(gradients, [expected[1] * weights, expected[2] * weights])


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_float32_equals_float64_of_torch_on_larger_lattices(backend, rnnt_type):
    T, S = 70, 33
    px, py, boundary = lattice(rnnt_type, [[0, 0, S, T], [0, 0, 7, 50], [0, 0, 0, 64], [0, 0, S, S]], T, S)
    found = run(px.float(), py.float(), boundary)
    rnnt_backend.use_backend("torch")
    expected = run(px, py, boundary)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, [x.float() for x in expected], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_a_thousand_symbols(backend, rnnt_type):
    S, T = 1000, 1003
    px, py, boundary = lattice(rnnt_type, [[0, 0, S, T]], T, S)
    frames, symbols = torch.arange(px.shape[2]), torch.arange(S).unsqueeze(1)
    px = px.masked_fill((frames - symbols).abs() > 4, -INF)  # a band, that the sum over its paths is not all rounding
    log_prob, px_grad, py_grad, *_ = run(px, py, boundary)
    assert torch.isfinite(log_prob).all()
    torch.testing.assert_close(px_grad.sum(2), torch.ones(1, S, dtype=px.dtype))  # each symbol once
    blanks = T if rnnt_type == "regular" else T - S
    torch.testing.assert_close(py_grad.sum((1, 2)), torch.tensor([float(blanks)], dtype=px.dtype))


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_gradcheck(backend, rnnt_type):
    T, S, boundary = EDGES["lengths differ"]
    px, py, boundary = lattice(rnnt_type, boundary, T, S)
    if rnnt_type == "regular":
        px = px.nan_to_num(neginf=-1e3)  # finite differences of -inf are none
    inputs = (px.requires_grad_(), py.requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: transducer_recursion(*x, boundary)[0], inputs)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_arcs_that_are_closed(backend, rnnt_type):
    """-inf inside the boundary: no path takes these arcs, and gradients stay finite."""
    T, S = 6, 3
    px, py, boundary = lattice(rnnt_type, [[0, 0, S, T]] * 2, T, S)
    px[0, 1, 2], py[0, 0, 1:], px[1, :, 4:] = -INF, -INF, -INF
    found = run(px, py, boundary)
    torch.testing.assert_close(found[:3], list(sum_over_paths(px, py, boundary, rnnt_type)))


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_without_a_path_log_prob_is_minus_infinity(backend, rnnt_type):
    T, S = 5, 2
    px, py, boundary = lattice(rnnt_type, [[0, 0, S, T]] * 2, T, S)
    px[0, 1] = -INF
    log_prob, px_grad, py_grad, *_ = run(px, py, boundary)
    assert log_prob[0] == -INF and torch.isfinite(log_prob[1])
    if backend == "torch":  # k2 leaves nan there
        assert not px_grad[0].any() and not py_grad[0].any()
    torch.testing.assert_close(px_grad[1].sum(1), torch.ones(S, dtype=px.dtype))


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_any_strides(backend, rnnt_type):
    T, S, boundary = EDGES["lengths differ"]
    px, py, boundary = lattice(rnnt_type, boundary, T, S)
    expected = run(px, py, boundary)
    permuted = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (px, py)]
    torch.testing.assert_close(run(*permuted, boundary), expected)
