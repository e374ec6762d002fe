#!/usr/bin/env bash
# Makes .venv at the repository root with exactly the packages in requirements/. `make venv` calls it.
# Does nothing where the stamp in .venv says that these requirements are installed already.
#   PYTHON=...   the interpreter to use (3.10 or 3.11); default: the first of python3.11, python3.10, python3 that fits
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp="$venv/installed"
requirements=(requirements/pip.txt requirements/base.txt requirements/k2.txt requirements/dev.txt pyproject.toml)

# Prints "3.10" or "3.11" where the interpreter $1 runs and is one of these. Running it is the test: version
# managers put commands on PATH that exist and fail.
supported_version() {
  local version
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
  case "$version" in
    3.10 | 3.11) printf '%s\n' "$version" ;;
    *) return 1 ;;
  esac
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

content=$(cat "${requirements[@]}" | cksum)

# The version of the environment that is there. Without PYTHON= it stays, whichever of the two it is.
existing=$(supported_version "$venv/bin/python") || existing=

if [ -n "${PYTHON:-}" ]; then
  version=$(supported_version "$PYTHON") || fail "\`PYTHON\` ($PYTHON) must be a working Python 3.10 or 3.11" \
    "(torch 1.13.1 and k2 1.23.4 have no wheels for newer ones); give another, e.g. make PYTHON=/path/to/python3.11"
  python=$PYTHON
elif [ -n "$existing" ]; then
  python=$venv/bin/python
  version=$existing
else
  python=
  for candidate in python3.11 python3.10 python3; do
    if version=$(supported_version "$candidate"); then
      python=$candidate
      break
    fi
  done
  [ -n "$python" ] || fail "no working python3.11, python3.10 or python3 of these versions on PATH" \
    "(torch 1.13.1 and k2 1.23.4 have no wheels for newer ones); install one and name it: make PYTHON=/path/to/python3.11"
fi

if [ "$existing" = "$version" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$version $content" ]; then
  exit 0
fi

system="$(uname -s) $(uname -m)"
[ "$system" = "Linux x86_64" ] || fail "k2's wheels are for Linux x86_64 only and this is $system;" \
  "build k2 in an environment of your own, activate it and call run.sh in egs/librispeech/twopass_kd directly"

echo "Setting up $venv with $("$python" --version) (about a minute, 3 GB)"
if [ "$existing" != "$version" ]; then
  "$python" -m venv --clear "$venv" || fail "\`$python -m venv\` failed; on Debian and Ubuntu: apt install python$version-venv"
fi
rm -f "$stamp"

pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" ||
    fail "pip $1 failed, see above; is the package index reachable? (set-up goes on where it stopped: run make again)"
}
pip install -r requirements/pip.txt
pip install -r requirements/base.txt -r requirements/dev.txt
pip install --no-deps -r requirements/k2.txt
pip install --no-deps --no-build-isolation --editable . # the commands in .venv/bin, twopass-recognize among them

PYTHONPATH=egs/librispeech/twopass_kd "$venv/bin/python" -m twopass_kd.bin.check_env
printf '%s\n' "$version $content" >"$stamp"
