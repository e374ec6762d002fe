"""What the benchmarks share. Imported before `twopass_kd`: it makes the recipe importable where it is not installed."""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

RECIPE = Path(__file__).resolve().parent.parent / "egs/librispeech/twopass_kd"
sys.path[:0] = [str(RECIPE), str(RECIPE / "local")]

import torch  # noqa: E402

from twopass_kd.config.load import load_config  # noqa: E402
from twopass_kd.config.schema import Config, ConfigError  # noqa: E402
from twopass_kd.data.asr_dataset import Batch  # noqa: E402
from twopass_kd.models.two_pass import TwoPassModel  # noqa: E402
from twopass_kd.training.objective import Objective  # noqa: E402

Step = Callable[[], object]
Found = TypeVar("Found")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Prints the docstring as it is, and the default of each option that has a help text."""


def make_parser(description: str, conf: str | None = "mini") -> argparse.ArgumentParser:
    """A parser with `--conf`; None: without. A benchmark adds its own options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter)
    if conf is not None:
        help_text = "experiment: a name in conf/ or a YAML file"
        parser.add_argument("--conf", type=_conf, default=RECIPE / f"conf/{conf}.yaml", help=help_text)
    return parser


def _conf(name: str) -> Path:
    """As run.sh takes it."""
    shipped = RECIPE / f"conf/{name}.yaml"
    return shipped if shipped.is_file() else Path(name)


def in_new_process(function: Callable[..., Found], *args: object) -> Found:
    """What a function gives in a fresh process, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config with its overrides; where it has a mistake, the program ends with that."""
    try:
        return load_config(path, overrides)
    except ConfigError as e:
        sys.exit(f"error: {e}")


def training_step(model: TwoPassModel, objective: Objective, batch: Batch) -> Step:
    """A function that takes one step of the trainer's kind on `batch`, with an optimizer of its own."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step() -> None:
        losses = objective(batch)
        optimizer.zero_grad()
        (losses.total.sum() / losses.num_frames).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def median_seconds(variants: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median wall time of each variant; they take turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(repeats + 1), desc="timing", unit="round", file=sys.stderr):
        for name, step in variants.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_extra_bytes(step: Step) -> int:
    """How far the resident set grows above its present size during `step`."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present size
    before = status_bytes("VmRSS")
    step()
    return status_bytes("VmHWM") - before


def status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}; memory can be measured on Linux only")
