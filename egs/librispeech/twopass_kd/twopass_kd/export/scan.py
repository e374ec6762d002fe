"""Which layers lose words as int8? Measured on dev audio: all at once, then, where words are lost, one at a time."""

import logging
import shutil
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from twopass_kd.data.detokenize import detokenize
from twopass_kd.export.quantization import quantizable_layers, quantize
from twopass_kd.export.streaming import Utterance, encode_utterance, search_utterance
from twopass_kd.files.export_json import Int8Wer, LayerChoice, LayerScan, LayerStep
from twopass_kd.ondevice.runtime import PARTS, ModelInfo, OnnxRuntime
from twopass_kd.ondevice.search import StreamingSearch
from twopass_kd.scoring.wer import Transcript, corpus_wer, paired_bootstrap
from twopass_kd.search.nbest import NBest, two_pass_scores

# int8 layers lose words where the dev WER is above float32's by more than this share of it and a paired bootstrap gives
# a p below this one. Not 0.05: on a few hundred utterances that lets losses pass which the test sets then show.
TOLERATED = 0.01
P_VALUE = 0.2

_BOOTSTRAP_SAMPLES = 10000


class DevDecoder:
    """Two-pass decoding of dev audio with any choice of int8 layers; what a layer cannot change is decoded once.

    One stream at a time and chunk by chunk, as on a device: the ranges of int8 activations depend on both.

    Args:
      folder: the float32 files and tokens.txt.
      work: an existing folder for int8 files in the making.
      utterances: what to decode.
    """

    def __init__(self, folder: Path, work: Path, utterances: Sequence[Utterance]) -> None:
        self._folder, self._work, self._utterances = folder, work, utterances
        shutil.copyfile(folder / "tokens.txt", work / "tokens.txt")
        self._parts = [part for part in PARTS if (folder / f"{part}.onnx").is_file()]
        self.layers = [layer for part in self._parts for layer in quantizable_layers(folder / f"{part}.onnx")]
        self._written: dict[str, frozenset[str]] = {}
        self._results: dict[tuple[frozenset[str], ...], Any] = {}

    def __call__(self, int8_layers: Set[str]) -> list[Transcript]:
        """Transcripts of the second pass, or of the first where there is no second."""
        chosen = {part: frozenset(k for k in int8_layers if k.startswith(part + "/")) for part in PARTS}
        for part in self._parts:
            if self._written.get(part) != chosen[part]:
                keep = set(self.layers) - chosen[part]
                quantize(self._folder / f"{part}.onnx", self._work / f"{part}.int8.onnx", keep)
                self._written[part] = chosen[part]
        runtime = OnnxRuntime(self._work, int8=True)
        first = (chosen["encoder"],)
        encoded = self._once(first, lambda: [encode_utterance(runtime, u.features) for u in self._utterances])
        second = (*first, chosen["decoder"], chosen["joiner"])
        nbests = self._once(second, lambda: self._search(runtime, [out for out, _ in encoded]))
        if not runtime.info.second_pass:
            return self._transcripts(runtime.info, nbests, [[h.log_prob for h in nbest] for nbest in nbests])
        scores = []
        for (_, memory), nbest in zip(encoded, nbests):
            attention = runtime.attention_log_probs(memory, [h.tokens for h in nbest]) if len(memory) else [0.0]
            scores.append(two_pass_scores(nbest, attention, runtime.info.rescore_weight, runtime.info.length_reward))
        return self._transcripts(runtime.info, nbests, scores)

    def _once(self, key: tuple[frozenset[str], ...], compute: Callable[[], Any]) -> Any:
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]

    def _search(self, runtime: OnnxRuntime, encoder_outs: Sequence[np.ndarray]) -> list[NBest]:
        search = StreamingSearch(runtime, runtime.info.beam)
        return [search_utterance(search, runtime.info, out).nbest(runtime.info.nbest) for out in encoder_outs]

    def _transcripts(self, info: ModelInfo, nbests: list[NBest], scores: Sequence[Sequence[float]]) -> list[Transcript]:
        out = []
        for utterance, nbest, score in zip(self._utterances, nbests, scores):
            best = nbest[int(np.argmax(score))]
            out.append((utterance.id, utterance.words, detokenize([info.tokens[k] for k in best.tokens]).split()))
        return out


def choose_layers(
    layers: Sequence[str], decode: Callable[[Set[str]], list[Transcript]], seed: int, dev_parts: list[str]
) -> LayerChoice:
    """Choose the layers to leave in float32, by their word errors on dev.

    All layers start as int8. Only where that loses words against float32 (by more than 1% of its WER, and in so many of
    the resampled dev sets that p < 0.2), each layer is tried alone; then, while words are lost, the one that costs most
    of those that are int8 still is left out.

    Args:
      layers: all that can be int8.
      decode: int8 layers -> transcripts of dev.
      seed: of the bootstrap.
      dev_parts: the sets of dev, by name.
    """
    reference = decode(frozenset())
    base = corpus_wer(reference)
    scan: list[LayerScan] = []
    steps: list[LayerStep] = []
    left_out: list[str] = []
    while True:
        test = paired_bootstrap(reference, decode(frozenset(layers) - set(left_out)), _BOOTSTRAP_SAMPLES, seed)
        steps.append(LayerStep(left_out=left_out, wer=base.wer + test.delta_wer, p=test.p))
        loses = test.delta_wer > TOLERATED * base.wer and test.p < P_VALUE
        if not loses or len(left_out) == len(layers):
            break
        if not scan:
            for layer in layers:
                wer = corpus_wer(decode(frozenset([layer]))).wer
                errors = round((wer - base.wer) * base.ref_words / 100)
                scan.append(LayerScan(layer=layer, wer=wer, errors=errors))
        order = [entry.layer for entry in sorted(scan, key=lambda entry: -entry.errors)]
        left_out = order[: len(left_out) + 1]
    return LayerChoice(
        dev_parts=dev_parts,
        wer=Int8Wer(fp32=base.wer, int8=steps[-1].wer, all_int8=steps[0].wer),
        layers=len(layers),
        scan=scan,
        left_out=steps[-1].left_out,
        steps=steps,
        utterances=base.num_utts,
        words=base.ref_words,
    )


def log_choice(choice: LayerChoice) -> None:
    """The scan as a table in the log."""
    wer = choice.wer
    logging.info("int8, WER of %d dev utterances: float32 %.2f%%, all layers int8 %.2f%%", choice.utterances,
                 wer.fp32, wer.all_int8)  # fmt: skip
    title = "only this layer int8"
    width = max(len(name) for name in (title, *(entry.layer for entry in choice.scan)))
    if choice.scan:
        logging.info("%-*s  %7s  %12s", width, title, "WER", "more errors")
    for entry in choice.scan:
        left = "  left out" if entry.layer in choice.left_out else ""
        logging.info("%-*s  %6.2f%%  %+12d%s", width, entry.layer, entry.wer, entry.errors, left)
    logging.info("int8 as exported: %.2f%%, %d of %d layers left in float32", wer.int8, len(choice.left_out),
                 choice.layers)  # fmt: skip
