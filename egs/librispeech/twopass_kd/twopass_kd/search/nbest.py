"""The n-best type that every search returns and the second pass takes. Imports no torch: devices use it too."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Hypothesis:
    """One transcription of an utterance.

    Attributes:
      tokens: token ids, no blank, no sos or eos.
      log_prob: log P_rnnt(tokens | audio) as the search estimates it (nats).
      frames: for each token, the encoder frame that emitted it.
      graph_score: what a decoding graph adds to `log_prob`: scaled log-probs of a language model, rewards of hotwords
        (nats). 0 where a search has no such graph.
    """

    tokens: list[int]
    log_prob: float
    frames: list[int]
    graph_score: float = 0.0


NBest = list[Hypothesis]  # best first


def best_first(hyps: Sequence[Hypothesis], context_size: int) -> NBest:
    """Sorted by score / (context_size + number of tokens), by which icefall and sherpa-onnx choose out of a beam.

    The score is `log_prob + graph_score`.

    Args:
      hyps: what a beam search has kept for one utterance; ties stay in their order.
      context_size: of the decoder; the blanks before the first token count as tokens.
    """
    return sorted(hyps, key=lambda hyp: -(hyp.log_prob + hyp.graph_score) / (context_size + len(hyp.tokens)))


def two_pass_scores(nbest: NBest, attention: Sequence[float], weight: float, length_reward: float = 0.0) -> list[float]:
    """(1 - weight) log P_rnnt + weight log P_att + length_reward * number of tokens + graph_score of every hypothesis.

    Args:
      nbest: hypotheses of one utterance.
      attention: their log P_att(tokens, eos | audio), in nats.
      weight: of the attention decoder, in [0, 1].
      length_reward: nats per token.
    """
    return [
        (1 - weight) * hyp.log_prob + weight * log_prob + length_reward * len(hyp.tokens) + hyp.graph_score
        for hyp, log_prob in zip(nbest, attention)
    ]
