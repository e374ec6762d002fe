"""The second pass: the attention decoder rescores the first pass's n-best lists."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from twopass_kd.losses.attention import attention_loss, make_attention_targets
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.search.nbest import Hypothesis, NBest, two_pass_scores


@torch.no_grad()
def attention_log_probs(
    model: TwoPassModel,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    nbests: list[NBest],
    sos_id: int,
    eos_id: int,
) -> list[list[float]]:
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
    y = pad_sequence([torch.tensor(r, dtype=torch.int64) for r in rows], batch_first=True, padding_value=eos_id)
    inputs, targets = make_attention_targets(y, torch.tensor([len(r) for r in rows]), sos_id, eos_id)
    inputs = inputs.reshape(len(nbests), width, -1).to(encoder_out.device)
    logits = model.attention_decoder(encoder_out, encoder_out_lens, inputs)
    log_probs = -attention_loss(logits.flatten(0, 1), targets.to(logits.device)).reshape(len(nbests), width)
    return [row[: len(nbest)] for row, nbest in zip(log_probs.tolist(), nbests)]


def rescore_with_attention_decoder(
    nbest: NBest, attention: list[float], weight: float, length_reward: float = 0.0
) -> Hypothesis:
    """The hypothesis with the best of the `two_pass_scores`; ties go to the earlier one.

    Args: as `two_pass_scores` has them.
    """
    scores = two_pass_scores(nbest, attention, weight, length_reward)
    return nbest[max(range(len(scores)), key=lambda i: scores[i])]
