#!/usr/bin/env bash
# Makes the virtual environment of a stack at the repository root, with exactly the packages in requirements/.
# `make venv` calls it. Does nothing where the stamp in it says that these requirements are installed already.
#   STACK=k2       .venv: torch 1.13.1 and k2 1.23.4; Python 3.10 or 3.11
#   STACK=torch2   .venv-torch2: torch 2.13.0 for CUDA 13, or 2.10.0 for CUDA 12; Python 3.10 to 3.13
#   PYTHON=...     the interpreter to use; default: the first on PATH of python3.11, python3.10, ... that fits
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

stack=${STACK:-$(tools/choose_stack.sh)}
requirements=(requirements/pip.txt requirements/base.txt requirements/dev.txt pyproject.toml)
case "$stack" in
  k2)
    venv=.venv
    versions=(3.11 3.10)
    requirements+=(requirements/torch1.txt requirements/k2.txt)
    why="torch 1.13.1 and k2 1.23.4 have no wheels for other ones; STACK=torch2 takes 3.10 to 3.13"
    ;;
  torch2)
    venv=.venv-torch2
    versions=(3.11 3.12 3.13 3.10)
    requirements+=(requirements/torch2.txt requirements/torch2-cuda13.txt requirements/torch2-cuda12.txt)
    why="requirements/torch2.txt holds for these"
    ;;
  *) fail "\`STACK\` ($stack) must be k2 (torch 1.13.1) or torch2 (torch 2.x and no k2)" ;;
esac
stamp="$venv/installed"

# Prints the version of the interpreter $1 where it runs and is one of the stack's. Running it is the test: version
# managers put commands on PATH that exist and fail.
supported_version() {
  local version
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
  case " ${versions[*]} " in
    *" $version "*) printf '%s\n' "$version" ;;
    *) return 1 ;;
  esac
}

content=$(cat "${requirements[@]}" | cksum)

# The version of the environment that is there. Without PYTHON= it stays, whichever it is.
existing=$(supported_version "$venv/bin/python") || existing=

if [ -n "${PYTHON:-}" ]; then
  candidates=("$PYTHON")
  none="\`PYTHON\` ($PYTHON) must be a working Python of ${versions[*]} ($why); give another"
elif [ -n "$existing" ]; then
  candidates=("$venv/bin/python")
else
  candidates=("${versions[@]/#/python}" python3)
  none="no working Python of ${versions[*]} on PATH ($why); install one and name it"
fi
python=
for candidate in "${candidates[@]}"; do
  if version=$(supported_version "$candidate"); then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "$none: make PYTHON=/path/to/python3.11"

if [ "$existing" = "$version" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$version $content" ]; then
  exit 0
fi

system="$(uname -s) $(uname -m)"
[ "$system" = "Linux x86_64" ] || fail "the pinned wheels are for Linux x86_64 only and this is $system;" \
  "make an environment of your own (docs/install.md), activate it and call run.sh in egs/librispeech/twopass_kd directly"

echo "Setting up $venv with $("$python" --version) (some minutes, 4 to 8 GB)"
if [ "$existing" != "$version" ]; then
  "$python" -m venv --clear "$venv" || fail "\`$python -m venv\` failed; on Debian and Ubuntu: apt install python$version-venv"
fi
rm -f "$stamp"

pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" ||
    fail "pip $1 failed, see above; is the package index reachable? (set-up goes on where it stopped: run make again)"
}
pip install -r requirements/pip.txt
if [ "$stack" = k2 ]; then
  # Two at a time: torch is as much work as all the rest, and the files pin everything.
  (pip install --no-deps -r requirements/torch1.txt && pip install --no-deps -r requirements/k2.txt) &
  torch=$!
  trap 'kill "$torch" 2>/dev/null' EXIT # on Ctrl-C, which does not reach what runs in the background
  pip install --no-deps -r requirements/base.txt -r requirements/dev.txt
  wait "$torch" || exit 1
  trap - EXIT
else
  # CUDA 13 needs driver 580 or newer, and its torch a GPU of compute capability 7.5 or more; CUDA 12 goes back to driver
  # 525 and 7.0. Where no GPU is seen the newer one.
  cuda=13
  while IFS=', ' read -r driver capability; do
    [[ $driver,$capability =~ ^([0-9]+)[0-9.]*,([0-9]+)\.([0-9]+)$ ]] || continue
    if [ "${BASH_REMATCH[1]}" -lt 580 ] || [ "${BASH_REMATCH[2]}${BASH_REMATCH[3]}" -lt 75 ]; then
      cuda=12
      echo "torch for CUDA 12, since the GPU's driver is $driver and its compute capability $capability"
    fi
  done < <(timeout 30 nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null || true)
  torch2=(-r requirements/torch2.txt -r "requirements/torch2-cuda$cuda.txt")
  pip install -r requirements/base.txt "${torch2[@]}" -r requirements/dev.txt
fi
pip install --no-deps --no-build-isolation --editable . # the commands in bin/ of it, twopass-recognize among them

PYTHONPATH=egs/librispeech/twopass_kd "$venv/bin/python" -m twopass_kd.bin.check_env
printf '%s\n' "$version $content" >"$stamp"
