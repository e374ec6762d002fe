"""The same seeds and weights give the same losses, gradients and training steps on every torch and loss backend.

same_losses.json holds what the k2 stack (torch 1.13.1, k2 1.23.4) gives. Who changes a loss on purpose makes it anew:

    . egs/librispeech/twopass_kd/path.sh
    PYTHONPATH=tests/unit:$PYTHONPATH python3 tests/unit/losses/test_same_losses.py
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiny import random_batch, tiny_model
from twopass_kd.config.schema import LOSS_TERMS, KdConfig, LossConfig, TrainConfig
from twopass_kd.losses.attention import attention_loss, make_attention_targets
from twopass_kd.losses.attention_kd import attention_kd_loss
from twopass_kd.losses.band import prune_ranges
from twopass_kd.losses.ctc import ctc_loss
from twopass_kd.losses.rnnt_backend import use_backend
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss
from twopass_kd.losses.transducer_kd import transducer_kd_loss
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Objective
from twopass_kd.training.optimizer_step import OptimizerStep

EXPECTED = Path(__file__).with_name("same_losses.json")
Values = dict[str, list[float]]
X_LENS, Y_LENS, V = torch.tensor([14, 11, 9]), torch.tensor([7, 4, 0]), 9


def loss_terms() -> Values:
    """Each loss function on random logits: its value for each utterance, and the norm of its gradient."""
    torch.manual_seed(0)
    B, T, S = len(X_LENS), int(X_LENS.max()), int(Y_LENS.max())
    am, lm = torch.randn(B, T, V), torch.randn(B, S + 1, V)
    student, teacher = torch.randn(B, T, S + 1, V), torch.randn(B, T, S + 1, V)
    attention_logits, attention_teacher = torch.randn(B, S + 1, V), torch.randn(B, S + 1, V)
    symbols, boundary = torch.randint(3, V, (B, S)), make_boundary(X_LENS, Y_LENS)
    found: Values = {}

    def add(name: str, loss_of, x: Tensor, *args, **options) -> None:
        x = x.clone().requires_grad_()
        loss = loss_of(x, *args, **options)
        loss = loss[0] if isinstance(loss, tuple) else loss
        loss.sum().backward()
        found[name] = [*loss.tolist(), float(x.grad.norm())]

    for rnnt_type in ("regular", "modified"):
        add(f"simple, {rnnt_type}", simple_transducer_loss, am, lm, symbols, boundary, rnnt_type=rnnt_type)
        _, arcs = simple_transducer_loss(am, lm, symbols, boundary, rnnt_type=rnnt_type)
        ranges = prune_ranges(*arcs, boundary, 4)
        found[f"ranges, {rnnt_type}"] = ranges[:, :, 0].flatten().tolist()
        logits, taught = (x.gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, V)) for x in (student, teacher))
        lattice = (symbols, ranges, boundary)
        add(f"pruned, {rnnt_type}", pruned_transducer_loss, logits, *lattice, rnnt_type=rnnt_type)
        add(f"transducer_kd, {rnnt_type}", transducer_kd_loss, logits, taught, ranges, boundary, 2.0)
    add("ctc", lambda x: ctc_loss(x.log_softmax(-1), X_LENS, symbols, Y_LENS), am)
    targets = make_attention_targets(symbols, Y_LENS, 1, 1)[1]
    add("attention", attention_loss, attention_logits, targets, 0.1)
    add("attention_kd", attention_kd_loss, attention_logits, attention_teacher, Y_LENS + 1, 2.0)
    return found


def training() -> Values:
    """The whole objective of a tiny student with a tiny teacher, and five steps of the optimizer."""
    student, teacher = tiny_model(seed=1), tiny_model(seed=2, dim=20).requires_grad_(False)
    scales = dict.fromkeys(LOSS_TERMS, 1.0)
    objective = Objective(student, scales, LossConfig(), KdConfig(), sos_id=1, eos_id=1, teacher=teacher)
    losses = objective(random_batch())
    losses.total.sum().backward()
    found = {f"objective, {name}": value.tolist() for name, value in losses.terms.items()}
    found["objective, gradient of each parameter"] = [float(p.grad.norm()) for p in student.parameters()]

    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.01)
    train = TrainConfig(ref_duration=1.0, clip_grad_norm=1.0, clip_grad_scale=1e9)
    take_step = OptimizerStep(student, objective, optimizer, train, Ranks())
    for step in range(1, 6):
        batch = random_batch(seed=step)
        (losses,) = take_step([batch], float(objective(batch).num_frames), step)
        found[f"step {step}, loss and gradient"] = [losses.total.sum().item(), take_step.grad_norm]
    found["parameters after 5 steps"] = [float(p.detach().norm()) for p in student.parameters()]
    return found


def test_values_of_the_recursion_in_torch_are_those_of_the_k2_stack():
    use_backend("torch")
    try:
        found = loss_terms()
    finally:
        use_backend()
    for name, values in json.loads(EXPECTED.read_text())["values"]["loss_terms"].items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("values_of", [loss_terms, training], ids=lambda f: f.__name__)
def test_values_are_those_of_the_k2_stack(values_of):
    expected, found = json.loads(EXPECTED.read_text())["values"][values_of.__name__], values_of()
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


if __name__ == "__main__":
    content = {
        "made_by": "tests/unit/losses/test_same_losses.py",
        "with": f"torch {torch.__version__}, {use_backend()}",
        "values": {values_of.__name__: values_of() for values_of in (loss_terms, training)},
    }
    EXPECTED.write_text(json.dumps(content, indent=1) + "\n")
