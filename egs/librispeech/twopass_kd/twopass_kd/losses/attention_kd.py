"""Distillation of the attention decoder, token by token on the reference (arXiv 2201.02741, its LAS stage)."""

import torch
from torch import Tensor

from twopass_kd.losses.divergence import weighted_kl


def attention_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target_lens: Tensor, temperature: float = 1.0
) -> Tensor:
    """temperature**2 * KL(teacher || student) summed over each utterance's tokens.

    Args:
      student_logits: (B, U, V) logits, teacher-forced on the reference.
      teacher_logits: (B, U, V) logits on the same tokens; never gets a gradient.
      target_lens: (B,) integer, tokens of each utterance with the end of sentence (S_b + 1); the rest is padding.
      temperature: of both softmaxes, positive.
    Returns:
      (B,) float32 (or float64), in nats.
    Raises:
      ValueError: if the shapes differ or the temperature is not positive.
    """
    B, U, _ = student_logits.shape
    weights = torch.ones(B, U, device=student_logits.device)
    return weighted_kl(student_logits, teacher_logits, weights, target_lens, temperature)
