"""Whether a GPU can run what a training runs, tried in seconds before any; and what to do where it cannot."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from twopass_kd.losses.band import prune_ranges, select_band
from twopass_kd.losses.precision import autocast
from twopass_kd.losses.rnnt_backend import use_backend
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss

_ON_CPU = "or train on the CPU: CUDA_VISIBLE_DEVICES= (empty)"
_NO_CODE = re.compile("no kernel image|ARCH_MISMATCH|device kernel image is invalid")
_FULL = re.compile("out of memory|ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED|busy or unavailable")


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch numbers it, and what torch has for it.

    Attributes:
      capability: its compute capability, e.g. (9, 0).
      torch: version of torch.
      cuda: version of CUDA that torch was built for.
      has_code_for: e.g. ("sm_80", "sm_86"), or "compute_90" for code that is compiled when it runs.
    """

    index: int
    name: str
    capability: tuple[int, int]
    torch: str
    cuda: str
    has_code_for: tuple[str, ...]

    @classmethod
    def of_torch(cls, index: int) -> "Gpu":
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        archs = tuple(torch.cuda.get_arch_list())
        return cls(index, properties.name, capability, torch.__version__, torch.version.cuda or "no CUDA", archs)

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, compute capability {self.capability[0]}.{self.capability[1]})"


def try_training_step(device: torch.device, backend: str = "auto", precision: str = "float32") -> str:
    """An LSTM, the simple and the pruned transducer loss, forward and backward on `device`, of a few small utterances.

    Args:
      backend: `loss.backend`.
      precision: `train.precision`.
    Returns:
      The loss backend that was used.
    Raises:
      ValueError: the backend cannot run on the device.
      RuntimeError: what torch says, or that the gradients are not finite.
    """
    used = use_backend(backend, device)
    x_lens, y = torch.tensor([40, 31], device=device), torch.randint(1, 32, (2, 8), device=device)
    boundary = make_boundary(x_lens, torch.tensor([8, 5], device=device))
    lstm, out = nn.LSTM(80, 128, batch_first=True).to(device), nn.Linear(128, 32).to(device)
    with autocast(device, precision):
        encoder_out, _ = lstm(torch.randn(2, 40, 80, device=device))
        decoder_out = encoder_out[:, :9]  # any rows will do
        simple, arcs = simple_transducer_loss(out(encoder_out), out(decoder_out), y, boundary, rnnt_type="modified")
        ranges = prune_ranges(*arcs, boundary, 5)
        logits = out(torch.tanh(encoder_out.unsqueeze(2) + select_band(decoder_out, ranges)))
        pruned = pruned_transducer_loss(logits, y, ranges, boundary, rnnt_type="modified")
    (simple + pruned).sum().backward()
    if not all(bool(p.grad.isfinite().all()) for p in (*lstm.parameters(), *out.parameters())):
        raise RuntimeError("the gradients of a small step are not finite")
    return used


def what_to_do(error: str, gpu: Gpu) -> str:
    """An error of `try_training_step` on a GPU as one line: what the card and torch are, what was said, what to do."""
    said = _first_line(error)
    with_torch = f"torch {gpu.torch} for CUDA {gpu.cuda}"
    if _NO_CODE.search(error) or not _has_code(gpu):
        if gpu.capability < min(map(_version, gpu.has_code_for)):
            do = "take torch 1.13.1, from 3.7 on: `make venv STACK=k2`, then `. .venv/bin/activate`; or one for CUDA"
            do += " 12.6, from 5.0 on: `pip install torch==2.7.1`"
        elif gpu.torch.startswith("1."):
            do = "take torch 2: `make venv STACK=torch2`, then `. .venv-torch2/bin/activate`"
        else:
            do = "take a newer torch: `pip install --upgrade torch`"
        return (
            f"{gpu} must be one that {with_torch} has code for ({' '.join(gpu.has_code_for)}), and it is not: {said};"
            f" {do} (docs/install.md has the table); {_ON_CPU}"
        )
    if _FULL.search(error):
        return (
            f"{gpu} has no memory left for even a small training step ({said}); nvidia-smi lists what has taken it: end"
            f" that, wait, or choose other GPUs (CUDA_VISIBLE_DEVICES=1); {_ON_CPU}"
        )
    return f"{gpu} fails in a small training step of {with_torch}: {said}; docs/install.md has what fits; {_ON_CPU}"


def why_none(error: str) -> str:
    """Why torch sees no GPU where there is one, and what to do; `error` is what `torch.cuda.init` says."""
    if "too old" in error:
        do = "update it, or take an older torch: `pip install torch==2.10.0` for drivers from 525 on, `make STACK=k2`"
        do += " (torch 1.13.1) from 450 on"
    elif "not compiled with CUDA" in error:
        version = torch.__version__.split("+")[0]
        do = f"install one that is built for CUDA: `pip uninstall torch`, then `pip install torch=={version}`"
    else:
        do = "does nvidia-smi work, and does CUDA_VISIBLE_DEVICES, where it is set, name GPUs that are there?"
    return f"torch {torch.__version__} sees none ({_first_line(error)}): {do}"


def _first_line(error: str) -> str:
    return next(iter(error.strip().splitlines()), "it does not say why")


def _has_code(gpu: Gpu) -> bool:
    """sm_86 runs on GPUs of 8.6 to 8.9; compute_86, which is compiled when it runs, on all later ones too."""
    return any(
        _version(arch) <= gpu.capability and (arch.startswith("compute") or _version(arch)[0] == gpu.capability[0])
        for arch in gpu.has_code_for
    )


def _version(arch: str) -> tuple[int, int]:
    """(9, 0) of sm_90, sm_90a or compute_90."""
    digits = re.sub(r"\D", "", arch)
    return int(digits[:-1]), int(digits[-1])
