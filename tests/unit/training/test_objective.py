"""The wiring of the loss terms."""

import pytest
import torch

from tiny import random_batch, tiny_model
from twopass_kd.config.schema import LOSS_TERMS, KdConfig, LossConfig
from twopass_kd.losses.attention import make_attention_targets
from twopass_kd.training.objective import Objective
from twopass_kd.training.trainer import freeze_all_but

ALL = {term: 1.0 for term in LOSS_TERMS}


def objective(model, teacher=None, scales=None, **kd):
    return Objective(model, scales or ALL, LossConfig(), KdConfig(**kd), sos_id=1, eos_id=1, teacher=teacher)


def test_kd_terms_are_zero_when_the_student_is_the_teacher():
    teacher = tiny_model(seed=1).requires_grad_(False)
    losses = objective(tiny_model(seed=1), teacher)(random_batch())
    for term in ("transducer_kd", "attention_kd"):
        torch.testing.assert_close(losses.terms[term], torch.zeros(3), atol=1e-5, rtol=0)
    assert set(losses.terms) == set(ALL) and all((losses.terms[t] > 1).all() for t in ("simple", "pruned", "attention"))


def test_gradients_reach_every_part_of_the_student_and_none_of_the_teacher():
    student, teacher = tiny_model(seed=1), tiny_model(seed=2, dim=20).requires_grad_(False)
    losses = objective(student, teacher)(random_batch())
    losses.total.sum().backward()
    for name, p in student.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in teacher.parameters())


def test_total_is_the_scaled_sum_and_unused_terms_are_not_computed():
    scales = {"simple": 0.5, "pruned": 2.0, "ctc": 0.0}
    losses = objective(tiny_model(), scales=scales)(random_batch())
    assert set(losses.terms) == {"simple", "pruned"}
    torch.testing.assert_close(losses.total, 0.5 * losses.terms["simple"] + 2.0 * losses.terms["pruned"])
    assert losses.num_frames == 14 + 12 + 9


def test_every_term_of_an_utterance_is_the_same_alone_and_in_a_batch():
    student, teacher = tiny_model(seed=1), tiny_model(seed=2).requires_grad_(False)
    call = objective(student, teacher)
    batch = random_batch()
    together = call(batch).terms
    for i, (frames, symbols) in enumerate(zip((60, 52, 40), (5, 3, 4))):
        alone = random_batch()
        alone.feature, alone.feature_lens = batch.feature[i : i + 1, :frames], batch.feature_lens[i : i + 1]
        alone.y, alone.y_lens = batch.y[i : i + 1, :symbols], batch.y_lens[i : i + 1]
        for name, value in call(alone).terms.items():
            # The band of a shorter batch may be narrower (s_range <= S + 1), which cuts no path of these symbols.
            torch.testing.assert_close(value[0], together[name][i], atol=2e-3, rtol=2e-3, msg=name)


def test_a_frozen_encoder_builds_no_graph():
    model = tiny_model()
    freeze_all_but(model, model.parts(), ["attention_decoder"])
    losses = objective(model, scales={"attention": 1.0})(random_batch())
    losses.total.sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.attention_decoder.parameters())


def test_a_teacher_with_another_frame_rate_is_an_error():
    teacher = tiny_model(factor=6).requires_grad_(False)
    with pytest.raises(ValueError, match="frame rate"):
        objective(tiny_model(factor=4), teacher)(random_batch())


def test_attention_temperature_softens_both_distributions_of_the_second_pass_alone():
    student, teacher = tiny_model(seed=1), tiny_model(seed=2).requires_grad_(False)
    batch = random_batch()
    one, four = (objective(student, teacher, attention_temperature=t)(batch).terms for t in (1.0, 4.0))
    torch.testing.assert_close(four["transducer_kd"], one["transducer_kd"])
    inputs, _ = make_attention_targets(batch.y, batch.y_lens, 1, 1)
    logits = [
        m.attention_decoder(*m.encoder(batch.feature, batch.feature_lens)[:2], inputs) for m in (student, teacher)
    ]
    p_student, p_teacher = ((x / 4.0).log_softmax(-1) for x in logits)
    divergence = (p_teacher.exp() * (p_teacher - p_student)).sum(-1)
    own = torch.arange(divergence.size(1)) <= batch.y_lens.unsqueeze(1)  # the tokens and the end
    torch.testing.assert_close(four["attention_kd"], 4.0**2 * (divergence * own).sum(1), rtol=1e-4, atol=1e-5)
