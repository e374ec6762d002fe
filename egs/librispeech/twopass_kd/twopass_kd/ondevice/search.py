"""Streaming transducer search over the encoder frames of a chunk, many streams at once.

The same search as search/modified_beam.py (at most one symbol a frame, hypotheses of equal spelling merged, `<unk>`
counts as blank), which takes whole utterances on torch. A beam of 1 is greedy search.
"""

import math
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from twopass_kd.ondevice.runtime import Runtime
from twopass_kd.search.nbest import Hypothesis, NBest, best_first

BLANK, UNK = 0, 2
_MAX_CACHED_CONTEXTS = 4096  # decoder outputs kept; a stateless decoder sees the same few contexts again and again

Context = tuple[int, ...]
Row = tuple[Sequence[int], Sequence[float]]  # tokens and their log-probs


class _Path:
    """A hypothesis in the beam: a linked list of its tokens, shared with the hypotheses it grew from."""

    __slots__ = ("log_prob", "context", "spelling", "last", "count")

    def __init__(self, log_prob: float, context: Context, spelling: int, last: tuple | None, count: int) -> None:
        self.log_prob = log_prob
        self.context = context  # its last tokens
        self.spelling = spelling  # hash of all its tokens
        self.last = last  # (token, frame, the node before it)
        self.count = count  # of its tokens


class SearchState:
    """What the search of one stream keeps between chunks."""

    def __init__(self, context: Context) -> None:
        self.paths = [_Path(0.0, context, 0, None, 0)]
        self.num_frames = 0

    def best(self) -> Hypothesis:
        """The best hypothesis so far, as `nbest` has it; asked for after each chunk, so only this one is read off."""
        context_size = len(self.paths[0].context)
        return _read_off(max(self.paths, key=lambda path: path.log_prob / (context_size + path.count)))

    def nbest(self, count: int) -> NBest:
        """The `count` best hypotheses, best first (`best_first`); merging may have left fewer."""
        context_size = len(self.paths[0].context)
        return best_first([_read_off(path) for path in self.paths], context_size)[:count]


def _read_off(path: _Path) -> Hypothesis:
    tokens, frames, node = [], [], path.last
    while node is not None:
        token, frame, node = node
        tokens.append(token)
        frames.append(frame)
    return Hypothesis(tokens[::-1], path.log_prob, frames[::-1])


class StreamingSearch:
    """Advances the beams of streams; holds no stream's state itself.

    Args:
      runtime: the model.
      beam: hypotheses kept for each stream; 1 is greedy search.
    """

    def __init__(self, runtime: Runtime, beam: int) -> None:
        if beam < 1:
            raise ValueError(f"`beam` ({beam}) must be at least 1")
        self._runtime = runtime
        self._beam = beam
        self._decoder_out: dict[Context, np.ndarray] = {}

    def start(self) -> SearchState:
        """The state of a stream before its first frame."""
        return SearchState((BLANK,) * self._runtime.info.context_size)

    def advance(self, states: Sequence[SearchState], encoder_outs: Sequence[np.ndarray]) -> None:
        """Go over the next frames of each stream.

        A context is scored once against all frames that are left of the chunk, when it first occurs: most survive
        for several frames, so that most frames need no call of the model.

        Args:
          states: one for each stream; changed in place.
          encoder_outs: for each stream its new frames, (num_frames, joiner_dim) float32, projected; any number each.
        """
        scores: list[dict[Context, list[Row]]] = [{} for _ in states]  # context -> a row for each frame
        for t in range(max(map(len, encoder_outs))):
            active = [i for i, frames in enumerate(encoder_outs) if t < len(frames)]
            new = [(i, c) for i in active for c in {p.context for p in states[i].paths}.difference(scores[i])]
            if new:
                self._score(new, encoder_outs, t, scores)
            for i in active:
                self._step(states[i], scores[i], t)

    def _score(
        self,
        new: Sequence[tuple[int, Context]],
        encoder_outs: Sequence[np.ndarray],
        t: int,
        scores: list[dict[Context, list[Row]]],
    ) -> None:
        """Rows of new (stream, context) pairs for frames `t` and later, all in one call of the joiner."""
        counts = [len(encoder_outs[i]) - t for i, _ in new]
        frames = np.concatenate([encoder_outs[i][t:] for i, _ in new])
        decoder_outs = self._decode([context for _, context in new])
        decoder_out = np.concatenate([out for out, count in zip(decoder_outs, counts) for _ in range(count)])
        rows = self._best_tokens(self._runtime.join(frames, decoder_out))
        begin = 0
        for (i, context), count in zip(new, counts):
            # Indexed by the frame in the chunk, like the others; the frames before `t` are not looked at again.
            scores[i][context] = [((), ())] * t + rows[begin : begin + count]
            begin += count

    def _best_tokens(self, logits: np.ndarray) -> list[Row]:
        """The `beam` best tokens of each row and their log-probs: no other can be among the best of the whole beam."""
        if self._beam == 1:
            best = logits.argmax(axis=1).tolist()
            logits -= logits.max(axis=1, keepdims=True)
            log_probs = -np.log(np.exp(logits, out=logits).sum(axis=1))
            return [((token,), (log_prob,)) for token, log_prob in zip(best, log_probs.tolist())]
        beam = min(self._beam, logits.shape[1])
        tokens = logits.argpartition(-beam, axis=1)[:, -beam:]
        best = logits[np.arange(len(logits))[:, None], tokens]
        high = best.max(axis=1, keepdims=True)
        logits -= high
        log_probs = best - (high + np.log(np.exp(logits, out=logits).sum(axis=1, keepdims=True)))
        return list(zip(tokens.tolist(), log_probs.tolist()))

    def _decode(self, contexts: Sequence[Context]) -> list[np.ndarray]:
        """Decoder outputs, (1, joiner_dim) each, from the cache where they are there."""
        cache = self._decoder_out
        missing = list({c for c in contexts if c not in cache})
        if missing:
            if len(cache) + len(missing) > _MAX_CACHED_CONTEXTS:
                cache.clear()
                missing = list(set(contexts))
            decoder_out = self._runtime.decode(np.array(missing, dtype=np.int64))
            cache.update(zip(missing, decoder_out[:, None]))
        return [cache[c] for c in contexts]

    def _step(self, state: SearchState, scores: dict[Context, list[Row]], t: int) -> None:
        """One frame of one stream: extend all paths, keep the best, merge those of equal spelling."""
        candidates = [
            (path.log_prob + log_prob, token, path)
            for path in state.paths
            for token, log_prob in zip(*scores[path.context][t])
        ]
        candidates.sort(key=itemgetter(0), reverse=True)
        survivors: dict[int, _Path] = {}
        for log_prob, token, path in candidates[: self._beam]:
            if token == BLANK or token == UNK:
                spelling, context, last, count = path.spelling, path.context, path.last, path.count
            else:
                spelling = hash((path.spelling, token))
                context = (*path.context[1:], token)
                last, count = (token, state.num_frames, path.last), path.count + 1
            same = survivors.get(spelling)
            if same is None:
                survivors[spelling] = _Path(log_prob, context, spelling, last, count)
            else:  # sorted, so this one is the less probable
                same.log_prob += math.log1p(math.exp(log_prob - same.log_prob))
        state.paths = list(survivors.values())
        state.num_frames += 1
