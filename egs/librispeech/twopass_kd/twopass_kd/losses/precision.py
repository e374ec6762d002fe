"""Mixed precision on GPUs: matrix products in half precision where a config says so, losses in float32 always.

Losses keep float64 as it is, since tests check gradients in it.
"""

import torch
from torch import Tensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which modules compute in `precision` (float32 | bfloat16 | float16).

    A GPU's LSTMs compute in float16 with bfloat16 too: cuDNN's autocast knows no other type, so that both need a
    gradient scaler. CPUs compute in float32 whatever it says: torch 1.13 has neither LSTM nor LayerNorm in half
    precision there.
    """
    enabled = precision in DTYPES and device.type == "cuda"
    return torch.autocast(device.type, dtype=DTYPES.get(precision, torch.bfloat16), enabled=enabled)


def make_grad_scaler(enabled: bool) -> "torch.cuda.amp.GradScaler":
    """Scales up gradients that are too small for float16; without effect where not `enabled`."""
    if hasattr(torch.amp, "GradScaler"):  # torch >= 2.3
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or untouched if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def autocast_off(x: Tensor) -> torch.autocast:
    """A context in which autocast is off for the device of `x`."""
    return torch.autocast(device_type=x.device.type, enabled=False)
