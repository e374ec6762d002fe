"""The teacher: checked against its student with both sides named, frozen, copied where shapes agree."""

from pathlib import Path

import pytest
import torch

from tiny import VOCAB_SIZE, tiny_model
from twopass_kd.checkpoint import build_model, save_checkpoint
from twopass_kd.config import ConfigError, config_to_dict, load_config
from twopass_kd.teacher import check_sizes, check_teacher, copy_matching_weights, load_teacher

MINI = Path(__file__).parents[2] / "egs/librispeech/twopass_kd/conf/mini.yaml"


@pytest.fixture()
def saved(tmp_path):
    cfg = load_config(MINI)
    model = build_model(cfg, "teacher", VOCAB_SIZE)
    content = {
        "model": model.state_dict(),
        "config": config_to_dict(cfg),
        "phase": "teacher/las",
        "tokens_digest": "abc",
        "vocab_size": VOCAB_SIZE,
        "trained_parts": ["encoder", "decoder", "joiner"],
    }
    save_checkpoint(content, tmp_path / "final.pt")
    return model, tmp_path / "final.pt"


def test_teacher_is_rebuilt_from_its_checkpoint_and_frozen(saved):
    model, path = saved
    teacher = load_teacher(path)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, teacher.model.state_dict()[name])


@pytest.mark.parametrize(
    "overrides, digest, says",
    [
        ([], "xyz", "other tokens"),
        (["student.encoder.subsampling_factor=4", "teacher.encoder.subsampling_factor=4"], "abc", "6, the student 4"),
        (["features.num_mel_bins=40"], "abc", "has 80, the student 40"),
        (["phases.student/rnnt_kd.loss_scales.attention_kd=1"], "abc", "never trained in attention_decoder"),
        (["kd.band=teacher"], "abc", "never trained in simple_heads"),
    ],
)
def test_a_teacher_that_does_not_fit_is_an_error_naming_both_sides(saved, overrides, digest, says):
    cfg = load_config(MINI, overrides)
    student, phase = build_model(cfg, "student", VOCAB_SIZE), cfg.phases["student/rnnt_kd"]
    with pytest.raises(ConfigError) as e:
        check_teacher(load_teacher(saved[1]), student, cfg, phase, digest)
    assert says in str(e.value)


def test_a_fitting_teacher_passes(saved):
    cfg = load_config(MINI)
    student = build_model(cfg, "student", VOCAB_SIZE)
    check_teacher(load_teacher(saved[1]), student, cfg, cfg.phases["student/rnnt_kd"], "abc")


@pytest.mark.parametrize("override, share", [("student.encoder.dim=400", "55%"), ("min_reduction=0.8", "80%")])
def test_a_student_that_is_not_small_enough_is_an_error(override, share):
    check_sizes(load_config(MINI), 256)
    with pytest.raises(ConfigError, match=f"must be at least {share} smaller"):
        check_sizes(load_config(MINI, [override]), 256)


def test_copy_takes_whole_modules_of_equal_shape():
    teacher, student = tiny_model(seed=1, dim=16), tiny_model(seed=2, dim=12)
    before = student.joiner.encoder_proj.bias.clone()
    copied = copy_matching_weights(teacher, student)
    assert "decoder.embedding" in copied and "joiner.output_linear" in copied and "encoder.mvn" in copied
    assert torch.equal(student.decoder.embedding.weight, teacher.decoder.embedding.weight)
    # Its bias has the teacher's shape, its weight has not: a bias alone means nothing.
    assert "joiner.encoder_proj" not in copied and torch.equal(student.joiner.encoder_proj.bias, before)
    assert student.decoder.embedding.weight.requires_grad
