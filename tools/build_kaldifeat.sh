#!/usr/bin/env bash
# Compiles kaldifeat for the torch of an environment and installs it there; `make kaldifeat` calls it.
#   tools/build_kaldifeat.sh [PYTHON]     the environment's interpreter (default: .venv/bin/python)
# Needs a C++ compiler and a package index. Does nothing where kaldifeat works already. It is installed last, when it
# has been compiled and tried, so that a build that fails leaves the environment as it was. MAX_JOBS=N compiles N files
# at once (default: the number of cores).
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

python=${1:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v "$python") ||
  fail "\`$python\` must be a Python interpreter; \`make venv\` makes .venv/bin/python"
torch=$("$python" -c 'import torch; print(torch.__version__)') ||
  fail "\`$python\` must have torch, which kaldifeat is compiled for; \`make venv\` installs it"

# Computes features of noise; where kaldifeat was built for another torch, importing it fails.
works() {
  (cd / && "$python" - <<'PY'
import torch, kaldifeat
options = kaldifeat.FbankOptions()
options.mel_opts.num_bins = 80
assert kaldifeat.Fbank(options)([torch.randn(16000)])[0].shape == (98, 80)
PY
  )
}
case "$python" in /*) ;; *) python=$PWD/$python ;; esac
if works 2>/dev/null; then
  echo "kaldifeat works in $python already (torch $torch)"
  exit 0
fi
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null || fail "\`$compiler\` must be a C++ compiler, and there is none on PATH; install one" \
  "(Debian, Ubuntu: apt install g++) or name it: CXX=clang++. Without kaldifeat, stage 2 takes Lhotse's filter banks"

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mkdir -p build
log=$PWD/build/kaldifeat.log
pip() {
  "$python" -m pip --disable-pip-version-check "$@"
}

compile() {
  # torch 1.13 imports pkg_resources.packaging, which newer setuptools no longer have; older ones fail on Python 3.12.
  pip install --target "$build/tools" setuptools==69.5.1 wheel==0.45.1 ninja &&
    pip download --no-deps --no-binary kaldifeat --dest "$build" -r requirements/kaldifeat.txt &&
    tar -xzf "$build"/kaldifeat-*.tar.gz -C "$build" &&
    cp tools/kaldifeat_setup.py "$build"/kaldifeat-*/setup.py &&
    cd "$build"/kaldifeat-*/ &&
    PATH=$build/tools/bin:$PATH PYTHONPATH=$build/tools MAX_JOBS=${MAX_JOBS:-$(nproc)} \
      "$python" setup.py bdist_wheel --dist-dir "$build/wheel" &&
    pip install --no-deps --target "$build/try" "$build"/wheel/*.whl &&
    PYTHONPATH=$build/try works
}

echo "Compiling kaldifeat for torch $torch (some minutes); log: $log"
(compile) >"$log" 2>&1 ||
  fail "kaldifeat cannot be compiled for torch $torch; $python is as it was; the end of $log:"$'\n'"$(tail -n 15 "$log")"
pip --quiet install --no-deps --force-reinstall "$build"/wheel/*.whl
works || fail "kaldifeat was compiled and installed in $python and does not work there, see above"
echo "kaldifeat is installed in $python; stage 2 takes it from now on (features.extractor=lhotse: it does not)"
