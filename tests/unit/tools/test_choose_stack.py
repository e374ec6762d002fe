"""tools/choose_stack.sh on machines that have other Pythons and GPUs: stand-ins on a PATH of their own."""

import shutil
import subprocess

import pytest

from run_sh import ROOT

H100 = "9.0, NVIDIA H100 80GB HBM3"


@pytest.fixture
def machine(tmp_path):
    """A checkout, and a PATH with nothing on it but what `machine(...)` puts there."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "choose_stack.sh", tmp_path / "tools")
    for program in ("bash", "sh", "dirname", "timeout", "cat"):
        (bin_dir / program).symlink_to(shutil.which(program))

    def program(path, code):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)

    def choose(pythons=(), gpus=None, venv=None, **env):
        """The stack and why; `pythons` are versions, "3.11 broken" one whose command fails."""
        for version in pythons:
            program(bin_dir / f"python{version.split()[0]}", python_code(version))
        if venv:
            program(tmp_path / ".venv" / "bin" / "python", python_code(venv))
        if gpus is not None:
            program(bin_dir / "nvidia-smi", f"cat <<'END'\n{gpus}\nEND")
        done = subprocess.run(
            [bin_dir / "bash", "tools/choose_stack.sh"], cwd=tmp_path, env={"PATH": str(bin_dir), **env},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr.startswith(f"stack: {done.stdout.strip()} (") and done.stderr.count("\n") == 1, done.stderr
        return done.stdout.strip(), done.stderr

    return choose


def python_code(version):
    """A stand-in for `python -c "import sys; sys.exit(... not in (3.10, 3.11))"`."""
    return f"exit {0 if version in ('3.10', '3.11') else 1}"


@pytest.mark.parametrize(
    "pythons, stack, why",
    [
        (["3.11", "3.13"], "k2", "python3.11 is Python 3.10 or 3.11"),
        (["3.10"], "k2", "python3.10 is"),
        (["3.13"], "torch2", "no working Python 3.10 or 3.11 on PATH"),
        (["3.11 broken", "3.12"], "torch2", "no working Python 3.10 or 3.11 on PATH"),
        ([], "torch2", "no working Python 3.10 or 3.11 on PATH"),
    ],
)
def test_the_stack_is_k2_where_its_python_is(machine, pythons, stack, why):
    chosen, said = machine(pythons)
    assert chosen == stack and why in said


def test_the_environment_that_is_there_stays(machine):
    chosen, said = machine(["3.13"], venv="3.11")
    assert chosen == "k2" and ".venv/bin/python is" in said


def test_python_of_the_user_decides(machine, tmp_path):
    chosen, said = machine(["3.11", "3.13"], PYTHON=str(tmp_path / "bin" / "python3.13"))
    assert chosen == "torch2" and "python3.13) is not Python 3.10 or 3.11" in said
    assert machine(["3.11"], PYTHON="python3.11")[0] == "k2"


@pytest.mark.parametrize(
    "gpus, stack",
    [
        (H100, "torch2"),
        ("8.0, NVIDIA A100-SXM4-80GB\n12.0, NVIDIA GeForce RTX 5090", "torch2"),
        ("8.9, NVIDIA GeForce RTX 4090\n7.0, Tesla V100-SXM2-16GB", "k2"),
        ('Field "compute_cap" is not a valid field to query.', "k2"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "k2"),
    ],
)
def test_a_gpu_newer_than_torch_1_takes_torch2(machine, gpus, stack):
    chosen, said = machine(["3.11"], gpus)
    assert chosen == stack and ("torch 1.13.1 has no code for this GPU, NVIDIA" in said) == (stack == "torch2")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(machine, hidden):
    assert machine(["3.11"], H100, CUDA_VISIBLE_DEVICES=hidden)[0] == "k2"
    assert machine(["3.11"], H100, CUDA_VISIBLE_DEVICES="0")[0] == "torch2"
