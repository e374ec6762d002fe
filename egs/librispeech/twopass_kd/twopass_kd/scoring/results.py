"""From decoded transcripts to `results.json`: WER with intervals, sizes, compression, significance.

Reads what stage 8 leaves in `<experiment>/decode/<system>/`. Imports neither torch nor k2.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import reported_systems
from twopass_kd.config.schema import Config
from twopass_kd.files.read import find_problem, read_json
from twopass_kd.files.write import write_text_atomically
from twopass_kd.scoring.ondevice_results import check_on_device, sentences, summary_rows
from twopass_kd.scoring.schemas import DECODED, RESULTS
from twopass_kd.scoring.search_results import SEARCHES_UNIT, search_rows, searches_left_out
from twopass_kd.scoring.significance import describe
from twopass_kd.scoring.wer import Transcript, bootstrap_wer, corpus_wer, paired_bootstrap, read_recogs

SYSTEM_ORDER = ("teacher", "student_copy", "student_stage1", "student_stage2", "student")
PASS_TITLES = {"greedy_search": "greedy", "first_pass": "first pass", "two_pass": "two-pass"}
PASSES = tuple(PASS_TITLES)

Results = dict[str, Any]


def build_results(cfg: Config, experiment: Path, progress: bool = True) -> Results:
    """Score the systems that the config reports and stage 8 decoded; `ignored_systems` are the others.

    Args:
      cfg: its config; gives the test sets, the seed and the number of bootstrap samples.
      experiment: `<exp-dir>/<conf name>`.
      progress: show a progress bar where stderr is a terminal.
    Returns:
      The content of `results.json`: conf, corpus, seed, bootstrap_samples, environment, systems, not_decoded,
      compression, significance_pass (in which student and teacher are compared), significance, significance_baseline,
      on_device, stages. WER and their differences are in percent, times in seconds, sizes in parameters and bytes. A
      system without a second pass has `two_pass` null. `on_device` is the content of `ondevice.json`; null where stage
      10 has not run, or not since the training.
    Raises:
      ValueError: if a file of stage 8 is missing, malformed or from another checkpoint than the one that is there
        now, or if stage 10's is malformed, naming file and stage.
    """
    experiment = Path(experiment)
    decoded = _find_systems(cfg, experiment)
    sets = list(dict.fromkeys([*cfg.corpus.test_parts, *cfg.corpus.dev_parts]))
    on_device = _read_on_device(experiment, decoded, cfg.corpus.test_parts)
    transcripts = {
        name: {s: _read_passes(experiment / "decode" / name, s, meta) for s in sets} for name, meta in decoded.items()
    }
    systems = []
    with tqdm(total=len(decoded) * len(sets), desc="bootstrap", unit="set", disable=not progress) as bar:
        for name, meta in decoded.items():
            wer = {}
            for set_name in sets:
                wer[set_name] = _score_set(cfg, transcripts[name][set_name])
                bar.update()
            systems.append(_system_entry(name, meta, wer))
    # A teacher without a second pass, an external one, is compared with the student's first.
    teacher_pass = "two_pass" if decoded.get("teacher", {}).get("rescore_weight") is not None else "first_pass"
    return {
        "conf": cfg.name,
        "corpus": _describe_corpus(cfg),
        "seed": cfg.seed,
        "bootstrap_samples": cfg.decode.bootstrap_samples,
        "environment": describe_environment(),
        "systems": systems,
        "not_decoded": [name for name in _in_order(list(reported_systems(cfg))) if name not in decoded],
        "compression": _compression(systems),
        "significance_pass": teacher_pass,
        "significance": _compare(cfg, transcripts, "teacher", [teacher_pass]).get(teacher_pass, {}),
        "significance_baseline": _by_set(_compare(cfg, transcripts, "student_copy", ["first_pass", "two_pass"])),
        "on_device": on_device,
        "stages": read_stages(experiment),
    }


def write_results(results: Results, path: Path) -> None:
    """Write `results.json`, indented."""
    write_text_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def load_results(experiment: Path) -> Results:
    """Read `<experiment>/results.json`. Raises ValueError where it is missing or malformed, naming stage 9."""
    path = Path(experiment) / "results.json"
    if not path.is_file():
        raise ValueError(f"{path} must exist; score the decoded systems first (stage 9, twopass_kd.bin.score)")
    remedy = "run stage 9 again, with --force"
    results = read_json(path, RESULTS, remedy)
    if not results["systems"]:
        raise ValueError(f"{path}: `systems` ([]) must have at least one; {remedy}")
    corpus = results["corpus"]
    for system in results["systems"]:
        missing = [s for s in (*corpus["test_parts"], *corpus["dev_parts"]) if s not in system["wer"]]
        if missing:
            raise ValueError(f"{path}: `wer` of {system['name']} must have {', '.join(missing)}; {remedy}")
    return results


def find_system(results: Results, name: str) -> dict[str, Any] | None:
    """The entry of a system, None where it was not decoded."""
    return next((s for s in results["systems"] if s["name"] == name), None)


def read_stages(experiment: Path) -> list[dict[str, Any]]:
    """Wall time of the finished stages of run.sh: [{"stage", "title", "seconds", "finished"}], in order."""
    found = []
    for path in Path(experiment).glob(".stages/*.done"):
        marker = read_json(path, {}, "remove it to rerun that stage")
        if find_problem(marker, {"stage": int, "title?": str, "seconds": float, "finished": str}):
            raise ValueError(f"{path} must hold stage, seconds and finished; remove it to rerun that stage")
        stage, seconds, finished = (marker[k] for k in ("stage", "seconds", "finished"))
        title = marker.get("title", f"stage {stage}")
        found.append({"stage": stage, "title": title, "seconds": seconds, "finished": finished})
    return sorted(found, key=lambda s: s["stage"])


def _in_order(names: Sequence[str]) -> list[str]:
    rank = {name: i for i, name in enumerate(SYSTEM_ORDER)}
    return sorted(names, key=lambda n: (rank.get(n, len(rank)), n))


def ignored_systems(cfg: Config, experiment: Path) -> list[str]:
    """Decoded systems that are not scored, since the config has no such `report_as` (any more)."""
    return sorted(set(_decode_paths(experiment)) - set(reported_systems(cfg)))


def _decode_paths(experiment: Path) -> dict[str, Path]:
    return {p.parent.name: p for p in (Path(experiment) / "decode").glob("*/decode.json")}


def _find_systems(cfg: Config, experiment: Path) -> dict[str, dict[str, Any]]:
    paths, phases = _decode_paths(experiment), reported_systems(cfg)
    names = _in_order([name for name in paths if name in phases])
    if not names:
        raise ValueError(
            f"{experiment / 'decode'} must hold decoded systems of the config ({', '.join(_in_order(list(phases)))}), "
            "but has none; decode them first (stage 8)"
        )
    return {name: _load_decode(paths[name], experiment / phases[name] / "identity") for name in names}


def _load_decode(path: Path, identity_path: Path) -> dict[str, Any]:
    """Read a decode.json; `identity_path` tells which checkpoint the system has now."""
    meta = read_json(path, DECODED, "decode again (stage 8)")
    # Without the file (a checkpoint brought from elsewhere) there is nothing to compare with.
    present = identity_path.read_text("utf-8", "replace").strip() if identity_path.is_file() else meta["identity"]
    if meta["identity"] != present:
        raise ValueError(
            f"{path} (identity {meta['identity']}) must be of the checkpoint in {identity_path.parent} (identity "
            f"{present}), which was trained with other settings since; decode again (stage 8)"
        )
    return meta


def _read_on_device(experiment: Path, decoded: dict[str, dict[str, Any]], sets: Sequence[str]) -> dict[str, Any] | None:
    path = experiment / "ondevice.json"
    if not path.is_file():
        return None
    return check_on_device(read_json(path, {}, "run stage 10 again"), path, decoded, sets)


def _read_passes(folder: Path, set_name: str, meta: dict[str, Any]) -> dict[str, list[Transcript] | None]:
    """Transcripts of each pass. Only a system that was decoded without a rescoring weight may lack the second."""
    found: dict[str, list[Transcript] | None] = {}
    for suffix in PASSES:
        path = folder / f"recogs-{set_name}-{suffix}.txt"
        if suffix == "two_pass" and meta["rescore_weight"] is None:
            found[suffix] = None
        elif path.is_file():
            found[suffix] = read_recogs(path)
        else:
            raise ValueError(f"{path} must exist; decode {folder.name} on {set_name} (stage 8)")
    return found


def _score_set(cfg: Config, passes: dict[str, list[Transcript] | None]) -> dict[str, Any]:
    scored: dict[str, Any] = {}
    for suffix, transcripts in passes.items():
        if transcripts is None:
            scored[suffix] = None
            continue
        stats = corpus_wer(transcripts)
        scored[suffix] = bootstrap_wer(transcripts, cfg.decode.bootstrap_samples, cfg.seed)
        scored[suffix].update(ins=stats.ins, dels=stats.dels, subs=stats.subs)
        scored.update(ref_words=stats.ref_words, num_utts=stats.num_utts)
    return scored


def _system_entry(name: str, meta: dict[str, Any], wer: dict[str, Any]) -> dict[str, Any]:
    copied = ("phase", "params", "bytes")
    extra = ("rtf", "train_seconds", "rescore_weight", "length_reward", "weight_scan")
    entry = {"name": name, **{k: meta[k] for k in copied}, "wer": wer, **{k: meta[k] for k in extra}}
    # A decode.json from before there were further searches has no such keys.
    return {**entry, "searches": meta.get("searches", {}), "searches_left_out": meta.get("searches_left_out")}


def _describe_corpus(cfg: Config) -> dict[str, Any]:
    corpus = cfg.corpus
    return {
        "kind": corpus.kind,
        "synthetic": corpus.kind == "mini" or corpus.synthesis is not None,
        "train_parts": corpus.train_parts,
        "dev_parts": corpus.dev_parts,
        "test_parts": corpus.test_parts,
    }


def _compression(systems: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Share of the teacher's deployed parameters and bytes that the student does without; None without both."""
    by_name = {s["name"]: s for s in systems}
    if "teacher" not in by_name or "student" not in by_name:
        return None
    teacher, student = by_name["teacher"], by_name["student"]
    return {key: 1 - student[key]["total"] / teacher[key]["total"] for key in ("params", "bytes")}


def _compare(
    cfg: Config, transcripts: dict[str, Any], baseline: str, passes: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired bootstrap of student minus `baseline`: pass -> test set -> result, where both have that pass."""
    if baseline not in transcripts or "student" not in transcripts:
        return {}
    compared: dict[str, dict[str, Any]] = {}
    for suffix in passes:
        for set_name in cfg.corpus.test_parts:
            a, b = transcripts[baseline][set_name][suffix], transcripts["student"][set_name][suffix]
            if a is not None and b is not None:
                result = paired_bootstrap(a, b, cfg.decode.bootstrap_samples, cfg.seed)
                compared.setdefault(suffix, {})[set_name] = result
    return compared


def _by_set(compared: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    swapped: dict[str, dict[str, Any]] = {}
    for suffix, by_set in compared.items():
        for set_name, result in by_set.items():
            swapped.setdefault(set_name, {})[suffix] = result
    return swapped


def verdict(baseline: str, pass_name: str, result: dict[str, Any]) -> str:
    """One computed sentence on a paired bootstrap of student minus `baseline`."""
    return describe(f"student vs {baseline}, {pass_name.replace('_', '-')}", result)


def comparisons(results: Results) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(test set, baseline, pass, paired bootstrap) of every comparison with the student, the teacher's first."""
    teacher_pass = results.get("significance_pass", "two_pass")
    found = [(set_name, "teacher", teacher_pass, r) for set_name, r in results["significance"].items()]
    for set_name, by_pass in results["significance_baseline"].items():
        found += [(set_name, "student_copy", suffix, r) for suffix, r in by_pass.items()]
    return found


def verdicts(results: Results) -> list[tuple[str, str]]:
    """(test set, sentence) of every comparison, the teacher's first."""
    return [(set_name, verdict(baseline, suffix, r)) for set_name, baseline, suffix, r in comparisons(results)]


def dev_set_mark(results: Results, set_name: str) -> str:
    """What is said after the name of a test set that is a dev set as well; empty for the others."""
    corpus = results["corpus"]
    both = set_name in corpus["test_parts"] and set_name in corpus["dev_parts"]
    return " (dev set: the rescoring weight was chosen on it)" if both else ""


def summary_text(results: Results) -> str:
    """The tables and the verdicts as plain text, for the end of stages 9 and 10."""
    corpus = results["corpus"]
    lines = [
        f"{results['conf']}: WER in % [95% bootstrap interval]{' on synthetic speech' if corpus['synthetic'] else ''}"
    ]
    teacher = find_system(results, "teacher")
    for set_name in corpus["test_parts"]:
        words = next((s["wer"][set_name]["ref_words"] for s in results["systems"]), 0)
        rows = [("system", "params", "fewer", *PASS_TITLES.values(), "RTF")]
        for system in results["systems"]:
            rows.append(_summary_row(system, teacher, set_name))
        lines += ["", f"{set_name} ({words} words){dev_set_mark(results, set_name)}", *_columns(rows)]
        lines += [sentence for name, sentence in verdicts(results) if name == set_name]
    rows = search_rows(results)
    if rows:
        lines += ["", f"further searches: {SEARCHES_UNIT}", *_columns(rows)]
    lines += searches_left_out(results)
    if results["not_decoded"]:
        lines += ["", f"not decoded, so not scored: {', '.join(results['not_decoded'])}"]
    if results.get("on_device"):  # a results.json from before stage 10 existed has no such key
        lines += ["", *_on_device_lines(results["on_device"], corpus["test_parts"][0])]
    return "\n".join(lines)


def _on_device_lines(on_device: dict[str, Any], set_name: str) -> list[str]:
    decoded = f"{on_device['decoded_seconds'][set_name] / 60:.0f} min of {set_name}"
    title = f"on the device: threads {on_device['threads']}, batch 1, WER on {decoded}, times p50/p95"
    return [title, *_columns(summary_rows(on_device, set_name)), *sentences(on_device)]


def _summary_row(system: dict[str, Any], teacher: dict[str, Any] | None, set_name: str) -> tuple[str, ...]:
    wer, rtf = system["wer"][set_name], system["rtf"].get(set_name, {})
    cells = [system["name"], f"{system['params']['total'] / 1e6:.3f} M", "-"]
    if teacher is not None and system is not teacher:
        cells[2] = f"{100 * (1 - system['params']['total'] / teacher['params']['total']):.1f}%"
    cells += [format_wer(wer[suffix]) for suffix in PASSES]
    last = rtf.get("two_pass") or rtf.get("first_pass")
    cells.append("-" if last is None else f"{last:.4f}")
    return tuple(cells)


def format_wer(scored: dict[str, Any] | None) -> str:
    """`7.20 [6.11, 8.36]`, or `-` for a pass that the system does not have."""
    if scored is None:
        return "-"
    return f"{scored['wer']:.2f} [{scored['ci95'][0]:.2f}, {scored['ci95'][1]:.2f}]"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return lines
