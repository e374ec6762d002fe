"""Run inside a recipe of icefall: a checkpoint of random weights, then the recipe's export.py as it is.

All arguments are export.py's; `--exp-dir` gets epoch-1.pt and what export.py leaves.
"""

import runpy

import k2
import torch
import train  # the recipe's
from icefall.checkpoint import save_checkpoint

import export  # the recipe's


def main() -> None:
    torch.manual_seed(0)
    args = export.get_parser().parse_args()
    params = train.get_params()
    params.update(vars(args))
    tokens = k2.SymbolTable.from_file(params.tokens)
    params.blank_id, params.unk_id = tokens["<blk>"], tokens["<unk>"]
    params.vocab_size = export.num_tokens(tokens) + 1
    make_model = getattr(train, "get_model", None) or train.get_transducer_model
    save_checkpoint(f"{args.exp_dir}/epoch-1.pt", make_model(params))
    runpy.run_path("export.py", run_name="__main__")


if __name__ == "__main__":
    main()
