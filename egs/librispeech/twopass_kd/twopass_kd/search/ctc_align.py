"""Forced alignment: the frame at which a CTC head says each token of a given text."""

import torch
from torch import Tensor


@torch.no_grad()
def ctc_align(
    log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor, blank_id: int = 0
) -> tuple[Tensor, Tensor]:
    """The most probable path of CTC that gives the tokens (Viterbi), for a batch at once.

    Neither stack has an aligner that could be taken: torchaudio is in none, k2 in one.

    Args:
      log_probs: (B, T, V) of the CTC head.
      lens: (B,) int64, frames of each utterance.
      tokens: (B, S) int64, padded with any token id.
      token_lens: (B,) int64.
    Returns:
      First and last frame of each token, (B, S) int64 each; both -1 in padding, and in utterances that have no path,
      since their frames are fewer than their tokens (and blanks between equal ones).
    """
    batch, num_frames, _ = log_probs.shape
    size = tokens.shape[1]
    labels = torch.full((batch, 2 * size + 1), blank_id, dtype=torch.int64, device=log_probs.device)
    labels[:, 1::2] = tokens
    may_skip = torch.zeros_like(labels, dtype=torch.bool)  # the blank between two tokens that differ
    may_skip[:, 3::2] = tokens[:, 1:] != tokens[:, :-1]
    emissions = log_probs.gather(2, labels.unsqueeze(1).expand(-1, num_frames, -1))  # (B, T, 2 S + 1)
    score = torch.full(labels.shape, -torch.inf, dtype=log_probs.dtype, device=log_probs.device)
    score[:, :2] = emissions[:, 0, :2]
    steps = torch.zeros(num_frames, *labels.shape, dtype=torch.int64, device=log_probs.device)  # states to go back
    for t in range(1, num_frames):
        one = torch.nn.functional.pad(score, (1, 0), value=-torch.inf)[:, :-1]
        two = torch.nn.functional.pad(score, (2, 0), value=-torch.inf)[:, :-2].masked_fill(~may_skip, -torch.inf)
        best, step = torch.stack([score, one, two]).max(0)
        inside = (t < lens).unsqueeze(1)
        score = torch.where(inside, best + emissions[:, t], score)
        steps[t] = torch.where(inside, step, 0)
    ends = torch.stack([2 * token_lens, (2 * token_lens - 1).clamp(min=0)], dim=1)
    last = score.gather(1, ends)
    state = ends.gather(1, last.argmax(1, keepdim=True)).squeeze(1)
    possible = last.amax(1) > -torch.inf
    first_frames = torch.full((batch, size), -1, dtype=torch.int64, device=log_probs.device)
    last_frames = first_frames.clone()
    rows = torch.arange(batch, device=log_probs.device)
    for t in reversed(range(num_frames)):
        here = rows[(t < lens) & (state % 2 == 1) & possible]
        token = state[here] // 2
        first_frames[here, token] = t
        last_frames[here, token] = torch.where(last_frames[here, token] < 0, t, last_frames[here, token])
        state = state - steps[t].gather(1, state.unsqueeze(1)).squeeze(1)
    return first_frames, last_frames
