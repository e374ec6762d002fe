"""The searches of stage 8 by their names, ready to be called."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.search.fast_beam import fast_beam_search
from twopass_kd.search.graphs import DecodingGraph, hotword_graph, import_k2, trivial_graph
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.lm_graph import load_lg
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.search.nbest import NBest

Search = Callable[[TwoPassModel, Tensor, Tensor], list[NBest]]  # model, encoder_out (B, T, C), encoder_out_lens (B,)


def own_searches(cfg: Config) -> dict[str, Search]:
    """The two searches that every system is decoded with, by the names of their results."""
    beam = partial(modified_beam_search, beam=cfg.decode.beam, nbest=cfg.decode.nbest)
    return {"greedy_search": greedy_search, "first_pass": beam}


def why_no_further_searches() -> str | None:
    """Why `decode.searches` cannot run on this machine; None where they can."""
    try:
        import_k2("fast_beam_search")
    except ImportError as e:
        return str(e)
    return None


def further_searches(
    cfg: Config, tokenizer: Tokenizer, graph_dir: Path, device: torch.device
) -> dict[str, dict[float, Search]]:
    """`decode.searches`: name -> scale of the graph's scores -> search. Where there are several, dev has to choose.

    Args:
      graph_dir: where graphs that take long to make are kept.
    Raises:
      ConfigError: if a graph cannot be made of what the config names.
    """
    decode = cfg.decode
    made: dict[str, dict[float, Search]] = {}
    for name in decode.searches:
        scales = [1.0]
        if name == "fast_beam_search_LG":
            arpa = Path(decode.arpa) if decode.arpa else None
            arcs, scales = load_lg(graph_dir, tokenizer, arpa, decode.lm_order), decode.lm_scales
        elif name == "fast_beam_search_hotwords":
            phrases = tokenizer.encode(decode.hotwords)
            for phrase, text in zip(phrases, decode.hotwords):
                if not phrase or tokenizer.unk_id in phrase:
                    raise ConfigError(f"`decode.hotwords` ({text}) must have letters of the transcripts only")
            arcs = hotword_graph(phrases, decode.hotword_score, tokenizer.vocab_size, tokenizer.unk_id)
        else:
            arcs = trivial_graph(tokenizer.vocab_size, tokenizer.unk_id)
        made[name] = {
            scale: partial(
                fast_beam_search,
                graph=DecodingGraph(arcs, scale, device),
                beam=decode.fast_beam,
                max_contexts=decode.max_contexts,
                max_states=decode.max_states,
                nbest=decode.nbest,
            )
            for scale in scales
        }
    return made
