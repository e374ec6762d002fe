"""Distillation of the encoder's output, frame by frame, in the space in which the joiner takes it."""

import torch
from torch import Tensor


def encoder_kd_loss(student: Tensor, teacher: Tensor, lens: Tensor) -> Tensor:
    """Squared distance of each frame from the teacher's, mean over its values and summed over the utterance's frames.

    Args:
      student: (B, T, C) float, the encoder's output as the joiner projects it.
      teacher: (B, T, C) the same of the teacher; never gets a gradient.
      lens: (B,) int64, frames of each utterance; the rest is padding.
    Returns:
      (B,) float32 (or float64), in the square of the teacher's unit.
    Raises:
      ValueError: if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"`teacher` {tuple(teacher.shape)} must have the shape of `student` {tuple(student.shape)}; give both"
            " models one `joiner_dim`"
        )
    valid = torch.arange(student.size(1), device=student.device) < lens.unsqueeze(1)
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    distance = (student.to(dtype) - teacher.detach().to(dtype)).square().mean(dim=2)
    return distance.masked_fill(~valid, 0).sum(dim=1)
