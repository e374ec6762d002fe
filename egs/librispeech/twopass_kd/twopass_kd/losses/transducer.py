"""The pruned transducer loss: a cheap simple loss chooses a band of the lattice, the joiner works on that band.

Kuang et al. 2022, "Pruned RNN-T for fast, memory-efficient ASR training", arXiv 2206.13236. Whose recursion over the
lattice it is, rnnt_backend.py says; all values are per utterance and in nats.
"""

import torch
from torch import Tensor

from twopass_kd.losses.band import band_arcs, end_labels
from twopass_kd.losses.precision import at_least_float32, autocast_off
from twopass_kd.losses.rnnt_backend import transducer_recursion


def make_boundary(x_lens: Tensor, y_lens: Tensor) -> Tensor:
    """What k2 calls `boundary`: where each utterance begins and ends in the lattice.

    Args:
      x_lens: (B,) integer, encoder frames of each utterance.
      y_lens: (B,) integer, symbols of each utterance.
    Returns:
      (B, 4) int64 on the device of `x_lens`: begin_symbol = 0, begin_frame = 0, end_symbol, end_frame.
    Raises:
      ValueError: if an utterance has fewer frames than symbols, or no frame. Pruned paths then need not exist.
    """
    boundary = torch.zeros(x_lens.shape[0], 4, dtype=torch.int64, device=x_lens.device)
    boundary[:, 2] = y_lens
    boundary[:, 3] = x_lens
    bad = (boundary[:, 3] < boundary[:, 2]) | (boundary[:, 3] < 1)
    if bad.any():
        b = int(bad.nonzero()[0])
        raise ValueError(
            f"`x_lens` ({int(x_lens[b])} frames after subsampling, utterance {b} of the batch) must be at least 1 and "
            f"at least its number of tokens ({int(y_lens[b])}); leave that utterance out, or use larger BPE pieces or "
            "less subsampling"
        )
    return boundary


def simple_transducer_loss(
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    boundary: Tensor,
    blank_id: int = 0,
    lm_only_scale: float = 0.25,
    am_only_scale: float = 0.0,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss of a joiner that only adds, smoothed, and the arc occupations that it gives.

    Equals `k2.rnnt_loss_smoothed` (section 3.1 of the paper), but for how the arc scores are made: the backward pass of
    k2's makes a tensor of the size (B, S, T, V), more than all the rest of a training step.

    Args:
      am: (B, T, V) logits of the encoder's simple head; padding may be any finite number.
      lm: (B, S + 1, V) logits of the decoder's simple head; padding may be any finite number.
      symbols: (B, S) int64, padded with any token id.
      boundary: (B, 4) of `make_boundary`.
      blank_id: id of the blank.
      lm_only_scale: share of the loss from the decoder alone.
      am_only_scale: share of the loss from the encoder alone; above 0 it averages the decoder over the whole batch,
        padding included, so that an utterance's loss then depends on its batch.
      rnnt_type: "regular" (any number of symbols a frame) | "modified" (k2's: each symbol takes a frame, so at most one
        a frame, as greedy and modified beam search decode).
      delay_penalty: see `penalise_delay`.
    Returns:
      (loss, (px_grad, py_grad)): loss (B,) float32 (or float64); px_grad (B, S, T + 1), or (B, S, T) for "modified",
      and py_grad (B, S + 1, T), the occupations of label and blank arcs without gradient, for `prune_ranges`.
    Raises:
      ValueError: if no utterance of the batch has a symbol, or there are fewer padded frames than padded symbols.
    """
    _check_symbols(symbols, am.shape[1])
    with autocast_off(am):
        px, py = _smoothed_arcs(
            at_least_float32(am), at_least_float32(lm), symbols, blank_id, lm_only_scale, am_only_scale
        )
        if rnnt_type == "regular":
            px = end_labels(px, boundary)
        px = penalise_delay(px, boundary, delay_penalty)
        log_prob, arcs = transducer_recursion(px, py, boundary)
    return -log_prob, arcs


def _smoothed_arcs(
    am: Tensor, lm: Tensor, symbols: Tensor, blank_id: int, lm_only_scale: float, am_only_scale: float
) -> tuple[Tensor, Tensor]:
    """Scores of the label arcs (B, S, T) and of the blank arcs (B, S + 1, T), nowhere with both B, S, T and V."""
    tiny = torch.finfo(am.dtype).tiny
    am_max, lm_max = am.amax(2, keepdim=True).detach(), lm.amax(2, keepdim=True).detach()
    am_exp, lm_exp = (am - am_max).exp(), (lm - lm_max).exp()
    norm = (lm_exp @ am_exp.transpose(1, 2) + tiny).log() + lm_max + am_max.transpose(1, 2)  # (B, S + 1, T)

    am_label = am.gather(2, symbols.unsqueeze(1).expand(-1, am.shape[1], -1)).transpose(1, 2)  # (B, S, T)
    am_blank = am[:, :, blank_id].unsqueeze(1)  # (B, 1, T)
    px = am_label + lm[:, :-1].gather(2, symbols.unsqueeze(2)) - norm[:, :-1]
    py = am_blank + lm[:, :, blank_id].unsqueeze(2) - norm

    lm_only = lm.log_softmax(2)
    both_scale = 1 - lm_only_scale - am_only_scale
    px = both_scale * px + lm_only_scale * lm_only[:, :-1].gather(2, symbols.unsqueeze(2))
    py = both_scale * py + lm_only_scale * lm_only[:, :, blank_id].unsqueeze(2)
    if am_only_scale != 0:
        unigram = lm_only.exp().mean((0, 1)) + tiny  # (V,): the decoder averaged over the batch
        am_norm = ((am_exp @ unigram).log() + am_max.squeeze(2)).unsqueeze(1)  # (B, 1, T)
        log_unigram = unigram.log()
        px = px + am_only_scale * (am_label + log_unigram[symbols].unsqueeze(2) - am_norm)
        py = py + am_only_scale * (am_blank + log_unigram[blank_id] - am_norm)
    return px, py


def pruned_transducer_loss(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    blank_id: int = 0,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
) -> Tensor:
    """The transducer loss on the band (`k2.rnnt_loss_pruned`): minus the log-prob of all paths inside it.

    Args:
      logits: (B, T, s_range, V) of the joiner on the band; padding may be any finite number.
      symbols: (B, S) int64, padded with any token id.
      ranges: (B, T, s_range) of `prune_ranges`.
      boundary: (B, 4) of `make_boundary`.
      blank_id: id of the blank.
      rnnt_type: as for `simple_transducer_loss`, and the same.
      delay_penalty: see `penalise_delay`.
    Returns:
      (B,) float32 (or float64).
    Raises:
      ValueError: if no utterance of the batch has a symbol, or there are fewer padded frames than padded symbols.
    """
    _check_symbols(symbols, logits.shape[1])
    with autocast_off(logits):
        px, py = band_arcs(at_least_float32(logits), symbols, ranges, boundary, blank_id, rnnt_type)
        return -transducer_recursion(penalise_delay(px, boundary, delay_penalty), py, boundary)[0]


def penalise_delay(px: Tensor, boundary: Tensor, delay_penalty: float) -> Tensor:
    """Scores of label arcs with a reward for early symbols and a penalty for late ones, as k2's `delay_penalty` has it.

    Kang et al. 2023, "Delay-penalized transducer for low-latency streaming ASR", arXiv 2211.00490.

    Args:
      px: (B, S, T + 1), or (B, S, T) for "modified".
      boundary: (B, 4) of `make_boundary`.
      delay_penalty: nats for a symbol and a frame; what is in the middle of an utterance gets none.
    """
    if delay_penalty == 0:
        return px
    middle = (boundary[:, 3].to(px.dtype) - 1) / 2
    frames = torch.arange(px.shape[2], device=px.device, dtype=px.dtype)
    return px + delay_penalty * (middle.view(-1, 1, 1) - frames)


def _check_symbols(symbols: Tensor, num_frames: int) -> None:
    """What k2 only asserts."""
    if symbols.shape[1] < 1:
        raise ValueError("`symbols` (S = 0) must hold a token in at least one utterance; leave empty transcripts out")
    if num_frames < symbols.shape[1]:
        raise ValueError(
            f"`symbols` (padded to S = {symbols.shape[1]}) must not exceed the padded frames (T = {num_frames}); "
            "leave out utterances with more tokens than frames, and cut padding that no utterance needs"
        )
