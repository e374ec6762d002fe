import subprocess
import sys

import pytest

from run_sh import RECIPE
from twopass_kd.bin import check_env


def fake_k2(folder, torch_version, init=""):
    (folder / "k2").mkdir()
    (folder / "k2" / "__init__.py").write_text(init)
    (folder / "k2" / "torch_version.py").write_text(f'k2_torch_version = "{torch_version}"\n')


def check(folder):
    """check_env in a fresh Python that finds `folder`'s k2 first."""
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(RECIPE)!r}]"
    code = f"{path}\nfrom twopass_kd.bin.check_env import main\nsys.exit(main([]))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_check_env_here_is_fine(capsys):
    assert check_env.main([]) == 0
    assert "k2 " in capsys.readouterr().out


def test_check_env_torch_that_k2_was_not_built_for_names_the_right_one(tmp_path):
    fake_k2(tmp_path, "1.99.0+cu117")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "must be 1.99.0" in done.stderr and "pip install torch==1.99.0" in done.stderr


def test_check_env_wheel_of_another_python_names_the_fix(tmp_path):
    import torch

    fake_k2(tmp_path, torch.__version__, init="import _k2_of_another_python")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "`import k2` failed" in done.stderr and "--no-deps -r requirements/k2.txt" in done.stderr


def test_check_env_without_k2_says_so(monkeypatch):
    monkeypatch.setattr(check_env.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(check_env.EnvironmentProblem, match="k2 is not installed; `make venv`"):
        check_env.torch_version_k2_was_built_for()
