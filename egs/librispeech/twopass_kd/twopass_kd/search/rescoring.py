"""The second pass: the attention decoder rescores the first pass's n-best lists."""

from typing import List

import torch
from torch import Tensor

from twopass_kd.losses.attention import attention_loss, make_attention_targets
from twopass_kd.model import TwoPassModel
from twopass_kd.search.nbest import Hypothesis, NBest, pad_tokens


@torch.no_grad()
def attention_log_probs(
    model: TwoPassModel,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    nbests: List[NBest],
    sos_id: int,
    eos_id: int,
) -> List[List[float]]:
    """log P_att(tokens, eos | audio) of every hypothesis, all lists of the batch in one call.

    Args:
      encoder_out: (B, T, C) of the shared encoder; each row serves all hypotheses of its utterance.
      encoder_out_lens: (B,) int64, frames after subsampling.
      nbests: B lists, of any lengths, none empty.
    Returns:
      B lists as long as those of `nbests`, in nats.
    """
    width = max(len(nbest) for nbest in nbests)
    rows = [nbest[i].tokens if i < len(nbest) else [] for nbest in nbests for i in range(width)]
    y_lens = torch.tensor([len(r) for r in rows])
    inputs, targets = make_attention_targets(pad_tokens(rows, eos_id), y_lens, sos_id, eos_id)
    inputs = inputs.reshape(len(nbests), width, -1).to(encoder_out.device)
    logits = model.attention_decoder(encoder_out, encoder_out_lens, inputs)
    log_probs = -attention_loss(logits.flatten(0, 1), targets.to(logits.device)).reshape(len(nbests), width)
    return [row[: len(nbest)] for row, nbest in zip(log_probs.tolist(), nbests)]


def rescore_with_attention_decoder(
    nbest: NBest, attention: List[float], weight: float, length_reward: float = 0.0
) -> Hypothesis:
    """The hypothesis with the best (1 - weight) log P_rnnt + weight log P_att + length_reward * number of tokens.

    Args:
      nbest: hypotheses of one utterance, best first; ties go to the earlier one.
      attention: their `attention_log_probs`.
      weight: of the attention decoder, in [0, 1].
      length_reward: nats per token.
    """
    scores = [
        (1 - weight) * hyp.log_prob + weight * log_prob + length_reward * len(hyp.tokens)
        for hyp, log_prob in zip(nbest, attention)
    ]
    return nbest[max(range(len(scores)), key=lambda i: scores[i])]
