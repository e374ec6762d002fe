"""What is chosen on the dev sets: the weights of the second pass, and the scale of a language model."""

from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.scoring.wer import corpus_wer
from twopass_kd.search.decode_set import Decoded, decode_set, first_pass_tokens, second_pass_tokens, transcripts
from twopass_kd.search.methods import Search


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
        dev = [
            decode_set(model, data.decode_loader(part), part, candidates, tokenizer) for part in cfg.corpus.dev_parts
        ]
        for scale in by_scale:
            rows = [t for d in dev for t in transcripts(d, first_pass_tokens(d, str(scale)), tokenizer)]
            scans[name].append({"scale": scale, "wer": corpus_wer(rows).wer})
        chosen[name] = middle_of_best(scans[name])["scale"]
    return chosen, scans
