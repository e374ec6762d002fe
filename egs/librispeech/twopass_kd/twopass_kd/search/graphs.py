"""Decoding graphs for `fast_beam_search`: any tokens, or rewarded phrases. Those with a language model: lm_graph.py.

All are acceptors over tokens. A sentence ends with an arc of the end label (the model's `<unk>`, which no search says),
which carries the final score: k2's search leaves out the scores of its own final arcs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Arc = tuple[int, int, int, float]  # source state, destination, label, score


def import_k2(what: str) -> Any:
    """k2, or an ImportError that says what needs it."""
    try:
        import k2
    except ImportError as e:
        raise ImportError(f"{what} needs k2, which does not import here ({e})") from e
    return k2


class DecodingGraph:
    """An acceptor over tokens, as k2 searches it.

    Args:
      arcs: (num_arcs, 4) int32, sorted by source: source state, destination, label, bits of the float32 score.
      scale: of the scores.
      device: where the search runs; None: the CPU.

    Attributes:
      is_deterministic: whether a token sequence has no more than one path.
    """

    def __init__(self, arcs: Tensor, scale: float = 1.0, device: torch.device | None = None) -> None:
        self.is_deterministic = len(arcs[:, [0, 2]].unique(dim=0)) == len(arcs)
        scores = arcs[:, 3].contiguous().view(torch.float32) * scale
        arcs = torch.cat([arcs[:, :3], scores.view(torch.int32).unsqueeze(1)], dim=1)  # k2 keeps and changes its arcs
        self.fsa = import_k2("a decoding graph").Fsa(arcs.to(device or torch.device("cpu")))
        self._scores = torch.cat([self.fsa.scores, self.fsa.scores.new_zeros(1)])

    def scores_of(self, arcs: Tensor) -> Tensor:
        """Scores (N,) float32 of arcs (N,) int32 of the graph; -1 stands for the blanks, which are in no graph."""
        return self._scores[arcs.long()]


def pack_arcs(arcs: Sequence[Arc]) -> Tensor:
    """Arcs as a tensor for `DecodingGraph`. The state with the highest number must be the final one."""
    arcs = sorted(arcs)
    scores = torch.tensor([arc[3] for arc in arcs], dtype=torch.float32)
    return torch.cat([torch.tensor([arc[:3] for arc in arcs], dtype=torch.int32), scores.view(torch.int32)[:, None]], 1)


def end_with(arcs: Tensor, end: int) -> Tensor:
    """Put the end label on the final arcs of a graph that has k2's -1 there, and a final arc without score after it."""
    final = int(arcs[:, 1].max())
    arcs = torch.cat([arcs, arcs.new_tensor([[final, final + 1, -1, 0]])])
    arcs[:-1, 2][arcs[:-1, 2] == -1] = end
    return arcs


def trivial_graph(vocab_size: int, end: int) -> Tensor:
    """Arcs of the graph that takes any tokens and adds no scores (k2's `trivial_graph`, with our end).

    Args:
      vocab_size: V; blank is 0.
      end: the end label, a token that no search says.
    """
    return hotword_graph([], 0.0, vocab_size, end)


def hotword_graph(phrases: Sequence[Sequence[int]], score: float, vocab_size: int, end: int) -> Tensor:
    """Arcs of the graph that takes any tokens and rewards phrases (Aho-Corasick; icefall's `ContextGraph`).

    Each time a phrase occurs it adds `score` for every token of it. The tokens of a phrase that has begun are rewarded
    at once, so that it survives in the beam, which is taken back where it does not go on.

    Args:
      phrases: token ids of each phrase, none empty. A phrase is also found where a longer word begins with its tokens.
      score: nats for each token.
      vocab_size, end: as for `trivial_graph`.
    """
    children: list[dict[int, int]] = [{}]
    depth, reward = [0], [0.0]
    for phrase in phrases:
        node = 0
        for token in phrase:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                depth.append(depth[node] + 1)
                reward.append(0.0)
            node = children[node][token]
        reward[node] = score * len(phrase)
    # Breadth first, so that what a node falls back to, the longest suffix of it that begins a phrase, is complete.
    follow: list[dict[int, int]] = [{} for _ in children]
    fallback = [0] * len(children)
    queue = [0]
    for node in queue:
        back = fallback[node]
        if node:
            reward[node] += reward[back]
        for token in range(1, vocab_size):
            child = children[node].get(token)
            falls_to = follow[back][token] if node else 0
            follow[node][token] = falls_to if child is None else child
            if child is not None:
                fallback[child] = falls_to
                queue.append(child)
    begun = [score * d if c else 0.0 for d, c in zip(depth, children)]
    final = len(children)
    arcs: list[Arc] = []
    for node, targets in enumerate(follow):
        arcs += [
            (node, to, token, begun[to] - begun[node] + reward[to]) for token, to in targets.items() if token != end
        ]
        arcs.append((node, final, -1, -begun[node]))
    return end_with(pack_arcs(arcs), end)
