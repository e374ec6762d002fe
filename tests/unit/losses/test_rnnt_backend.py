"""Which backend the losses' recursion is taken from, and what is said where one cannot run."""

import importlib
import logging
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
    rnnt_backend._choose.cache_clear()
    rnnt_backend.use_backend()


@pytest.fixture
def installed(monkeypatch):
    """A function after which only these modules import, as stand-ins: name -> whether it was built with CUDA."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def only(**with_cuda) -> None:
        def import_module(name):
            if name.startswith("twopass_kd.losses."):
                return SimpleNamespace(recursion=name)
            if name not in with_cuda:
                raise ImportError(f"No module named '_{name}'")
            has_cuda = with_cuda[name]
            return SimpleNamespace(with_cuda=has_cuda if name == "k2" else lambda: has_cuda)

        monkeypatch.setattr(importlib, "import_module", import_module)
        monkeypatch.setattr(rnnt_backend, "_try", lambda recursion, device_type: None)  # there is no such device
        rnnt_backend._choose.cache_clear()

    yield only
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("modules", "on_cpu", "on_gpu"),
    [
        ({"k2": True, "fast_rnnt": True, "triton": None}, "k2", "k2"),
        ({"k2": False, "fast_rnnt": True, "triton": None}, "k2", "triton"),
        ({"fast_rnnt": True, "triton": None}, "fast_rnnt", "triton"),
        ({"k2": False, "fast_rnnt": True}, "k2", "fast_rnnt"),
        ({"k2": False, "fast_rnnt": False}, "k2", "torch"),
        ({"fast_rnnt": False}, "fast_rnnt", "torch"),
        ({"triton": None}, "torch", "triton"),
        ({}, "torch", "torch"),
    ],
)
def test_auto_takes_the_first_that_runs_on_the_device(installed, modules, on_cpu, on_gpu):
    installed(**modules)
    assert rnnt_backend.use_backend("auto", "cpu") == on_cpu
    assert rnnt_backend.use_backend("auto", torch.device("cuda", 1)) == on_gpu


@pytest.mark.parametrize(
    ("name", "device", "modules", "message"),
    [
        ("k2", "cpu", {}, r"\(cpu\): `import k2` fails \(ImportError: No module named '_k2'\).*`make venv`"),
        ("k2", "cuda", {"k2": False}, r"\(cuda\): it was built without CUDA.*loss.backend=auto.*docs/install.md"),
        ("fast_rnnt", "cpu", {"k2": True}, "`import fast_rnnt` fails.*loss.backend=auto, or: compile it"),
        ("fast_rnnt", "cuda", {"fast_rnnt": False}, "built without CUDA.*compile it.*with CUDA"),
        ("triton", "cpu", {"triton": None}, "kernels are for GPUs; take loss.backend=auto"),
        ("triton", "cuda", {}, "`import triton` fails.*torch 2"),
    ],
)
def test_one_that_cannot_run_is_an_error_that_says_what_to_do(installed, name, device, modules, message):
    installed(**modules)
    with pytest.raises(ValueError, match=rf"`loss.backend` \({name}\) must be one that can run.*{message}"):
        rnnt_backend.use_backend(name, device)


def test_one_that_fails_on_the_device_is_passed_over(installed, monkeypatch):
    installed(triton=None)

    def no_compiler(recursion, device_type):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(rnnt_backend, "_try", no_compiler)
    assert rnnt_backend.use_backend("auto", "cuda") == "torch"
    with pytest.raises(ValueError, match="it fails here .RuntimeError: Failed to find C compiler.*needs a C compiler"):
        rnnt_backend.use_backend("triton", "cuda")


def test_one_that_can_run_is_taken_by_its_name(installed):
    installed(k2=True, fast_rnnt=True, triton=None)
    for name in rnnt_backend.BACKENDS:
        assert rnnt_backend.use_backend(name, "cuda") == name


def test_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match=r"`loss.backend` \(k3\) must be one of auto, k2, triton, fast_rnnt, torch"):
        rnnt_backend.use_backend("k3")
    with pytest.raises(ConfigError, match="loss.backend"):
        load_config(TINY_CONF, ["loss.backend=k3"])


def test_every_backend_is_a_choice_of_the_config():
    for name in ("auto", *rnnt_backend.BACKENDS):
        assert load_config(TINY_CONF, [f"loss.backend={name}"]).loss.backend == name


def test_the_log_says_which_one_and_why(installed, caplog):
    installed(fast_rnnt=False)
    with caplog.at_level(logging.INFO):
        rnnt_backend.use_backend("auto", "cuda")
    assert (
        "transducer losses on cuda: the recursion of torch (loss.backend=auto; not k2: `import k2` fails" in caplog.text
    )
    assert "not fast_rnnt: it was built without CUDA)" in caplog.text


def test_objective_takes_the_backend_of_the_config(installed):
    installed(k2=True)
    Objective(tiny_model(), {"pruned": 1.0}, LossConfig(backend="k2"), KdConfig(), 1, 1)
    with pytest.raises(ValueError, match="fast_rnnt"):
        Objective(tiny_model(), {"pruned": 1.0}, LossConfig(backend="fast_rnnt"), KdConfig(), 1, 1)


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
