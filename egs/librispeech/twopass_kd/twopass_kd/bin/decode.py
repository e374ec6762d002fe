"""Decode the dev and test sets with one system: greedy search, modified beam search, then the second pass.

The interpolation weight of the second pass is chosen on the dev sets alone. The architecture comes from the checkpoint.
Leaves recogs-, errs- and wer-summary- files (icefall's formats) and decode.json in <exp-dir>/<conf>/decode/<system>/.
"""

import argparse
import json
import logging
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from twopass_kd.asr_datamodule import AsrDataModule, cut_text
from twopass_kd.cli import exit_status, experiment_parser
from twopass_kd.config import Config, load_config
from twopass_kd.encoder import Conv2dSubsampling
from twopass_kd.environment import log_environment, log_to_file, setup_logging
from twopass_kd.files import write_text_atomically
from twopass_kd.model import TwoPassModel
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.search.nbest import NBest
from twopass_kd.search.rescoring import attention_log_probs, rescore_with_attention_decoder
from twopass_kd.systems import load_system
from twopass_kd.tokenizer import Tokenizer
from twopass_kd.wer import Transcript, corpus_wer, write_decoding_results


@dataclass
class Decoded:
    """One set, decoded: per utterance, in the order of `cut_ids`."""

    cut_ids: List[str] = field(default_factory=list)
    refs: List[List[str]] = field(default_factory=list)
    greedy: List[NBest] = field(default_factory=list)
    beam: List[NBest] = field(default_factory=list)
    attention: List[List[float]] = field(default_factory=list)
    audio_seconds: float = 0.0
    seconds: Dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by step

    def real_time_factors(self, second_pass: bool) -> Dict[str, Optional[float]]:
        """Seconds of computing per second of audio, from features to tokens."""
        greedy = self.seconds["encoder"] + self.seconds["greedy_search"]
        first = self.seconds["encoder"] + self.seconds["beam"]
        return {
            "greedy_search": greedy / self.audio_seconds,
            "first_pass": first / self.audio_seconds,
            "two_pass": (first + self.seconds["attention"]) / self.audio_seconds if second_pass else None,
        }


def decode_set(
    model: TwoPassModel, data: AsrDataModule, part: str, cfg: Config, tokenizer: Tokenizer, second_pass: bool
) -> Decoded:
    """Decode one part with all search methods."""
    out = Decoded()
    clock = time.perf_counter

    def timed(step: str, function: Callable, *args: Any) -> Any:
        begin = clock()
        result = function(*args)
        out.seconds[step] += clock() - begin
        return result

    bar = tqdm(desc=part, unit="utt", disable=not sys.stderr.isatty())
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in data.decode_loader(part):
            batch = batch.to(device)
            missing = max(0, Conv2dSubsampling.receptive_field - batch.feature.size(1))
            batch.feature = F.pad(batch.feature, (0, 0, 0, missing))  # a cut too short for one frame decodes to nothing
            encoder_out, lens, _ = timed("encoder", model.encoder, batch.feature, batch.feature_lens)
            out.greedy += timed("greedy_search", greedy_search, model, encoder_out, lens)
            nbests = timed("beam", modified_beam_search, model, encoder_out, lens, cfg.decode.beam, cfg.decode.nbest)
            out.beam += nbests
            if second_pass:
                ids = (tokenizer.sos_id, tokenizer.eos_id)
                out.attention += timed("attention", attention_log_probs, model, encoder_out, lens, nbests, *ids)
            out.cut_ids += batch.cut_ids
            out.refs += [cut_text(c).split() for c in batch.cuts]
            out.audio_seconds += batch.duration
            bar.update(len(batch.cuts))
    bar.close()
    return out


def transcripts(decoded: Decoded, tokens: List[List[int]], tokenizer: Tokenizer) -> List[Transcript]:
    hyps = [text.split() for text in tokenizer.decode(tokens)]
    return list(zip(decoded.cut_ids, decoded.refs, hyps))


def second_pass_tokens(decoded: Decoded, weight: float, length_reward: float) -> List[List[int]]:
    return [
        rescore_with_attention_decoder(nbest, attention, weight, length_reward).tokens
        for nbest, attention in zip(decoded.beam, decoded.attention)
    ]


def choose_weights(
    dev: List[Decoded], cfg: Config, tokenizer: Tokenizer
) -> Tuple[float, float, List[Dict[str, float]]]:
    """Scan interpolation weights and length rewards on the dev sets.

    Returns:
      The best weight, the best length reward (ties: the middle of the best ones), and the scan.
    """
    scan = []
    for length_reward in cfg.decode.length_rewards:
        for weight in cfg.decode.rescore_weights:
            rows = [t for d in dev for t in transcripts(d, second_pass_tokens(d, weight, length_reward), tokenizer)]
            scan.append({"weight": weight, "length_reward": length_reward, "wer": corpus_wer(rows).wer})
    lowest = min(entry["wer"] for entry in scan)
    best = [entry for entry in scan if entry["wer"] == lowest]
    chosen = best[len(best) // 2]
    return chosen["weight"], chosen["length_reward"], scan


def decode(cfg: Config, system: str, data_dir: Path, exp_dir: Path) -> Path:
    """Decode all dev and test parts with the final checkpoint of `system`; returns the path of decode.json."""
    path, model, content, tokenizer = load_system(cfg, system, data_dir, exp_dir)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)
    out_dir = Path(exp_dir) / cfg.name / "decode" / system
    out_dir.mkdir(parents=True, exist_ok=True)
    log_to_file(out_dir / "decode.log")
    log_environment()

    second_pass = "attention_decoder" in content["trained_parts"]
    parts = [*cfg.corpus.dev_parts, *(p for p in cfg.corpus.test_parts if p not in cfg.corpus.dev_parts)]
    decoded = {part: decode_set(model, data, part, cfg, tokenizer, second_pass) for part in parts}
    weight, length_reward, scan = None, None, []
    if second_pass:
        weight, length_reward, scan = choose_weights([decoded[p] for p in cfg.corpus.dev_parts], cfg, tokenizer)
        logging.info("weight of the second pass, chosen on dev: %.2f (length reward %.2f)", weight, length_reward)
    for part, result in decoded.items():
        passes = {
            "greedy_search": [n[0].tokens for n in result.greedy],
            "first_pass": [n[0].tokens for n in result.beam],
        }
        if second_pass:
            passes["two_pass"] = second_pass_tokens(result, weight, length_reward)
        for name, tokens in passes.items():
            stats = write_decoding_results(out_dir, part, name, transcripts(result, tokens, tokenizer))
            logging.info("%s, %s, %s: WER %.2f%% of %d words", system, part, name, stats.wer, stats.ref_words)
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
        "rtf": {part: d.real_time_factors(second_pass) for part, d in decoded.items()},
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
    return exit_status(
        lambda: decode(load_config(args.conf, args.overrides), args.system, args.data_dir, args.exp_dir)
    )


if __name__ == "__main__":
    sys.exit(main())
