"""Decoders step by step equal the whole; the attention decoder ignores padding; parameters are counted by part."""

from pathlib import Path

import pytest
import torch

from tiny import VOCAB_SIZE, tiny_model
from twopass_kd.config.load import load_config
from twopass_kd.models.checkpoint import build_model

CONF = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf"


@pytest.mark.parametrize("kind", ["stateless", "lstm"])
def test_decoder_step_by_step_equals_forward(kind):
    decoder = tiny_model(decoder=kind).decoder
    y = torch.randint(1, VOCAB_SIZE, (3, 6))
    y[:, 0] = 0
    whole = decoder(y)
    state = decoder.init_state(3)
    for u in range(6):
        out, state = decoder.step(y[:, u], state)
        torch.testing.assert_close(out, whole[:, u])


@pytest.mark.parametrize("kind", ["stateless", "lstm"])
def test_decoder_is_causal(kind):
    decoder = tiny_model(decoder=kind).decoder
    y = torch.randint(1, VOCAB_SIZE, (1, 6))
    other = y.clone()
    other[:, 4:] = 1
    torch.testing.assert_close(decoder(y)[:, :4], decoder(other)[:, :4])


@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_attention_decoder_on_nbest_equals_one_by_one_and_ignores_padding(encoder_layers):
    attention = tiny_model(encoder_layers=encoder_layers).attention_decoder
    encoder_out, lens = torch.randn(2, 9, 16), torch.tensor([9, 5])
    y = torch.randint(1, VOCAB_SIZE, (2, 3, 4))
    together = attention(encoder_out, lens, y)
    assert together.shape == (2, 3, 4, VOCAB_SIZE)
    for b in range(2):
        for n in range(3):
            alone = attention(encoder_out[b : b + 1, : lens[b]], lens[b : b + 1], y[b : b + 1, n])
            torch.testing.assert_close(together[b, n], alone[0], atol=1e-5, rtol=1e-4)


def test_deployed_parameters_leave_out_the_training_heads():
    model = tiny_model()
    counts = model.deployed_parameters()
    every = sum(p.numel() for p in model.parameters())
    heads = sum(p.numel() for m in (model.simple_am_proj, model.simple_lm_proj, model.ctc_head) for p in m.parameters())
    assert counts["total"] == every - heads == sum(v for k, v in counts.items() if k != "total")
    buffers = 4 * sum(b.numel() for b in model.buffers())
    assert model.deployed_bytes()["total"] == 4 * counts["total"] + buffers


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_yaml_builds_models_with_the_promised_reduction(path):
    cfg = load_config(path)
    sizes = {
        which: build_model(cfg, which, cfg.tokens.vocab_size).deployed_parameters()["total"]
        for which in ("teacher", "student")
    }
    assert 1 - sizes["student"] / sizes["teacher"] >= cfg.min_reduction
    if path.stem in ("librispeech_100h", "librispeech_960h"):
        assert 80e6 < sizes["teacher"] < 120e6 and 1 - sizes["student"] / sizes["teacher"] < 0.6
        for size in sizes.values():
            assert f"{size / 1e6:.1f} M" in path.read_text()  # the comment at its beginning
