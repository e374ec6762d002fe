"""tools/make_venv.sh: which torch it installs for which GPU. The interpreter and pip are stand-ins."""

import os
import shutil
import subprocess

import pytest

from run_sh import ROOT

# Says that it is 3.13, makes an environment of itself, and writes down what pip is to install.
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c "*) echo 3.13 ;;
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip") echo "$*" >>pip.log ;;
esac
"""


@pytest.mark.parametrize(
    "gpus, cuda",
    [
        (None, 13),
        ("580.65.06, 9.0", 13),
        ("570.133.20, 9.0\n570.133.20, 9.0", 12),
        ("580.65.06, 7.0", 12),
        ("590.12, 12.0", 13),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 13),
    ],
)
def test_torch2_is_for_the_cuda_of_the_driver(tmp_path, gpus, cuda):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = {"python3.13": PYTHON, "nvidia-smi": f"#!/bin/sh\ncat <<'END'\n{gpus}\nEND\n"}
    (tmp_path / "bin").mkdir()
    for name, code in programs.items() if gpus else [("python3.13", PYTHON)]:
        (tmp_path / "bin" / name).write_text(code)
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin{os.pathsep}/usr/bin:/bin", "STACK": "torch2", "PYTHON": "python3.13"}
    done = subprocess.run([tmp_path / "tools" / "make_venv.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"-r requirements/torch2.txt -r requirements/torch2-cuda{cuda}.txt" in (tmp_path / "pip.log").read_text()
    assert ("torch for CUDA 12, since" in done.stdout) == (cuda == 12) and "fast_rnnt" not in done.stdout
    again = subprocess.run([tmp_path / "tools" / "make_venv.sh"], env=env, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, "")
