"""Tiny models, their checkpoints and random batches for tests."""

from pathlib import Path
from types import SimpleNamespace

import torch

from twopass_kd.config.load import config_to_dict, load_config
from twopass_kd.config.schema import AttentionDecoderConfig, DecoderConfig, EncoderConfig, ModelConfig
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.models.checkpoint import build_model, save_checkpoint, weights_digest
from twopass_kd.models.two_pass import TwoPassModel

NUM_FEATURES, VOCAB_SIZE = 16, 12


def tiny_model(seed=0, dim=16, factor=4, decoder="stateless", encoder_layers=0, dropout=0.0, vocab_size=VOCAB_SIZE):
    torch.manual_seed(seed)
    cfg = ModelConfig(
        encoder=EncoderConfig(subsampling_factor=factor, dim=dim, num_layers=2, conv_channels=4, dropout=dropout),
        decoder=DecoderConfig(kind=decoder, dim=8, dropout=dropout),
        joiner_dim=10,
        attention_decoder=AttentionDecoderConfig(dim=8, num_heads=2, encoder_layers=encoder_layers, dropout=dropout),
    )
    return TwoPassModel(cfg, NUM_FEATURES, vocab_size).eval()


def random_batch(seed=0, frames=(60, 52, 40), symbols=(5, 3, 4)):
    """A `Batch` of random features and tokens; the longest utterance must come first."""
    g = torch.Generator().manual_seed(seed)
    feature = torch.randn(len(frames), max(frames), NUM_FEATURES, generator=g)
    y = torch.randint(3, VOCAB_SIZE, (len(frames), max(symbols)), generator=g)
    for row, n in zip(y, symbols):
        row[n:] = 0
    cuts = [SimpleNamespace(id=f"utt-{seed}-{i}", duration=n / 100) for i, n in enumerate(frames)]
    return Batch(feature, torch.tensor(frames), y, torch.tensor(symbols), cuts)


TINY_CONF = Path(__file__).parents[1] / "conf" / "tiny.yaml"
PIECES = ["<blk>", "<sos/eos>", "<unk>", "\u2581", *(f"\u2581{c}" for c in "ABCDEFGHIJ"), *"KLMNOPQRSTUVWXYZ"]


def lively(model, scale=4.0):
    """Random models mostly say blank; a larger output layer makes them talk."""
    with torch.no_grad():
        model.joiner.output_linear.weight.mul_(scale)
        model.joiner.encoder_proj.weight.mul_(scale)
    return model


def save_tiny_checkpoint(path, seed=0, phase="student/deep", second_pass=True, overrides=()):
    """A checkpoint as the trainer leaves it, of an untrained model that talks; returns the model."""
    cfg = load_config(TINY_CONF, [f"tokens.vocab_size={len(PIECES)}", *overrides])
    torch.manual_seed(seed)
    model = lively(build_model(cfg, cfg.phases[phase].model, len(PIECES)).eval())
    model.encoder.mvn.set_statistics(torch.full((80,), -8.0), torch.full((80,), 4.0))
    parts = ["encoder", "decoder", "joiner", *(["attention_decoder"] if second_pass else [])]
    content = {
        "model": model.state_dict(),
        "config": config_to_dict(cfg),
        "phase": phase,
        "identity": f"{phase}, {seed}",
        "tokens_digest": "0" * 64,
        "tokens": PIECES,
        "vocab_size": len(PIECES),
        "trained_parts": parts,
        "train_seconds": 1.0,
        "weights_digest": weights_digest(model.state_dict()),
    }
    save_checkpoint(content, path)
    return model


def noise(seconds, seed=0, sampling_rate=16000):
    """Audio that rises and falls, (num_samples,) float32."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(int(seconds * sampling_rate), generator=g)
    return (0.1 * x * torch.sin(torch.arange(len(x)) / 1500).abs()).numpy()
