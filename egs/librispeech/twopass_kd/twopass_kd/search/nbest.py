"""The n-best type that every search returns and the second pass takes."""

from dataclasses import dataclass
from typing import List

import torch
from torch import Tensor


@dataclass
class Hypothesis:
    """One transcription of an utterance.

    Attributes:
      tokens: token ids, no blank, no sos or eos.
      log_prob: log P_rnnt(tokens | audio) as the search estimates it (nats).
      frames: for each token, the encoder frame that emitted it.
    """

    tokens: List[int]
    log_prob: float
    frames: List[int]


NBest = List[Hypothesis]  # best first


def pad_tokens(rows: List[List[int]], value: int) -> Tensor:
    """(len(rows), longest) int64, padded with `value`; at least one column."""
    width = max([1, *(len(r) for r in rows)])
    return torch.tensor([r + [value] * (width - len(r)) for r in rows], dtype=torch.int64)
