# How run.sh launches its stages. Sourced by run.sh.
# shellcheck shell=bash disable=SC2034

# What --launcher is where it is not given:
#   local  on this machine, as child processes
#   slurm  as a chain of batch jobs; what they ask for is in the YAML, under `slurm`
launcher=local

# Runs the commands of one stage on this machine.
launch_cmd=(python3 utils/run_jobs.py)
