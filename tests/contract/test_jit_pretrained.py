"""icefall's own programs transcribe audio with our cpu_jit.pt, and find the words that our greedy search finds."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from compute_fbank import make_extractor
from icefall_teachers import run_in_recipe
from small_corpus import WORDS
from tiny import PIECES, noise, save_tiny_checkpoint
from train_bpe import write_lang
from twopass_kd.config.schema import FeaturesConfig
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.export.torchscript import export_torchscript
from twopass_kd.search.greedy import greedy_search

STAND_INS = Path(__file__).with_name("stand_ins")
SECONDS = (2.0, 3.1, 1.3)


@pytest.fixture(scope="module")
def exported(icefall_recipes, tmp_path_factory):
    """A folder with cpu_jit.pt, tokens and wave files, and the words that our greedy search finds in them."""
    folder = tmp_path_factory.mktemp("exported")
    write_lang(folder / "lang", [" ".join(WORDS)], len(PIECES))
    tokenizer = Tokenizer(folder / "lang")
    model = save_tiny_checkpoint(folder / "final.pt", seed=3)
    with torch.no_grad():
        model.joiner.output_linear.bias[tokenizer.unk_id] = -1e4  # icefall's programs would print it, we leave it out
    export_torchscript(model, folder / "cpu_jit.pt")
    extractor = make_extractor(FeaturesConfig())
    texts = []
    for i, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"{i}.wav", noise(seconds, seed=i), 16000, subtype="PCM_16")
        samples, _ = soundfile.read(folder / f"{i}.wav", dtype="float32")
        x = torch.from_numpy(extractor.extract(samples, 16000))
        with torch.no_grad():
            encoder_out, lens, _ = model.encoder(x[None], torch.tensor([len(x)]))
        texts += tokenizer.decode([nbest[0].tokens for nbest in greedy_search(model, encoder_out, lens)])
    assert all(texts) and len(set(texts)) == len(texts)
    return folder, texts


@pytest.fixture
def stand_ins(tmp_path):
    """A folder with stand-ins for what icefall's programs import beside it and is not installed."""
    for path in STAND_INS.glob("*.py"):
        if importlib.util.find_spec(path.stem) is None:
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "recipe, option, file",
    [("zipformer", "--tokens", "tokens.txt"), ("pruned_transducer_stateless7", "--bpe-model", "bpe.model")],
)
def test_jit_pretrained_of_icefall_finds_our_words(icefall_recipes, exported, stand_ins, recipe, option, file):
    folder, texts = exported
    waves = [folder / f"{i}.wav" for i in range(len(SECONDS))]
    options = ["--nn-model-filename", folder / "cpu_jit.pt", option, folder / "lang" / file]
    output = run_in_recipe(icefall_recipes / recipe, "jit_pretrained.py", *options, *waves, pythonpath=[stand_ins])
    lines = output.splitlines()
    assert [" ".join(lines[lines.index(f"{wave}:") + 1].split()) for wave in waves] == texts
