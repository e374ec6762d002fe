"""Markers of finished stages: `<folder>/.stages/N.done`, JSON that says with which settings a stage ended, and when."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from twopass_kd.files.write import write_text_atomically
from twopass_kd.stages.plan import TITLES, Plan


def marker_path(plan: Plan, stage: int) -> Path:
    """What the marker of a finished stage 0-2 says is true of the data, whichever experiment made it."""
    return (plan.data_dir if stage <= 2 else plan.experiment) / ".stages" / f"{stage}.done"


def read_marker(path: Path) -> dict[str, Any]:
    """The marker's content; empty where the stage is not done, or the file cannot be read as one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_marker(plan: Plan, stage: int, seconds: int) -> None:
    """Mark a stage done, which took `seconds`."""
    now = time.time_ns()
    content = {
        "stage": stage,
        "title": TITLES[stage],
        "conf": plan.cfg.name,
        "settings": plan.settings(stage),
        "fingerprint": stage_fingerprint(plan, stage),
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now // 10**9)),
        "ended": f"{now // 10**9}.{now % 10**9:09d}",
    }
    write_text_atomically(marker_path(plan, stage), json.dumps(content) + "\n")
    copy_data_marker(plan, stage)


def copy_data_marker(plan: Plan, stage: int) -> None:
    """The report reads the times of all stages in one place: the experiment's."""
    marker = marker_path(plan, stage)
    copy = plan.experiment / ".stages" / marker.name
    if marker.is_file() and marker != copy:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(marker, copy)


def stage_fingerprint(plan: Plan, stage: int) -> str:
    """A hash of the settings and data that a stage depends on.

    Manifests hold absolute paths, so stages 1 and 2 run again where corpus or data were moved; what is trained depends
    on where data lie only if run.sh did not make them.
    """
    made_by = marker_path(plan, 2)
    if stage > 2 and made_by.is_file():
        data = made_by.read_bytes()
    else:
        folder = plan.corpus_dir if stage <= 1 else plan.data_dir
        data = os.fsencode(os.path.realpath(folder)) + b"\n" if folder else b""
    return hashlib.sha256(plan.settings(stage).encode() + b"\n" + data).hexdigest()[:16]


def why_again(plan: Plan, stage: int) -> str | None:
    """Why a stage has to run again although it has a marker; None where it does not have to."""
    own = read_marker(marker_path(plan, stage))
    if stage > 2 and own.get("conf", plan.cfg.name) != plan.cfg.name:
        return f"it is of another config, {own['conf']}"
    if own.get("fingerprint") != stage_fingerprint(plan, stage):
        return "its settings or folders changed"
    for other in range(len(TITLES)):
        if feeds(other, stage) and _ended(read_marker(marker_path(plan, other))) > _ended(own):
            return f"stage {other} ran since"
    missing = first_missing(plan.outputs(stage))
    return f"{missing} is missing" if missing else None


def is_done(plan: Plan, stage: int) -> bool:
    """Whether a stage is done and stays so, its settings and inputs being what they were."""
    return marker_path(plan, stage).is_file() and why_again(plan, stage) is None


def feeds(stage: int, other: int) -> bool:
    """Whether `other` uses what `stage` leaves. Stage 9 reports on stage 10 as well, which reads none of that."""
    return stage < other if {stage, other} != {9, 10} else stage == 10


def first_missing(paths: list[Path]) -> Path | None:
    return next((path for path in paths if not path.exists()), None)


def _ended(marker: dict[str, Any]) -> float:
    """Seconds since the epoch; 0 where it does not say."""
    try:
        return float(marker["ended"])
    except (KeyError, TypeError, ValueError):
        return 0.0
