"""Time of a training step with torch 1.13 and k2 against torch 2.x without k2.

    make venv && make venv STACK=torch2
    .venv/bin/python benchmarks/stacks.py

Runs train_step.py with the Python of each environment in turn, on the same batch, with the variables that path.sh sets;
and both once more without these ("plain"), as one who calls Python without path.sh has it: on AMD processors they let
the old torch's MKL use its fast code, and they keep freed memory. Each figure is the median over `--rounds`.
"""

import argparse
import os
import re
import statistics
import subprocess
from pathlib import Path

from common import RECIPE, make_parser
from tqdm import tqdm

from twopass_kd.config.environment import describe_environment

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.5


def step_milliseconds(python: Path, with_path_sh: bool, args: argparse.Namespace) -> dict[str, float]:
    """Phase -> milliseconds of its step, of one run of train_step.py."""
    without = [] if with_path_sh else "env -u MKL_DEBUG_CPU_TYPE -u MALLOC_MMAP_MAX_ -u MALLOC_TRIM_THRESHOLD_".split()
    program = [python, ROOT / "benchmarks/train_step.py", "--steps-only", "--conf", args.conf.resolve()]
    options = ["--seconds", args.seconds, "--repeats", args.repeats, *args.overrides]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    command = ["bash", "-c", '. ./path.sh && exec "$@"', "-", *map(str, [*without, *program, *options])]
    done = subprocess.run(
        command, cwd=RECIPE, env={**os.environ, **threads, "PATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return {name: float(ms) for name, ms in re.findall(r"^(\w+, .+?) {2,}([\d.]+) +\d+$", done.stdout, re.MULTILINE)}


def versions(python: Path) -> str:
    code = "import platform, torch; print('Python', platform.python_version() + ', torch', torch.__version__)"
    return subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--k2-python", type=Path, default=ROOT / ".venv/bin/python", help="torch 1.13 and k2")
    parser.add_argument("--torch2-python", type=Path, default=ROOT / ".venv-torch2/bin/python", help="torch 2.x")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of an utterance")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rounds", type=int, default=3, help="times that the two take turns")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each round")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    k2, torch2 = args.k2_python.absolute(), args.torch2_python.absolute()
    variants = {"k2": (k2, True), "torch2": (torch2, True), "k2 plain": (k2, False),
                "torch2 plain": (torch2, False)}  # fmt: skip
    load = os.getloadavg()[0]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in tqdm(range(args.rounds), unit="round"):
        for name, (python, with_path_sh) in variants.items():
            found[name].append(step_milliseconds(python, with_path_sh, args))
    print(f"{describe_environment()['cpu']}, threads {args.threads}, load average before: {load:.1f}")
    print(f"k2: {versions(k2)}\ntorch2: {versions(torch2)}\n")
    print(f"{'training step, ms':20s} " + " ".join(f"{name:>12s}" for name in variants) + "   k2 / torch2   both plain")
    ratios = []
    for phase in found["k2"][0]:
        ms = {name: statistics.median(times[phase] for times in found[name]) for name in variants}
        ratios.append(ms["k2"] / ms["torch2"])
        columns = " ".join(f"{value:12.1f}" for value in ms.values())
        print(f"{phase:20s} {columns}   {ratios[-1]:11.2f}   {ms['k2 plain'] / ms['torch2 plain']:10.2f}")
    verdict = "met" if min(ratios) >= TARGET else "MISSED"
    print(f"\nk2 / torch2, smallest: {min(ratios):.2f} (target {TARGET}): {verdict}")


if __name__ == "__main__":
    main()
