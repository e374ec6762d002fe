#!/usr/bin/env bash
# One command for a GPU machine: what the recipe does on this card, in ten minutes at most and without a network.
#   benchmarks/gpu_check.sh [--corpus-dir DIR] [--output gpu_check.json] [--cpu]
# Takes the Python environment that is active, or the repository's own. `--help` says the rest.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
unset CDPATH
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../egs/librispeech/twopass_kd/path.sh
. "$here/../egs/librispeech/twopass_kd/path.sh"
exec python3 "$here/gpu_check.py" "$@"
