"""Names that the config gives: they become folders beside our own, and words that run.sh takes apart at spaces."""

import re

from twopass_kd.config.schema import Config, ConfigError

_NAME = re.compile(r"(?![.+-])(?:[\w.+-]|[^\x00-\x7f])+")


def check_names(cfg: Config) -> None:
    """Check the names of the experiment, of the corpus parts, of phases and of what they are reported as.

    Raises:
      ConfigError: a name that cannot be a folder, is that of a folder of ours, or is there twice.
    """
    _check("name", cfg.name, ours=("fbank", "manifests", "LibriSpeech", "musan"))
    for kind in ("train_parts", "dev_parts", "test_parts"):
        key, parts = f"corpus.{kind}", getattr(cfg.corpus, kind)
        for part in parts:
            _check(key, part, ours=("musan",))
            if parts.count(part) > 1:
                raise ConfigError(f"`{key}` ({part}) must be there once")
    for name, phase in cfg.phases.items():
        where = f"phases.{name}"
        if name.count("/") != 1:
            raise ConfigError(f"`{where}`: a phase must be named <system>/<phase>, e.g. student/rnnt_kd")
        for word in name.split("/"):
            _check(where, word, ours=("decode", "export", "graphs", "log"))
        if phase.report_as is not None:
            _check(f"{where}.report_as", phase.report_as, ours=("measured",))
            if phase.report_as == "teacher" and cfg.external_teacher.path is not None:
                raise ConfigError(f"`{where}.report_as` (teacher) must be another: the external teacher is reported so")


def _check(key: str, name: str, ours: tuple) -> None:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise ConfigError(
            f"`{key}` ({name!r}) must be made of letters, digits, `_`, `-`, `.` and `+`, and not begin with `-`, `.` or"
            " `+`, since folders are named so"
        )
    if name in ours:
        raise ConfigError(f"`{key}` ({name}) must not be that, which is a folder of run.sh's; choose another name")
