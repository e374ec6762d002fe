"""What the reports say: collected once from an experiment, then written as HTML, Markdown and RESULTS.md.

Imports neither torch nor k2.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twopass_kd.config.schema import Config
from twopass_kd.files.decode_json import Pass
from twopass_kd.files.read import read_lines
from twopass_kd.files.results_json import ResultsJson, System
from twopass_kd.files.write import write_text_atomically
from twopass_kd.scoring.results import load_results
from twopass_kd.scoring.summary import dev_set_mark
from twopass_kd.scoring.wer import WordPair, align_words, read_recogs

NUM_WORST = 10


@dataclass
class Curve:
    """One loss term of a phase: (step, value) pairs on the training and on the validation data."""

    term: str
    train: list[tuple[int, float]]
    valid: list[tuple[int, float]]


@dataclass
class Phase:
    """A trained phase and its curves, the total loss first. `seconds` of training; 0 steps where it has no lines."""

    name: str
    steps: int
    seconds: float
    curves: list[Curve]


@dataclass
class Utterance:
    """A decoded utterance, aligned."""

    cut_id: str
    pairs: list[WordPair]
    subs: int
    ins: int
    dels: int
    ref_words: int

    @property
    def errors(self) -> int:
        return self.subs + self.ins + self.dels


@dataclass
class Worst:
    """The utterances with the most errors of one system, pass and set."""

    system: str
    pass_name: Pass
    set_name: str
    utterances: list[Utterance]


@dataclass
class Report:
    """All that the reports show."""

    results: ResultsJson
    phases: list[Phase]
    untrained: list[str]  # phases of the config without metrics in this experiment
    worst: Worst
    commands: list[tuple[str, str]]  # (what it does, command)


def collect(
    cfg: Config, experiment: Path, conf_path: Path, overrides: Sequence[str] = (), command: str | None = None
) -> Report:
    """Gather a report from `results.json`, the phases' `metrics.jsonl` and the student's recogs.

    Args:
      cfg: the experiment's config.
      experiment: `<exp-dir>/<conf name>`.
      conf_path, overrides: what `cfg` was loaded from, for the commands shown.
      command: the command that made the run, where the caller knows it better.
    Raises:
      ValueError: if `results.json` is missing or of another config, or a file is malformed, naming file and stage.
    """
    experiment = Path(experiment)
    results = load_results(experiment)
    if results.conf != cfg.name or results.corpus.test_parts != cfg.corpus.test_parts:
        raise ValueError(
            f"{experiment / 'results.json'} (conf {results.conf}, test sets "
            f"{', '.join(results.corpus.test_parts)}) must be of this config ({cfg.name}, "
            f"{', '.join(cfg.corpus.test_parts)}); score again (stage 9)"
        )
    phases, untrained = [], []
    for name in cfg.phases:
        path = experiment / name / "metrics.jsonl"
        if path.is_file():
            phases.append(read_metrics(path, name))
        else:
            untrained.append(name)
    commands = _commands(Path(conf_path), overrides, command)
    return Report(results, phases, untrained, _find_worst(results, experiment), commands)


def read_metrics(path: Path, name: str) -> Phase:
    """Read a phase's `metrics.jsonl`; where a resumed run wrote a step again, the last line counts.

    Raises:
      ValueError: naming file and line, where a line is not JSON or lacks a field.
    """
    points: dict[tuple[str, str], dict[int, float]] = {}
    seconds = 0.0
    lines = read_lines(path, str(path), "train the phase again") if path.stat().st_size else []  # none reported yet
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            split, step = row["split"], int(row["step"])
            if split not in ("train", "valid"):
                raise ValueError(f"split {split}")
            for term, value in {"loss": row["loss"], **row["terms"]}.items():
                points.setdefault((term, split), {})[step] = float(value)
            seconds = max(seconds, float(row["seconds"]))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(
                f"{path}, line {number}: must be a JSON object with split (train or valid), step, seconds, loss and "
                f"terms, but is {line[:80]!r}; remove the line or train the phase again"
            ) from e
    terms = list(dict.fromkeys(term for term, _ in points))
    curves = [Curve(t, *(sorted(points.get((t, split), {}).items()) for split in ("train", "valid"))) for t in terms]
    steps = max((step for by_step in points.values() for step in by_step), default=0)
    return Phase(name, steps, seconds, curves)


def main_system(results: ResultsJson) -> System:
    """The student, or the last system that was decoded where there is none."""
    return results.system("student") or results.systems[-1]


def stage_rows(results: ResultsJson) -> list[tuple[str, float]]:
    """(`3 teacher RNN-T`, seconds) of every finished stage; `stage 3` where its marker has no title."""
    rows = []
    for done in results.stages:
        stage, title = done.stage, done.title
        rows.append((title if title == f"stage {stage}" else f"{stage} {title}", float(done.seconds)))
    return rows


def fewer(results: ResultsJson, system: System) -> float | None:
    """Share of the teacher's parameters that a system does without; None for the teacher or without one."""
    teacher = results.system("teacher")
    if teacher is None or system.name == "teacher":
        return None
    return 1 - system.params.total / teacher.params.total


def corpus_line(results: ResultsJson) -> str:
    """What was tested, said where WERs are shown."""
    corpus = results.corpus
    kind = "synthetic speech" if corpus.synthetic else "speech"
    system = results.systems[0]
    sets = (f"{s} ({system.wer[s].ref_words:,} words){dev_set_mark(results, s)}" for s in corpus.test_parts)
    return f"Corpus: {corpus.kind} ({kind}); test sets {', '.join(sets)}."


def only_dev_parts(results: ResultsJson) -> list[str]:
    """The dev sets that are not shown among the test sets."""
    corpus = results.corpus
    return [s for s in corpus.dev_parts if s not in corpus.test_parts]


def rtf_note(results: ResultsJson) -> str:
    """How the real-time factors shown were measured."""
    first_set = results.corpus.test_parts[0]
    return f"real-time factors from features to text in batches, {first_set}, each on one thread, other jobs beside it"


def scan_at_chosen_reward(system: System) -> list[tuple[float, float]]:
    """(weight, WER in percent) of a system's scan on dev, at the length reward it chose, by weight."""
    reward = system.length_reward
    scan = [p for p in system.weight_scan or [] if reward is None or abs(p.length_reward - reward) < 1e-9]
    return sorted((p.weight, p.wer) for p in scan)


def format_duration(seconds: float) -> str:
    """`42 s`, `6.8 min`, `3.1 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def environment_rows(results: ResultsJson) -> list[tuple[str, str]]:
    """(name, value) of the seed and of what is known of the machine and the software."""
    rows = [("seed", results.seed), ("bootstrap samples", f"{results.bootstrap_samples:,}")]
    rows += [(name.replace("_", " "), value) for name, value in results.environment.items()]
    return [(name, str(value)) for name, value in rows if value is not None]


def write_reports(report: Report, experiment: Path, results_md: Path | None = None) -> list[Path]:
    """Write `report.html`, `report.md` and, where asked for, RESULTS.md. Returns their paths."""
    from twopass_kd.report.html import render_html  # late: matplotlib takes a second to import
    from twopass_kd.report.markdown import render_markdown, render_results_md

    pages = {experiment / "report.md": render_markdown(report), experiment / "report.html": render_html(report)}
    if results_md is not None:
        pages[Path(results_md)] = render_results_md(report)
    for path, text in pages.items():
        write_text_atomically(path, text)
    return list(pages)


def _find_worst(results: ResultsJson, experiment: Path) -> Worst:
    system, set_name = main_system(results), results.corpus.test_parts[0]
    pass_name = Pass.TWO_PASS if system.wer[set_name].two_pass else Pass.FIRST_PASS
    path = experiment / "decode" / system.name / f"recogs-{set_name}-{pass_name}.txt"
    if not path.is_file():
        raise ValueError(f"{path} must exist; decode {system.name} again (stage 8)")
    utterances = [_align(cut_id, ref, hyp) for cut_id, ref, hyp in read_recogs(path)]
    utterances = [u for u in utterances if u.errors > 0]
    utterances.sort(key=lambda u: (-u.errors, u.ref_words, u.cut_id))
    return Worst(system.name, pass_name, set_name, utterances[:NUM_WORST])


def _align(cut_id: str, ref: Sequence[str], hyp: Sequence[str]) -> Utterance:
    pairs = align_words(ref, hyp)
    ins = sum(r is None for r, _ in pairs)
    dels = sum(h is None for _, h in pairs)
    subs = sum(r is not None and h is not None and r != h for r, h in pairs)
    return Utterance(cut_id, pairs, subs, ins, dels, len(ref))


def _commands(conf_path: Path, overrides: Sequence[str], command: str | None) -> list[tuple[str, str]]:
    shipped = conf_path.resolve().parent == Path(__file__).resolve().parents[1] / "conf"
    conf = conf_path.stem if shipped else conf_path.name  # run.sh finds the shipped ones by name
    command = command or shlex.join(["./run.sh", "--conf", conf, *overrides])
    run = command if command.startswith("./run.sh") else f"./run.sh --conf {conf}"
    return [
        ("everything, from the corpus to this report", command),
        ("only decoding, scoring, the on-device benchmark and this report", f"{run} --stage 8"),
    ]
