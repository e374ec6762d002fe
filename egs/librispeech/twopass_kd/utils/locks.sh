# Which run.sh works in a folder. Sourced by run.sh after stages.sh, and by the jobs of the features; uses fail,
# experiment and data_dir.
# shellcheck shell=bash disable=SC2154

experiment_lock= # file descriptors of the locks that are held
data_lock=

# Two runs in one folder would write over each other's files: stage $1 keeps others out of the experiment's folder and,
# where it writes there, the data's; later stages share the data with other experiments. The launcher inherits the locks
# (its jobs do not), so that after a kill of run.sh alone nobody starts before the launcher has stopped the jobs.
lock_folders() {
  if ! command -v flock >/dev/null; then
    [ -n "$experiment_lock" ] ||
      echo "flock is not installed: see to it that no other run.sh works on $experiment or $data_dir meanwhile"
    experiment_lock=none
    return
  fi
  if [ -z "$experiment_lock" ]; then
    check_writable "$experiment" --exp-dir
    exec {experiment_lock}<>"$experiment/.lock"
    lock "$experiment_lock" --exclusive "$experiment" --exp-dir
  fi
  if [ "$1" -le 2 ]; then
    if [ -z "$data_lock" ]; then
      check_writable "$data_dir" --data-dir
      exec {data_lock}<>"$data_dir/.lock"
      lock "$data_lock" --exclusive "$data_dir" --data-dir
    fi
  elif [ -f "$data_dir/.lock" ]; then # not in icefall's data, which no run.sh of ours writes
    [ -n "$data_lock" ] || exec {data_lock}<"$data_dir/.lock"
    lock "$data_lock" --shared "$data_dir" --data-dir
  fi
}

# check_writable FOLDER OPTION: whether the folder is there or can be made, and a line can be written to its lock.
check_writable() {
  local why
  why=$({ mkdir -p "$1" && echo >>"$1/.lock"; } 2>&1) ||
    fail "\`$2\`: $1 must be a folder that can be written to, with room left (${why##*: }); mend that, or choose another"
}

# lock FD MODE FOLDER OPTION: what holds the lock is refused room, or in a batch job, which has time, waited for.
lock() {
  local status=0 holder
  flock --nonblock "$2" "$1" || status=$?
  if [ "$status" -eq 1 ]; then
    holder="another run.sh works on $3$(who_locks "$1" "$3")"
    is_batch_job || fail "$holder; wait for it, or choose another $4"
    echo "$holder; this job waits for it (scancel $SLURM_JOB_ID stops it)"
    status=0
    flock "$2" "$1" || status=$?
  fi
  case "$status" in
    0) [ "$2" != --exclusive ] || printf 'process %s on %s since %(%F %T)T\n' $$ "$HOSTNAME" -1 >"$3/.lock" ;;
    *) echo "$3 cannot be locked: see to it that no other run.sh works on it meanwhile" ;;
  esac
}

# who_locks FD FOLDER: what the one that has the folder to itself has written about itself, in brackets.
who_locks() {
  local who=
  if flock --nonblock --shared "$1"; then
    who="only reads it" # and may be several
  else
    read -r who <"$2/.lock" || true
  fi
  printf '%s' "${who:+ ($who)}"
}

# Whether this is the script of sbatch: a shell of salloc or srun has SLURM_JOB_ID too, and somebody waits at it.
is_batch_job() {
  [ -n "${SLURM_JOB_ID:-}" ] && [ "${ENVIRONMENT:-}" = BATCH ] && [ ! -t 0 ]
}
