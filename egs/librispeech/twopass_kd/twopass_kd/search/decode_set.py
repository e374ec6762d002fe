"""Decodes a set with several searches at once, and the second pass on what they find."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from twopass_kd.data.asr_dataset import Batch, cut_text
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.encoder import Conv2dSubsampling
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.scoring.delay import TimedWord, timed_words
from twopass_kd.scoring.wer import Transcript
from twopass_kd.search.methods import Search
from twopass_kd.search.nbest import NBest
from twopass_kd.search.rescoring import attention_log_probs, rescore_with_attention_decoder


@dataclass
class Decoded:
    """One set, decoded: per utterance, in the order of `cut_ids`; n-best lists and their second pass by search."""

    cut_ids: list[str] = field(default_factory=list)
    refs: list[list[str]] = field(default_factory=list)
    nbests: dict[str, list[NBest]] = field(default_factory=lambda: defaultdict(list))
    attention: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    audio_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by step

    def real_time_factors(self, search: str) -> tuple[float, float | None]:
        """Seconds of computing per second of audio, from features to tokens: first pass, and both passes."""
        first = self.seconds["encoder"] + self.seconds[search]
        both = first + self.seconds[f"{search}, attention"] if search in self.attention else None
        return first / self.audio_seconds, both and both / self.audio_seconds


def decode_set(
    model: TwoPassModel,
    loader: Iterable[Batch],
    name: str,
    searches: dict[str, Search],
    tokenizer: Tokenizer,
    second_pass: Sequence[str] = (),
) -> Decoded:
    """Decode a set with all `searches`; those named in `second_pass` get the attention decoder's log-probs.

    Args:
      name: of the set, for the progress bar.
    """
    out = Decoded()
    device = next(model.parameters()).device

    def clock() -> float:
        if device.type == "cuda":  # or what one step has started is counted with the next
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(step: str, function: Callable, *args: Any) -> Any:
        begin = clock()
        result = function(*args)
        out.seconds[step] += clock() - begin
        return result

    bar = tqdm(desc=name, unit="utt")
    with torch.no_grad():
        for batch in loader:
            batch = batch.to(device)
            missing = max(0, Conv2dSubsampling.receptive_field - batch.feature.size(1))
            batch.feature = F.pad(batch.feature, (0, 0, 0, missing))  # a cut too short for one frame decodes to nothing
            encoder_out, lens, _ = timed("encoder", model.encoder, batch.feature, batch.feature_lens)
            for key, search in searches.items():
                nbests = timed(key, search, model, encoder_out, lens)
                out.nbests[key] += nbests
                if key in second_pass:
                    inputs = (model, encoder_out, lens, nbests, tokenizer.sos_id, tokenizer.eos_id)
                    out.attention[key] += timed(f"{key}, attention", attention_log_probs, *inputs)
            out.cut_ids += batch.cut_ids
            out.refs += [cut_text(c).split() for c in batch.cuts]
            out.audio_seconds += batch.duration
            bar.update(len(batch.cuts))
    bar.close()
    return out


def transcripts(decoded: Decoded, tokens: list[list[int]], tokenizer: Tokenizer) -> list[Transcript]:
    hyps = [text.split() for text in tokenizer.decode(tokens)]
    return list(zip(decoded.cut_ids, decoded.refs, hyps))


def first_pass_tokens(decoded: Decoded, search: str) -> list[list[int]]:
    return [nbest[0].tokens for nbest in decoded.nbests[search]]


def second_pass_tokens(decoded: Decoded, search: str, weight: float, length_reward: float) -> list[list[int]]:
    return [
        rescore_with_attention_decoder(nbest, attention, weight, length_reward).tokens
        for nbest, attention in zip(decoded.nbests[search], decoded.attention[search])
    ]


def first_pass_words(
    decoded: Decoded, search: str, tokenizer: Tokenizer, subsampling_factor: int
) -> dict[str, list[TimedWord]]:
    """The words of the best hypotheses and when they are emitted, by utterance; without those that have none."""
    found = {}
    hyps = [nbest[0] for nbest in decoded.nbests[search]]
    for cut_id, hyp, text in zip(decoded.cut_ids, hyps, tokenizer.decode([hyp.tokens for hyp in hyps])):
        pieces = [tokenizer.pieces[token] for token in hyp.tokens]
        words = timed_words(pieces, hyp.frames, text.split(), subsampling_factor)
        if words is not None:
            found[cut_id] = words
    return found
