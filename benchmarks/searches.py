"""Real-time factors and WERs of all searches on a part of a corpus, with a trained model, beside greedy search.

    make demo                         # trains the models
    python benchmarks/searches.py     # or name others: --checkpoint FILE --data-dir DIR

What is timed goes from features to n-best lists: encoder and search, in batches of `decode.max_duration`. The searches
take turns within each round; printed are medians of the rounds, and ratios to greedy search. Beams and graphs come from
the YAML (`decode`), and key=value changes them; the trivial graph and LG are measured, LG with each of
`decode.lm_scales`. WERs are of the best hypothesis of the n-best list, on the utterances that were timed.
"""

import tempfile
from pathlib import Path

import torch
from common import RECIPE, make_parser, median_seconds, read_config

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import config_to_dict
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.asr_dataset import Batch, cut_text
from twopass_kd.data.tokenizer import open_tokenizer
from twopass_kd.models.checkpoint import load_model
from twopass_kd.scoring.wer import corpus_wer
from twopass_kd.search.methods import Search, further_searches, own_searches

GRAPHS = ["decode.searches=[fast_beam_search,fast_beam_search_LG]"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=RECIPE / "data/mini")
    parser.add_argument("--checkpoint", type=Path, default=RECIPE / "exp/mini/student/deep/final.pt")
    parser.add_argument("--part", help="default: the first of corpus.dev_parts")
    parser.add_argument("--limit", type=int, default=10, help="batches, from the longest utterances")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. decode.fast_beam=8")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cfg = read_config(args.conf, [*GRAPHS, *args.overrides])
    model, content = load_model(args.checkpoint)
    tokenizer = open_tokenizer(cfg, args.data_dir)
    part = args.part or cfg.corpus.dev_parts[0]
    data = AsrDataModule(cfg, args.data_dir, tokenizer, model.encoder.subsampling_factor)
    batches: list[Batch] = list(data.decode_loader(part))[-args.limit :]
    refs = [cut_text(cut).split() for batch in batches for cut in batch.cuts]
    seconds = sum(batch.duration for batch in batches)

    searches, cpu = own_searches(cfg), torch.device("cpu")
    with tempfile.TemporaryDirectory() as graph_dir:
        further = further_searches(cfg, tokenizer, Path(graph_dir), cpu)
    for name, by_scale in further.items():
        for scale, search in by_scale.items():
            searches[name if len(by_scale) == 1 else f"{name}, scale {scale:g}"] = search

    def decode(search: Search) -> list[list[int]]:
        with torch.no_grad():
            outs = [model.encoder(batch.feature, batch.feature_lens)[:2] for batch in batches]
            return [nbest[0].tokens for out, lens in outs for nbest in search(model, out, lens)]

    wers = {}
    for name, search in searches.items():
        hyps = [text.split() for text in tokenizer.decode(decode(search))]
        wers[name] = corpus_wer([(str(i), ref, hyp) for i, (ref, hyp) in enumerate(zip(refs, hyps))]).wer
    variants = {name: lambda search=search: decode(search) for name, search in searches.items()}
    times = median_seconds(variants, args.repeats)
    print(f"{content['phase']}, {part}: {len(refs)} utterances, {seconds:.0f} s in {len(batches)} batches, "
          f"{args.threads} threads, medians of {args.repeats} rounds")  # fmt: skip
    settings = config_to_dict(cfg)["decode"]
    print(", ".join(f"{k} {settings[k]}" for k in ("beam", "nbest", "fast_beam", "max_contexts", "max_states")))
    print("; ".join(f"{key} {value}" for key, value in describe_environment().items() if value is not None))
    print("| search | RTF | ratio to greedy | WER |\n|---|---:|---:|---:|")
    for name, time in times.items():
        print(f"| {name} | {time / seconds:.5f} | {time / times['greedy_search']:.2f} | {wers[name]:.2f} |")


if __name__ == "__main__":
    main()
