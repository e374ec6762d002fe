"""N-best lists off a lattice of k2. Imports no k2: a lattice brings its own methods."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twopass_kd.search.modified_beam import HASH_FACTOR, merge
from twopass_kd.search.nbest import Hypothesis, NBest


class _Arcs(NamedTuple):
    """The arcs of a lattice, one more that stands for "no arc", and its states numbered frame by frame.

    src: (A + 1,) int64, score: (A + 1,) float32, -inf for no arc; label: (A + 1,) int64.
    entering: (num_states, D) int64, the arcs that enter each state, filled up with A; degree: (num_states,) how many.
    frames: first state of each frame, and the number of states. final: (B,) int64, last state of each utterance.
    """

    src: Tensor
    label: Tensor
    score: Tensor
    entering: Tensor
    degree: Tensor
    frames: list[int]
    final: Tensor


def nbest_of_lattice(lattice: Any, num_frames: Tensor, end: int, width: int, several_paths: bool = True) -> list[NBest]:
    """The most probable token sequences of a lattice whose arcs take a frame each.

    Goes through the frames of all utterances at once. A state keeps its `width` best token sequences, each with the
    sum over its alignments on one path of the graph, out of the `2 * width` best ways to enter it. Of several paths
    that a graph has for the same tokens (the back-offs of an n-gram) the best one counts: their sum would grow with
    each word. Deterministic, where icefall samples paths; exact where no state has more.

    Args:
      lattice: k2.Fsa of 3 axes with two attributes: `graph_score`, (num_arcs,) float32, the share of `scores` that is
        not of the model, and `graph_arc`, (num_arcs,) int32, the arc of the graph, -1 for blank. Its labels are tokens,
        0 (blank), `end` and k2's -1 of the final arc.
      num_frames: (B,) int64, arcs of each path but for the last two (`end` and the final arc).
      end: a label that is no token.
      width: how many hypotheses a state keeps, and are returned at most.
      several_paths: whether the graph may have several paths for the same tokens; False is faster.
    Returns:
      For each utterance its hypotheses by falling `log_prob + graph_score`, `log_prob` being that of the model alone;
      `frames` are those of the best alignment.
    """
    # A frame is one batched step over its states. Of each state we keep `width` token sequences in `slots`:
    #   total        (num_states, width) log-prob of a sequence, summed over its alignments; -inf is an empty slot
    #   spelling     hash of its tokens: equal ones in one state are the same sequence, met on another alignment
    #   graph_path   hash of the graph's arcs that it took, since only alignments on one path are summed
    #   origin       through which entering arc and from which slot there its best alignment came, to go back by
    arcs = _arcs(lattice)
    num_arcs = len(arcs.src) - 1
    emits = (arcs.label > 0) & (arcs.label != end)
    spell = _rolling_hash(torch.where(emits, arcs.label, -1))
    follow = _rolling_hash(torch.cat([lattice.graph_arc.long(), arcs.src.new_full((1,), -1)]))
    shape = (arcs.frames[-1], width)
    total = arcs.score.new_full(shape, float("-inf"))
    spelling, graph_path = arcs.src.new_zeros(shape), arcs.src.new_zeros(shape)
    origin = arcs.src.new_zeros(shape)  # position among the entering arcs * width + slot there
    total[: arcs.frames[1], 0] = 0.0  # the first frame has the start states: one empty sequence each
    for begin, stop in zip(arcs.frames[1:], arcs.frames[2:]):
        entering = arcs.entering[begin:stop, : int(arcs.degree[begin:stop].max())]
        before = arcs.src[entering]  # (S, D) states of the frame before; for "no arc" any one, at a score of -inf
        # (S, D * width): every sequence of every state before, by the arc that leads here.
        summed = (total[before] + arcs.score[entering].unsqueeze(2)).flatten(1)
        # What comes after the first 2 * width would hardly change the sums, and merging compares all with all.
        summed, order = summed.topk(min(2 * width, summed.size(1)), dim=1)
        spelt = spell(spelling[before], entering).gather(1, order)
        if several_paths:
            # First the alignments on one path of the graph are added up, then the best path stands for its tokens.
            path = follow(graph_path[before], entering).gather(1, order)
            total[begin:stop], keep = _best_of_equal(merge(summed, path), spelt).topk(width, dim=1)
            graph_path[begin:stop] = path.gather(1, keep)
        else:
            total[begin:stop], keep = merge(summed, spelt).topk(width, dim=1)
        spelling[begin:stop] = spelt.gather(1, keep)
        origin[begin:stop] = order.gather(1, keep)

    # Backwards along the best paths of the best sequences, all utterances at once.
    state = arcs.final.unsqueeze(1).expand(-1, width)
    totals, slot = total[arcs.final].sort(dim=1, descending=True)
    path = []
    for _ in arcs.frames[2:]:
        came = origin[state, slot]
        # `came` counts the entering arcs of the state with `width` slots each. Shorter utterances reach their start
        # state earlier and stay there: it has no arc that enters it.
        arc = arcs.entering[state, torch.div(came, width, rounding_mode="floor")]
        slot = torch.where(arc < num_arcs, came % width, slot)
        state = torch.where(arc < num_arcs, arcs.src[arc], state)
        path.append(arc)
    taken = torch.stack(path[::-1], dim=2)  # (B, width, steps), the ends aligned
    graph = torch.cat([lattice.graph_score, lattice.graph_score.new_zeros(1)])[taken].sum(2)
    tokens = torch.where(emits, arcs.label, 0)[taken].tolist()
    offsets = (taken.size(2) - 2 - num_frames).tolist()  # steps that an utterance stood still at its start
    return [
        [
            Hypothesis(
                [k for k in row if k],
                log_prob - graph_score,
                [t - offset for t, k in enumerate(row) if k],
                graph_score,
            )
            for row, log_prob, graph_score in zip(*rows)
            if log_prob != float("-inf")
        ]
        for offset, *rows in zip(offsets, tokens, totals.tolist(), graph.tolist())
    ]


def _rolling_hash(labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What appends the labels of arcs (S, D) to hashed sequences (S, D, width), as (S, D * width); below 0 is none."""
    factor, addend = torch.where(labels >= 0, HASH_FACTOR, 1), torch.where(labels >= 0, labels + 1, 0)
    return lambda hashes, arcs: (hashes * factor[arcs].unsqueeze(2) + addend[arcs].unsqueeze(2)).flatten(1)


def _best_of_equal(log_prob: Tensor, spelling: Tensor) -> Tensor:
    """Of those with equal spelling keep the best, of equally good ones the first; the others get -inf. Both (B, K)."""
    same = spelling.unsqueeze(2) == spelling.unsqueeze(1)
    other, own = log_prob.unsqueeze(1), log_prob.unsqueeze(2)
    beaten = (other > own) | ((other == own) & torch.ones_like(same[0]).tril(-1))
    return log_prob.masked_fill((same & beaten).any(2), float("-inf"))


def _arcs(lattice: Any) -> _Arcs:
    """The arcs of a lattice by the states that they enter, states in the order of their frames.

    k2 keeps arcs by the states that they leave. Here each frame looks at all that enters its states, so these are
    listed in a table, (num_states, largest degree), whose short rows are filled up with the number of "no arc".
    """
    arcs, splits = lattice.arcs.values(), lattice.arcs.row_splits(1)
    src = lattice.arcs.row_ids(2).long()
    dst = arcs[:, 1] + splits[lattice.arcs.row_ids(1).long()[src]]  # k2 numbers the states of each utterance from 0
    # k2's batches of states whose entering arcs come from earlier batches are the frames here.
    batches = lattice._get_state_batches()
    order = batches.values.long()
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=order.device)
    frames = batches.shape.row_splits(2)[batches.shape.row_splits(1).long()].tolist()

    src, dst = number[src], number[dst.long()]
    # Arcs sorted by where they lead, and the place of each among those that lead to the same state.
    degree = torch.bincount(dst, minlength=len(order))
    by_dst = dst.argsort(stable=True)
    position = torch.arange(len(dst), device=dst.device) - (degree.cumsum(0) - degree)[dst[by_dst]]
    entering = dst.new_full((len(order), int(degree.max())), len(dst))
    entering[dst[by_dst], position] = by_dst
    return _Arcs(
        torch.cat([src, src.new_zeros(1)]),
        torch.cat([lattice.labels.long(), src.new_zeros(1)]),
        torch.cat([lattice.scores, lattice.scores.new_full((1,), float("-inf"))]),
        entering,
        degree,
        frames,
        number[splits[1:].long() - 1],
    )
