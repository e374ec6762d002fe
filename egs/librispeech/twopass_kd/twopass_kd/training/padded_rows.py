"""Encoders called with as many rows as cuDNN's fastest LSTM kernels take."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 8  # the number of rows must be a multiple of it
MOST_ROWS = 128


def encode(encoder: nn.Module, feature: Tensor, feature_lens: Tensor, pad: bool | None = None) -> tuple[Tensor, Tensor]:
    """The encoder's output and lengths of a batch, computed with rows of zeros below it where that is faster.

    cuDNN's persistent kernels keep an LSTM's weights in the registers over all frames. torch asks for them
    (`use_persist_device_heuristics` in its RNN.cpp) on the large GPUs of compute capability 8.0, 8.9 and 9.0 or newer,
    in float16, for one unidirectional layer with sizes that are multiples of 128 and at most 1024, on batches whose
    rows are a multiple of 8 and at most 128. Autocast gives LSTMs float16 for bfloat16 too. V100s want 16 rows or
    multiples of it; that is not looked after.

    Rows are added only where they do not double the batch, so that its memory stays below twice what it was; and never
    above 128, where the plain kernels have enough rows to be busy: cutting such a batch in two would go through its
    frames twice. Not measured on a GPU: benchmarks/gpu_check.sh times the encoder with 96, 97 and 192 rows.

    Args:
      encoder: maps (feature, feature_lens) to (output, lengths, anything).
      feature: (B, T, num_mel_bins) float32.
      feature_lens: (B,) int64, frames before subsampling.
      pad: whether to add rows; None: where the kernels would be taken then.
    Returns:
      (B, T', C) and (B,) int64 lengths after subsampling. Added rows are gone: they reach no loss and no gradient.
    """
    count = feature.size(0)
    if pad if pad is not None else _kernels_wanted(encoder, feature):
        missing = missing_rows(count)
        feature = F.pad(feature, (0, 0, 0, 0, 0, missing))
        feature_lens = F.pad(feature_lens, (0, missing), value=feature.size(1))
    out, lens, _ = encoder(feature, feature_lens)
    return out[:count], lens[:count]


def missing_rows(count: int) -> int:
    """How many rows to add to `count`; 0 where none help, or too many were needed."""
    missing = -count % ROWS
    return missing if missing < count and count + missing <= MOST_ROWS else 0


def _kernels_wanted(encoder: nn.Module, feature: Tensor) -> bool:
    """Whether half precision runs on a GPU, and a layer of the encoder is one for the persistent kernels."""
    return feature.is_cuda and torch.is_autocast_enabled() and has_persistent_lstm(encoder)


def has_persistent_lstm(encoder: nn.Module) -> bool:
    return any(
        module.num_layers == 1
        and not (module.bidirectional or module.proj_size)
        and module.hidden_size <= 1024
        and module.hidden_size % 128 == module.input_size % 128 == 0
        for module in encoder.modules()
        if isinstance(module, nn.LSTM)
    )
