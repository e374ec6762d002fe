"""Transducers of icefall as teachers: its TorchScript of every kind, and its recipes' own models."""

import sys
from dataclasses import replace

import pytest
import torch

from icefall_teachers import KINDS
from tiny import TINY_CONF
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import ConfigError, ExternalTeacherConfig
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.checkpoint import build_model
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.teachers.check_teacher import check_teacher
from twopass_kd.teachers.load_teacher import load_external_teacher
from twopass_kd.training.objective import Objective

pytestmark = pytest.mark.slow
RECIPES = {
    "zipformer": (
        "--num-encoder-layers=1,1 --downsampling-factor=1,2 --feedforward-dim=32,32 --num-heads=1,1 --encoder-dim=32,32"
        " --encoder-unmasked-dim=16,16 --cnn-module-kernel=7,7 --decoder-dim=24 --joiner-dim=20"
    ),
    "conformer": (
        "--num-encoder-layers=2 --dim-feedforward=32 --nhead=2 --encoder-dim=32 --decoder-dim=24 --joiner-dim=20"
    ),
}


def config(*overrides):
    return load_config(TINY_CONF, ["models.student.encoder.subsampling_factor=4", "tokens.vocab_size=40", *overrides])


def open_kind(teacher):
    external = ExternalTeacherConfig(path=str(teacher.path), tokens=str(teacher.lang_dir / "tokens.txt"))
    return load_external_teacher(external, teacher.vocab_size, 80)


def batch_of(lens, symbols=4):
    g = torch.Generator().manual_seed(0)
    feature = torch.randn(len(lens), max(lens), 80, generator=g)
    y = torch.randint(3, 40, (len(lens), symbols), generator=g)
    cuts = [type("Cut", (), {"id": str(i), "duration": n / 100}) for i, n in enumerate(lens)]
    return Batch(feature, torch.tensor(lens), y, torch.full((len(lens),), symbols), cuts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_distillation_from_every_kind(icefall_teacher, kind):
    made = icefall_teacher(kind)
    cfg = config(f"external_teacher.path={made.path}")
    teacher, phase = open_kind(made), cfg.phases["student/rnnt_kd"]
    torch.manual_seed(0)
    student = build_model(cfg, "student", made.vocab_size)
    check_teacher(teacher, student, cfg, phase, Tokenizer(made.lang_dir))
    assert teacher.model.encoder.subsampling_factor == 4
    kd = replace(cfg.kd, frame_shift=1)
    objective = Objective(student, phase.loss_scales, cfg.loss, kd, 1, 1, teacher=teacher.model)
    losses = objective(batch_of([123, 122, 97]))
    losses.total.sum().backward()
    assert torch.isfinite(losses.terms["transducer_kd"]).all() and (losses.terms["transducer_kd"] > 0).all()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert sum(float(p.grad.abs().sum()) for p in student.encoder.parameters()) > 0


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_our_searches_decode_every_kind(icefall_teacher, kind):
    made = icefall_teacher(kind)
    model = open_kind(made).model
    model.joiner.output_linear.weight.mul_(20)  # or random weights say blank only
    encoder_out, lens, _ = model.encoder(torch.randn(2, 120, 80), torch.tensor([120, 90]))
    tokens, log_prob = [], 0.0
    for frame in encoder_out[0]:
        decoder_out = model.decoder(torch.tensor([[0, *tokens]]))[:, -1]
        value, best = model.joiner(frame[None], decoder_out).log_softmax(-1)[0].max(0)
        log_prob += float(value)
        tokens += [int(best)] if int(best) not in (0, 2) else []
    first = greedy_search(model, encoder_out, lens)[0][0]
    assert tokens and first.tokens == tokens and first.log_prob == pytest.approx(log_prob, abs=1e-3)
    assert all(nbest for nbest in modified_beam_search(model, encoder_out, lens))


@pytest.fixture()
def modules_of_one_recipe(icefall_recipes):
    """Recipes have modules of the same names: forget those of this test's, so that the next can import its own."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(icefall_recipes)):
            del sys.modules[name]


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipes_own_model_is_its_torchscript(
    icefall_teacher, icefall_recipes, kind, tmp_path, modules_of_one_recipe
):
    made = icefall_teacher(kind)
    weights = torch.load(made.checkpoint, map_location="cpu", weights_only=True)["model"]
    torch.save({"model": weights}, tmp_path / "pretrained.pt")
    external = ExternalTeacherConfig(
        path=str(tmp_path / "pretrained.pt"),
        recipe=str(icefall_recipes / KINDS[kind][0]),
        options=RECIPES[kind],
        tokens=str(made.lang_dir / "tokens.txt"),
    )
    teacher, scripted = load_external_teacher(external, made.vocab_size, 80), open_kind(made)
    x, x_lens, y = torch.randn(2, 120, 80), torch.tensor([120, 90]), torch.tensor([[0, 5, 7]])
    with torch.no_grad():
        encoder_out, lens, _ = teacher.model.encoder(x, x_lens)
        expected, expected_lens, _ = scripted.model.encoder(x, x_lens)
        assert torch.allclose(encoder_out, expected, atol=1e-4) and torch.equal(lens, expected_lens)
        assert torch.allclose(teacher.model.decoder(y), scripted.model.decoder(y), atol=1e-5)
    wrong = replace(external, options=external.options + " --joiner-dim 24")
    with pytest.raises(ConfigError, match="does not fit the model"):
        load_external_teacher(wrong, made.vocab_size, 80)
