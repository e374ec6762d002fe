"""The Triton kernels against the recursion in torch: on a GPU where there is one, else by Triton's interpreter.

The interpreter takes milliseconds for each operation, so that these tests have few steps.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lattices import EDGES, INF, LATER, TYPES, lattice
from twopass_kd.losses import rnnt_torch

triton = pytest.importorskip("triton", reason="torch 2 for CUDA brings triton along")
ROOT = Path(__file__).parents[3]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and triton.__version__ < "3":
    pytest.skip("TRITON_INTERPRET is read by Triton 3, which torch 2.4 brings along", allow_module_level=True)


@pytest.fixture(scope="module")
def recursion():
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read where the kernels are made
        from twopass_kd.losses import rnnt_triton

        yield lambda px, py, boundary: rnnt_triton.recursion(px.to(DEVICE), py.to(DEVICE), boundary.to(DEVICE))


def assert_alike(found, expected, **tolerance):
    found, expected = (torch.cat([x.flatten().cpu() for x in (y[0], *y[1])]) for y in (found, expected))
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_equals_torch_on_all_edge_cases(recursion, rnnt_type, dtype):
    """One batch of them, with garbage in the padding, arcs that are closed, and strides that are not those of rows."""
    boundary = sorted({tuple(row) for _, _, rows in (*EDGES.values(), *LATER.values()) for row in rows})
    boundary.append((0, 0, 3, 6))
    px, py, boundary = lattice(rnnt_type, boundary, 6, 4, dtype, padding=float("nan"))
    px[-2, 0] = -INF  # no path
    px[-1, 1, 3:], py[-1, 0, 2] = -INF, -INF
    px, py = px.permute(2, 0, 1).contiguous().permute(1, 2, 0), py.transpose(0, 1).contiguous().transpose(0, 1)
    assert_alike(recursion(px, py, boundary), rnnt_torch.recursion(px, py, boundary))


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_a_thousand_positions(recursion, rnnt_type):
    px, py, boundary = lattice(rnnt_type, [[990, 0, 1000, 12], [0, 0, 2, 3]], 12, 1000, torch.float32)
    assert_alike(recursion(px, py, boundary), rnnt_torch.recursion(px, py, boundary), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: far too many steps for the interpreter")
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_long_lattices(recursion, rnnt_type):
    T, S = 1100, 1000
    px, py, boundary = lattice(rnnt_type, [[0, 0, S, T], [0, 0, 40, 400], [0, 0, 7, 50]], T, S, torch.float64)
    expected = rnnt_torch.recursion(px, py, boundary)
    assert_alike(recursion(px, py, boundary), expected)
    log_prob, arcs = rnnt_torch.recursion(px, py, boundary)
    single = recursion(px.float(), py.float(), boundary)
    assert_alike(single, (log_prob.float(), [x.float() for x in arcs]), rtol=1e-3, atol=1e-3)


def run(code: str, interpret: bool) -> None:
    """In a process of its own, since the kernels are made for the interpreter or for a GPU once."""
    path = os.pathsep.join([str(ROOT / "egs/librispeech/twopass_kd"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": str(int(interpret))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_compile_for_gpus_that_are_not_here():
    """To machine code for two of them, by the assembler that triton brings along."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from twopass_kd.losses import rnnt_triton
floats = ("px", "py", "alpha", "log_prob", "px_grad", "py_grad")
for kernel in (rnnt_triton._forward, rnnt_triton._backward):
    signature = {name: "*fp32" if name in floats else "i32" for name in kernel.arg_names}
    signature.update(boundary="*i64", REGULAR="constexpr", BLOCK="constexpr")
    for regular, capability in ((True, 80), (False, 90)):
        source = ASTSource(fn=kernel, signature=signature, constexprs={"REGULAR": regular, "BLOCK": 64})
        ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 2}).asm["ptx"]
        assert ptx.count("bar.sync") == 1, "the neighbour's value is read after a barrier"
"""
    if not hasattr(pytest.importorskip("triton"), "knobs"):
        pytest.skip("triton before 3.4 takes other arguments")
    run(code, interpret=False)


def test_losses_run_on_it_where_it_is_asked_for_by_name():
    code = f"""
import torch
from twopass_kd.losses import rnnt_backend
from twopass_kd.losses.transducer import make_boundary, simple_transducer_loss
found = []
for name in ("triton", "torch"):
    assert rnnt_backend.use_backend(name, {DEVICE!r}) == name
    torch.manual_seed(0)
    am, lm = (torch.randn(1, n, 4).to({DEVICE!r}).requires_grad_() for n in (3, 2))
    boundary = make_boundary(*torch.tensor([[3], [1]], device={DEVICE!r}))
    symbols = torch.ones(1, 1, dtype=torch.int64, device={DEVICE!r})
    loss, _ = simple_transducer_loss(am, lm, symbols, boundary, rnnt_type="modified")
    found.append([loss, *torch.autograd.grad(loss.sum(), (am, lm))])
torch.testing.assert_close(*found)
"""
    run(code, interpret=DEVICE == "cpu")
