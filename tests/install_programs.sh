#!/usr/bin/env bash
# Installs what slow tests run beside Python where that can be done (root on Debian or Ubuntu): Slurm and munge for
# tests/slurm, Chromium for the report's test. Says so first; the tests skip where it cannot. Never fails.
set -euo pipefail

# installed COMMAND...: whether all are there. Daemons lie in sbin, which is not on everybody's PATH.
installed() {
  local command
  for command in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || return 1
  done
}

# install WHAT PACKAGE...
install() {
  local what=$1
  shift
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "$what is not installed, and installing it takes root and apt-get: its tests will be skipped"
    return
  fi
  echo "Installing $what for its tests, as root: apt-get install $*"
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends "$@"; } >/dev/null 2>&1; then
    echo "$what could not be installed: its tests will be skipped"
  fi
}

installed munged slurmctld slurmd sbatch || install Slurm slurmctld slurmd slurm-client munge
installed chromium || installed chromium-browser || installed google-chrome || install Chromium chromium fonts-dejavu-core
