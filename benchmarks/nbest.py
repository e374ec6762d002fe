"""How many hypotheses should the second pass see: first pass, two-pass and oracle WER by the size of the n-best list.

    egs/librispeech/twopass_kd/run.sh --conf an4 --seeds 3 --stop-stage 7     # the systems
    python benchmarks/nbest.py --conf an4 --seeds 42 43 44

The beam has the size of the list. The oracle takes of each list the hypothesis with the fewest errors: what no second
pass can go below. Weight and length reward of the second pass are chosen on dev, for each size and seed: once with no
length reward, once out of --rewards. WERs are means over seeds.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from common import RECIPE, make_parser, read_config

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import experiment_folder, reported_systems
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import Tokenizer, open_tokenizer
from twopass_kd.files.layout import final_path
from twopass_kd.models.checkpoint import load_model
from twopass_kd.scoring.wer import corpus_wer, error_counts
from twopass_kd.search.choose_on_dev import choose_weights
from twopass_kd.search.decode_set import Decoded, decode_set, first_pass_tokens, second_pass_tokens, transcripts
from twopass_kd.search.methods import own_searches

SEARCH = "first_pass"


def oracle_wer(decoded: Decoded, tokenizer: Tokenizer) -> float:
    """Percent: of each utterance the hypothesis of its list that has the fewest errors."""
    errors = words = 0
    for cut_id, ref, nbest in zip(decoded.cut_ids, decoded.refs, decoded.nbests[SEARCH], strict=True):
        texts = tokenizer.decode([hypothesis.tokens for hypothesis in nbest])
        counts = error_counts([(cut_id, ref, text.split()) for text in texts])
        errors, words = errors + int(counts[:, :3].sum(axis=1).min()), words + len(ref)
    return 100 * errors / words


def measure(cfg: Config, system: str, data_dir: Path, exp_dir: Path, rewards: list[float]) -> dict[str, list[float]]:
    """By set: WER of the first pass, of the oracle, of both passes without and with length rewards."""
    tokenizer = open_tokenizer(cfg, data_dir)
    model = load_model(final_path(experiment_folder(cfg, exp_dir), reported_systems(cfg)[system]))[0]
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)
    search = {SEARCH: own_searches(cfg)[SEARCH]}
    sets = list(dict.fromkeys([*cfg.corpus.dev_parts, *cfg.corpus.test_parts]))
    decoded = {part: decode_set(model, data.decode_loader(part), part, search, tokenizer, [SEARCH]) for part in sets}
    dev = [decoded[part] for part in cfg.corpus.dev_parts]
    chosen = []
    for tried in ([0.0], rewards):
        with_rewards = replace(cfg, decode=replace(cfg.decode, length_rewards=tried))
        chosen.append(choose_weights(dev, SEARCH, with_rewards, tokenizer)[:2])
    found = {}
    for part, of_part in decoded.items():
        passes = [first_pass_tokens(of_part, SEARCH), *(second_pass_tokens(of_part, SEARCH, *how) for how in chosen)]
        first, *both = (corpus_wer(transcripts(of_part, tokens, tokenizer)).wer for tokens in passes)
        found[part] = [first, oracle_wer(of_part, tokenizer), *both]
    return found


def main() -> None:
    parser = make_parser(__doc__, conf="an4")
    parser.add_argument("--data-dir", type=Path, help="of the experiment (the recipe's data/<conf> if not given)")
    parser.add_argument("--exp-dir", type=Path, default=RECIPE / "exp", help="of the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the experiment, where it has several")
    parser.add_argument("--systems", nargs="+", default=["teacher", "student"], help="`report_as` names")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16], help="hypotheses")
    parser.add_argument("--rewards", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0], help="nats for each token")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    seeds = [[f"seeds=[{', '.join(map(str, args.seeds))}]", f"seed={seed}"] for seed in args.seeds or ()] or [[]]
    rows = defaultdict(list)
    for size in args.sizes:
        for settings in seeds:
            cfg = read_config(args.conf, [*args.overrides, *settings, f"decode.beam={size}", f"decode.nbest={size}"])
            data_dir = args.data_dir or RECIPE / "data" / cfg.name
            for system in args.systems:
                for part, wers in measure(cfg, system, data_dir, args.exp_dir, args.rewards).items():
                    rows[part, system, size].append(wers)
    print(f"{describe_environment()}; seeds {' '.join(map(str, args.seeds or [cfg.seed]))}\n")
    print("| set | system | hypotheses | first pass | oracle | two-pass, no length reward | two-pass, length reward |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for (part, system, size), of_seeds in sorted(rows.items()):
        means = " | ".join(f"{fmean(values):.2f}" for values in zip(*of_seeds, strict=True))
        print(f"| {part} | {system} | {size} | {means} |")


if __name__ == "__main__":
    main()
