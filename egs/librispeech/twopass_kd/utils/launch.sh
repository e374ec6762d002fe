# How the commands of a stage are started, stopped and submitted to Slurm. Sourced by run.sh after stages.sh; uses its
# variables: nj, conf, dry_run, force, overrides, running, data_dir, experiment, stage, stop_stage, world_size, nnodes,
# command, launch_cmd, pending.
# shellcheck shell=bash disable=SC2034,SC2154

job_pid=         # of the launcher that is running
gpus=            # for the jobs that are launched, one for each rank
signalled=false  # whether we have been told to stop
requeue=false    # whether Slurm is to run this job again

# Ctrl-C and kill: the launcher passes them on to its jobs, which save their state.
on_signal() {
  signalled=true
  [ -n "$job_pid" ] || exit 130
  kill -TERM "$job_pid" 2>/dev/null || true
}

# Slurm says by SIGUSR1 that it ends this job soon (time limit, preemption): save, then wait in its queue again.
on_end_of_job() {
  requeue=true
  on_signal
}

# Whether Slurm takes the nodes of this job for another one. It tells the steps of srun so, and not always this shell.
is_preempted() {
  [ -n "${SLURM_JOB_ID:-}" ] && scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -q 'PreemptTime=[0-9]'
}

# Where the nodes of a training meet: a port of this one, which is the job's first.
rdzv_endpoint() {
  printf '%s:%s\n' "$(hostname)" "$((20000 + ${SLURM_JOB_ID:-0} % 20000))"
}

# The GPUs that this process may use, joined by commas; as CUDA does, up to the first word that can be none.
visible_gpus() {
  local words=() word found=
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    IFS=, read -r -a words <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    mapfile -t words < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
  fi
  for word in "${words[@]}"; do
    word=${word//[[:space:]]/}
    [[ $word =~ ^([0-9]+|(GPU|MIG)-[-/[:alnum:]]+)$ ]] || break
    case ",$found," in
      *",$word,"*) fail "\`CUDA_VISIBLE_DEVICES\` ($CUDA_VISIBLE_DEVICES) must name each GPU once, else there is none" ;;
    esac
    found+=${found:+,}$word
  done
  printf '%s\n' "$found"
}

# Clusters set these in every pod or task. Here they are about other ranks than ours, which the launcher tells theirs.
forget_other_ranks() {
  case "${WORLD_SIZE:-1}" in
    1) ;;
    *) echo "ignored: RANK, WORLD_SIZE ($WORLD_SIZE) and the like in the environment; --world-size says how many ranks" ;;
  esac
  unset RANK LOCAL_RANK GROUP_RANK ROLE_RANK NODE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE \
    MASTER_ADDR MASTER_PORT "${!TORCHELASTIC_@}"
}

# launch MAX_JOBS [NAME [options] COMMAND...] [:: ...]...
# Runs the commands of the stage in hand (current_stage), or prints them with --dry-run; options as in run_jobs.py.
launch() {
  local max_jobs=$1 status unfinished times=$experiment/.stages/times.tsv
  shift
  if $dry_run; then
    print_jobs "$@"
    return
  fi
  rm -f "$times"
  # In the background, because a shell handles no signal while it waits for a command in the foreground.
  "${launch_cmd[@]}" --log "$(log_of "$current_stage")" --max-jobs "$max_jobs" ${gpus:+--gpus "$gpus"} \
    --times "$times" -- "$@" &
  job_pid=$!
  while true; do
    status=0
    wait "$job_pid" || status=$?
    kill -0 "$job_pid" 2>/dev/null || break
  done
  job_pid=
  end_finished_stages "$times"
  [ "$status" -ne 0 ] || return 0
  mapfile -t unfinished < <(unfinished_stages)
  current_stage=${unfinished[0]}
  if $requeue || is_preempted; then
    case "$current_stage" in
      0 | [2-7]) ;; # these go on where they were
      *) fail "Slurm ends this job before stage $current_stage is done; give it more time (slurm.*.time)" ;;
    esac
    echo "Stage $current_stage has saved its state and goes on when Slurm runs job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
    echo "Waiting a minute for Slurm to end this one"
    sleep 60
  fi
  if [ "$status" -eq 130 ] && $signalled; then
    echo "Stage $current_stage stopped; the same command$($force && echo ', without --force,') goes on from here" >&2
    exit 130
  fi
  [ "${#unfinished[@]}" -eq 1 ] || fail "stages ${unfinished[*]} are not done, since the command above failed"
  fail "stage $current_stage (${titles[current_stage]}) failed; its log: $(log_of "$current_stage")"
}

# Prints the commands of jobs, as launch takes them.
print_jobs() {
  local threads=1
  while [ $# -gt 0 ]; do
    shift # its name
    while true; do
      case "$1" in
        --threads) threads=$2 ;;
        --after | --cores | --log) ;;
        *) break ;;
      esac
      shift 2
    done
    printf 'OMP_NUM_THREADS=%s' "$threads"
    threads=1
    while [ $# -gt 0 ] && [ "$1" != "::" ]; do
      printf ' %s' "$(quoted "$1")"
      shift
    done
    printf '\n'
    [ $# -eq 0 ] || shift
  done
}

# Submits the stages to Slurm, without those that have nothing to train and the first ones if they are done.
submit_stages() {
  local first=$stage options=() dry=()
  while [ "$first" -le "$stop_stage" ]; do
    if nothing_to_train "$first"; then
      echo "Stage $first: nothing to train"
    elif ! $force && ! $dry_run && is_done "$first"; then
      echo "Stage $first: done already"
    else
      break
    fi
    first=$((first + 1))
  done
  [ "$first" -le "$stop_stage" ] || exit 0
  if $dry_run; then
    dry=(--dry-run)
  else
    check_data_dir "$first"
    check_inputs "$first"
  fi
  ! $force || options+=(--force)
  python3 utils/slurm.py submit --experiment "$experiment" --conf "$conf" --data-dir "$data_dir" \
    --stage "$first" --stop-stage "$stop_stage" --world-size "$world_size" --nnodes "$nnodes" \
    "${dry[@]}" --overrides "${overrides[@]}" -- "${command[@]}" "${running[@]}" "${options[@]}" "${overrides[@]}"
}

show_status() {
  local n when lines=()
  for ((n = 0; n <= 10; n++)); do
    ! nothing_to_train "$n" || continue
    when=$(marker_value "$(marker "$n")" finished)
    [ -z "$when" ] || is_done "$n" || when="$when, with other settings"
    lines+=("$n"$'\t'"${titles[n]}"$'\t'"$when"$'\t'"${plan[phases.$n]}")
  done
  python3 utils/slurm.py status --experiment "$experiment" --stages "${lines[@]}"
}
