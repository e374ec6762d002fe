#!/usr/bin/env bash
# Trains a two-pass teacher, distils a student from it in three stages, decodes both, scores and reports.
# `./run.sh --help` lists the stages and options; below it are the commands that each stage runs.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
# A user's settings that change what cd and grep do.
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT

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
  --seeds N             one experiment for each of N seeds, in DIR/<conf>/seed-<n>, and a report on all of them; more
                        seeds later train nothing again (default: one experiment, in DIR/<conf>)
  --seed N              only this one of the seeds
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

# The commands of the stages: number, name, command. A line about a {phase} or {system} runs for each one of its stage.
# Stages 3 to 8 are a graph: a job starts when the phases that it needs are trained; elsewhere a line comes after those
# above it. `seeds` reports on all seeds, where there are several. ./run.sh --dry-run prints them as they are for an
# experiment.
commands='
0    corpus     python3 local/get_corpus.py --conf {conf} --corpus-dir {corpus_dir} --nj {nj} {overrides}
1    manifests  python3 local/prepare_manifests.py --conf {conf} --corpus-dir {corpus_dir} --data-dir {data_dir} \
                  --nj {nj} {overrides}
2    features   python3 local/compute_fbank.py --conf {conf} --data-dir {data_dir} --nj {nj} {overrides}
2    bpe        python3 local/train_bpe.py --conf {conf} --data-dir {data_dir} {overrides}
2    filter     python3 local/filter_cuts.py --conf {conf} --data-dir {data_dir} {overrides}
3-7  {phase}    {srun} python3 -m twopass_kd.bin.train --phase {phase} {ranks} --conf {conf} --data-dir {data_dir} \
                  --exp-dir {exp_dir} {overrides}
8    {system}   python3 -m twopass_kd.bin.decode --system {system} --conf {conf} --data-dir {data_dir} \
                  --exp-dir {exp_dir} {overrides}
9    score      python3 -m twopass_kd.bin.score --conf {conf} --exp-dir {exp_dir} {overrides}
9    report     python3 -m twopass_kd.bin.report --conf {conf} --exp-dir {exp_dir} --command {command} {overrides}
9    seeds      python3 -m twopass_kd.bin.report_seeds --conf {conf} --exp-dir {exp_dir} --finished {finished} \
                  --command {command} {overrides}
10   {system}   python3 -m twopass_kd.bin.export --conf {conf} --system {system} --data-dir {data_dir} \
                  --exp-dir {exp_dir} {overrides}
10   ondevice   python3 -m twopass_kd.bin.benchmark_device --conf {conf} --data-dir {data_dir} \
                  --exp-dir {exp_dir} {overrides}
'

# bash has read all of this before it begins, so that the file may be edited meanwhile.
main() {
  local caller_dir=$PWD word
  for word; do
    case "$word" in --help | -h) usage && return ;; esac
  done
  cd "$(dirname "${BASH_SOURCE[0]}")"
  # shellcheck source=path.sh
  . ./path.sh
  # shellcheck source=cmd.sh
  . ./cmd.sh
  exec python3 -m twopass_kd.bin.run_stages "$caller_dir" "$commands" --launcher "$launcher" "$@"
}

main "$@"; exit
