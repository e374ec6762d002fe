"""Whose recursion over the lattice the transducer losses call: k2's, our Triton kernels, fast_rnnt's or plain torch.

All give the same values. fast_rnnt is k2's code without the rest of k2, and has to be compiled; Triton comes with
torch for GPUs and needs a C compiler where it runs; torch itself needs nothing. `use_backend` says when which is taken.
"""

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Recursion = Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]]
BACKENDS = ("k2", "triton", "fast_rnnt", "torch")  # "auto" takes the first that can run
_INSTALL = {
    "k2": "`make venv` installs it for torch 1.13; for another torch see docs/install.md",
    "triton": "torch 2 for CUDA brings it along; it needs a C compiler and Python's headers (docs/install.md)",
    "fast_rnnt": "compile it from its authors' sources (for GPUs with CUDA)",
}
_name = "auto"


class _CannotRun(Exception):
    """A backend cannot run on a device. Its arguments: why, and what to do."""


def use_backend(name: str = "auto", device: torch.device | str = "cpu") -> str:
    """Choose whose recursion the losses of this process call, from now on, and log it.

    Args:
      name: of `BACKENDS`; or "auto", the first of them that can run on the device, which is tried out: k2 where it
        imports (for a GPU: and has CUDA), else on a GPU Triton, else fast_rnnt (alike), else torch, which always can.
      device: where the losses will be computed.
    Returns:
      The name of the one in use there.
    Raises:
      ValueError: for another name, or one that cannot run on the device; the message has the reason and the fix.
    """
    global _name
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"`loss.backend` ({name}) must be one of auto, {', '.join(BACKENDS)}")
    device_type = torch.device(device).type
    chosen, _, passed_over = _choose(name, device_type)
    _name = name
    why = "; not ".join([f"loss.backend={name}", *passed_over])
    logging.info("transducer losses on %s: the recursion of %s (%s)", device_type, chosen, why)
    return chosen


def transducer_recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Log-prob of all paths through each utterance's lattice, and the occupations of its arcs.

    `k2.mutual_information_recursion` with `return_grad`. For px of T + 1 frames (the regular topology)

        p[s, t] = log(exp(p[s - 1, t] + px[s - 1, t]) + exp(p[s, t - 1] + py[s, t - 1])),

    and for T (k2's "modified") p[s - 1, t - 1] + px[s - 1, t - 1] in place of its first term.

    Args:
      px: (B, S, T + 1) or (B, S, T) float32 or float64, log-probs of the label arcs; -inf where there is none.
      py: (B, S + 1, T) log-probs of the blank arcs, likewise.
      boundary: (B, 4) int64: begin_symbol, begin_frame, end_symbol, end_frame. Beyond it `px` and `py` may be anything.
    Returns:
      (log_prob, (px_grad, py_grad)): log_prob (B,), -inf where there is no path, differentiable once; the occupations
      in the shapes of `px` and `py`, which are its derivatives, without gradient.
    Raises:
      ValueError: if the backend in use cannot run on the device of `px`.
    """
    _, recursion, _ = _choose(_name, px.device.type)
    log_prob, px_grad, py_grad = _Recursion.apply(px, py, boundary, recursion)
    return log_prob, (px_grad, py_grad)


class _Recursion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, px, py, boundary, recursion):  # type: ignore[override]
        log_prob, (px_grad, py_grad) = recursion(px, py, boundary)
        ctx.mark_non_differentiable(px_grad, py_grad)
        ctx.save_for_backward(px_grad, py_grad)
        return log_prob, px_grad, py_grad

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, *_):  # type: ignore[override]
        px_grad, py_grad = ctx.saved_tensors
        grad_output = grad_output.reshape(-1, 1, 1)
        return px_grad * grad_output, py_grad * grad_output, None, None


@cache
def _choose(name: str, device_type: str) -> tuple[str, Recursion, list[str]]:
    """The backend of that name for that device, its recursion, and why "auto" passed others over."""
    if name != "auto":
        try:
            return name, _recursion_of(name, device_type), []
        except _CannotRun as e:
            why, fix = e.args
            raise ValueError(
                f"`loss.backend` ({name}) must be one that can run on this device ({device_type}): {why}; "
                f"take loss.backend=auto, or: {fix}"
            ) from e
    passed_over = []
    for candidate in BACKENDS:
        try:
            return candidate, _recursion_of(candidate, device_type), passed_over
        except _CannotRun as e:
            passed_over.append(f"{candidate}: {e.args[0]}")
    raise AssertionError("torch itself can always run")


def _recursion_of(backend: str, device_type: str) -> Recursion:
    if backend == "torch":
        return importlib.import_module("twopass_kd.losses.rnnt_torch").recursion
    if backend == "triton":
        # Triton's interpreter lets tests run the kernels on CPUs, far too slowly for training.
        if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise _CannotRun("its kernels are for GPUs", "train on one")
        _import("triton")
        recursion = importlib.import_module("twopass_kd.losses.rnnt_triton").recursion
    else:
        module = _import(backend)
        with_cuda = module.with_cuda if backend == "k2" else module.with_cuda()
        if device_type == "cuda" and not with_cuda:
            raise _CannotRun("it was built without CUDA", _INSTALL[backend])

        def recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            return module.mutual_information_recursion(px, py, boundary, return_grad=True)

    try:
        _try(recursion, device_type)
    except Exception as e:  # no code for this GPU; Triton without a C compiler
        raise _CannotRun(f"it fails here ({type(e).__name__}: {e})", _INSTALL[backend]) from e
    return recursion


def _try(recursion: Recursion, device_type: str) -> None:
    """One frame and one symbol."""
    px, py = torch.zeros(1, 1, 1, device=device_type), torch.zeros(1, 2, 1, device=device_type)
    log_prob, _ = recursion(px, py, torch.tensor([[0, 0, 1, 1]], device=device_type))
    if not abs(float(log_prob)) < 1e-3:
        raise RuntimeError(f"log-prob {float(log_prob)} of a path with 0")


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as e:  # a wheel for another Python or torch fails in many ways
        raise _CannotRun(f"`import {module}` fails ({type(e).__name__}: {e})", _INSTALL[module]) from e
