"""What the programs of the stages share: their common options, and how they end."""

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def experiment_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with --conf, --data-dir, --exp-dir and overrides (`example` shows one), to which options are added."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, help="YAML of the experiment, e.g. conf/mini.yaml")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="has fbank/ and lang_bpe_<V>/ (default: data)"
    )
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="has <conf>/<system>/<phase>/ (default: exp)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"e.g. {example}")
    return parser


def scoring_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of a program of stage 9, with --conf, --exp-dir and overrides, to which options are added."""
    parser = argparse.ArgumentParser(prog=f"python -m twopass_kd.bin.{name}", description=description)
    parser.add_argument("--conf", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="where experiments are kept (default: exp)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as given to the other stages")
    return parser


@contextmanager
def errors_on_one_line(name: str) -> Iterator[None]:
    """End the program with what the user must put right (ValueError, OSError)."""
    try:
        yield
    except ValueError as e:
        sys.exit(f"{name}: error: {e}")
    except OSError as e:
        sys.exit(f"{name}: error: {e}; check that path or free disk space, run the same command again")


def exit_status(job: Callable[[], object]) -> int:
    """Run `job`: 0, or 1 after logging what the user must put right (ValueError, OSError), or 130 after Ctrl-C."""
    try:
        job()
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as e:
        logging.error("%s", without_traceback(e))
        return 1
    except (RuntimeError, MemoryError) as e:
        if (why := lost_worker(e) or no_memory(e)) is None:
            raise
        logging.error("%s", why)
        return 1
    return 0


def without_traceback(e: BaseException) -> str:
    """What an error says; one out of a worker of a DataLoader (`train.num_workers`) has its traceback in its text."""
    text = str(e)
    return text.rstrip().splitlines()[-1] if text.startswith("Caught ") else text


def lost_worker(e: BaseException) -> str | None:
    """What to do where a worker of a DataLoader has died, as it does when shared memory is full; None elsewhere."""
    text = str(e)
    if not ("DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)) and not (
        "shared memory" in text or "</torch_" in text
    ):
        return None
    shared = Path("/dev/shm")
    free = f" ({shutil.disk_usage(shared).free / 2**20:.0f} MiB free)" if shared.is_dir() else ""
    return (
        f"a worker that loads data has ended ({without_traceback(e).splitlines()[0]}): is {shared}{free} too small, or"
        " is memory? Set train.num_workers=0, or give more of it, e.g. docker run --shm-size=8g"
    )


def no_memory(e: BaseException) -> str | None:
    """What to do where memory, the machine's or a GPU's, does not suffice; None elsewhere."""
    text = without_traceback(e).strip()
    if not isinstance(e, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
        return None
    return (
        f"there is not enough memory ({(text or type(e).__name__).splitlines()[0]}); take smaller batches"
        " (train.max_duration, decode.max_duration) or smaller models"
    )
