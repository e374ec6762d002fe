"""Batched modified beam search: all utterances and all hypotheses of a frame in one call, no loop per hypothesis."""

import torch
from torch import Tensor

from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.search.nbest import Hypothesis, NBest, best_first

# Hypotheses with the same tokens are found by a rolling hash of them, h' = h * factor + token + 1, in int64 that wraps
# around. Nothing checks that equal hashes are equal tokens: two different sequences collide with a probability of about
# 2^-64, and only those that meet in one beam (or one state of a lattice) are compared. At beam 8 and 25 frames a second
# these are 700 pairs for a second of audio, 2.5e9 for 1000 hours: one collision in 7e9 such corpora. It would merge two
# hypotheses of one utterance. The factor is that of Knuth's MMIX generator; it is odd, so that no token is lost.
HASH_FACTOR = 6364136223846793005


@torch.no_grad()
def modified_beam_search(
    model: TwoPassModel, encoder_out: Tensor, encoder_out_lens: Tensor, beam: int = 4, nbest: int = 4
) -> list[NBest]:
    """Beam search with at most one symbol a frame (the search of icefall's function of that name).

    At each frame the `beam` most probable extensions over all hypotheses survive; those that spell the same tokens are
    merged and their probabilities added. `<unk>` counts as blank, as it does there.

    Args:
      encoder_out: (B, T, C) of the shared encoder.
      encoder_out_lens: (B,) int64, frames after subsampling.
      beam: hypotheses kept for each utterance.
      nbest: how many to return at most; merging may leave fewer.
    Returns:
      For each utterance its hypotheses, best first (`best_first`); their log-probs are not normalised by length.
    """
    batch, num_frames = encoder_out.shape[:2]
    device = encoder_out.device
    joiner, decoder, blank = model.joiner, model.decoder, model.blank_id
    am = joiner.encoder_proj(encoder_out).unsqueeze(2)  # (B, T, 1, C)
    blanks = torch.full((batch * beam,), blank, dtype=torch.int64, device=device)
    decoder_out, state = decoder.step(blanks, decoder.init_state(batch * beam))
    lm = joiner.decoder_proj(decoder_out).reshape(batch, beam, -1)
    log_prob = torch.full((batch, beam), float("-inf"), device=device)
    log_prob[:, 0] = 0.0  # one empty hypothesis each
    spelling = torch.zeros(batch, beam, dtype=torch.int64, device=device)
    # Where each survivor came from and what it emitted, frame by frame: hypotheses are read off backwards at the end.
    parents, emitted = [], []
    stay = torch.arange(beam, device=device).expand(batch, beam)
    offset = (torch.arange(batch, device=device) * beam).unsqueeze(1)

    for t in range(num_frames):
        valid = (t < encoder_out_lens).unsqueeze(1)  # (B, 1)
        scores = joiner(am[:, t], lm, project_input=False).log_softmax(-1) + log_prob.unsqueeze(-1)  # (B, K, V)
        vocab = scores.size(-1)
        top, index = scores.flatten(1).topk(beam, dim=1)
        parent = torch.div(index, vocab, rounding_mode="floor")
        token = index - parent * vocab
        # A finished utterance keeps its hypotheses as they are.
        parent = torch.where(valid, parent, stay)
        token = torch.where(valid & (token != model.unk_id), token, blank)
        log_prob = torch.where(valid, top, log_prob)
        parents.append(parent)
        emitted.append(token)

        emits = token != blank
        spelling = spelling.gather(1, parent)
        spelling = torch.where(emits, spelling * HASH_FACTOR + token + 1, spelling)
        log_prob = torch.where(valid, merge(log_prob, spelling), log_prob)

        rows = (parent + offset).flatten()
        lm = lm.flatten(0, 1)[rows]
        state = tuple(s[rows] for s in state)
        moved = emits.flatten().nonzero().squeeze(1)
        if len(moved):
            decoder_out, new_state = decoder.step(token.flatten()[moved], tuple(s[moved] for s in state))
            lm[moved] = joiner.decoder_proj(decoder_out)
            for old, new in zip(state, new_state):
                old[moved] = new
        lm = lm.reshape(batch, beam, -1)
    beams = _read_off(torch.stack(parents), torch.stack(emitted), log_prob, blank)
    return [best_first(hyps, decoder.context_size)[:nbest] for hyps in beams]


def merge(log_prob: Tensor, spelling: Tensor) -> Tensor:
    """Add up hypotheses of equal spelling in the first of them; the others get -inf. Both (B, K)."""
    same = (spelling.unsqueeze(2) == spelling.unsqueeze(1)) & torch.isfinite(log_prob).unsqueeze(1)
    # logsumexp with K exponentials instead of K * K; in float64 none is lost within 700 nats of the best.
    best = log_prob.amax(1, keepdim=True).clamp(min=torch.finfo(log_prob.dtype).min)
    shares = (log_prob - best).double().exp().unsqueeze(1)
    summed = ((same * shares).sum(2).log() + best).to(log_prob.dtype)
    earlier = torch.ones_like(same[0]).tril(-1)
    return summed.masked_fill((same & earlier).any(2), float("-inf"))


def _read_off(parents: Tensor, emitted: Tensor, log_prob: Tensor, blank: int) -> list[list[Hypothesis]]:
    """Follow the back-pointers of what is in the beams. parents, emitted: (T, B, K); log_prob: (B, K)."""
    score, slot = log_prob.sort(dim=1, descending=True)
    path = []
    for parent, token in zip(parents.flip(0), emitted.flip(0)):
        path.append(token.gather(1, slot))
        slot = parent.gather(1, slot)
    rows = torch.stack(path[::-1], dim=2).tolist()  # (B, K, T)
    return [
        [
            Hypothesis([k for k in row if k != blank], s, [t for t, k in enumerate(row) if k != blank])
            for row, s in zip(rows_of_utterance, scores)
            if s != float("-inf")
        ]
        for rows_of_utterance, scores in zip(rows, score.tolist())
    ]
