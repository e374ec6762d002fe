#!/usr/bin/env bash
# Builds fast_rnnt 1.3, the loss of the torch2 stack, from its source distribution against the torch of the Python $1.
# It needs what requirements/torch2.txt pins, a C++17 compiler and make: about two minutes on two cores. With nvcc on
# PATH and a torch for CUDA it is built for GPUs too.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: tools/build_fast_rnnt.sh PYTHON, the interpreter that has torch" >&2
  exit 1
fi
python=$1
for tool in c++ make; do
  command -v "$tool" >/dev/null || {
    echo "error: \`$tool\` is not on PATH, and fast_rnnt must be compiled; on Debian and Ubuntu: apt install g++ make" >&2
    exit 1
  }
done

cuda=OFF
if command -v nvcc >/dev/null && "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
  cuda=ON
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Its CMake files download pybind11 from a code host; this folder stands in for what they would get.
mkdir "$work/pybind11"
echo "find_package(pybind11 CONFIG REQUIRED PATHS $("$python" -m pybind11 --cmakedir))" >"$work/pybind11/CMakeLists.txt"

PATH="$(dirname "$python"):$PATH" MAKEFLAGS="-j$(nproc)" \
  FT_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DFT_BUILD_TESTS=OFF -DFT_WITH_CUDA=$cuda -DCMAKE_CXX_STANDARD=17 \
-DCMAKE_POLICY_VERSION_MINIMUM=3.5 -DCMAKE_FIND_PACKAGE_TARGETS_GLOBAL=ON \
-DFETCHCONTENT_SOURCE_DIR_PYBIND11=$work/pybind11" \
  "$python" -m pip --disable-pip-version-check --quiet install --no-build-isolation --no-deps --no-cache-dir \
  --no-binary fast_rnnt fast_rnnt==1.3
