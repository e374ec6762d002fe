"""What each stage of an experiment trains or decodes, reads and leaves, as its config has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twopass_kd.config.fingerprint import fingerprint
from twopass_kd.config.load import exported_systems, phases_of_stage, reported_systems
from twopass_kd.config.schema import EXTERNAL_TEACHER, Config
from twopass_kd.files import layout

TITLES = ("corpus", "Lhotse manifests", "features and BPE", "teacher RNN-T", "teacher LAS and deep fine-tuning",
          "student RNN-T distillation", "student LAS distillation", "deep fine-tuning", "decoding",
          "scoring and report", "export and on-device benchmark")  # fmt: skip
TRAINING_STAGES = range(3, 8)
BASELINE = "student_copy"


def system_of(phase_name: str) -> str:
    """`student` of `student/deep`."""
    return phase_name.split("/")[0]


@dataclass(frozen=True, eq=False)
class Plan:
    """An experiment's stages.

    Attributes:
      baseline: whether the baseline is trained, too.
      corpus_dir: None where no stage that is asked for reads it.
      experiment: folder of this experiment, e.g. exp/mini or, of a seed among others, exp/mini/seed-42.
      overrides: the settings that the commands get behind their options.
      finished: of the report over seeds, whose folder is exp/mini: the seeds that it is about.
    """

    cfg: Config
    baseline: bool
    corpus_dir: Path | None
    data_dir: Path
    experiment: Path
    overrides: Sequence[str] = ()
    finished: Sequence[int] | None = None

    @property
    def seed(self) -> str:
        """`seed-42`, where there are others; else nothing."""
        return f"seed-{self.cfg.seed}" if self.cfg.seeds else ""

    def phases(self, stage: int) -> list[str]:
        """The phases that a stage trains."""
        return [p for p in phases_of_stage(self.cfg, stage) if self.baseline or system_of(p) != BASELINE]

    def systems(self) -> dict[str, str]:
        """The phase that each system is which stages 8 and 9 report."""
        reported = reported_systems(self.cfg).items()
        return {system: phase for system, phase in reported if self.baseline or system_of(phase) != BASELINE}

    def parts(self) -> list[str]:
        corpus = self.cfg.corpus
        return [*corpus.train_parts, *corpus.dev_parts, *corpus.test_parts]

    def needs(self, name: str) -> list[str]:
        """The phases whose models a phase, or the decoding of a system, starts from."""
        if name in self.cfg.phases:
            phase = self.cfg.phases[name]
            return [ref for ref in dict.fromkeys((phase.init_from, phase.teacher)) if ref in self.cfg.phases]
        return [phase for phase in [self.systems()[name]] if phase != EXTERNAL_TEACHER]

    def has_nothing_to_do(self, stage: int) -> bool:
        """Whether a stage has nothing to train (the teacher's, where there is one already) or to export."""
        if stage == 10:
            return not exported_systems(self.cfg)
        return stage in TRAINING_STAGES and not self.phases(stage)

    def why_nothing(self, stage: int) -> str:
        """What to say of a stage that has nothing to do."""
        if stage == 10:
            return "nothing to export, since `export.systems` is []"
        teacher = self.cfg.external_teacher.path
        return f"nothing to train, the teacher is {teacher}" if teacher else "nothing to train"

    def outputs(self, stage: int, parts: Sequence[str] = ()) -> list[Path]:
        """The files that a stage leaves; of some parts only, where given (stages 0-2)."""
        musan = [] if parts else self._musan_outputs(stage)
        parts = parts or self.parts()
        if stage == 0:
            return musan + [self.corpus_dir / part for part in parts]
        if stage == 1:
            return musan + [
                path
                for part in parts
                for path in (
                    layout.manifest_path(self.data_dir, "recordings", part),
                    layout.manifest_path(self.data_dir, "supervisions", part),
                    layout.checksums_path(self.data_dir, part),
                )
            ]
        if stage == 2:
            lang_dir = layout.lang_path(self.data_dir, self.cfg.tokens.vocab_size)
            cuts = [layout.cuts_path(self.data_dir, part) for part in parts]
            return [*musan, *cuts, lang_dir / "bpe.model", lang_dir / "tokens.txt"]
        if stage == 8:
            return [layout.decode_dir(self.experiment, system) / "decode.json" for system in self.systems()]
        if self.finished is not None:
            return [self.experiment / name for name in ("seeds.json", "seeds.md", "seeds.html")]
        if stage == 9:
            return [self.experiment / name for name in ("results.json", "report.md", "report.html")]
        if stage == 10:
            exports = [layout.export_dir(self.experiment, name) / "export.json" for name in exported_systems(self.cfg)]
            return [*exports, self.experiment / "ondevice.json"]
        return [layout.final_path(self.experiment, phase) for phase in self.phases(stage)]

    def _musan_outputs(self, stage: int) -> list[Path]:
        if not self.cfg.corpus.musan:
            return []
        if stage == 0:
            return [self.corpus_dir.parent / "musan"]
        if stage == 1:
            return [layout.musan_manifest_path(self.data_dir, part) for part in layout.MUSAN_PARTS]
        return [layout.musan_cuts_path(self.data_dir)] if stage == 2 else []

    def inputs(self, stage: int) -> list[tuple[int, Path]]:
        """What a stage reads, each with the stage that makes it."""
        if self.finished is not None:
            return []
        corpus = self.cfg.corpus
        if stage in (1, 2, 9):
            maker = 8 if stage == 9 else stage - 1
            return [(maker, path) for path in self.outputs(maker)]
        if stage in TRAINING_STAGES:
            data = self.outputs(2, [*corpus.train_parts, *corpus.dev_parts]) + self._musan_outputs(2)
            models = [need for phase in self.phases(stage) for need in self.needs(phase)]
        elif stage in (8, 10):
            data = self.outputs(2, [*corpus.dev_parts, *corpus.test_parts])
            models = [need for system in self.systems() for need in self.needs(system)]
        else:
            return []
        found = [(2, path) for path in data]
        found += [(self.cfg.phases[phase].stage, layout.final_path(self.experiment, phase)) for phase in models]
        return found + ([(8, path) for path in self.outputs(8)] if stage == 10 else [])

    def settings(self, stage: int) -> str:
        """A hash of the settings that a stage depends on."""
        return fingerprint(self.cfg, stage)
