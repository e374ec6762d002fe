"""A student starts from its teacher where shapes agree."""

import torch

from tiny import tiny_model
from twopass_kd.training.initial_weights import copy_matching_weights


def test_copy_takes_whole_modules_of_equal_shape():
    teacher, student = tiny_model(seed=1, dim=16), tiny_model(seed=2, dim=12)
    before = student.joiner.encoder_proj.bias.clone()
    copied = copy_matching_weights(teacher, student)
    assert "decoder.embedding" in copied and "joiner.output_linear" in copied and "encoder.mvn" in copied
    assert torch.equal(student.decoder.embedding.weight, teacher.decoder.embedding.weight)
    # Its bias has the teacher's shape, its weight has not: a bias alone means nothing.
    assert "joiner.encoder_proj" not in copied and torch.equal(student.joiner.encoder_proj.bias, before)
    assert student.decoder.embedding.weight.requires_grad
