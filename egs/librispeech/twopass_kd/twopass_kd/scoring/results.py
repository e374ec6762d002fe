"""From decoded transcripts to `results.json`: WER with intervals, sizes, compression, verdicts on claims.

Reads what stage 8 leaves in `<experiment>/decode/<system>/`. Imports neither torch nor k2.
"""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import exported_systems, reported_systems
from twopass_kd.config.schema import Config
from twopass_kd.files.decode_json import DecodeJson, Pass
from twopass_kd.files.json_model import read_json, write_json
from twopass_kd.files.results_json import Compression, Corpus, ResultsJson, SetWer, StageTime, System
from twopass_kd.scoring.claims import judge_claims
from twopass_kd.scoring.on_device import read_on_device
from twopass_kd.scoring.wer import Transcript, read_recogs, score_wer

SYSTEM_ORDER = ("teacher", "student_copy", "student_stage1", "student_stage2", "student")

Passes = dict[Pass, list[Transcript] | None]  # transcripts of one system and set
Transcripts = dict[str, dict[str, Passes]]  # system -> set -> passes


def build_results(cfg: Config, experiment: Path, progress: bool = True) -> ResultsJson:
    """Score the systems that the config reports and stage 8 decoded; `ignored_systems` are the others.

    Args:
      cfg: its config; gives the test sets, the seed and the number of bootstrap samples.
      experiment: `<exp-dir>/<conf name>`.
      progress: show a progress bar where stderr is a terminal.
    Raises:
      ValueError: if a file of stage 8 is missing, malformed or from another checkpoint than the one that is there
        now, or if stage 10's is malformed, naming file and stage.
    """
    experiment = Path(experiment)
    decoded, transcripts, speakers = read_decoded(cfg, experiment)
    sets = scored_sets(cfg)
    on_device = read_on_device(experiment / "ondevice.json", decoded, cfg.corpus.test_parts)
    systems = []
    with tqdm(total=len(decoded) * len(sets), desc="bootstrap", unit="set", disable=not progress) as bar:
        for name, found in decoded.items():
            wer = {}
            for set_name in sets:
                wer[set_name] = _score_set(cfg, transcripts[name][set_name], speakers.get(set_name, {}))
                bar.update()
            shared = {key: getattr(found, key) for key in System.model_fields if key in DecodeJson.model_fields}
            systems.append(System(name=name, wer=wer, **shared))
    return ResultsJson(
        conf=cfg.name,
        corpus=describe_corpus(cfg),
        seed=cfg.seed,
        bootstrap_samples=cfg.decode.bootstrap_samples,
        environment=describe_environment(),
        systems=systems,
        not_decoded=[name for name in _in_order(list(reported_systems(cfg))) if name not in decoded],
        compression=_compression(cfg, systems),
        claims=judge_claims(cfg, [transcripts], speakers),
        on_device=on_device,
        stages=read_stages(experiment),
    )


def scored_sets(cfg: Config) -> list[str]:
    """The test sets, then the dev sets that are none."""
    return list(dict.fromkeys([*cfg.corpus.test_parts, *cfg.corpus.dev_parts]))


def read_decoded(cfg: Config, experiment: Path) -> tuple[dict[str, DecodeJson], Transcripts, dict[str, dict[str, str]]]:
    """What stage 8 left of each system that the config reports: decode.json, transcripts, and who speaks in which set.

    Raises:
      ValueError: as `build_results` does.
    """
    decoded, sets = _find_systems(cfg, experiment), scored_sets(cfg)
    transcripts: Transcripts = {
        name: {s: _read_passes(experiment / "decode" / name, s, found) for s in sets} for name, found in decoded.items()
    }
    speakers: dict[str, dict[str, str]] = {}
    for found in decoded.values():
        speakers = {**found.speakers, **speakers}
    return decoded, transcripts, speakers


def write_results(results: ResultsJson, path: Path) -> None:
    """Write `results.json`, indented."""
    write_json(path, results, ensure_ascii=False)


def load_results(experiment: Path) -> ResultsJson:
    """Read `<experiment>/results.json`. Raises ValueError where it is missing or malformed, naming stage 9."""
    path = Path(experiment) / "results.json"
    if not path.is_file():
        raise ValueError(f"{path} must exist; score the decoded systems first (stage 9, twopass_kd.bin.score)")
    remedy = "run stage 9 again, with --force"
    results = read_json(path, ResultsJson, remedy)
    for system in results.systems:
        missing = [s for s in (*results.corpus.test_parts, *results.corpus.dev_parts) if s not in system.wer]
        if missing:
            raise ValueError(f"{path}: `wer` of {system.name} must have {', '.join(missing)}; {remedy}")
    return results


def read_stages(experiment: Path) -> list[StageTime]:
    """Wall time of the finished stages of run.sh, in order."""
    found = []
    for path in Path(experiment).glob(".stages/*.done"):
        done = read_json(path, StageTime, "remove it to rerun that stage")
        title = done.title or f"stage {done.stage}"
        found.append(StageTime(stage=done.stage, title=title, seconds=done.seconds, finished=done.finished))
    return sorted(found, key=lambda s: s.stage)


def _in_order(names: Sequence[str]) -> list[str]:
    rank = {name: i for i, name in enumerate(SYSTEM_ORDER)}
    return sorted(names, key=lambda n: (rank.get(n, len(rank)), n))


def ignored_systems(cfg: Config, experiment: Path) -> list[str]:
    """Decoded systems that are not scored, since the config has no such `report_as` (any more)."""
    return sorted(set(_decode_paths(experiment)) - set(reported_systems(cfg)))


def _decode_paths(experiment: Path) -> dict[str, Path]:
    return {p.parent.name: p for p in (Path(experiment) / "decode").glob("*/decode.json")}


def _find_systems(cfg: Config, experiment: Path) -> dict[str, DecodeJson]:
    paths, phases = _decode_paths(experiment), reported_systems(cfg)
    names = _in_order([name for name in paths if name in phases])
    if not names:
        raise ValueError(
            f"{experiment / 'decode'} must hold decoded systems of the config ({', '.join(_in_order(list(phases)))}), "
            "but has none; decode them first (stage 8)"
        )
    return {name: _load_decode(paths[name], experiment / phases[name] / "identity") for name in names}


def _load_decode(path: Path, identity_path: Path) -> DecodeJson:
    """Read a decode.json; `identity_path` tells which checkpoint the system has now."""
    found = read_json(path, DecodeJson, "decode again (stage 8)")
    # Without the file (a checkpoint brought from elsewhere) there is nothing to compare with.
    present = identity_path.read_text("utf-8", "replace").strip() if identity_path.is_file() else found.identity
    if found.identity != present:
        raise ValueError(
            f"{path} (identity {found.identity}) must be of the checkpoint in {identity_path.parent} (identity "
            f"{present}), which was trained with other settings since; decode again (stage 8)"
        )
    return found


def _read_passes(folder: Path, set_name: str, decoded: DecodeJson) -> Passes:
    """Transcripts of each pass. Only a system that was decoded without a rescoring weight may lack the second."""
    found: Passes = {}
    for name in Pass:
        path = folder / f"recogs-{set_name}-{name}.txt"
        if name == Pass.TWO_PASS and decoded.rescore_weight is None:
            found[name] = None
        elif path.is_file():
            found[name] = read_recogs(path)
        else:
            raise ValueError(f"{path} must exist; decode {folder.name} on {set_name} (stage 8)")
    return found


def _score_set(cfg: Config, passes: Passes, speakers: dict[str, str]) -> SetWer:
    how = cfg.decode.bootstrap_samples, cfg.seed, speakers
    scored = {name: rows and score_wer(rows, *how) for name, rows in passes.items()}
    rows = passes[Pass.FIRST_PASS]
    return SetWer(**scored, ref_words=sum(len(ref) for _, ref, _ in rows), num_utts=len(rows))


def describe_corpus(cfg: Config) -> Corpus:
    """What a config trains and tests on."""
    corpus = cfg.corpus
    return Corpus(
        kind=corpus.kind,
        synthetic=corpus.kind == "mini" or corpus.synthesis is not None,
        train_parts=corpus.train_parts,
        dev_parts=corpus.dev_parts,
        test_parts=corpus.test_parts,
    )


def _compression(cfg: Config, systems: Sequence[System]) -> Compression | None:
    """Share of the teacher's deployed parameters and bytes that the smallest system does without; None without both."""
    by_name = {s.name: s for s in systems}
    small = [by_name[name] for name in {"student", *exported_systems(cfg)} - {"teacher"} if name in by_name]
    if "teacher" not in by_name or not small:
        return None
    teacher, smallest = by_name["teacher"], min(small, key=lambda system: (system.params.total, system.name))
    return Compression(
        system=smallest.name,
        params=1 - smallest.params.total / teacher.params.total,
        bytes=1 - smallest.bytes.total / teacher.bytes.total,
    )
