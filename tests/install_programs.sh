#!/usr/bin/env bash
# Installs Slurm and munge where that can be done (root on Debian or Ubuntu), for the tests in this folder; they skip
# where it cannot. Never fails.
set -euo pipefail

if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "Slurm is not installed, and installing it takes root and apt-get; its tests will be skipped"
  exit 0
fi
echo "installing Slurm for its tests"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null 2>&1; then
  echo "Slurm could not be installed; its tests will be skipped"
fi
