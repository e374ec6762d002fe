"""Tiny transducers with random weights as TorchScript files, made by icefall's own `export.py`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EXPORT_RANDOM = Path(__file__).with_name("export_random.py")
TEXTS = ["THE OLD CAPTAIN FOUND A GOLDEN MIRROR", "SHE WALKED BEHIND THE CASTLE", "THREE DAYS LATER"]
COMMON = "--decoder-dim 24 --joiner-dim 20"
ZIPFORMER = (
    "--jit 1 --num-encoder-layers 1,1 --downsampling-factor 1,2 --feedforward-dim 32,32 --num-heads 1,1"
    " --encoder-dim 32,32 --encoder-unmasked-dim 16,16 --cnn-module-kernel 7,7"
)
ZIPFORMER7 = (
    "--jit 1 --num-encoder-layers 1,1 --feedforward-dims 32,32 --nhead 2,2 --encoder-dims 32,32"
    " --attention-dims 32,32 --encoder-unmasked-dims 16,16 --zipformer-downsampling-factors 1,2"
    " --cnn-module-kernels 7,7"
)
CONFORMER = "--jit 1 --num-encoder-layers 2 --dim-feedforward 32 --nhead 2 --encoder-dim 32"
LSTM = "--jit-trace 1 --num-encoder-layers 2 --encoder-dim 32 --rnn-hidden-size 40 --dim-feedforward 32"

# kind: the recipe, the options of its export.py, the file or files that it leaves
KINDS: dict[str, tuple[str, str, str]] = {
    "zipformer": ("zipformer", ZIPFORMER, "jit_script.pt"),
    "zipformer_streaming": (
        "zipformer",
        f"{ZIPFORMER} --causal 1 --chunk-size 16 --left-context-frames 64",
        "jit_script_chunk_16_left_64.pt",
    ),
    "zipformer7": ("pruned_transducer_stateless7", ZIPFORMER7, "cpu_jit.pt"),
    "zipformer7_streaming": ("pruned_transducer_stateless7_streaming", ZIPFORMER7, "cpu_jit.pt"),
    "conformer": ("pruned_transducer_stateless5", CONFORMER, "cpu_jit.pt"),
    "conformer_streaming": (
        "pruned_transducer_stateless5",
        f"{CONFORMER} --causal-convolution 1 --streaming-model 1",
        "cpu_jit.pt",
    ),
    "lstm": ("lstm_transducer_stateless3", LSTM, "encoder_jit_trace.pt"),  # and decoder_, joiner_: it has no --jit
}


@dataclass
class IcefallTeacher:
    """An exported model of icefall.

    Attributes:
      path: the TorchScript file; for `lstm` its encoder's, beside `decoder_jit_trace.pt` and `joiner_jit_trace.pt`.
      checkpoint: epoch-1.pt, as icefall's training saves it, that the file comes from.
      lang_dir: its tokens.txt and bpe.model.
    """

    kind: str
    path: Path
    checkpoint: Path
    lang_dir: Path
    encoder_dim: int = 32
    decoder_dim: int = 24
    joiner_dim: int = 20
    vocab_size: int = 40
    context_size: int = 2


def run_in_recipe(recipe: Path, *command, pythonpath: Sequence[Path] = ()) -> str:
    """Run a Python script in a folder of a checkout's egs/librispeech/ASR, with the Python that runs the tests.

    Args:
      recipe: the folder; it is on PYTHONPATH as the script's own would be, and the checkout too.
      command: the script and its arguments.
      pythonpath: more of it, looked into last.
    Returns:
      What it prints, to stdout and to stderr.
    """
    root = next(p for p in recipe.parents if (p / "icefall" / "__init__.py").is_file())
    paths = os.pathsep.join(map(str, [root, recipe, *pythonpath]))
    env = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=recipe,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def make_icefall_teacher(kind: str, recipes: Path, lang_dir: Path, out_dir: Path) -> IcefallTeacher:
    """Save random weights with icefall's `save_checkpoint` and run its `export.py` on them.

    Args:
      kind: a key of `KINDS`.
      recipes: egs/librispeech/ASR of an icefall checkout.
      lang_dir: holds tokens.txt.
      out_dir: where the files go.
    """
    recipe, options, name = KINDS[kind]
    run_in_recipe(
        recipes / recipe,
        *(EXPORT_RANDOM, "--epoch", 1, "--avg", 1, "--use-averaged-model", 0, "--exp-dir", out_dir),
        *("--tokens", lang_dir / "tokens.txt", *COMMON.split(), *options.split()),
    )
    return IcefallTeacher(kind, out_dir / name, out_dir / "epoch-1.pt", lang_dir)
