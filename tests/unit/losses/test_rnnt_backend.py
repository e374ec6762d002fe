"""The losses' recursions: which of k2 and fast_rnnt is used, and what is levelled between them."""

import builtins
import importlib
from types import SimpleNamespace

import pytest
import torch

from tiny import TINY_CONF, tiny_model
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import ConfigError, KdConfig, LossConfig
from twopass_kd.losses import rnnt_backend
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss
from twopass_kd.training.objective import Objective


@pytest.fixture(autouse=True)
def automatic_again():
    yield
    rnnt_backend.use_backend()


def only(monkeypatch, *names):
    """Of the backends only `names` import, as stand-ins where they are not installed."""

    def import_module(name):
        if name not in names:
            raise ImportError(f"No module named '_{name}'")
        return builtins

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_use_backend_auto_takes_k2_first(monkeypatch):
    only(monkeypatch, "k2", "fast_rnnt")
    assert rnnt_backend.use_backend() == "k2"
    only(monkeypatch, "fast_rnnt")
    assert rnnt_backend.use_backend() == "fast_rnnt"
    monkeypatch.undo()


def test_use_backend_that_is_not_installed_says_how_to_get_it(monkeypatch):
    only(monkeypatch, "k2")
    with pytest.raises(ValueError, match=r"`loss.backend` \(fast_rnnt\).*No module named.*STACK=torch2"):
        rnnt_backend.use_backend("fast_rnnt")
    only(monkeypatch)
    with pytest.raises(ValueError, match=r"`loss.backend` \(auto\).*`import k2` fails.*`import fast_rnnt` fails"):
        rnnt_backend.use_backend()
    monkeypatch.undo()


def test_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match=r"`loss.backend` \(k3\) must be one of auto, k2, fast_rnnt"):
        rnnt_backend.use_backend("k3")
    with pytest.raises(ConfigError, match="loss.backend"):
        load_config(TINY_CONF, ["loss.backend=k3"])


def test_objective_takes_the_backend_of_the_config(monkeypatch):
    only(monkeypatch, "k2")
    Objective(tiny_model(), {"pruned": 1.0}, LossConfig(backend="k2"), KdConfig(), 1, 1)
    with pytest.raises(ValueError, match="fast_rnnt"):
        Objective(tiny_model(), {"pruned": 1.0}, LossConfig(backend="fast_rnnt"), KdConfig(), 1, 1)
    monkeypatch.undo()


def test_fast_rnnt_without_cuda_on_a_gpu_says_how_to_build_it(monkeypatch):
    fast_rnnt = SimpleNamespace(__name__="fast_rnnt", with_cuda=lambda: False)
    monkeypatch.setattr(rnnt_backend, "_used", fast_rnnt)
    on_gpu = SimpleNamespace(is_cuda=True)
    with pytest.raises(ValueError, match="must be built with CUDA.*build_fast_rnnt.sh"):
        rnnt_backend.mutual_information_recursion(on_gpu, on_gpu, None)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
def test_utterance_without_symbols_in_a_batch(rnnt_type):
    boundary = make_boundary(torch.tensor([4, 3]), torch.tensor([2, 0]))
    logits, ranges = torch.zeros(2, 4, 3, 5), torch.arange(3).expand(2, 4, 3).contiguous()
    loss = pruned_transducer_loss(logits, torch.ones(2, 2, dtype=torch.int64), ranges, boundary, rnnt_type=rnnt_type)
    assert float(loss[1]) == pytest.approx(3 * torch.tensor(5.0).log())  # three blanks


def test_occupations_stay_as_they_are_after_backward():
    boundary = make_boundary(torch.tensor([4]), torch.tensor([2]))
    am, lm = torch.zeros(1, 4, 5, requires_grad=True), torch.zeros(1, 3, 5)
    loss, arcs = simple_transducer_loss(am, lm, torch.ones(1, 2, dtype=torch.int64), boundary)
    before = [x.clone() for x in arcs]
    (7 * loss.sum()).backward()
    torch.testing.assert_close(list(arcs), before)
