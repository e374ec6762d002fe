"""The one place that imports the transducer recursions and the pruning of the lattice: k2's, or fast_rnnt's.

fast_rnnt is the same code by k2's authors without the rest of k2, and builds against torch 2.x. It differs in two ways
that are levelled here: it refuses utterances without symbols in a batch, and its backward pass overwrites the
occupations that `mutual_information_recursion` has returned.
"""

import importlib
from types import ModuleType

from torch import Tensor

BACKENDS = ("k2", "fast_rnnt")
_INSTALL = {
    "k2": "`make venv` installs k2 for torch 1.13; for another torch see docs/install.md",
    "fast_rnnt": "`make venv STACK=torch2` builds it; for an environment of your own tools/build_fast_rnnt.sh does",
}
_used: ModuleType | None = None


def use_backend(name: str = "auto") -> str:
    """Choose whose recursions the losses of this process call, from now on.

    Args:
      name: "k2" | "fast_rnnt" | "auto": the first of these that imports.
    Returns:
      The name of the one in use.
    Raises:
      ValueError: for another name, or where it does not import; the message has the reason and the fix.
    """
    global _used
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"`loss.backend` ({name}) must be one of auto, {', '.join(BACKENDS)}")
    reasons = []
    for candidate in BACKENDS if name == "auto" else (name,):
        try:
            _used = importlib.import_module(candidate)
            return candidate
        except Exception as e:  # a wheel for another Python or torch fails in many ways
            reasons.append(f"`import {candidate}` fails ({type(e).__name__}: {e}); {_INSTALL[candidate]}")
    raise ValueError(f"`loss.backend` ({name}) must be one that is installed: " + ". ".join(reasons))


def _backend() -> ModuleType:
    if _used is None:
        use_backend()
    return _used


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """`k2.get_rnnt_prune_ranges`; utterances may be without symbols."""
    boundary = _with_symbols(boundary)
    return _backend().get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=s_range)


def get_rnnt_logprobs_pruned(
    logits: Tensor, symbols: Tensor, ranges: Tensor, termination_symbol: int, boundary: Tensor, rnnt_type: str
) -> tuple[Tensor, Tensor]:
    """`k2.get_rnnt_logprobs_pruned`; utterances may be without symbols."""
    return _backend().get_rnnt_logprobs_pruned(
        logits=logits,
        symbols=symbols,
        ranges=ranges,
        termination_symbol=termination_symbol,
        boundary=_with_symbols(boundary),
        rnnt_type=rnnt_type,
    )


def mutual_information_recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`k2.mutual_information_recursion` with `return_grad`; the occupations are copies without gradient.

    Raises:
      ValueError: on a GPU, for a fast_rnnt that was built without CUDA.
    """
    backend = _backend()
    if px.is_cuda and backend.__name__ == "fast_rnnt" and not backend.with_cuda():
        raise ValueError(
            "`loss.backend` (fast_rnnt) must be built with CUDA for training on GPUs: do "
            "`FAST_RNNT_CUDA=1 tools/build_fast_rnnt.sh PYTHON`, or install k2 (docs/install.md)"
        )
    log_prob, arcs = backend.mutual_information_recursion(px=px, py=py, boundary=boundary, return_grad=True)
    return log_prob, tuple(occupation.detach().clone() for occupation in arcs)


def _with_symbols(boundary: Tensor) -> Tensor:
    """At least one symbol each. The ranges and arc scores are the same for 0 and 1: only the recursion tells them."""
    boundary = boundary.clone()
    boundary[:, 2].clamp_(min=1)
    return boundary
