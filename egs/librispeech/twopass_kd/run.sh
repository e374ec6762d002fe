#!/usr/bin/env bash
# Trains a two-pass teacher, distils a student from it in three stages, decodes both, scores and reports.
# `./run.sh --help` lists the stages and options; utils/stages.sh has what the stages share.
# shellcheck source-path=SCRIPTDIR disable=SC2329
set -euo pipefail
# A user's settings that change what cd, grep and bash itself do.
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT

# In the background of a script SIGINT is ignored, and bash cannot change that; stopped by Ctrl-C we are all the same.
if [ -n "$(trap -p INT)" ] && env --default-signal=INT true 2>/dev/null; then
  exec env --default-signal=INT "$BASH" "${BASH_SOURCE[0]}" "$@"
fi

caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'EOF'
Usage: ./run.sh [options] [key=value ...]

Stages (finished ones are skipped on a rerun, unless their settings changed):
  0  corpus                 5  student RNN-T distillation, and the baseline's RNN-T
  1  Lhotse manifests       6  student LAS distillation, and the baseline's LAS
  2  features and BPE       7  deep fine-tuning of the student, and the baseline's
  3  teacher RNN-T          8  decoding of all systems
  4  teacher LAS and deep   9  scoring and report
 10  export to ONNX and int8, on-device benchmark (then stage 9 again, to report it)

Options:
  --stage N             first stage (default: 0)
  --stop-stage N        last stage (default: 10)
  --conf NAME|FILE      experiment: a name in conf/ or a YAML file (default: mini)
  --corpus-dir DIR      corpus: a folder for each part, made or found by stage 0 (docs/corpus.md has the layout)
                        (default: download/LibriSpeech for LibriSpeech, else download/<conf>/LibriSpeech)
  --data-dir DIR        manifests, features, tokens (default: data for LibriSpeech, else data/<conf>);
                        with icefall's data/ here start at --stage 3
  --teacher FILE        a trained teacher, instead of stages 3 and 4: TorchScript of icefall's export.py (it runs code:
                        only files that you trust), or a checkpoint of this recipe; more under external_teacher in YAML
  --exp-dir DIR         checkpoints, results and logs go to DIR/<conf> (default: exp)
  --baseline BOOL       also train student_copy: same size, no distillation (default: true)
  --nj N                jobs side by side (default: number of cores)
  --threads N           threads of each training on a CPU (default: 1; more do not help models as small as mini's)
  --world-size N        ranks of each training on one node, e.g. its GPUs (default: 1)
  --nnodes N            nodes of each training, under Slurm, each with as many ranks (default: 1)
  --launcher NAME       local, or slurm: submit each stage as a batch job, after the one before (default: in cmd.sh);
                        the jobs' partition, time, CPUs, GPUs and memory are in the YAML, under slurm
  --status              show how far the stages and their Slurm jobs are, and run nothing
  --dry-run             print the commands of the stages and run nothing (". ./path.sh" first to run them by hand);
                        for LibriSpeech also what the trainings will cost: steps, memory, GPU hours
  --force               run the stages even where they are done; trainings start anew, old ones are moved aside
  --help                this text

key=value replaces a setting of the YAML file, e.g. train.max_duration=20 phases.teacher/rnnt.num_epochs=2
EOF
}

# shellcheck source=utils/stages.sh
. utils/stages.sh
# shellcheck source=utils/locks.sh
. utils/locks.sh
# shellcheck source=utils/launch.sh
. utils/launch.sh

stage=0
stop_stage=10
conf=mini
corpus_dir=
data_dir=
teacher=
exp_dir=
baseline=true
nj=$(number_of_cores)
[[ ! ${SLURM_CPUS_PER_TASK:-} =~ ^[1-9][0-9]{0,3}$ ]] || nj=$SLURM_CPUS_PER_TASK
threads=1
world_size=1
nnodes=1
launcher=
status=false
dry_run=false
force=false
overrides=()
given=()   # options that say which experiment this is; the report shows them
running=() # options that say how it runs

while [ $# -gt 0 ]; do
  case "$1" in
    --stage | --stop-stage | --conf | --corpus-dir | --data-dir | --teacher | --exp-dir | --baseline | --nj | \
      --threads | --world-size | --nnodes | --launcher)
      [[ ${2:---} != --* ]] || fail "\`$1\` must be followed by a value; see ./run.sh --help"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      case "$1" in
        --conf | --*-dir | --baseline) given+=("$1" "$2") ;;
        --nj | --threads | --world-size | --nnodes) running+=("$1" "$2") ;;
      esac
      shift 2
      ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --status) status=true && shift ;;
    --dry-run) dry_run=true && shift ;;
    --force) force=true && shift ;;
    --help | -h) usage && exit 0 ;;
    -*) fail "\`$1\` is not an option; known options: $(usage | sed -n 's/^  \(--[a-z-]*\).*/\1/p' | paste -sd ' ')" ;;
    decode.arpa=?* | external_teacher.path=?* | external_teacher.recipe=?* | external_teacher.tokens=?*)
      value=${1#*=}
      [ "$value" = null ] || value=$(resolve "$value")
      overrides+=("${1%%=*}=$value")
      shift
      ;;
    *=*) overrides+=("$1") && shift ;;
    *) fail "\`$1\` must be an option or key=value; see ./run.sh --help" ;;
  esac
done
check_integer --stage "$stage" 0 10
check_integer --stop-stage "$stop_stage" 0 10
check_integer --nj "$nj" 1 9999
check_integer --threads "$threads" 1 9999
check_integer --world-size "$world_size" 1 9999
check_integer --nnodes "$nnodes" 1 9999
[ "$stage" -le "$stop_stage" ] || fail "\`--stop-stage\` ($stop_stage) must not be before \`--stage\` ($stage)"
case "$baseline" in true | false) ;; *) fail "\`--baseline\` ($baseline) must be true or false" ;; esac

# shellcheck source=path.sh
. ./path.sh
requested=$launcher
# shellcheck source=cmd.sh
. ./cmd.sh
launcher=${requested:-$launcher}
case "$launcher" in local | slurm) ;; *) fail "\`--launcher\` ($launcher) must be local or slurm" ;; esac
if [ "$nnodes" -gt 1 ] && [ "$launcher" = local ] && [ -z "${SLURM_JOB_ID:-}" ] && ! $status; then
  fail "\`--nnodes\` ($nnodes) must be 1 outside of Slurm; add --launcher slurm, or run twopass_kd.bin.train on each" \
    "node yourself (--dry-run shows the commands; add --rdzv-endpoint FIRST_NODE:PORT)"
fi

forget_other_ranks

conf=$(find_conf "$conf")
if [ -n "$teacher" ]; then
  teacher=$(resolve "$teacher")
  [ -f "$teacher" ] || fail "\`--teacher\` ($teacher) must be a file"
  overrides+=("external_teacher.path=$teacher")
fi
read_plan
kind=${plan[kind]}
[ -z "$corpus_dir" ] || corpus_dir=$(resolve "$corpus_dir")
[ -z "$data_dir" ] || data_dir=$(resolve "$data_dir")
[ -z "$exp_dir" ] || exp_dir=$(resolve "$exp_dir")
case "$kind" in
  librispeech) : "${corpus_dir:=download/LibriSpeech}" "${data_dir:=data}" ;;
  folder)
    [ -n "$corpus_dir" ] || [ "$stage" -gt 1 ] ||
      fail "\`--corpus-dir\` must name the corpus, since ${plan[name]} reads a folder of yours (corpus.kind is folder)"
    : "${data_dir:=data/${plan[name]}}"
    ;;
  *) : "${corpus_dir:=download/${plan[name]}/LibriSpeech}" "${data_dir:=data/${plan[name]}}" ;;
esac
: "${exp_dir:=exp}"
experiment=$exp_dir/${plan[name]}

stage_0() {
  local part
  case "$kind" in
    mini)
      launch 1 corpus python3 local/synthesize_corpus.py --conf "$conf" --corpus-dir "$corpus_dir" --nj "$nj" \
        "${overrides[@]}"
      ;;
    librispeech | mini_librispeech)
      launch 1 corpus python3 local/download_corpus.py --conf "$conf" --corpus-dir "$corpus_dir" \
        "${overrides[@]}"
      ;;
    folder)
      for part in ${plan[parts]}; do
        [ -d "$corpus_dir/$part" ] || fail "\`--corpus-dir\` ($corpus_dir) must have a folder $part, which is a part of" \
          "the config; correct it, or name the parts that are there in the YAML"
      done
      ;;
  esac
  case "$kind" in
    mini | folder)
      ! "${plan[musan]}" || launch 1 musan python3 local/download_corpus.py --conf "$conf" --corpus-dir "$corpus_dir" \
        "${overrides[@]}"
      ;;
  esac
}

stage_1() {
  launch 1 manifests python3 local/prepare_manifests.py --conf "$conf" \
    --corpus-dir "$corpus_dir" --data-dir "$data_dir" --nj "$nj" "${overrides[@]}"
}

stage_2() {
  launch 1 features python3 local/compute_fbank.py --conf "$conf" --data-dir "$data_dir" --nj "$nj" "${overrides[@]}"
  launch 1 bpe python3 local/train_bpe.py --conf "$conf" --data-dir "$data_dir" "${overrides[@]}"
  launch 1 filter python3 local/filter_cuts.py --conf "$conf" --data-dir "$data_dir" "${overrides[@]}"
}

# Adds the jobs of stage $1, of 3 to 8, to the array `jobs`: phases to train, or systems to decode.
add_jobs() {
  local n=$1 name need after cores ranks on_each_node=()
  for name in $(jobs_of "$n"); do
    after='' ranks=() cores=1
    for need in ${plan[needs.$name]:-${plan[phase.$name]:-}}; do
      case " ${pending[*]} " in *" ${plan[stage.$need]:-} "*) after+=$need, ;; esac
    done
    [ "${#jobs[@]}" -eq 0 ] || jobs+=("::")
    jobs+=("$name" --after "$after" --log "$(log_of "$n")")
    if [ "$n" -eq 8 ]; then
      jobs+=(python3 -m twopass_kd.bin.decode --system "$name")
    else
      if [ "$world_size" -gt 1 ] || [ "$nnodes" -gt 1 ]; then
        cores=$world_size ranks=(--world-size "$world_size")
      elif [ -z "$gpus" ]; then
        cores=${plan[cpu_ranks.$name]}
      fi
      [ -n "$gpus" ] || cores=$((cores * threads))
      if [ "$nnodes" -gt 1 ]; then
        ranks+=(--nnodes "$nnodes" --rdzv-endpoint "$(rdzv_endpoint)")
        on_each_node=(srun --nodes "$nnodes" --ntasks "$nnodes" --ntasks-per-node 1 --kill-on-bad-exit=1
          --disable-status --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}")
      fi
      jobs+=(--cores "$cores" --threads "$threads" "${on_each_node[@]}" python3 -m twopass_kd.bin.train
        --phase "$name" "${ranks[@]}")
      if $force; then set_aside "$experiment/$name"; fi
    fi
    jobs+=(--conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" "${overrides[@]}")
  done
}

stage_9() {
  launch 1 score python3 -m twopass_kd.bin.score --conf "$conf" --exp-dir "$exp_dir" "${overrides[@]}"
  launch 1 report python3 -m twopass_kd.bin.report --conf "$conf" --exp-dir "$exp_dir" \
    --command "$(quoted ./run.sh "${given[@]}" "${overrides[@]}")" "${overrides[@]}"
}

# The benchmark runs alone, since it measures time.
stage_10() {
  local system jobs=()
  [ -n "${plan[export_systems]}" ] || fail "stage 10 has no system to export; name one: export.systems=[...]"
  if $force; then set_aside "$experiment/export"; fi
  for system in ${plan[export_systems]}; do
    [ "${#jobs[@]}" -eq 0 ] || jobs+=("::")
    jobs+=("$system" python3 -m twopass_kd.bin.export --conf "$conf" --system "$system"
      --data-dir "$data_dir" --exp-dir "$exp_dir" "${overrides[@]}")
  done
  launch "$nj" "${jobs[@]}"
  launch 1 ondevice python3 -m twopass_kd.bin.benchmark_device --conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    "${overrides[@]}"
}

# bash has read all of it before it begins, so that the file may be edited meanwhile.
main() {
  # The options that each stage's job gets: as they are here, seen from this folder.
  if $status || [ "$launcher" = slurm ]; then
    command=(./run.sh --conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" --baseline "$baseline")
    [ -z "$corpus_dir" ] || command+=(--corpus-dir "$corpus_dir")
    if $status; then
      show_status
      exit
    fi
    submit_stages
    ! $dry_run || show_cost
    exit
  fi
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    force=false # Slurm runs this job again: it goes on
  fi

  # Where a training takes several nodes, trainings and decoding have different ones.
  if [ "$nnodes" -gt 1 ]; then last_training=7; else last_training=8; fi
  n=$stage
  while [ "$n" -le "$stop_stage" ]; do
    case "$n" in
      [3-8])
        last=$((n <= last_training ? last_training : 8))
        last=$((last < stop_stage ? last : stop_stage))
        run_graph "$n" "$last"
        n=$last
        ;;
      *) run_stage "$n" ;;
    esac
    n=$((n + 1))
  done
  force=false
  if [ "$stop_stage" -eq 10 ] && { $dry_run || [ -n "$(why_again 9)" ]; }; then
    run_stage 9 # its report tells of stage 10 too
  fi
  if $dry_run; then
    show_cost
  elif [ "$stop_stage" -ge 9 ]; then
    show_results
  fi
}

main; exit
