import subprocess
import sys

import pytest

from run_sh import RECIPE
from twopass_kd.bin import check_env
from twopass_kd.losses.rnnt_backend import use_backend


def fake_k2(folder, torch_version, init=""):
    (folder / "k2").mkdir()
    (folder / "k2" / "__init__.py").write_text(init)
    (folder / "k2" / "torch_version.py").write_text(f'k2_torch_version = "{torch_version}"\n')


def check(folder):
    """check_env in a fresh Python that finds `folder`'s k2 first and has no fast_rnnt."""
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(RECIPE)!r}]; sys.modules['fast_rnnt'] = None"
    code = f"{path}\nfrom twopass_kd.bin.check_env import main\nsys.exit(main([]))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_check_env_here_is_fine(capsys):
    assert check_env.main([]) == 0
    assert f"{use_backend()} " in capsys.readouterr().out


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


def test_check_env_without_k2_and_fast_rnnt_says_so(monkeypatch):
    monkeypatch.setattr(check_env.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(check_env.EnvironmentProblem, match="k2 is not.*fast_rnnt is not.*make venv"):
        check_env.check_environment()


def test_check_env_takes_fast_rnnt_where_k2_does_not_work(monkeypatch):
    monkeypatch.setattr(check_env, "_k2_problem", lambda torch_version: "k2 is broken")
    monkeypatch.setattr(check_env, "_fast_rnnt_problem", lambda torch_version: None)
    assert check_env._loss_backend("2.13.0") == "fast_rnnt"
