"""The checkpoints that a training leaves in its folder: which to go on from, which to keep."""

import logging
import re
from pathlib import Path
from typing import Any

from twopass_kd.models.checkpoint import CheckpointError, load_checkpoint


def find_latest(exp_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint with the most steps among `epoch-N.pt` and `checkpoint-N.pt`.

    An unreadable one is logged by name and the one before is tried.
    """
    best: tuple[Path, dict[str, Any]] | None = None
    for kind in ("checkpoint", "epoch"):
        for path in _newest_first(exp_dir, kind):
            try:
                content = load_checkpoint(path, ["step"])
            except CheckpointError as e:
                logging.warning("%s; falling back to the checkpoint before it", e)
                continue
            if best is None or content["step"] >= best[1]["step"]:  # an epoch's end comes after its last step
                best = (path, content)
            break
    return best


def remove_old(exp_dir: Path, kind: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a kind ("checkpoint", within epochs, or "epoch")."""
    for path in _newest_first(exp_dir, kind)[keep:]:
        path.unlink()


def _newest_first(exp_dir: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind by their numbers; files with other names, such as `epoch-3-mine.pt`, are not ours."""
    numbers = {path: re.fullmatch(rf"{kind}-([0-9]+)", path.stem) for path in exp_dir.glob(f"{kind}-*.pt")}
    return sorted((path for path, n in numbers.items() if n), key=lambda path: int(numbers[path][1]), reverse=True)
