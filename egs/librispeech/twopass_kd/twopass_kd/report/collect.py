"""What the reports are made of, collected from the files of an experiment.

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
from twopass_kd.files.results_json import ResultsJson
from twopass_kd.scoring.results import load_results
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
    """Gather a report from `results.json`, the phases' `metrics.jsonl` and the smallest system's recogs.

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


def _find_worst(results: ResultsJson, experiment: Path) -> Worst:
    """Of the smallest system, or of the last system that was decoded where there is none."""
    system, set_name = results.system(results.smallest) or results.systems[-1], results.corpus.test_parts[0]
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


def run_command(conf_path: Path, overrides: Sequence[str] = ()) -> str:
    """The command of run.sh that makes an experiment, or those of several seeds."""
    shipped = conf_path.resolve().parent == Path(__file__).resolve().parents[2] / "conf"
    command = ["./run.sh", "--conf", conf_path.stem if shipped else conf_path.name]  # the shipped ones have names there
    of_several = any(override.startswith("seeds=") for override in overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        command += ["--seed", value] if of_several and key == "seed" else [override]
    return shlex.join(command)


def _commands(conf_path: Path, overrides: Sequence[str], command: str | None) -> list[tuple[str, str]]:
    command = command or run_command(conf_path, overrides)
    run = command if command.startswith("./run.sh") else run_command(conf_path)
    return [
        ("everything, from the corpus to this report", command),
        ("only decoding, scoring, the on-device benchmark and this report", f"{run} --stage 8"),
    ]
