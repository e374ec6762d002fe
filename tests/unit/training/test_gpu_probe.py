"""What a GPU is tried with, here on the CPU; and what is said of errors, with their texts as torch words them."""

import pytest
import torch

from twopass_kd.training.gpu_probe import Gpu, try_training_step, what_to_do, why_none

TORCH_1 = ("1.13.1+cu117", "11.7", ("sm_37", "sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86"))
TORCH_2 = ("2.13.0", "13.0", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), *TORCH_2)
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_step_runs_and_names_its_backend(precision):
    assert try_training_step(torch.device("cpu"), precision=precision) in ("k2", "fast_rnnt", "torch")


def test_training_step_takes_the_backend_asked_for():
    with pytest.raises(ValueError, match=r"`loss.backend` \(k3\)"):
        try_training_step(torch.device("cpu"), "k3")


@pytest.mark.parametrize(
    "name, capability, has, do",
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), TORCH_1, "take torch 2: `make venv STACK=torch2`"),
        ("NVIDIA B300", (20, 0), TORCH_2, "a newer torch: `pip install --upgrade torch`"),
        ("Tesla V100-SXM2-16GB", (7, 0), TORCH_2, "from 3.7 on: `make venv STACK=k2`"),
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_told_which_torch_has(name, capability, has, do):
    said = what_to_do(NO_KERNEL, Gpu(1, name, capability, *has))
    assert said.startswith(f"GPU 1 ({name}, compute capability {capability[0]}.{capability[1]}) must be one that torch")
    assert f"torch {has[0]} for CUDA {has[1]} has code for ({' '.join(has[2])})" in said
    assert do in said and "CUDA_VISIBLE_DEVICES=" in said and "\n" not in said


@pytest.mark.parametrize("capability, arch", [((8, 9), "sm_86"), ((9, 0), "sm_90a"), ((12, 0), "compute_90")])
def test_code_that_runs_on_a_gpu_is_not_blamed(capability, arch):
    said = what_to_do("CUDNN_STATUS_EXECUTION_FAILED", Gpu(0, "a GPU", capability, "2.1.0", "12.1", ("sm_50", arch)))
    assert "must be one" not in said and "CUDNN_STATUS_EXECUTION_FAILED" in said and "torch 2.1.0 for CUDA 12.1" in said


@pytest.mark.parametrize(
    "error",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 10.94 MiB",
        "CUDA out of memory. Tried to allocate 2.00 MiB (GPU 0; 79.10 GiB total capacity; 0 bytes already allocated)",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
    ],
)
def test_a_gpu_without_memory_left_is_told_apart(error):
    said = what_to_do(error, H100)
    assert said.startswith("GPU 0 (NVIDIA H100 80GB HBM3, compute capability 9.0) has no memory left")
    assert error.splitlines()[0] in said and "nvidia-smi" in said and "\n" not in said


@pytest.mark.parametrize(
    "error, do",
    [
        ("The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver", "2.10.0"),
        ("Torch not compiled with CUDA enabled", "`pip uninstall torch`, then `pip install torch=="),
        ("No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES"),
        ("", "it does not say why"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_told_why(error, do):
    said = why_none(error)
    assert said.startswith(f"torch {torch.__version__} sees none (") and error in said and do in said
