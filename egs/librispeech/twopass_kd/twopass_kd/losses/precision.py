"""Losses are computed in float32, whatever autocast says; float64 stays float64 (tests check gradients in it)."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or untouched if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def autocast_off(x: Tensor) -> torch.autocast:
    """A context in which autocast is off for the device of `x`."""
    return torch.autocast(device_type=x.device.type, enabled=False)
