# Sourced by run.sh, and by you before you call a script by hand:  . ./path.sh
# Takes the Python environment that is active where pydantic and lhotse (which needs torch) import in it, else the
# repository's .venv, else its .venv-torch2, and puts this recipe on PYTHONPATH; an icefall checkout too, where ICEFALL_ROOT names one
# or this folder lies inside one.
# shellcheck shell=bash

# The folder as it was reached (inside icefall where a link there leads here) and where it really is.
_twopass_here=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd -L)
_twopass_real=$(cd "$_twopass_here" && pwd -P)
_twopass_venv=   # the first of the repository's environments
_twopass_active= # whether one of them is on PATH already
for _twopass_root in "$_twopass_real"/../../../.venv "$_twopass_real"/../../../.venv-torch2; do
  if [ -x "$_twopass_root/bin/python3" ]; then
    _twopass_root=$(cd "$_twopass_root" && pwd -P)
    _twopass_venv=${_twopass_venv:-$_twopass_root}
    [ ! "$(dirname "$(command -v python3)")" -ef "$_twopass_root/bin" ] || _twopass_active=yes
  fi
done

if [ -n "$_twopass_active" ]; then
  : # by `make` or by hand
elif python3 -c 'import pydantic, lhotse' >/dev/null 2>&1; then
  : # the user's own
elif [ -n "$_twopass_venv" ]; then
  [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] ||
    echo "path.sh: the active environment (${VIRTUAL_ENV:-$CONDA_PREFIX}) lacks pydantic or lhotse, so" \
      "$_twopass_venv is taken" >&2
  export VIRTUAL_ENV=$_twopass_venv PATH=$_twopass_venv/bin:$PATH
  unset PYTHONHOME
else
  echo "error: \`import pydantic, lhotse\` fails in $(command -v python3 || echo 'python3, which is not on PATH')," \
    "and there is no .venv: do \`make venv\` at the root of the repository, or in an environment that has torch" \
    "\`pip install -e REPOSITORY\` (docs/install.md)" >&2
  return 1
fi

_twopass_pythonpath=$_twopass_real
if [ -n "${ICEFALL_ROOT:-}" ]; then
  if [ ! -d "$ICEFALL_ROOT/icefall" ]; then
    echo "error: \`ICEFALL_ROOT\` ($ICEFALL_ROOT) must be an icefall checkout, with a folder icefall in it;" \
      "correct it or unset it" >&2
    return 1
  fi
  _twopass_pythonpath+=:$(CDPATH='' cd -- "$ICEFALL_ROOT" && pwd -P)
else
  for _twopass_root in "$_twopass_here" "$_twopass_real"; do
    _twopass_root=$(cd -L "$_twopass_root/../../.." && pwd -P) # cd takes ".." off the path as it was reached
    if [ -f "$_twopass_root/icefall/__init__.py" ]; then
      _twopass_pythonpath+=:$_twopass_root
      break
    fi
  done
fi
export PYTHONPATH=$_twopass_pythonpath${PYTHONPATH:+:$PYTHONPATH}
unset _twopass_here _twopass_real _twopass_venv _twopass_active _twopass_pythonpath _twopass_root

# Libraries ask for a home and a user's name when they are imported; a user id of a container may have neither.
export HOME=${HOME:-${TMPDIR:-/tmp}}
if ! id -un >/dev/null 2>&1; then
  export LOGNAME=${LOGNAME:-$(id -u)}
fi
# Paths and transcripts are UTF-8, whatever the locale.
export PYTHONUTF8=1
# A library that warns is no error: what "error" asks for here would end each program in its imports. Optimised, Python
# leaves out the asserts, and the docstrings that --help shows.
case "${PYTHONWARNINGS:-}" in *error*) unset PYTHONWARNINGS ;; esac
unset PYTHONOPTIMIZE
# Threads that wait must sleep: with the default, two torch threads spin against each other as soon as anything else
# uses a core.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# On AMD processors the MKL inside torch 1.13 takes its slowest code unless told otherwise; what it costs
# shows benchmarks/train_step.py with and without. Newer MKLs ignore it.
if grep -qs AuthenticAMD /proc/cpuinfo; then
  export MKL_DEBUG_CPU_TYPE=${MKL_DEBUG_CPU_TYPE:-5}
fi
# Keep freed memory instead of handing it back and faulting it in again at every step (the same benchmark shows it).
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:--1}
