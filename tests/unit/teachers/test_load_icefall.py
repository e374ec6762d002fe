"""Teachers with icefall's interface. The real ones, made by icefall itself, are in tests/contract/."""

import pytest
import torch
from torch import nn

from tiny import VOCAB_SIZE, lively, tiny_model
from twopass_kd.config.schema import AttentionDecoderConfig, ConfigError, DecoderConfig, EncoderConfig, ModelConfig
from twopass_kd.export.torchscript import ScriptedTransducer, export_torchscript
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.teachers.load_icefall import is_torchscript, load_recipe, load_torchscript


def model_of(num_features=80, factor=4):
    torch.manual_seed(0)
    cfg = ModelConfig(
        encoder=EncoderConfig(subsampling_factor=factor, dim=16, num_layers=1, conv_channels=4),
        decoder=DecoderConfig(dim=8),
        joiner_dim=10,
        attention_decoder=AttentionDecoderConfig(dim=8, num_heads=2),
    )
    return lively(TwoPassModel(cfg, num_features, VOCAB_SIZE).eval())


@pytest.fixture()
def pair(tmp_path):
    """A model, and the TorchScript of its first pass loaded as a teacher of icefall."""
    model = model_of()
    export_torchscript(model, tmp_path / "cpu_jit.pt")
    return model, load_torchscript(tmp_path / "cpu_jit.pt", 80)


@torch.no_grad()
def test_torchscript_gives_what_its_model_gives(pair):
    model, loaded = pair
    x, x_lens = torch.randn(2, 90, 80), torch.tensor([90, 61])
    encoder_out, lens, _ = model.encoder(x, x_lens)
    got, got_lens, _ = loaded.encoder(x, x_lens)
    assert torch.allclose(got, encoder_out, atol=1e-5) and torch.equal(got_lens, lens)
    y = torch.tensor([[0, 5, 7], [0, 3, 3]])
    assert torch.allclose(loaded.decoder(y), model.decoder(y), atol=1e-6)
    am, lm = model.joiner.encoder_proj(encoder_out).unsqueeze(2), model.joiner.decoder_proj(model.decoder(y))
    logits = loaded.joiner(am, lm.unsqueeze(1), project_input=False)  # shapes broadcast
    assert torch.allclose(logits, model.joiner(am, lm.unsqueeze(1), project_input=False), atol=1e-5)
    for search in (greedy_search, modified_beam_search):
        assert [[h.tokens for h in n] for n in search(loaded, got, lens)] == [
            [h.tokens for h in n] for n in search(model, encoder_out, lens)
        ]


def test_what_no_file_says_is_measured(pair):
    model, loaded = pair
    assert loaded.encoder.subsampling_factor == 4 and loaded.vocab_size == VOCAB_SIZE
    assert loaded.decoder.context_size == 2 and loaded.trained_parts == ("encoder", "decoder", "joiner")
    sizes = {**model.deployed_parameters(), "attention_decoder": 0}
    sizes["total"] = sum(sizes[part] for part in ("encoder", "decoder", "joiner"))
    assert loaded.deployed_parameters() == sizes
    assert loaded.deployed_bytes()["total"] == 4 * sizes["total"]


def test_features_that_the_teacher_does_not_take_are_named_on_both_sides(tmp_path):
    export_torchscript(model_of(), tmp_path / "cpu_jit.pt")
    with pytest.raises(ConfigError, match="does not take the student's 40, but 80"):
        load_torchscript(tmp_path / "cpu_jit.pt", 40)


def test_torchscript_that_is_no_transducer_is_an_error(tmp_path):
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(str(tmp_path / "other.pt"))
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    (tmp_path / "text.pt").write_text("no zip")
    assert [is_torchscript(tmp_path / f"{name}.pt") for name in ("other", "checkpoint", "text")] == [True, False, False]
    with pytest.raises(ConfigError, match="must be a transducer with encoder, decoder and joiner.*it has 0"):
        load_torchscript(tmp_path / "other.pt", 80)


class _ReluJoiner(nn.Module):
    def __init__(self, joiner):
        super().__init__()
        self.encoder_proj, self.decoder_proj = joiner.encoder_proj, joiner.decoder_proj
        self.output_linear = joiner.output_linear

    def forward(self, encoder_out, decoder_out):
        return self.output_linear(torch.relu(self.encoder_proj(encoder_out) + self.decoder_proj(decoder_out)))


def test_a_joiner_that_does_something_else_is_an_error(tmp_path):
    model = model_of()
    model.joiner = _ReluJoiner(model.joiner)
    torch.jit.script(ScriptedTransducer(model)).save(str(tmp_path / "relu.pt"))
    with pytest.raises(ConfigError, match="joiner must be output_linear"):
        load_torchscript(tmp_path / "relu.pt", 80)
    model.joiner = nn.Linear(2, 2)
    torch.jit.script(ScriptedTransducer(model)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(ConfigError, match="lacks encoder_proj, decoder_proj, output_linear"):
        load_torchscript(tmp_path / "linear.pt", 80)


def test_parts_that_were_traced_one_by_one_are_joined(tmp_path):
    model = model_of()
    states = model.encoder.init_states(1)
    path = tmp_path / "encoder_jit_trace-iter-7.pt"
    encoder = _WithStates(model.encoder)
    torch.jit.trace(encoder, (torch.zeros(1, 90, 80), torch.tensor([90]), states), check_trace=False).save(str(path))
    with pytest.raises(ConfigError, match="must have decoder_jit_trace-iter-7.pt beside it"):
        load_torchscript(path, 80)
    decoder = _Unpadded(model.decoder)
    traced = torch.jit.trace(decoder, (torch.zeros(3, 2, dtype=torch.int64), torch.tensor([False])))
    traced.save(str(tmp_path / "decoder_jit_trace-iter-7.pt"))
    torch.jit.trace(model.joiner, (torch.zeros(1, 16), torch.zeros(1, 8))).save(
        str(tmp_path / "joiner_jit_trace-iter-7.pt")
    )
    loaded = load_torchscript(path, 80)
    x, x_lens, y = torch.randn(3, 120, 80), torch.tensor([120, 90, 50]), torch.tensor([[0, 5, 7]])
    with torch.no_grad():
        assert torch.allclose(loaded.encoder(x, x_lens)[0], model.encoder(x, x_lens)[0], atol=1e-5)
        assert torch.allclose(loaded.decoder(y), model.decoder(y), atol=1e-6)


class _WithStates(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    @torch.jit.export
    def get_init_states(self, batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, batch_size, 16, device=device), torch.zeros(1, batch_size, 16, device=device)

    def forward(self, x, x_lens, states):
        return self.encoder(x, x_lens, states)


class _Unpadded(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.embedding, self.conv = decoder.embedding, decoder.conv

    def forward(self, y, need_pad):
        return torch.relu(self.conv(self.embedding(y).transpose(1, 2)).transpose(1, 2))


RECIPE = """
import argparse
from tiny import tiny_model

def get_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--causal", type=int, default=0)
    parser.add_argument("--chunk-size", default="16,32,64,-1")
    return parser

def get_params():
    return {}

def get_model(params):
    model = tiny_model(seed=3, dim=params["dim"], vocab_size=params["vocab_size"])
    model.decoder.context_size = 2
    return model
"""


@pytest.fixture()
def recipe(tmp_path):
    """A folder with a train.py that has icefall's functions, and weights for the model it builds."""
    (tmp_path / "train.py").write_text(RECIPE)
    model = tiny_model(seed=5, dim=20)
    torch.save({"model": model.state_dict()}, tmp_path / "pretrained.pt")
    return tmp_path, model


def test_recipe_builds_the_model_with_its_options_and_takes_the_weights(recipe):
    folder, model = recipe
    loaded = load_recipe(folder, folder / "pretrained.pt", "--dim 20", VOCAB_SIZE, 16)
    x, x_lens = torch.randn(2, 60, 16), torch.tensor([60, 40])
    with torch.no_grad():
        assert torch.equal(loaded.encoder(x, x_lens)[0], model.encoder(x, x_lens)[0])


@pytest.mark.parametrize(
    "options, weights, says",
    [
        ("--dim 24", None, "does not fit the model"),
        ("--depth 2", None, "must be options of"),
        ("--dim 20 --causal 1", None, "one number for --chunk-size, not 16,32,64,-1"),
        ("", {"model": print}, "must hold weights and nothing else.*export.py"),
    ],
)
def test_recipe_that_does_not_fit_its_weights_is_an_error(recipe, options, weights, says):
    folder, _ = recipe
    if weights is not None:
        torch.save(weights, folder / "pretrained.pt")
    with pytest.raises(ConfigError, match=says):
        load_recipe(folder, folder / "pretrained.pt", options, VOCAB_SIZE, 16)


def test_a_folder_that_is_no_recipe_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="with a train.py"):
        load_recipe(tmp_path, tmp_path / "pretrained.pt", "", VOCAB_SIZE, 16)
    (tmp_path / "train.py").write_text("import icefall_of_another_name")
    with pytest.raises(ConfigError, match="set ICEFALL_ROOT"):
        load_recipe(tmp_path, tmp_path / "pretrained.pt", "", VOCAB_SIZE, 16)
