"""icefall reads our checkpoints, and averages them as we do."""

import pytest
import torch
from torch.optim import AdamW

from tiny import tiny_model
from tiny_training import make_data, make_trainer, stop_after
from twopass_kd.models.checkpoint import load_checkpoint
from twopass_kd.training.trainer import Interrupted


@pytest.fixture(scope="module")
def icefall_checkpoint(icefall_root):
    return pytest.importorskip("icefall.checkpoint")


@pytest.fixture(scope="module")
def trained(icefall_checkpoint, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("trained") / "exp"
    make_trainer(exp_dir).run(make_data())
    return exp_dir


class Recorder:
    """A scheduler or sampler that remembers what it is given."""

    def load_state_dict(self, state):
        self.state = state


def adamw(model):
    return AdamW(model.parameters(), lr=1.0)


def step(model, optimizer):
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_icefall_loads_model_and_optimizer_of_an_epoch(icefall_checkpoint, trained):
    """The optimizer's numbers are 0-dim tensors in the file: its next step is the same, bit for bit."""
    path = trained / "epoch-1.pt"
    ours = load_checkpoint(path)
    model, optimizer = tiny_model(seed=1), adamw(tiny_model(seed=1))
    model.load_state_dict(ours["model"])
    optimizer = adamw(model)
    optimizer.load_state_dict(ours["optimizer"])

    theirs = tiny_model(seed=2)
    their_optimizer, scheduler, sampler = adamw(theirs), Recorder(), Recorder()
    scaler = torch.cuda.amp.GradScaler(enabled=False)
    rest = icefall_checkpoint.load_checkpoint(
        path, theirs, optimizer=their_optimizer, scheduler=scheduler, scaler=scaler, sampler=sampler, strict=True
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
    assert 0 < optimizer.param_groups[0]["lr"] == float(their_optimizer.param_groups[0]["lr"]) < 1
    assert torch.equal(step(model, optimizer), step(theirs, their_optimizer))
    assert {k: float(v) for k, v in scheduler.state.items()} == ours["scheduler"]
    assert sampler.state == ours["sampler"]
    assert rest["step"] == ours["step"] and rest["phase"] == "s/p" and rest["grad_scaler"] is None


def test_icefall_loads_a_finished_model(icefall_checkpoint, trained):
    model = tiny_model(seed=1)
    icefall_checkpoint.load_checkpoint(trained / "final.pt", model, optimizer=adamw(model), strict=True)
    want = load_checkpoint(trained / "final.pt")["model"]
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_icefall_finds_checkpoints_within_an_epoch(icefall_checkpoint, tmp_path):
    exp_dir = tmp_path / "exp"
    with pytest.raises(Interrupted):
        make_trainer(exp_dir, save_every_n=2).run(make_data(on_batch=stop_after(7)))
    found = icefall_checkpoint.find_checkpoints(exp_dir)
    assert found[0] == str(exp_dir / "checkpoint-7.pt") and len(found) > 1
    assert icefall_checkpoint.find_checkpoints(exp_dir, iteration=-6)[0] == str(exp_dir / "checkpoint-6.pt")
    average = icefall_checkpoint.average_checkpoints(found)
    tiny_model().load_state_dict(average)
