"""Decode the dev and test sets with one system: greedy search, modified beam search, then the second pass.

The interpolation weight of the second pass is chosen on the dev sets alone. The architecture comes from the checkpoint.
`decode.searches` names further searches; each has a weight and, with a language model, a scale of its own.
Leaves recogs-, errs- and wer-summary- files (icefall's formats) and decode.json in <exp-dir>/<conf>/decode/<system>/.
"""

import argparse
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from twopass_kd.config.cli import exit_status, experiment_parser
from twopass_kd.config.environment import log_environment, log_to_file, setup_logging
from twopass_kd.config.load import load_config, searched_systems
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.asr_dataset import cut_text
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.files.write import write_text_atomically
from twopass_kd.models.encoder import Conv2dSubsampling
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.scoring.wer import Transcript, corpus_wer, write_decoding_results
from twopass_kd.search.methods import Search, further_searches, own_searches, why_no_further_searches
from twopass_kd.search.nbest import NBest
from twopass_kd.search.rescoring import attention_log_probs, rescore_with_attention_decoder
from twopass_kd.teachers.load_system import load_system

SEARCH_SETTINGS = ("fast_beam", "max_contexts", "max_states", "arpa", "lm_order", "hotwords", "hotword_score")


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
    data: AsrDataModule,
    part: str,
    searches: dict[str, Search],
    tokenizer: Tokenizer,
    second_pass: Sequence[str] = (),
) -> Decoded:
    """Decode one part with all `searches`; those named in `second_pass` get the attention decoder's log-probs."""
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

    bar = tqdm(desc=part, unit="utt")
    with torch.no_grad():
        for batch in data.decode_loader(part):
            batch = batch.to(device)
            missing = max(0, Conv2dSubsampling.receptive_field - batch.feature.size(1))
            batch.feature = F.pad(batch.feature, (0, 0, 0, missing))  # a cut too short for one frame decodes to nothing
            encoder_out, lens, _ = timed("encoder", model.encoder, batch.feature, batch.feature_lens)
            for name, search in searches.items():
                nbests = timed(name, search, model, encoder_out, lens)
                out.nbests[name] += nbests
                if name in second_pass:
                    inputs = (model, encoder_out, lens, nbests, tokenizer.sos_id, tokenizer.eos_id)
                    out.attention[name] += timed(f"{name}, attention", attention_log_probs, *inputs)
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


def middle_of_best(scan: list[dict[str, float]]) -> dict[str, float]:
    """The entry with the lowest `wer`; of several the middle one."""
    lowest = min(entry["wer"] for entry in scan)
    best = [entry for entry in scan if entry["wer"] == lowest]
    return best[len(best) // 2]


def choose_weights(
    dev: list[Decoded], search: str, cfg: Config, tokenizer: Tokenizer
) -> tuple[float, float, list[dict[str, float]]]:
    """Scan interpolation weights and length rewards on the dev sets.

    Returns:
      The best weight, the best length reward (ties: the middle of the best ones), and the scan.
    """
    scan = []
    for length_reward in cfg.decode.length_rewards:
        for weight in cfg.decode.rescore_weights:
            tokens = [second_pass_tokens(d, search, weight, length_reward) for d in dev]
            rows = [t for d, k in zip(dev, tokens) for t in transcripts(d, k, tokenizer)]
            scan.append({"weight": weight, "length_reward": length_reward, "wer": corpus_wer(rows).wer})
    chosen = middle_of_best(scan)
    return chosen["weight"], chosen["length_reward"], scan


def choose_scales(
    model: TwoPassModel, data: AsrDataModule, cfg: Config, tokenizer: Tokenizer, made: dict[str, dict[float, Search]]
) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
    """Of each search the scale whose first pass is best on the dev sets.

    Returns:
      The scales by name of the search, and the scans, empty where there was nothing to choose.
    """
    chosen = {name: next(iter(by_scale)) for name, by_scale in made.items()}
    scans: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    for name, by_scale in made.items():
        if len(by_scale) == 1:
            continue
        candidates = {str(scale): search for scale, search in by_scale.items()}
        dev = [decode_set(model, data, part, candidates, tokenizer) for part in cfg.corpus.dev_parts]
        for scale in by_scale:
            rows = [t for d in dev for t in transcripts(d, first_pass_tokens(d, str(scale)), tokenizer)]
            scans[name].append({"scale": scale, "wer": corpus_wer(rows).wer})
        chosen[name] = middle_of_best(scans[name])["scale"]
    return chosen, scans


def own_rtf(decoded: Decoded) -> dict[str, float | None]:
    first, both = decoded.real_time_factors("first_pass")
    return {"greedy_search": decoded.real_time_factors("greedy_search")[0], "first_pass": first, "two_pass": both}


def describe_search(
    name: str,
    decoded: dict[str, Decoded],
    wer: dict[str, dict[str, float]],
    weights: tuple[float, float, list[dict[str, float]]] | None,
    scale: float,
    scale_scan: list[dict[str, float]],
) -> dict[str, Any]:
    """What decode.json says of a further search: WERs (percent) and real-time factors by set, and what dev chose."""
    weight, length_reward, scan = weights or (None, None, [])
    passes = ("first_pass", "two_pass")
    return {
        "wer": {part: {"first_pass": w[name], "two_pass": w.get(f"{name}_two_pass")} for part, w in wer.items()},
        "rtf": {part: dict(zip(passes, d.real_time_factors(name))) for part, d in decoded.items()},
        "lm_scale": scale if name == "fast_beam_search_LG" else None,
        "scale_scan": scale_scan,
        "rescore_weight": weight,
        "length_reward": length_reward,
        "weight_scan": scan,
    }


def decode(cfg: Config, system: str, data_dir: Path, exp_dir: Path) -> Path:
    """Decode all dev and test parts with the final checkpoint of `system`; returns the path of decode.json."""
    path, model, content, tokenizer = load_system(cfg, system, data_dir, exp_dir)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)
    out_dir = Path(exp_dir) / cfg.name / "decode" / system
    out_dir.mkdir(parents=True, exist_ok=True)
    log_to_file(out_dir / "decode.log")
    log_environment()

    parts = list(dict.fromkeys([*cfg.corpus.dev_parts, *cfg.corpus.test_parts]))
    data.check_parts(parts)
    second_pass = "attention_decoder" in content["trained_parts"]
    searches, further, left_out, scales, scans = own_searches(cfg), {}, None, {}, {}
    if system in searched_systems(cfg):
        left_out = why_no_further_searches()
        if left_out:
            logging.warning("%s are left out: %s", ", ".join(cfg.decode.searches), left_out)
        else:
            device = next(model.parameters()).device
            made = further_searches(cfg, tokenizer, Path(exp_dir) / cfg.name / "graphs", device)
            scales, scans = choose_scales(model, data, cfg, tokenizer, made)
            further = {name: made[name][scale] for name, scale in scales.items()}
    rescored = ["first_pass", *further] if second_pass else []
    decoded = {part: decode_set(model, data, part, {**searches, **further}, tokenizer, rescored) for part in parts}
    dev = [decoded[part] for part in cfg.corpus.dev_parts]
    weights = {}
    for name in rescored:
        weights[name] = choose_weights(dev, name, cfg, tokenizer)
        chosen = weights[name][:2]
        logging.info("%s: weight of the second pass, chosen on dev: %.2f (length reward %.2f)", name, *chosen)
    wer: dict[str, dict[str, float]] = defaultdict(dict)
    for part, result in decoded.items():
        passes = {name: first_pass_tokens(result, name) for name in (*searches, *further)}
        for name in rescored:
            suffix = "two_pass" if name == "first_pass" else f"{name}_two_pass"
            passes[suffix] = second_pass_tokens(result, name, *weights[name][:2])
        for name, tokens in passes.items():
            stats = write_decoding_results(out_dir, part, name, transcripts(result, tokens, tokenizer))
            wer[part][name] = stats.wer
            logging.info("%s, %s, %s: WER %.2f%% of %d words", system, part, name, stats.wer, stats.ref_words)
    weight, length_reward, scan = weights.get("first_pass", (None, None, []))
    summary = {
        "system": system,
        "identity": content["identity"],
        "phase": content["phase"],
        "checkpoint": str(path),
        "params": model.deployed_parameters(),
        "bytes": model.deployed_bytes(),
        "train_seconds": content["train_seconds"],
        "beam": cfg.decode.beam,
        "nbest": cfg.decode.nbest,
        "rescore_weight": weight,
        "length_reward": length_reward,
        "weight_scan": scan,
        "rtf": {part: own_rtf(d) for part, d in decoded.items()},
        "searches": {
            name: describe_search(name, decoded, wer, weights.get(name), scales[name], scans[name]) for name in further
        },
        "search_settings": {key: getattr(cfg.decode, key) for key in SEARCH_SETTINGS} if further else None,
        "searches_left_out": left_out,
        "audio_seconds": {part: d.audio_seconds for part, d in decoded.items()},
        "threads": torch.get_num_threads(),
    }
    write_text_atomically(out_dir / "decode.json", json.dumps(summary, indent=2) + "\n")
    return out_dir / "decode.json"


def get_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, example="decode.beam=8")
    parser.add_argument("--system", required=True, help="a `report_as` name of the YAML, e.g. student")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    return exit_status(lambda: decode(load_config(args.conf, args.overrides), args.system, args.data_dir, args.exp_dir))


if __name__ == "__main__":
    sys.exit(main())
