"""Tiny models and random batches for tests."""

from types import SimpleNamespace

import torch

from twopass_kd.asr_datamodule import Batch
from twopass_kd.config import AttentionDecoderConfig, DecoderConfig, EncoderConfig, ModelConfig
from twopass_kd.model import TwoPassModel

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
