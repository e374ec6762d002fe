# How run.sh launches the jobs of a stage. Sourced by run.sh.
# shellcheck shell=bash disable=SC2034

# local: on this machine, as child processes. The only launcher there is.
launcher=local

case "$launcher" in
  local) launch_cmd=(python3 utils/run_jobs.py) ;;
  *)
    echo "error: \`launcher\` ($launcher) in cmd.sh must be one of: local" >&2
    return 1
    ;;
esac
