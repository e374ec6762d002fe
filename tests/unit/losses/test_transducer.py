import pytest
import torch

import loss_reference as reference
from twopass_kd.losses.band import prune_ranges, select_band, valid_nodes
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss

X_LENS, Y_LENS = torch.tensor([6, 4, 5]), torch.tensor([3, 1, 0])
B, T, S, V = 3, 6, 3, 5


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return {
        "symbols": torch.randint(1, V, (B, S), generator=g),
        "boundary": make_boundary(X_LENS, Y_LENS),
        "am": torch.randn(B, T, V, generator=g, dtype=torch.float64).requires_grad_(),
        "lm": torch.randn(B, S + 1, V, generator=g, dtype=torch.float64).requires_grad_(),
        "lattice": torch.randn(B, T, S + 1, V, generator=g, dtype=torch.float64).requires_grad_(),
    }


def whole_lattice(batch_size: int, num_frames: int, num_symbols: int) -> torch.Tensor:
    return torch.arange(num_symbols + 1).expand(batch_size, num_frames, -1).contiguous()


def band_of(batch, prune_range, rnnt_type="regular"):
    _, (px_grad, py_grad) = simple_transducer_loss(
        batch["am"], batch["lm"], batch["symbols"], batch["boundary"], rnnt_type=rnnt_type
    )
    return prune_ranges(px_grad, py_grad, batch["boundary"], prune_range)


def utterance(x, b):
    """Utterance b of (B, T, S + 1, V) without its padding."""
    return x[b, : X_LENS[b], : Y_LENS[b] + 1]


@pytest.mark.parametrize("lm_only_scale", [0.0, 0.25])
def test_simple_loss_equals_reference(batch, lm_only_scale):
    loss, _ = simple_transducer_loss(
        batch["am"], batch["lm"], batch["symbols"], batch["boundary"], lm_only_scale=lm_only_scale
    )
    expected = torch.stack(
        [
            reference.transducer_loss(
                reference.smoothed_log_probs(
                    batch["am"][b, : X_LENS[b]], batch["lm"][b, : Y_LENS[b] + 1], lm_only_scale
                ),
                batch["symbols"][b].tolist(),
            )
            for b in range(B)
        ]
    )
    torch.testing.assert_close(loss, expected)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    inputs = (batch["am"], batch["lm"])
    ours = torch.autograd.grad((loss * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
@pytest.mark.parametrize(
    ("lm_only_scale", "am_only_scale", "delay_penalty"), [(0.25, 0.0, 0.0), (0.1, 0.2, 0.0), (0.0, 0.0, 0.3)]
)
def test_simple_loss_equals_k2(batch, lm_only_scale, am_only_scale, delay_penalty, rnnt_type):
    k2 = pytest.importorskip("k2", reason="compares with k2 itself")
    scales = {"lm_only_scale": lm_only_scale, "am_only_scale": am_only_scale, "rnnt_type": rnnt_type}
    scales["delay_penalty"] = delay_penalty
    am, lm, boundary = batch["am"], batch["lm"], batch["boundary"]
    loss, arcs = simple_transducer_loss(am, lm, batch["symbols"], boundary, **scales)
    expected, expected_arcs = k2.rnnt_loss_smoothed(
        lm=lm,
        am=am,
        symbols=batch["symbols"],
        termination_symbol=0,
        boundary=boundary,
        reduction="none",
        return_grad=True,
        **scales,
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(arcs, expected_arcs)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    ours = torch.autograd.grad((loss * weights).sum(), (am, lm))
    theirs = torch.autograd.grad((expected * weights).sum(), (am, lm))
    torch.testing.assert_close(ours, theirs)


def test_pruned_loss_equals_full_lattice_reference_when_band_is_whole_lattice(batch):
    loss = pruned_transducer_loss(batch["lattice"], batch["symbols"], whole_lattice(B, T, S), batch["boundary"])
    expected = torch.stack(
        [
            reference.transducer_loss(utterance(batch["lattice"], b).log_softmax(-1), batch["symbols"][b].tolist())
            for b in range(B)
        ]
    )
    torch.testing.assert_close(loss, expected)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    (ours,) = torch.autograd.grad((loss * weights).sum(), batch["lattice"])
    (theirs,) = torch.autograd.grad((expected * weights).sum(), batch["lattice"])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
def test_delay_penalty_of_the_pruned_loss_equals_k2(batch, rnnt_type):
    k2 = pytest.importorskip("k2", reason="compares with k2 itself")
    ranges = band_of(batch, 3, rnnt_type)
    logits = batch["lattice"].gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V))
    ours = pruned_transducer_loss(logits, batch["symbols"], ranges, batch["boundary"], 0, rnnt_type, 0.2)
    arguments = (logits, batch["symbols"], ranges, 0, batch["boundary"], rnnt_type, 0.2)
    torch.testing.assert_close(ours, k2.rnnt_loss_pruned(*arguments, reduction="none"))


def test_delay_penalty_is_that_of_all_labels_of_all_paths(batch):
    loss = pruned_transducer_loss(
        batch["lattice"], batch["symbols"], whole_lattice(B, T, S), batch["boundary"], delay_penalty=0.2
    )
    for b in range(B):
        log_probs, symbols = utterance(batch["lattice"], b).log_softmax(-1).clone(), batch["symbols"][b].tolist()
        for t in range(X_LENS[b]):
            for u in range(Y_LENS[b]):
                log_probs[t, u, symbols[u]] += 0.2 * ((X_LENS[b] - 1) / 2 - t)
        assert float(loss[b]) == pytest.approx(float(reference.transducer_loss(log_probs, symbols)), rel=1e-9)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
@pytest.mark.parametrize("prune_range", [2, 3, 4])
def test_pruned_loss_equals_sum_over_paths_inside_band(batch, prune_range, rnnt_type):
    ranges = band_of(batch, prune_range, rnnt_type)
    assert ranges.shape == (B, T, prune_range)
    logits = batch["lattice"].gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V))
    loss = pruned_transducer_loss(logits, batch["symbols"], ranges, batch["boundary"], rnnt_type=rnnt_type)
    valid = valid_nodes(ranges, batch["boundary"])
    for b in range(B):
        band = {(t, int(u)) for t in range(X_LENS[b]) for u in ranges[b, t] if u <= Y_LENS[b]}
        log_probs = utterance(batch["lattice"], b).log_softmax(-1).detach()
        expected = reference.loss_on_band(log_probs, batch["symbols"][b].tolist(), band, rnnt_type)
        assert float(loss[b]) == pytest.approx(float(expected), rel=1e-9)
        for t in range(T):
            for k in range(prune_range):
                assert bool(valid[b, t, k]) == ((t, int(ranges[b, t, k])) in band)


def test_pruned_loss_never_below_full_loss(batch):
    full = pruned_transducer_loss(batch["lattice"], batch["symbols"], whole_lattice(B, T, S), batch["boundary"])
    ranges = band_of(batch, 2)
    logits = batch["lattice"].gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V))
    pruned = pruned_transducer_loss(logits, batch["symbols"], ranges, batch["boundary"])
    assert (pruned >= full - 1e-9).all()
    assert float(pruned[0]) > float(full[0]) + 1e-6


def test_values_in_padding_change_nothing(batch):
    ranges = band_of(batch, 3)
    valid = valid_nodes(ranges, batch["boundary"]).unsqueeze(-1)
    clean = batch["lattice"].gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V)).detach()
    dirty = torch.where(valid, clean, torch.full_like(clean, 1e4)).requires_grad_()
    clean.requires_grad_()
    garbage = batch["symbols"].clone()
    garbage[1, 1:], garbage[2] = V - 1, V - 1
    a = pruned_transducer_loss(clean, batch["symbols"], ranges, batch["boundary"])
    b = pruned_transducer_loss(dirty, garbage, ranges, batch["boundary"])
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(clean.grad, dirty.grad)
    assert float(dirty.grad.masked_select(~valid).abs().max()) == 0
    am = batch["am"].detach().clone()
    am[1, 4:], am[2, 5:] = 1e4, -1e4
    lm = batch["lm"].detach().clone()
    lm[1, 2:], lm[2, 1:] = -1e4, 1e4
    first, grads = simple_transducer_loss(batch["am"], batch["lm"], batch["symbols"], batch["boundary"])
    second, dirty_grads = simple_transducer_loss(am, lm, garbage, batch["boundary"])
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(grads, dirty_grads)


def test_batch_equals_batches_of_one(batch):
    ranges = band_of(batch, 3)
    logits = batch["lattice"].gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V))
    together = pruned_transducer_loss(logits, batch["symbols"], ranges, batch["boundary"])
    simple, _ = simple_transducer_loss(batch["am"], batch["lm"], batch["symbols"], batch["boundary"])
    for b in range(B):
        n, s = X_LENS[b], max(1, int(Y_LENS[b]))
        one = make_boundary(X_LENS[b : b + 1], Y_LENS[b : b + 1])
        keep = min(3, s + 1)
        alone = pruned_transducer_loss(
            logits[b : b + 1, :n, :keep], batch["symbols"][b : b + 1, :s], ranges[b : b + 1, :n, :keep], one
        )
        torch.testing.assert_close(alone[0], together[b])
        alone, _ = simple_transducer_loss(
            batch["am"][b : b + 1, :n], batch["lm"][b : b + 1, : s + 1], batch["symbols"][b : b + 1, :s], one
        )
        torch.testing.assert_close(alone[0], simple[b])


def test_s_range_may_be_smaller_than_asked(batch):
    ranges = band_of(batch, 50)
    assert ranges.shape == (B, T, S + 1)
    torch.testing.assert_close(ranges, whole_lattice(B, T, S))


def test_band_is_consecutive_starts_at_zero_and_reaches_last_symbol(batch):
    ranges = band_of(batch, 2)
    assert (ranges[:, 0, 0] == 0).all()
    assert (ranges.diff(dim=2) == 1).all()
    step = ranges[:, :, 0].diff(dim=1)
    assert (step >= 0).all() and (step <= 1).all()
    for b in range(B):
        assert int(ranges[b, X_LENS[b] - 1, -1]) >= int(Y_LENS[b])


def test_select_band_equals_indexing_in_value_and_gradient(batch):
    ranges = band_of(batch, 3)
    lm = batch["lm"]
    ours = select_band(lm, ranges)
    plain = torch.stack([lm[b][ranges[b]] for b in range(B)])
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), lm), torch.autograd.grad((plain * weights).sum(), lm)
    )


def test_bfloat16_under_autocast_is_computed_in_float32(batch):
    am, lm = batch["am"].detach().bfloat16(), batch["lm"].detach().bfloat16()
    lattice = batch["lattice"].detach().bfloat16()
    ranges = whole_lattice(B, T, S)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        simple, _ = simple_transducer_loss(am, lm, batch["symbols"], batch["boundary"])
        pruned = pruned_transducer_loss(lattice, batch["symbols"], ranges, batch["boundary"])
    exact, _ = simple_transducer_loss(am.double(), lm.double(), batch["symbols"], batch["boundary"])
    exact_pruned = pruned_transducer_loss(lattice.double(), batch["symbols"], ranges, batch["boundary"])
    assert simple.dtype == pruned.dtype == torch.float32
    torch.testing.assert_close(simple.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pruned.double(), exact_pruned, rtol=1e-5, atol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`x_lens` \(2 frames.*utterance 1 .*tokens \(3\)"):
        make_boundary(torch.tensor([5, 2]), torch.tensor([3, 3]))
    with pytest.raises(ValueError, match=r"`x_lens` \(0 frames"):
        make_boundary(torch.tensor([0]), torch.tensor([0]))
    empty = torch.zeros(1, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`symbols` \(S = 0\)"):
        simple_transducer_loss(torch.zeros(1, 4, V), torch.zeros(1, 1, V), empty, torch.tensor([[0, 0, 0, 4]]))
    with pytest.raises(ValueError, match="padded to S = 5.*T = 4"):
        pruned_transducer_loss(
            torch.zeros(1, 4, 2, V),
            torch.ones(1, 5, dtype=torch.int64),
            torch.zeros(1, 4, 2, dtype=torch.int64),
            torch.tensor([[0, 0, 2, 4]]),
        )
    with pytest.raises(ValueError, match=r"`prune_range` \(1\)"):
        prune_ranges(torch.zeros(1, 2, 5), torch.zeros(1, 3, 4), torch.tensor([[0, 0, 2, 4]]), 1)
