"""What the recipe does on this machine's GPU: one table for people, and a JSON file with the same figures.

    benchmarks/gpu_check.sh                         # ten minutes at most, no network
    benchmarks/gpu_check.sh --corpus-dir DIR        # also run.sh, stages 0 to 9, on the corpus there

Each part runs in a process of its own for as long as its limit allows. One that fails or takes longer says so in the
table, what it had measured by then counts, and the others go on. Without a GPU, or with --cpu, all of it runs at a
small size: that shows that the programs work, and none of the figures is a GPU's.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]  # "what", and figures by the names of FORMATS
HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "egs/librispeech/twopass_kd"
CONFS = ("librispeech_100h", "librispeech_960h")
PHASES = ("teacher/rnnt", "student/rnnt_kd", "student/las_kd", "student/deep")
SECONDS_TO_STOP = 10.0
# Figure -> how a person reads it.
FORMATS = {
    "text": "{}",
    "frames_per_second": "{:,.0f} frames/s",
    "audio_seconds_per_second": "{:,.0f} s of audio/s",
    "seconds": "{:.3f} s",
    "milliseconds": "{:.2f} ms",
    "peak_gib": "{:.2f} GiB",
    "estimated_gib": "estimate {:.2f}",
    "busy": "busy {:.0%}",
    "tflops": "{:.2f} TFLOP/s",
    "real_time_factor": "RTF {:.5f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "ratio": "{:.2f} times",
    "value_error": "values off by {:.1e} of the largest",
    "gradient_error": "gradients by {:.1e}",
    "gigabytes_per_second": "{:.1f} GB/s",
}


@dataclass
class Part:
    """One part of the check.

    Attributes:
      name: for the table.
      command: prints a `Row` as JSON on each line of stdout, or nothing.
      limit: seconds that it may take.
    """

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None


def parts(args: argparse.Namespace, folder: Path) -> list[Part]:
    """All parts; on a GPU their limits add up to ten minutes."""
    small, patience = (["--cpu"], 4) if args.cpu else ([], 1)  # tests may run beside other work

    def measure(limit: float, name: str, *options: str) -> Part:
        command = [sys.executable, str(HERE / "gpu_parts.py"), name, *options, *small]
        return Part(" ".join([name, *options]), command, limit * patience)

    found = [measure(20, "machine"), measure(50, "losses")]
    found += [measure(limit, "step", conf, phase) for conf, limit in zip(CONFS, (30, 35)) for phase in PHASES]
    found += [measure(30, "rows"), measure(30, "ranks"), measure(50, "decoding")]
    if args.corpus_dir is not None:
        found.append(corpus_part(args.corpus_dir, folder, args.cpu, 160 * patience))
    return found


def corpus_part(corpus_dir: Path, folder: Path, cpu: bool, limit: float) -> Part:
    """`run.sh`, stages 0 to 9, with mini's models on a corpus in LibriSpeech's layout, an epoch of each phase."""
    names = sorted(path.name for path in corpus_dir.iterdir() if path.is_dir())
    parts_of = {f"{kind}_parts": [n for n in names if n.startswith(kind)] for kind in ("train", "dev", "test")}
    phases = ("teacher/rnnt", "teacher/las", "teacher/deep", "student/rnnt_kd", "student/las_kd", "student/deep")
    content = {
        "base": str(RECIPE / "conf/mini.yaml"),
        "corpus": {"kind": "folder", "max_left_out": 0.1, **parts_of},
        "tokens": {"vocab_size": 60},
        "decode": {"searches": []},
        "phases": {phase: {"num_epochs": 1, "average": 0, "cpu_ranks": 1} for phase in phases},
    }
    conf = folder / "gpu_check.yaml"
    conf.write_text(json.dumps(content), encoding="utf-8")  # which is YAML too
    command = [RECIPE / "run.sh", "--conf", conf, "--corpus-dir", corpus_dir.resolve(), "--data-dir", folder / "data"]
    command += ["--exp-dir", folder / "exp", "--baseline", "false", "--stop-stage", "9"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    return Part("corpus, run.sh 0-9", ["bash", *map(str, command)], limit, hidden, folder)


@dataclass
class Result:
    """What came of a part: its rows, how long it took, and why it ended early if it did."""

    part: str
    seconds: float
    error: str | None
    rows: list[Row]


def run(part: Part, folder: Path) -> Result:
    """Run a part to its end or limit."""
    begin = time.perf_counter()
    out, log = folder / "stdout", folder / "stderr"
    with out.open("w") as stdout, log.open("w") as stderr:
        # A session of its own, so that all that it has started can be ended.
        process = subprocess.Popen(
            part.command, stdout=stdout, stderr=stderr, cwd=part.cwd, start_new_session=True,
            env={**os.environ, **part.environment},
        )  # fmt: skip
        try:
            status = process.wait(part.limit)
            error = None if status == 0 else f"failed with exit status {status}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            error = f"not finished within its {part.limit:.0f} s"
        finally:
            stop(process)
    rows = [json.loads(line) for line in out.read_text(errors="replace").splitlines() if line.startswith('{"what"')]
    seconds = time.perf_counter() - begin
    if part.name.startswith("corpus") and error is None:
        rows = [{"what": "all stages", "seconds": seconds}]
    return Result(part.name, seconds, error, rows)


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it has started; nothing where it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                continue


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def figures(row: Row) -> str:
    """A row's figures in words."""
    return ", ".join(FORMATS[key].format(value) for key, value in row.items() if key != "what" and value is not None)


def table(results: list[Result]) -> str:
    """All results, for people."""
    lines = [(result.part, str(row["what"]), figures(row)) for result in results for row in result.rows]
    lines += [(result.part, "", result.error) for result in results if result.error is not None]
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    return "\n".join(f"{part:{widths[0]}s}  {what:{widths[1]}s}  {words}" for part, what, words in lines)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus-dir", type=Path, help="folders train*, dev* and test* of speakers; left out without")
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_check.json"), help="JSON with all figures (default: %(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="at a small size on the CPU, to try these programs")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.corpus_dir is not None and not args.corpus_dir.is_dir():
        parser.error(f"`--corpus-dir` ({args.corpus_dir}) must be a folder")
    args.cpu = args.cpu or not torch.cuda.is_available()
    note = "NOT A GPU MEASUREMENT: small sizes on the CPU" if args.cpu else "measured on the GPU"
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        for part in parts(args, Path(name)):
            print(f"{part.name} (at most {part.limit:.0f} s) ...", end="", file=sys.stderr, flush=True)
            results.append(run(part, Path(name)))
            print(f" {results[-1].error or 'done'}, {results[-1].seconds:.0f} s", file=sys.stderr, flush=True)
            content: dict[str, Any] = {"note": note, "parts": [vars(result) for result in results]}
            args.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{note}\n\n{table(results)}")
    if args.corpus_dir is None:
        print("\ncorpus, run.sh 0-9: left out, as no --corpus-dir was given")
    print(f"\nthe same as JSON: {args.output}")
    return int(any(result.error for result in results))


if __name__ == "__main__":
    sys.exit(main())
