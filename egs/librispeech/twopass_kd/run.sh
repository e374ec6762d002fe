#!/usr/bin/env bash
# Trains a two-pass teacher, distils a student from it in three stages, decodes both, scores and reports.
# `./run.sh --help` lists the stages and options; utils/stages.sh has what the stages share.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

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
  4  teacher LAS            9  scoring and report
 10  export to ONNX and int8, on-device benchmark (then stage 9 again, to report it)

Options:
  --stage N             first stage (default: 0)
  --stop-stage N        last stage (default: 10)
  --conf NAME|FILE      experiment: a name in conf/ or a YAML file (default: mini)
  --corpus-dir DIR      corpus in LibriSpeech's layout, made or found by stage 0
                        (default: download/LibriSpeech for LibriSpeech, else download/<conf>/LibriSpeech)
  --data-dir DIR        manifests, features, tokens (default: data for LibriSpeech, else data/<conf>);
                        with icefall's data/ here start at --stage 3
  --exp-dir DIR         checkpoints, results and logs go to DIR/<conf> (default: exp)
  --baseline BOOL       also train student_scratch: same size, no distillation (default: true)
  --nj N                jobs side by side (default: number of cores)
  --threads N           threads of each training on a CPU (default: 1; more do not help models as small as mini's)
  --dry-run             print the commands of the stages and run nothing (". ./path.sh" first to run them by hand)
  --force               run the stages even where they are done; trainings start anew, old ones are moved aside
  --help                this text

key=value replaces a setting of the YAML file, e.g. train.max_duration=20 phases.teacher/rnnt.num_epochs=2
EOF
}

# shellcheck source=utils/stages.sh
. utils/stages.sh

stage=0
stop_stage=10
conf=mini
corpus_dir=
data_dir=
exp_dir=
baseline=true
nj=$(number_of_cores)
threads=1
dry_run=false
force=false
overrides=()
given=() # options that say which experiment this is; the report shows them

while [ $# -gt 0 ]; do
  case "$1" in
    --stage | --stop-stage | --conf | --corpus-dir | --data-dir | --exp-dir | --baseline | --nj | --threads)
      [ $# -ge 2 ] || fail "\`$1\` must be followed by a value; see ./run.sh --help"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      case "$1" in --conf | --*-dir | --baseline) given+=("$1" "$2") ;; esac
      shift 2
      ;;
    --dry-run) dry_run=true && shift ;;
    --force) force=true && shift ;;
    --help | -h) usage && exit 0 ;;
    -*) fail "\`$1\` is not an option; known options: $(usage | sed -n 's/^  \(--[a-z-]*\).*/\1/p' | paste -sd ' ')" ;;
    *=*) overrides+=("$1") && shift ;;
    *) fail "\`$1\` must be an option or key=value; see ./run.sh --help" ;;
  esac
done
check_integer --stage "$stage" 0 10
check_integer --stop-stage "$stop_stage" 0 10
check_integer --nj "$nj" 1 9999
check_integer --threads "$threads" 1 9999
[ "$stage" -le "$stop_stage" ] || fail "\`--stop-stage\` ($stop_stage) must not be before \`--stage\` ($stage)"
case "$baseline" in true | false) ;; *) fail "\`--baseline\` ($baseline) must be true or false" ;; esac

# shellcheck source=path.sh
. ./path.sh
# shellcheck source=cmd.sh
. ./cmd.sh

conf=$(find_conf "$conf")
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
read -r -a systems <<<"${plan[systems]}"

stage_0() {
  case "$kind" in
    mini)
      launch 1 1 corpus python3 local/synthesize_corpus.py --conf "$conf" --corpus-dir "$corpus_dir" --nj "$nj" \
        "${overrides[@]}"
      ;;
    librispeech | mini_librispeech)
      launch 1 1 corpus python3 local/download_corpus.py --conf "$conf" --corpus-dir "$corpus_dir" \
        "${overrides[@]}"
      ;;
    folder) ;; # it is the user's; that its parts are there is checked like any stage's output
  esac
}

stage_1() {
  launch 1 1 manifests python3 local/prepare_manifests.py --conf "$conf" \
    --corpus-dir "$corpus_dir" --data-dir "$data_dir" --nj "$nj" "${overrides[@]}"
}

stage_2() {
  launch 1 1 features python3 local/compute_fbank.py --conf "$conf" --data-dir "$data_dir" --nj "$nj" "${overrides[@]}"
  launch 1 1 bpe python3 local/train_bpe.py --conf "$conf" --data-dir "$data_dir" "${overrides[@]}"
}

# Trains the phases of stage $1. They do not depend on each other, so they run side by side, as far as the cores go.
train_stage() {
  local phases phase jobs=() count=0
  read -r -a phases <<<"${plan[phases.$1]}"
  for phase in "${phases[@]}"; do
    [ "$count" -eq 0 ] || jobs+=("::")
    jobs+=("$phase" python3 -m twopass_kd.bin.train --conf "$conf" --phase "$phase"
      --data-dir "$data_dir" --exp-dir "$exp_dir" "${overrides[@]}")
    count=$((count + 1))
    if $force; then set_aside "$experiment/$phase"; fi
  done
  [ "$count" -gt 0 ] || return 0
  [ "$count" -le "$nj" ] || count=$nj
  launch "$count" "$threads" "${jobs[@]}"
}

stage_8() {
  local system jobs=()
  for system in "${systems[@]}"; do
    [ "${#jobs[@]}" -eq 0 ] || jobs+=("::")
    jobs+=("$system" python3 -m twopass_kd.bin.decode --conf "$conf" --system "$system"
      --data-dir "$data_dir" --exp-dir "$exp_dir" "${overrides[@]}")
  done
  launch "$nj" 1 "${jobs[@]}"
}

stage_9() {
  launch 1 1 score python3 -m twopass_kd.bin.score --conf "$conf" --exp-dir "$exp_dir" "${overrides[@]}"
  launch 1 1 report python3 -m twopass_kd.bin.report --conf "$conf" --exp-dir "$exp_dir" \
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
  launch "$nj" 1 "${jobs[@]}"
  launch 1 1 ondevice python3 -m twopass_kd.bin.ondevice --conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    "${overrides[@]}"
}

for ((n = stage; n <= stop_stage; n++)); do
  run_stage "$n"
done
force=false
if [ "$stop_stage" -eq 10 ] && { $dry_run || [ -n "$(why_again 9)" ]; }; then
  run_stage 9 # its report tells of stage 10 too
fi
if ! $dry_run && [ "$stop_stage" -ge 9 ]; then
  show_results
fi
