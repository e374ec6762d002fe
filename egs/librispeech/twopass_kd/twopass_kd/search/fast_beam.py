"""Beam search on a decoding graph, by k2: all hypotheses of all utterances advance in one call a frame.

The graphs are made in graphs.py. Only these two modules of the searches need k2.
"""

import torch
from torch import Tensor

from twopass_kd.config.schema import ConfigError
from twopass_kd.models.decoder import StatelessDecoder
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.search.graphs import DecodingGraph, import_k2
from twopass_kd.search.lattice import nbest_of_lattice
from twopass_kd.search.nbest import NBest, best_first

_IMPOSSIBLE = -1e10  # finite, since k2 subtracts scores
_END_BONUS = 50.0  # nats, while searching only: sentences that end take the beam from those that do not


@torch.no_grad()
def fast_beam_search(
    model: TwoPassModel,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    graph: DecodingGraph,
    beam: float = 4.0,
    max_contexts: int = 4,
    max_states: int = 24,
    nbest: int = 4,
) -> list[NBest]:
    """Beam search with at most one symbol a frame, restricted and weighted by a graph (icefall's `fast_beam_search`).

    k2 keeps the contexts and graph states near the best one and gives a lattice of all their alignments; the n-best
    list is read off the lattice (`nbest_of_lattice`). Unlike in icefall, every frame counts in full, the last one and
    the graph's final scores included. `<unk>` counts as blank, as in the other searches.

    Args:
      encoder_out: (B, T, C) of the shared encoder.
      encoder_out_lens: (B,) int64, frames after subsampling.
      graph: which token sequences there are, and their scores; on the device of `encoder_out`.
      beam: nats below the best hypothesis of a frame at which others are dropped.
      max_contexts: different decoder contexts (last tokens) kept for each utterance.
      max_states: different pairs of context and graph state kept for each utterance.
      nbest: how many hypotheses to return at most.
    Returns:
      For each utterance its hypotheses, best first, by their score per token as in `modified_beam_search`. `log_prob`
      is log P_rnnt alone, which the second pass interpolates with log P_att; `graph_score` is what the graph adds, in
      both passes. Where the graph lets no sentence end, there are unfinished ones, without final scores.
    Raises:
      ConfigError: if the decoder is not stateless: k2 tells hypotheses apart by their last tokens.
    """
    if not isinstance(model.decoder, StatelessDecoder):
        raise ConfigError(
            "`decoder.kind` (lstm) must be stateless for fast_beam_search, which keeps the last tokens of a hypothesis"
            " and no other state; take it out of `decode.searches`"
        )
    k2 = import_k2("fast_beam_search")
    joiner, decoder = model.joiner, model.decoder
    am = joiner.encoder_proj(encoder_out)
    tables = decoder.context_tables()
    streams = k2.RnntDecodingStreams(
        [k2.RnntDecodingStream(graph.fsa) for _ in range(len(am))],
        k2.RnntDecodingConfig(model.vocab_size, decoder.context_size, beam, max_states, max_contexts),
    )
    # After its last frame an utterance says the graph's end symbol, then k2's final arc: two steps without probability.
    ending = torch.full((model.vocab_size,), _IMPOSSIBLE, device=am.device)
    ending[model.blank_id], ending[model.unk_id] = 0.0, _END_BONUS
    num_frames = am.size(1)
    for t in range(num_frames + 2):
        shape, contexts = streams.get_contexts()
        utterance = shape.row_ids(1).long()
        if t < num_frames:
            lm = joiner.decoder_proj(decoder.of_contexts(contexts.long(), tables))
            log_probs = joiner(am[utterance, t], lm, project_input=False).log_softmax(-1)
            blank = torch.logaddexp(log_probs[:, model.blank_id], log_probs[:, model.unk_id])
            log_probs[:, model.blank_id] = blank
            log_probs[:, model.unk_id] = _IMPOSSIBLE
            log_probs[t >= encoder_out_lens[utterance]] = ending
        else:
            log_probs = ending.repeat(len(utterance), 1)
        streams.advance(log_probs)
    streams.terminate_and_flush_to_streams()
    # format_output of the streams themselves: the one around it copies the graph's attributes utterance by utterance.
    arcs, graph_arcs = streams.streams.format_output((encoder_out_lens + 2).tolist(), True)
    lattice = k2.Fsa(arcs)
    lattice.scores = torch.where(lattice.labels == model.unk_id, lattice.scores - _END_BONUS, lattice.scores)
    lattice.graph_arc, lattice.graph_score = graph_arcs, graph.scores_of(graph_arcs)
    lattice = k2.connect(lattice)
    found = nbest_of_lattice(lattice, encoder_out_lens, model.unk_id, 2 * nbest, not graph.is_deterministic)
    return [best_first(hyps, decoder.context_size)[:nbest] for hyps in found]
