"""Time of a training step with torch 1.13 and k2 against torch 2.x and fast_rnnt.

    make venv && make venv STACK=torch2
    .venv/bin/python benchmarks/stacks.py

Runs train_step.py with the Python of each environment in turn, on the same batch, with the variables that path.sh sets
(on AMD processors they let the old torch's MKL use its fast code). Each figure is the median over `--rounds`.
"""

import argparse
import os
import re
import statistics
import subprocess
from pathlib import Path
from typing import Dict, List, Optional

from common import RECIPE
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.5


def step_milliseconds(python: Path, args: argparse.Namespace) -> Dict[str, float]:
    """Phase -> milliseconds of its step, of one run of train_step.py."""
    program = [python, ROOT / "benchmarks/train_step.py", "--steps-only", "--conf", args.conf.resolve()]
    options = ["--seconds", args.seconds, "--repeats", args.repeats, *args.overrides]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    command = ["bash", "-c", '. ./path.sh && exec "$@"', "-", *map(str, [*program, *options])]
    done = subprocess.run(
        command, cwd=RECIPE, env={**os.environ, **threads, "PATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return {name: float(ms) for name, ms in re.findall(r"^(\w+, .+?) {2,}([\d.]+) +\d+$", done.stdout, re.MULTILINE)}


def versions(python: Path) -> str:
    code = "import platform, torch; print('Python', platform.python_version() + ', torch', torch.__version__)"
    return subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, default=RECIPE / "conf/mini.yaml", help="(default: conf/mini.yaml)")
    parser.add_argument("--k2-python", type=Path, default=ROOT / ".venv/bin/python", help="(default: .venv's)")
    parser.add_argument("--torch2-python", type=Path, default=ROOT / ".venv-torch2/bin/python")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of an utterance (default: 2.5)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="times that the two take turns (default: 3)")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each round (default: 15)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def main(argv: Optional[List[str]] = None) -> None:
    args = get_parser().parse_args(argv)
    stacks = {"k2": args.k2_python.absolute(), "torch2": args.torch2_python.absolute()}
    load = os.getloadavg()[0]
    found: Dict[str, List[Dict[str, float]]] = {name: [] for name in stacks}
    for _ in tqdm(range(args.rounds), unit="round"):
        for name, python in stacks.items():
            found[name].append(step_milliseconds(python, args))
    for name, python in stacks.items():
        print(f"{name}: {versions(python)}")
    print(f"threads {args.threads}, load average before: {load:.1f}\n")
    print(f"{'training step':24s} {'k2 ms':>9s} {'torch2 ms':>9s} {'k2 / torch2':>12s}  of each round")
    ratios = []
    for phase in found["k2"][0]:
        old, new = ([times[phase] for times in found[name]] for name in ("k2", "torch2"))
        ratios.append(statistics.median(old) / statistics.median(new))
        rounds = ", ".join(f"{a / b:.2f}" for a, b in zip(old, new))
        print(f"{phase:24s} {statistics.median(old):9.1f} {statistics.median(new):9.1f} {ratios[-1]:12.2f}  {rounds}")
    print(f"\nsmallest ratio: {min(ratios):.2f} (target {TARGET}): {'met' if min(ratios) >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
