"""Batched greedy search."""

import torch
from torch import Tensor

from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.search.nbest import Hypothesis, NBest


@torch.no_grad()
def greedy_search(model: TwoPassModel, encoder_out: Tensor, encoder_out_lens: Tensor) -> list[NBest]:
    """The most probable token at each frame, at most one symbol a frame (as icefall's `greedy_search_batch`).

    `<unk>` counts as blank, as it does there.

    Args:
      encoder_out: (B, T, C) of the shared encoder.
      encoder_out_lens: (B,) int64, frames after subsampling.
    Returns:
      For each utterance a list with one hypothesis.
    """
    batch, num_frames = encoder_out.shape[:2]
    joiner, decoder, blank = model.joiner, model.decoder, model.blank_id
    am = joiner.encoder_proj(encoder_out)
    tokens = torch.full((batch,), blank, dtype=torch.int64, device=am.device)
    decoder_out, state = decoder.step(tokens, decoder.init_state(batch))
    lm = joiner.decoder_proj(decoder_out)
    emitted, scores = [], []  # one (B,) per frame
    for t in range(num_frames):
        log_probs = joiner(am[:, t], lm, project_input=False).log_softmax(-1)
        best, tokens = log_probs.max(-1)
        valid = t < encoder_out_lens
        tokens = torch.where(valid & (tokens != model.unk_id), tokens, blank)
        emitted.append(tokens)
        scores.append(torch.where(valid, best, 0.0))
        emits = (tokens != blank).nonzero().squeeze(1)
        if len(emits):
            decoder_out, new_state = decoder.step(tokens[emits], tuple(s[emits] for s in state))
            lm[emits] = joiner.decoder_proj(decoder_out)
            for old, new in zip(state, new_state):
                old[emits] = new
    log_prob = torch.stack(scores).sum(0).tolist()
    rows = torch.stack(emitted, dim=1).tolist()
    return [
        [Hypothesis([k for k in row if k != blank], score, [t for t, k in enumerate(row) if k != blank])]
        for row, score in zip(rows, log_prob)
    ]
