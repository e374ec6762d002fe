"""From the decoded experiments of several seeds to `seeds.json`: means, ranges, and verdicts over all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import experiment_folder, reported_systems
from twopass_kd.config.schema import EXTERNAL_TEACHER, Config
from twopass_kd.files.decode_json import DecodeJson, Pass
from twopass_kd.files.json_model import read_json
from twopass_kd.files.seeds_json import OverSeeds, SeedsJson, SeedsSystem
from twopass_kd.scoring.claims import judge_claims
from twopass_kd.scoring.results import Transcripts, describe_corpus, read_decoded, scored_sets
from twopass_kd.scoring.wer import corpus_wer


def build_seeds(cfg: Config, exp_dir: Path, finished: Sequence[int], progress: bool = True) -> SeedsJson:
    """Score the systems that every one of the `finished` seeds has.

    Args:
      cfg: its config, with all `seeds`.
      progress: show a progress bar where stderr is a terminal.
    Raises:
      ValueError: as `build_results` does; if no system is in all; if a seed is none of the config's, or there twice, by
        its number or as a copy.
    """
    for seed in finished:
        if seed not in cfg.seeds:
            raise ValueError(f"`--finished` ({seed}) must be one of `seeds`: {', '.join(map(str, cfg.seeds))}")
        if finished.count(seed) > 1:
            raise ValueError(f"`--finished` ({seed}) must be there once")
    decoded: list[dict[str, DecodeJson]] = []
    transcripts: list[Transcripts] = []
    speakers: dict[str, dict[str, str]] = {}
    for seed in tqdm(finished, desc="reading", unit="seed", disable=not progress):
        found, texts, names = read_decoded(cfg, experiment_folder(replace(cfg, seed=seed), exp_dir))
        decoded.append(found)
        transcripts.append(texts)
        speakers.update(names)
    _check_no_copies(cfg, finished, decoded)
    everywhere = [name for name in decoded[0] if all(name in found for found in decoded)]
    if not everywhere:
        raise ValueError(f"seeds {', '.join(map(str, finished))} must have a system in common; decode them (stage 8)")
    first = transcripts[0][everywhere[0]]
    return SeedsJson(
        conf=cfg.name,
        corpus=describe_corpus(cfg),
        words={part: sum(len(ref) for _, ref, _ in first[part][Pass.FIRST_PASS]) for part in scored_sets(cfg)},
        seeds=list(finished),
        unfinished=[seed for seed in cfg.seeds if seed not in finished],
        systems=[_system(name, decoded, transcripts) for name in everywhere],
        not_in_all=sorted({name for found in decoded for name in found} - set(everywhere)),
        claims=judge_claims(cfg, transcripts, speakers),
        environment=describe_environment(),
    )


def _check_no_copies(cfg: Config, finished: Sequence[int], decoded: Sequence[dict[str, DecodeJson]]) -> None:
    """One training that counts as two seeds would make differences look surer than they are."""
    seen: dict[str, int] = {}
    for seed, found in zip(finished, decoded, strict=True):
        for name, phase in reported_systems(cfg).items():
            if name in found and phase != EXTERNAL_TEACHER:
                other = seen.setdefault(found[name].identity, seed)
                if other != seed:
                    raise ValueError(
                        f"seed-{other} and seed-{seed} must not hold the same training of {name}; remove the folder"
                        " that is a copy and train that seed (--stage 3)"
                    )


def load_seeds(folder: Path) -> SeedsJson:
    """Read `<folder>/seeds.json`. Raises ValueError where it is missing or malformed, naming stage 9."""
    return read_json(Path(folder) / "seeds.json", SeedsJson, "run stage 9 again, with --force")


def _system(name: str, decoded: Sequence[dict[str, DecodeJson]], transcripts: Sequence[Transcripts]) -> SeedsSystem:
    of_seeds = [found[name] for found in decoded]
    texts = [systems[name] for systems in transcripts]
    wer = {
        part: {
            p: None if texts[0][part][p] is None else _over_seeds([corpus_wer(t[part][p]).wer for t in texts])
            for p in Pass
        }
        for part in texts[0]
    }
    first = of_seeds[0]
    conditions = {
        part: {
            condition: {p: fmean(found.conditions[part][condition][p] for found in of_seeds) for p in passes}
            for condition, passes in measured.items()
        }
        for part, measured in first.conditions.items()
        if all(found.conditions.get(part, {}).keys() == measured.keys() for found in of_seeds)
    }
    return SeedsSystem(
        name=name, params=first.params, wer=wer, conditions=conditions, updates=first.updates,
        train_seconds=_over_seeds([found.train_seconds for found in of_seeds]),
    )  # fmt: skip


def _over_seeds(values: Sequence[float]) -> OverSeeds:
    return OverSeeds(mean=fmean(values), low=min(values), high=max(values), each=list(values))
