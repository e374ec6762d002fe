"""The measuring processes of stage 10: what each runtime needs on disk, and runs whose results are kept and reused."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import twopass_kd
from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import experiment_folder, exported_systems, reported_systems
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.files.decode_json import CheckpointDecoding, Decoding
from twopass_kd.files.export_json import ExportJson, ExportSettings
from twopass_kd.files.json_model import read_json
from twopass_kd.files.ondevice_json import RuntimeName
from twopass_kd.files.write import write_text_atomically

_running: set[subprocess.Popen] = set()
_PACKAGE = Path(twopass_kd.__file__).parent


class MeasureError(ValueError):
    """A measuring process that failed; says which and why."""


@dataclass(frozen=True)
class Job:
    """A system on a runtime.

    Attributes:
      identity: of the checkpoint that was exported.
      model: what the measuring process opens.
      files: what the runtime needs on disk (bytes count).
      settings: of the export.
    """

    system: str
    runtime: RuntimeName
    identity: str
    model: Path
    files: Sequence[Path]
    settings: ExportSettings

    @property
    def name(self) -> str:
        return f"{self.system}-{self.runtime}"

    def arguments(self, utterances: Path) -> list[str]:
        """Of the measuring processes."""
        args = [str(self.model), "--runtime", self.runtime, "--utterances", str(utterances)]
        return [*args, "--chunk-size", str(self.settings.chunk_size)] if self.runtime == "pytorch" else args

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def read_exports(cfg: Config, exp_dir: Path) -> dict[str, ExportJson]:
    """The export.json of each system of the config.

    Raises:
      ConfigError: if there is no system to export, or an export is missing, or of another checkpoint or other decoding
        than those that are there now.
    """
    experiment, exports = experiment_folder(cfg, exp_dir), {}
    if not exported_systems(cfg):
        raise ConfigError(f"`export.systems` must have at least one of {', '.join(reported_systems(cfg))}")
    for system in exported_systems(cfg):
        path, trained = experiment / "export" / system / "export.json", experiment / reported_systems(cfg)[system]
        remedy = f"export it again: python -m twopass_kd.bin.export --system {system} (stage 10)"
        if not path.is_file():
            raise ConfigError(f"{path} must exist; {remedy}")
        exports[system] = read_json(path, ExportJson, remedy, ConfigError)
        # Without the file (a checkpoint brought from elsewhere) there is nothing to compare with.
        marker = trained / "identity"
        if marker.is_file() and marker.read_text("utf-8", "replace").strip() != exports[system].identity:
            raise ConfigError(f"{path.parent} must be of the checkpoint in {trained}, which was trained anew; {remedy}")
        decoded_path = experiment / "decode" / system / "decode.json"
        decoded = read_json(decoded_path, CheckpointDecoding, "decode again (stage 8)", ConfigError)
        old = [key for key in Decoding.model_fields if getattr(exports[system].settings, key) != getattr(decoded, key)]
        if old:
            raise ConfigError(f"{path.parent} must have the {old[0]} that stage 8 decoded with now; {remedy}")
    return exports


def find_jobs(cfg: Config, exp_dir: Path, exports: dict[str, ExportJson]) -> list[Job]:
    """All exported systems (`read_exports`) on all runtimes."""
    experiment, jobs = experiment_folder(cfg, exp_dir), []
    for system, exported in exports.items():
        folder = experiment / "export" / system
        for runtime in RuntimeName:
            model = experiment / exported.phase / "final.pt" if runtime == "pytorch" else folder
            files = _files(model, runtime)
            jobs.append(Job(system, runtime, exported.identity, model, files, exported.settings))
    return jobs


def _files(model: Path, runtime: RuntimeName) -> list[Path]:
    if runtime == "pytorch":
        return [model]
    suffix = ".int8.onnx" if runtime.endswith("int8") else ".onnx"
    parts = ["encoder", "decoder", "joiner"]
    if not runtime.startswith("sherpa-onnx") and (model / f"attention_decoder{suffix}").is_file():
        parts.append("attention_decoder")
    return [model / "tokens.txt", *(model / f"{part}{suffix}" for part in parts)]


def digest_of(paths: Sequence[Path]) -> str:
    """16 hexadecimal digits that identify the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def run_kept(module: str, args: Sequence[str], out: Path, depends_on: dict[str, Any], quiet: bool = False) -> dict:
    """The JSON that `python -m <module> <args> --out FILE` writes, from a fresh process or kept from an earlier run.

    Args:
      out: where it is kept, together with `depends_on` and a digest of the code; reused while those stay the same.
      quiet: no progress bar.
    Raises:
      MeasureError: if the process fails.
    """
    key = {**depends_on, "args": list(args), "code": digest_of(sorted(_PACKAGE.rglob("*.py")))}
    if out.is_file():
        try:
            kept = json.loads(out.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept["result"]
        except (ValueError, KeyError, TypeError):
            pass  # not ours or of an older version: measured again
    fresh = out.with_name(f".{out.name}.tmp")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _with_package(os.environ.get("PYTHONPATH"))}
    if quiet:
        env["TQDM_DISABLE"] = "1"
    command = [sys.executable, "-m", module, *args, "--out", str(fresh)]
    try:
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE if quiet else None, text=True)
        _running.add(process)
        try:
            said = process.communicate()[1]
        finally:
            _running.discard(process)
        if process.returncode:
            said = f": {said.strip()}" if said else ""
            raise MeasureError(f"`{' '.join(command)}` failed (exit code {process.returncode}){said}")
        result = json.loads(fresh.read_text(encoding="utf-8"))
    finally:
        fresh.unlink(missing_ok=True)
    write_text_atomically(out, json.dumps({"key": key, "result": result}, ensure_ascii=False) + "\n")
    return result


def _with_package(path: Any) -> str:
    return os.pathsep.join(filter(None, [str(_PACKAGE.parent), path]))


def measure_all(jobs: Sequence[Job], utterances: Path, timed: int, out_dir: Path) -> dict[str, dict[str, Any]]:
    """Speed, latency and memory of each job by its name, one process after the other so that none disturbs another."""
    found = {}
    for job in jobs:
        args = [*job.arguments(utterances), "--timed", str(timed)]
        out = out_dir / f"{job.name}.json"
        found[job.name] = run_kept("twopass_kd.device_benchmark.measure", args, out, _depends_on(job, utterances))
        logging.info("timed %s: RTF of the first pass %.4f", job.name, found[job.name]["rtf"]["first_pass"])
    return found


def decode_all(
    jobs: Sequence[Job],
    utterances: Path,
    padded_sets: Sequence[str],
    streamed: Job,
    minutes: Sequence[float],
    out_dir: Path,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """What does not measure time, as many processes side by side as there are processors.

    Returns:
      What each job recognises, by its name; and the peak memory of `streamed` in recordings of several lengths, as
      {"minutes", "peak_mb"}.
    """

    def decode(job: Job) -> dict[str, Any]:
        args = job.arguments(utterances)
        if job.runtime.startswith("onnx"):
            args += ["--padded", *padded_sets]
        out = out_dir / f"{job.name}.texts.json"
        module = "twopass_kd.device_benchmark.decode_sets"
        texts = run_kept(module, args, out, _depends_on(job, utterances), quiet=True)
        logging.info("decoded by %s", job.name)
        return texts

    def peak_mb(length: float) -> float:
        args = [str(streamed.model), "--utterances", str(utterances), "--minutes", f"{length:g}"]
        args += ["--int8"] if streamed.runtime.endswith("int8") else []
        out = out_dir / f"{streamed.name}-{length:g}-minutes.json"
        module = "twopass_kd.device_benchmark.long_audio"
        return run_kept(module, args, out, _depends_on(streamed, utterances), quiet=True)["peak_mb"]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            peaks = pool.map(peak_mb, minutes)  # first, since the longest takes as long as several of the others
            texts = list(tqdm(pool.map(decode, jobs), total=len(jobs), desc="decoding", unit="runtime"))
            long_audio = {"minutes": list(minutes), "peak_mb": list(peaks)}
        except BaseException:  # Ctrl-C, or one of them failed
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                process.terminate()
            raise
    return {job.name: found for job, found in zip(jobs, texts)}, long_audio


def _depends_on(job: Job, utterances: Path) -> dict[str, Any]:
    machine = {key: value for key, value in describe_environment().items() if key != "git_commit"}
    content = {"files": digest_of(job.files), "utterances": digest_of([utterances])}
    return {"identity": job.identity, "settings": job.settings.model_dump(), "machine": machine, **content}
