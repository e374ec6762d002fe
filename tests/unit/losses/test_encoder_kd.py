"""Distillation of the encoder's output: the formula, padding, gradients."""

import pytest
import torch

from twopass_kd.losses.encoder_kd import encoder_kd_loss

LENS = torch.tensor([4, 2])


def frames(seed):
    return torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_encoder_kd_is_the_squared_distance_of_the_frames_that_are_there():
    student, teacher = frames(0).requires_grad_(), frames(1).requires_grad_()
    loss = encoder_kd_loss(student, teacher, LENS)
    expected = [((student[b, :n] - teacher[b, :n]) ** 2).mean(1).sum() for b, n in enumerate(LENS)]
    torch.testing.assert_close(loss, torch.stack(expected))
    loss.sum().backward()
    assert teacher.grad is None and (student.grad[1, 2:] == 0).all() and (student.grad[1, :2] != 0).all()


def test_encoder_kd_of_other_sizes_says_so():
    with pytest.raises(ValueError, match="`joiner_dim`"):
        encoder_kd_loss(frames(0), frames(1)[:, :, :2], LENS)
