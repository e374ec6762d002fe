# What the stages of run.sh share: markers of finished stages, checks of inputs and outputs. Sourced by run.sh, whose
# variables it uses: nj, nnodes, caller_dir, conf, teacher, baseline, dry_run, force, given, overrides, corpus_dir,
# data_dir, experiment.
# shellcheck shell=bash disable=SC2034,SC2154

titles=("corpus" "Lhotse manifests" "features and BPE" "teacher RNN-T" "teacher LAS and deep fine-tuning"
  "student RNN-T distillation" "student LAS distillation" "deep fine-tuning" "decoding" "scoring and report"
  "export and on-device benchmark")

declare -A plan  # answers of show_config --plan
data_checked=false
settings_noted=false
pending=() # the stages of the graph that is running

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# nproc minds the cores that this process may use; without these variables, which it would obey too.
number_of_cores() {
  env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
}

# The words given, as they would be typed in a shell.
quoted() {
  local text
  printf -v text ' %q' "$@"
  printf '%s' "${text# }"
}

# check_integer NAME VALUE MIN MAX
check_integer() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,3})$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "$4" ] ||
    fail "\`$1\` ($2) must be a whole number from $3 to $4"
}

# Path $1 as the caller meant it, from the folder that run.sh was called from: absolute, or relative to the recipe
# where it lies inside, so that what is written stays right when the recipe is moved.
resolve() {
  local path=$1
  case "$path" in /*) ;; \~ | \~/*) path=$HOME${path#\~} ;; *) path=$caller_dir/$path ;; esac
  path=$(realpath --canonicalize-missing --no-symlinks "$path")
  path=${path#"$PWD/"}
  case "$path" in -*) path=./$path ;; esac # no option to what gets it
  printf '%s\n' "$path"
}

# The YAML file that --conf means: the name of a file in conf/, a path from the caller's folder or from this one.
find_conf() {
  local candidate
  for candidate in "conf/$1.yaml" "$(resolve "$1")" "$1"; do
    if [ -f "$candidate" ]; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "\`--conf\` ($1) must be a YAML file or one of the names in conf/:" \
    "$(find conf -name '*.yaml' -printf '%f\n' | sed 's/\.yaml$//' | sort | paste -sd ' ')"
}

read_plan() {
  local text key value options=()
  $baseline || options+=(--no-baseline)
  text=$(python3 -m twopass_kd.bin.show_config --conf "$conf" --plan "${options[@]}" "${overrides[@]}") || exit 1
  while IFS=$'\t' read -r key value; do
    plan[$key]=$value
  done <<<"$text"
}

# Prints the files that stage $1 leaves, one a line; of the parts $2... only, where given (stages 0-2).
outputs() {
  local n=$1 name parts
  shift
  parts=("$@")
  if [ $# -eq 0 ]; then
    read -r -a parts <<<"${plan[parts]}"
    ! "${plan[musan]}" || musan_outputs "$n"
  fi
  case "$n" in
    0) for name in "${parts[@]}"; do echo "$corpus_dir/$name"; done ;;
    1) for name in "${parts[@]}"; do
      echo "$data_dir/manifests/librispeech_recordings_$name.jsonl.gz"
      echo "$data_dir/manifests/librispeech_supervisions_$name.jsonl.gz"
      echo "$data_dir/manifests/librispeech_checksums_$name.tsv"
    done ;;
    2)
      for name in "${parts[@]}"; do echo "$data_dir/fbank/librispeech_cuts_$name.jsonl.gz"; done
      for name in bpe.model tokens.txt; do echo "$data_dir/lang_bpe_${plan[vocab_size]}/$name"; done
      ;;
    8) for name in ${plan[systems]}; do echo "$experiment/decode/$name/decode.json"; done ;;
    9) for name in results.json report.md report.html; do echo "$experiment/$name"; done ;;
    10)
      for name in ${plan[export_systems]}; do echo "$experiment/export/$name/export.json"; done
      echo "$experiment/ondevice.json"
      ;;
    *) for name in ${plan[phases.$n]}; do echo "$experiment/$name/final.pt"; done ;;
  esac
}

# Prints the files of MUSAN that stage $1 leaves, where the config wants it.
musan_outputs() {
  local part
  case "$1" in
    0) echo "$(dirname "$corpus_dir")/musan" ;;
    1) for part in music speech noise; do echo "$data_dir/manifests/musan_recordings_$part.jsonl.gz"; done ;;
    2) echo "$data_dir/fbank/musan_cuts.jsonl.gz" ;;
  esac
}

# Prints what stage $1 reads, as lines of the stage that makes it, tab, path.
inputs() {
  local phase need eval_parts
  case "$1" in
    0) ;;
    1) outputs 0 | sed 's/^/0\t/' ;;
    2) outputs 1 | sed 's/^/1\t/' ;;
    9) outputs 8 | sed 's/^/8\t/' ;;
    8 | 10)
      read -r -a eval_parts <<<"${plan[dev_parts]} ${plan[test_parts]}"
      outputs 2 "${eval_parts[@]}" | sed 's/^/2\t/'
      for need in ${plan[systems]}; do
        phase=${plan[phase.$need]}
        [ "$phase" != external_teacher ] || continue
        printf '%s\t%s\n' "${plan[stage.$phase]}" "$experiment/$phase/final.pt"
      done
      [ "$1" -eq 8 ] || outputs 8 | sed 's/^/8\t/'
      ;;
    *)
      read -r -a eval_parts <<<"${plan[train_parts]} ${plan[dev_parts]}"
      outputs 2 "${eval_parts[@]}" | sed 's/^/2\t/'
      ! "${plan[musan]}" || musan_outputs 2 | sed 's/^/2\t/'
      for phase in ${plan[phases.$1]}; do
        for need in ${plan[needs.$phase]}; do
          printf '%s\t%s\n' "${plan[stage.$need]}" "$experiment/$need/final.pt"
        done
      done
      ;;
  esac
}

# Reads paths and prints the first that does not exist.
first_missing() {
  local path found=
  while IFS= read -r path; do
    [ -n "$found" ] || [ -e "$path" ] || found=$path
  done
  [ -z "$found" ] || echo "$found"
}

check_inputs() {
  local maker path
  while IFS=$'\t' read -r maker path; do
    case " ${pending[*]} " in *" $maker "*) continue ;; esac # it will be there
    [ -e "$path" ] || fail "$path is missing, which stage $1 reads; stage $maker makes it:" \
      "./run.sh --stage $maker --stop-stage $maker${given[*]:+ $(quoted "${given[@]}")}; where it is elsewhere," \
      "name the folder (--data-dir, --exp-dir)"
  done < <(inputs "$1")
}

# check_data_dir N: whether stage N may work with the data folder.
check_data_dir() {
  case "$1" in
    [0-2]) check_data_is_ours ;;
    9) ;;
    *)
      check_their_data "$1"
      note_other_settings
      ;;
  esac
}

# Stage 2's settings may have changed since it ran, or been another experiment's.
note_other_settings() {
  local made
  made=$(marker_value "$data_dir/.stages/2.done" settings)
  case " ${pending[*]} " in *" 2 "*) return ;; esac # it will run
  if $settings_noted || [ -z "$made" ] || [ "$made" = "${plan[fingerprint.2]}" ]; then return; fi
  echo "note: $data_dir was made with other settings of corpus, features or tokens (corpus.speed_perturb, say) and is" \
    "used as it is; to have it made with yours start at --stage 0"
  settings_noted=true
}

# Stages 0-2 would replace manifests, tokens and features that run.sh did not make.
check_data_is_ours() {
  local part found fbank=$data_dir/fbank
  if [ ! -d "$data_dir/.stages" ] && [ ! -f "$data_dir/.lock" ]; then
    for found in "$data_dir"/{manifests,fbank}/* "$data_dir"/lang_bpe_*; do
      [ ! -e "$found" ] || fail "\`--data-dir\` ($data_dir) has ${found#"$data_dir/"}, which run.sh did not make, and" \
        "stages 0 to 2 would replace it; choose another --data-dir, or start at --stage 3, which takes what is there"
    done
  fi
  for part in ${plan[parts]}; do
    if [ -e "$fbank/librispeech_cuts_$part.jsonl.gz" ] && [ ! -e "$fbank/librispeech_feats_$part/source.json" ]; then
      fail "\`--data-dir\` ($data_dir) has features of $part that run.sh did not make, and stages 0 to 2 would replace" \
        "them; start at --stage 3, which takes them, or choose another --data-dir"
    fi
  done
}

# Data that stages 0-2 did not make is looked at once, before the first stage ($1) that reads it.
check_their_data() {
  if $data_checked || [ -d "$data_dir/.stages" ] || [ ! -d "$data_dir/fbank" ]; then return; fi
  echo "Checking $data_dir, which run.sh did not make"
  python3 local/check_data.py --conf "$conf" --data-dir "$data_dir" --stage "$1" --stop-stage "$stop_stage" \
    "${overrides[@]}" || exit 1
  data_checked=true
}

# What the marker of a finished stage 0-2 says is true of the data, whichever experiment made it.
marker_dir() {
  if [ "$1" -le 2 ]; then printf '%s\n' "$data_dir/.stages"; else printf '%s\n' "$experiment/.stages"; fi
}

marker() {
  printf '%s\n' "$(marker_dir "$1")/$1.done"
}

# The value of key $2 in marker file $1; nothing where there is no such file.
marker_value() {
  [ ! -f "$1" ] || sed -n 's/.*"'"$2"'": "\{0,1\}\([^",}]*\).*/\1/p' "$1"
}

# A hash of the settings and data that stage $1 depends on. Manifests hold absolute paths, so stages 1 and 2 run again
# where corpus or data were moved; what is trained depends on where data lie only if run.sh did not make them.
stage_fingerprint() {
  local made_by=$data_dir/.stages/2.done
  {
    printf '%s\n' "${plan[fingerprint.$1]}"
    case "$1" in
      0 | 1) realpath --canonicalize-missing "$corpus_dir" ;;
      2) realpath --canonicalize-missing "$data_dir" ;;
      *) if [ -f "$made_by" ]; then cat "$made_by"; else realpath --canonicalize-missing "$data_dir"; fi ;;
    esac
  } | sha256sum | cut -c1-16
}

# Whether stage $2 uses what stage $1 leaves. The report of stage 9 tells of stage 10 as well, which reads none of it.
feeds() {
  case "$1,$2" in
    10,9) return 0 ;;
    9,10) return 1 ;;
    *) [ "$1" -lt "$2" ] ;;
  esac
}

# Says why stage $1 has to run again although it has a marker; nothing where it does not have to.
why_again() {
  local own missing earlier
  own=$(marker "$1")
  if [ "$(marker_value "$own" fingerprint)" != "$(stage_fingerprint "$1")" ]; then
    echo "its settings or folders changed"
    return
  fi
  for ((earlier = 0; earlier <= 10; earlier++)); do
    feeds "$earlier" "$1" || continue
    if [[ $(marker_value "$(marker "$earlier")" ended) > $(marker_value "$own" ended) ]]; then
      echo "stage $earlier ran since"
      return
    fi
  done
  missing=$(outputs "$1" | first_missing)
  [ -z "$missing" ] || echo "$missing is missing"
}

# write_marker STAGE SECONDS
write_marker() {
  local file
  file=$(marker "$1")
  mkdir -p "$(dirname "$file")" "$experiment/.stages"
  {
    printf '{"stage": %d, "title": "%s", "settings": "%s", ' "$1" "${titles[$1]}" "${plan[fingerprint.$1]}"
    printf '"fingerprint": "%s", "seconds": %d, "finished": "%s", "ended": "%s"}\n' \
      "$(stage_fingerprint "$1")" "$2" "$(date +%Y-%m-%dT%H:%M:%S%z)" "$(date +%s.%N)"
  } >"$file.tmp"
  mv "$file.tmp" "$file"
}

# The report reads the times of all stages in one place: the experiment's.
copy_data_marker() {
  if [ "$1" -le 2 ] && [ -f "$(marker "$1")" ]; then
    mkdir -p "$experiment/.stages"
    cp "$(marker "$1")" "$experiment/.stages/$1.done"
  fi
}

# Renames folder $1, so that what makes it starts anew.
set_aside() {
  if ! $dry_run && [ -e "$1" ]; then
    mv "$1" "$1.$(date +%Y%m%d-%H%M%S)"
    echo "  moved $1 aside"
  fi
}

# Whether stage $1 has to run, which is said: it is not done, its settings changed, or others ran or will run before it.
has_to_run() {
  local n=$1 done_marker why
  if nothing_to_train "$n"; then
    echo "Stage $n: nothing to train${teacher:+, the teacher is $teacher}"
    return 1
  fi
  done_marker=$(marker "$n")
  if [ -f "$done_marker" ] && ! $force; then
    why=$(why_again "$n")
    [ "${#pending[@]}" -eq 0 ] || why=${why:-"stage ${pending[0]} does"}
    if [ -z "$why" ]; then
      copy_data_marker "$n"
      echo "Stage $n: done already ($(marker_value "$done_marker" seconds) s on" \
        "$(marker_value "$done_marker" finished)); --force runs it again"
      return 1
    fi
    echo "Stage $n runs again: $why"
  fi
}

# start_stage N: checks its inputs, locks its folders and says what it does.
start_stage() {
  local n=$1 needs
  check_data_dir "$n"
  check_inputs "$n"
  lock_folders "$n"
  needs=$(inputs "$n" | cut -f2 | summarize)
  echo "Stage $n: ${titles[n]}${plan[phases.$n]:+ (${plan[phases.$n]// /, })}${needs:+; needs $needs};" \
    "log $(log_of "$n")"
  mkdir -p "$experiment/log"
  trap on_signal INT TERM HUP
  [ -z "${SLURM_JOB_ID:-}" ] || trap on_end_of_job USR1
  [ "$n" -eq 9 ] || rm -f "$(marker "$n")" # interrupted, it is not done either; but the report of 9 tells of 9
}

log_of() {
  printf '%s\n' "$experiment/log/stage-$1.log"
}

# end_stage N SECONDS: checks its outputs and marks it done.
end_stage() {
  local missing
  missing=$(outputs "$1" | first_missing)
  [ -z "$missing" ] || fail "stage $1 ended without leaving $missing; its log: $(log_of "$1")"
  write_marker "$1" "$2"
  copy_data_marker "$1"
  echo "Stage $1: $2 s; left $(outputs "$1" | summarize)"
}

# run_stage N: skips it where it is done, else runs it and marks it done.
run_stage() {
  local started=$SECONDS
  current_stage=$1 # for launch
  if $dry_run; then
    "stage_$1"
  elif has_to_run "$1"; then
    start_stage "$1"
    "stage_$1"
    end_stage "$1" "$((SECONDS - started))"
  fi
}

# run_graph FIRST LAST: stages FIRST to LAST, of 3 to 8. Their jobs are a graph: each starts when the models that it needs
# are there, so that what does not wait for each other runs side by side, as far as cores or GPUs go.
run_graph() {
  local n max_jobs=$nj jobs=()
  current_stage=$1
  for ((n = $1; n <= $2; n++)); do
    $dry_run || has_to_run "$n" || continue
    pending+=("$n")
    $dry_run || start_stage "$n"
  done
  if [ "$nnodes" -gt 1 ] && [ "$1" -ne 8 ]; then
    max_jobs=1 # each training takes all nodes, and all of their GPUs
  else
    gpus=$(visible_gpus)
  fi
  for n in "${pending[@]}"; do add_jobs "$n"; done
  [ "${#jobs[@]}" -eq 0 ] || launch "$max_jobs" "${jobs[@]}"
  gpus=
  pending=()
}

# Marks those of the pending stages done whose jobs have all ended well, by the times that the launcher wrote. The seconds
# of a stage are what it adds to those before, so that the seconds of all stages are the time that they took together.
end_finished_stages() {
  local n name start end first last reached=0
  [ -f "$1" ] || return 0
  declare -A starts ends
  while IFS=$'\t' read -r name start end; do
    starts[$name]=$start
    ends[$name]=$end
  done <"$1"
  for n in "${pending[@]}"; do
    first='' last=0
    for name in $(jobs_of "$n"); do
      [ -n "${ends[$name]:-}" ] || continue 2
      [ -n "$first" ] && [ "$first" -le "${starts[$name]}" ] || first=${starts[$name]}
      [ "$last" -ge "${ends[$name]}" ] || last=${ends[$name]}
    done
    [ "$first" -ge "$reached" ] || first=$reached
    [ "$last" -ge "$first" ] || last=$first
    reached=$last
    end_stage "$n" "$((last - first))"
  done
}

# Of the stages that the launcher works on, those that are not marked done; none is where it does not work on a graph.
unfinished_stages() {
  local n
  for n in "${pending[@]:-$current_stage}"; do
    [ -f "$(marker "$n")" ] && [ "${#pending[@]}" -gt 0 ] || echo "$n"
  done
}

# The names of the jobs of stage $1, of 3 to 8: phases, or systems.
jobs_of() {
  if [ "$1" -eq 8 ]; then echo "${plan[systems]}"; else echo "${plan[phases.$1]}"; fi
}

# Reads paths and prints the first, and how many more there are; nothing where there are none.
summarize() {
  local paths
  mapfile -t paths
  case "${#paths[@]}" in
    0) ;;
    1) echo "${paths[0]}" ;;
    *) echo "${paths[0]} and $((${#paths[@]} - 1)) more" ;;
  esac
}

# Whether stage $1 is one that trains, and has nothing to: the teacher's, where there is one already.
nothing_to_train() {
  [[ $1 == [3-7] && -z ${plan[phases.$1]} ]]
}

# Whether stage $1 is done and stays so, its settings and inputs being what they were.
is_done() {
  [ -f "$(marker "$1")" ] && [ -z "$(why_again "$1")" ]
}

# Prints what the trainings of LibriSpeech cost, after what --dry-run has printed.
show_cost() {
  local options=()
  case "$kind" in *librispeech) ;; *) return 0 ;; esac
  $baseline || options+=(--no-baseline)
  printf '\nWhat the trainings cost (computing it takes up to a minute):\n'
  python3 -m twopass_kd.bin.estimate --conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    --world-size "$world_size" --nnodes "$nnodes" "${options[@]}" "${overrides[@]}"
}

show_results() {
  python3 - "$experiment" <<'EOF'
import sys
from pathlib import Path
from twopass_kd.scoring.results import load_results
from twopass_kd.scoring.summary import summary_text

try:
    print(summary_text(load_results(Path(sys.argv[1]))))
except ValueError as e:
    sys.exit(f"error: {e}")
EOF
  echo "results: $experiment/results.json"
  echo "report:  $experiment/report.html (and report.md)"
}
