import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from run_sh import RECIPE, TINY
from twopass_kd.bin import check_env
from twopass_kd.training import gpu_probe


def fake_k2(folder, torch_version, init=""):
    (folder / "k2").mkdir()
    (folder / "k2" / "__init__.py").write_text(init)
    (folder / "k2" / "torch_version.py").write_text(f'k2_torch_version = "{torch_version}"\n')


def check(folder, **env):
    """check_env in a fresh Python that finds `folder`'s packages first."""
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(RECIPE)!r}]\n"
    code += "from twopass_kd.bin.check_env import main\nsys.exit(main([]))"
    env = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_check_env_here_is_fine(capsys):
    assert check_env.main([]) == 0
    assert f"torch {torch.__version__.split('+')[0]}" in capsys.readouterr().out


def test_check_env_torch_that_k2_was_not_built_for_names_the_right_one(tmp_path):
    fake_k2(tmp_path, "1.99.0+cu117")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "must be 1.99.0" in done.stderr and "pip install torch==1.99.0" in done.stderr


def test_check_env_wheel_of_another_python_names_the_fix(tmp_path):
    fake_k2(tmp_path, torch.__version__, init="import _k2_of_another_python")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "`import k2` failed" in done.stderr and "--no-deps -r requirements/k2.txt" in done.stderr


@pytest.mark.parametrize("version", ["1.13.1", "2.1.0", "2.2.2"])
def test_check_env_old_torch_wants_numpy_1(version, monkeypatch, capsys):
    modules = {"torch": SimpleNamespace(__version__=version), "numpy": SimpleNamespace(__version__="2.2.6")}
    monkeypatch.setattr(check_env, "_import", lambda module, package: modules[module])
    assert check_env.main([]) == 1
    assert f"numpy (2.2.6) must be below 2 with torch {version}; do `pip install 'numpy<2'`" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_check_env_warns_of_a_gpu_that_torch_does_not_see(tmp_path):
    done = check(tmp_path, CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0, done.stderr
    said = "warning: GPU 0 of this machine will not be used, and training LibriSpeech on a CPU takes weeks: torch"
    assert said in done.stdout
    assert "warning" not in check(tmp_path, CUDA_VISIBLE_DEVICES="").stdout


def test_check_env_gpu_that_fails_is_an_error(monkeypatch, capsys):
    def fails(device, backend, precision):
        assert (device, backend, precision) == (torch.device("cuda", 0), "k2", "float16")
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    gpu = gpu_probe.Gpu(0, "NVIDIA H100 PCIe", (9, 0), "1.13.1", "11.7", ("sm_80", "sm_86"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpu_probe.Gpu, "of_torch", lambda index: gpu)
    monkeypatch.setattr(gpu_probe, "try_training_step", fails)
    assert check_env.main(["--conf", str(TINY), "loss.backend=k2", "train.precision=float16"]) == 1
    assert "GPU 0 (NVIDIA H100 PCIe, compute capability 9.0) must be one that torch 1.13.1" in capsys.readouterr().err
