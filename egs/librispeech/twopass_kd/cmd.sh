# How run.sh runs its stages. Sourced by run.sh.
# shellcheck shell=bash disable=SC2034

# What --launcher is where it is not given:
#   local  on this machine, as child processes
#   slurm  as a chain of batch jobs; what they ask for is in the YAML, under `slurm`
launcher=local
