"""Decode the dev and test sets with one system: greedy search, modified beam search, then the second pass.

The interpolation weight of the second pass is chosen on the dev sets alone. The architecture comes from the checkpoint.
`decode.searches` names further searches; each has a weight and, with a language model, a scale of its own.
Leaves recogs-, errs- and wer-summary- files (icefall's formats) and decode.json in <exp-dir>/<conf>/decode/<system>/.
"""

import argparse
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from twopass_kd.config.cli import exit_status, experiment_parser
from twopass_kd.config.environment import log_environment, log_to_file, setup_logging
from twopass_kd.config.load import experiment_folder, load_config, searched_systems
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.conditions import speaker_of
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.files.write import write_text_atomically
from twopass_kd.scoring.wer import write_decoding_results
from twopass_kd.search.choose_on_dev import choose_scales, choose_weights
from twopass_kd.search.decode_conditions import decode_conditions
from twopass_kd.search.decode_set import (
    Decoded,
    decode_set,
    first_pass_tokens,
    second_pass_tokens,
    transcripts,
)
from twopass_kd.search.methods import further_searches, own_searches, why_no_further_searches
from twopass_kd.search.word_times import measure_delays, word_times
from twopass_kd.teachers.load_system import load_system

SEARCH_SETTINGS = ("fast_beam", "max_contexts", "max_states", "arpa", "lm_order", "hotwords", "hotword_score")


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


def write_texts(
    out_dir: Path,
    system: str,
    decoded: dict[str, Decoded],
    searches: Sequence[str],
    weights: dict[str, tuple[float, float, list[dict[str, float]]]],
    tokenizer: Tokenizer,
) -> dict[str, dict[str, float]]:
    """Write icefall's files of every set and pass, and log the WERs.

    Returns:
      WER in percent by set and pass: a search, or `<search>_two_pass` (`two_pass` after `first_pass`).
    """
    wer: dict[str, dict[str, float]] = defaultdict(dict)
    for part, result in decoded.items():
        passes = {name: first_pass_tokens(result, name) for name in searches}
        for name, (weight, length_reward, _) in weights.items():
            suffix = "two_pass" if name == "first_pass" else f"{name}_two_pass"
            passes[suffix] = second_pass_tokens(result, name, weight, length_reward)
        for name, tokens in passes.items():
            stats = write_decoding_results(out_dir, part, name, transcripts(result, tokens, tokenizer))
            wer[part][name] = stats.wer
            logging.info("%s, %s, %s: WER %.2f%% of %d words", system, part, name, stats.wer, stats.ref_words)
    return wer


def known_speakers(data: AsrDataModule, part: str) -> dict[str, str]:
    """Cut id -> speaker, where the manifest says who it is."""
    return {cut.id: str(speaker) for cut in data.cuts([part]) if (speaker := speaker_of(cut)) is not None}


def decode(cfg: Config, system: str, data_dir: Path, exp_dir: Path) -> Path:
    """Decode all dev and test parts with the final checkpoint of `system`; returns the path of decode.json."""
    path, model, content, tokenizer = load_system(cfg, system, data_dir, exp_dir)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)
    out_dir = experiment_folder(cfg, exp_dir) / "decode" / system
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
            made = further_searches(cfg, tokenizer, experiment_folder(cfg, exp_dir) / "graphs", device)
            scales, scans = choose_scales(model, data, cfg, tokenizer, made)
            further = {name: made[name][scale] for name, scale in scales.items()}
    rescored = ["first_pass", *further] if second_pass else []
    every = {**searches, **further}
    decoded = {part: decode_set(model, data.decode_loader(part), part, every, tokenizer, rescored) for part in parts}
    dev = [decoded[part] for part in cfg.corpus.dev_parts]
    weights = {}
    for name in rescored:
        weights[name] = choose_weights(dev, name, cfg, tokenizer)
        chosen = weights[name][:2]
        logging.info("%s: weight of the second pass, chosen on dev: %.2f (length reward %.2f)", name, *chosen)
    wer = write_texts(out_dir, system, decoded, (*searches, *further), weights, tokenizer)
    factor = model.encoder.subsampling_factor
    said, delays = {}, {}
    for part, result in decoded.items():
        said[part] = word_times(cfg, part, data, data_dir, exp_dir)
        delays[part] = measure_delays(said[part], result, list(searches), tokenizer, factor, out_dir, part)
    weight, length_reward, scan = weights.get("first_pass", (None, None, []))
    heard = decode_conditions(cfg, system, model, data, tokenizer, weight, length_reward, said) if second_pass else {}
    summary = {
        "system": system,
        "identity": content["identity"],
        "phase": content["phase"],
        "checkpoint": str(path),
        "params": model.deployed_parameters(),
        "bytes": model.deployed_bytes(),
        "train_seconds": content["train_seconds"],
        "updates": content.get("updates"),
        "beam": cfg.decode.beam,
        "nbest": cfg.decode.nbest,
        "rescore_weight": weight,
        "length_reward": length_reward,
        "weight_scan": scan,
        "speakers": {part: known_speakers(data, part) for part in parts},
        "rtf": {part: own_rtf(d) for part, d in decoded.items()},
        "searches": {
            name: describe_search(name, decoded, wer, weights.get(name), scales[name], scans[name]) for name in further
        },
        "search_settings": {key: getattr(cfg.decode, key) for key in SEARCH_SETTINGS} if further else None,
        "searches_left_out": left_out,
        "conditions": heard,
        "delays": delays,
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
