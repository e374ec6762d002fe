#!/usr/bin/env bash
# Builds fast_rnnt 1.3, the loss of the torch2 stack, from its source distribution against the torch of the Python $1.
# Its own CMake build downloads pybind11 from a code host, and with a torch for CUDA needs the CUDA toolkit even where
# only CPUs are meant. So its few files are compiled by torch's own helper: pip, setuptools, a C++17 compiler and a
# few minutes are all it takes.
#   FAST_RNNT_CUDA=1   for GPUs too; needs a torch for CUDA and its version of the CUDA toolkit, nvcc on PATH
set -euo pipefail

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

python=${1:?the interpreter that has torch: tools/build_fast_rnnt.sh PYTHON}
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null || fail "\`$compiler\` must be a C++ compiler, and there is none on PATH; install one" \
  "(Debian, Ubuntu: apt install g++) or name it: CXX=clang++"
[[ ${FAST_RNNT_CUDA:-0} == [01] ]] || fail "\`FAST_RNNT_CUDA\` ($FAST_RNNT_CUDA) must be 0 or 1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip=("$python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" download --no-deps --no-build-isolation --no-binary fast_rnnt --dest "$work" \
  -r "$(dirname "${BASH_SOURCE[0]}")/../requirements/fast_rnnt.txt"
tar -xzf "$work"/fast_rnnt-1.3.tar.gz -C "$work"
cat >"$work/fast_rnnt-1.3/setup.py" <<'END'
import os
import shutil
from pathlib import Path

from setuptools import setup
from torch.utils import cpp_extension

cuda = os.environ.get("FAST_RNNT_CUDA") == "1"
sources = sorted(Path("fast_rnnt").rglob("csrc/*.cu"))
if not cuda:  # plain C++ but for the one that has the kernels
    sources = [s for s in sources if s.name != "mutual_information_cuda.cu"]
    sources = [shutil.copy(s, s.with_suffix(".cc")) for s in sources]
extension = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
setup(
    name="fast_rnnt",
    version="1.3",
    packages=["fast_rnnt"],
    package_dir={"fast_rnnt": "fast_rnnt/python/fast_rnnt"},
    ext_modules=[
        extension(
            "_fast_rnnt",
            [str(source) for source in sources],
            include_dirs=[str(Path.cwd())],
            extra_link_args=["-Wl,-rpath,$ORIGIN/torch/lib"],
            define_macros=[("FT_WITH_CUDA", None)] if cuda else [],
        )
    ],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=False)},
)
END
"${pip[@]}" install --no-build-isolation --no-deps --no-cache-dir --force-reinstall "$work/fast_rnnt-1.3"
