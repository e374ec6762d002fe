#!/usr/bin/env bash
# Prints the stack that `make` takes where STACK= names none, k2 or torch2, and on stderr a line that says why.
# k2 where that can be, since the searches on decoding graphs need it; torch2 where no Python here is one of k2's, or a
# GPU is one that torch 1.13.1 has no code for.
#   PYTHON=...   the interpreter that tools/make_venv.sh will get
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

take() { # STACK, then why
  case "$1" in
    k2) echo "stack: k2 (torch 1.13.1 and k2, in .venv), since $2; STACK=torch2 takes torch 2.x" ;;
    torch2) echo "stack: torch2 (torch 2.x without k2, in .venv-torch2), since $2" ;;
  esac >&2
  echo "$1"
  exit
}

# Running it is the test: version managers put commands on PATH that exist and fail.
is_for_k2() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; }

# Lines like "9.0, NVIDIA H100 80GB HBM3". torch 1.13.1 has code for 3.7 to 8.6, which runs on 8.9 too.
if [[ ${CUDA_VISIBLE_DEVICES-all} != @(|-1) ]]; then
  while IFS=, read -r capability gpu; do
    [[ ! $capability =~ ^([0-9]+)\.[0-9]+$ ]] || [ "${BASH_REMATCH[1]}" -lt 9 ] ||
      take torch2 "torch 1.13.1 has no code for this GPU,$gpu (compute capability $capability)"
  done < <(timeout 30 nvidia-smi --query-gpu=compute_cap,name --format=csv,noheader 2>/dev/null || true)
fi

if [ -n "${PYTHON:-}" ]; then
  ! is_for_k2 "$PYTHON" || take k2 "PYTHON ($PYTHON) is Python 3.10 or 3.11"
  take torch2 "PYTHON ($PYTHON) is not Python 3.10 or 3.11, the ones that k2 has wheels for"
fi
for python in .venv/bin/python python3.11 python3.10 python3; do
  ! is_for_k2 "$python" || take k2 "$python is Python 3.10 or 3.11"
done
take torch2 "there is no working Python 3.10 or 3.11 on PATH, the ones that k2 has wheels for"
