"""Fingerprints touch just the stages that depend on a setting; one that nobody thought of touches all."""

import dataclasses
from pathlib import Path

import pytest

from twopass_kd.bin.train import identities
from twopass_kd.config.fingerprint import NEVER, NOT_AFTER_STAGE_2, NOT_BEFORE, fingerprint, training_settings
from twopass_kd.config.load import load_config

MINI = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf/mini.yaml"
STAGES = range(11)


def settings(inside, keys=()):
    """(keys, the object or dict that holds it) of all settings, of the phases only those of the first."""
    names = [f.name for f in dataclasses.fields(inside)] if dataclasses.is_dataclass(inside) else list(inside)
    for name in names[:1] if keys == ("phases",) else names:
        value = inside[name] if isinstance(inside, dict) else getattr(inside, name)
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            yield from settings(value, (*keys, name))
        else:
            yield (*keys, name), inside


SETTINGS = [keys for keys, _ in settings(load_config(MINI))]


def with_another_value(changed):
    """The config in which one setting has a value that it does not have now, sensible or not."""
    cfg = load_config(MINI)
    inside = dict(settings(cfg))[changed]
    value = inside[changed[-1]] if isinstance(inside, dict) else getattr(inside, changed[-1])
    other = value + 1 if type(value) in (int, float) else "other"
    if isinstance(inside, dict):
        inside[changed[-1]] = other
    else:
        setattr(inside, changed[-1], other)
    return cfg


def is_listed(keys, table):
    keys = [*keys[:1], "*", *keys[2:]] if len(keys) > 2 and keys[0] == "phases" else keys
    return any(".".join(keys[:n]) in table for n in range(1, len(keys) + 1))


@pytest.mark.parametrize("keys", SETTINGS, ids=".".join)
def test_every_setting_counts_in_all_stages_unless_it_is_listed(keys):
    cfg, other = load_config(MINI), with_another_value(keys)
    changed = [stage for stage in STAGES if fingerprint(cfg, stage) != fingerprint(other, stage)]
    assert bool(changed) != is_listed(keys, NEVER)
    if not any(is_listed(keys, table) for table in (NEVER, NOT_BEFORE, NOT_AFTER_STAGE_2)):
        assert changed == list(STAGES)


# What bin/train.py adds to `training_settings` for the phase that it trains, or no training reads.
NOT_SHARED = ("models", "phases", "kd", "external_teacher", "min_reduction", "decode", "export", "claims", "seeds")


@pytest.mark.parametrize("keys", SETTINGS, ids=".".join)
def test_every_setting_that_trainings_share_is_part_of_their_identity_unless_it_is_listed(keys):
    listed = is_listed(keys, NEVER) or is_listed(keys, NOT_AFTER_STAGE_2) or keys[0] in NOT_SHARED
    assert (training_settings(load_config(MINI)) == training_settings(with_another_value(keys))) == listed


def test_what_is_listed_is_a_setting():
    known = {".".join(keys[:n]) for keys in SETTINGS for n in range(1, len(keys) + 1)}
    known |= {".".join([keys[0], "*", *keys[2:]]) for keys in SETTINGS if keys[0] == "phases"}
    assert {*NEVER, *NOT_BEFORE, *NOT_AFTER_STAGE_2} <= known


def test_fingerprint_changes_only_for_the_stages_concerned():
    def changed(override):
        cfg, other = load_config(MINI), load_config(MINI, [override])
        return [stage for stage in range(11) if fingerprint(cfg, stage) != fingerprint(other, stage)]

    assert changed("seed=1") == list(range(3, 11))
    assert changed("seeds=[1, 2]") == [9]
    several = [load_config(MINI, [f"seeds=[{seeds}]", "seed=1"]) for seeds in ("1, 2", "1, 2, 3")]
    assert len({fingerprint(cfg, 9) for cfg in several}) == 1  # one more seed leaves the others' pages
    assert changed("corpus.synthesis.seed=1") == list(range(11))
    assert changed("corpus.test_parts=[test-clean]") == [0, 1, 2, 8, 9, 10]
    assert changed("train.log_interval=7") == []
    assert changed("loss.backend=k2") == []
    assert changed("tokens.vocab_size=300") == list(range(2, 11))
    assert changed("train.max_duration=7") == list(range(3, 11))
    assert changed("models.teacher.encoder.dim=300") == list(range(3, 11))
    assert changed("kd.temperature=2") == list(range(5, 11))
    assert changed("phases.student/deep.num_epochs=9") == [7, 8, 9, 10]
    assert changed("decode.beam=8") == [8, 9, 10]
    assert changed("decode.searches=[]") == changed("decode.lm_scales=[0.3]") == [8, 9, 10]
    assert changed("claims=[]") == changed("decode.bootstrap_samples=99") == [9]
    assert changed("phases.teacher/rnnt.cpu_ranks=1") == []
    assert changed("export.chunk_size=8") == [10]


@pytest.mark.parametrize("key, stages", [("external_teacher.path", list(range(5, 11))), ("decode.arpa", [8, 9, 10])])
def test_fingerprint_changes_when_a_file_is_replaced_by_one_of_its_name(tmp_path, key, stages):
    file = tmp_path / "jit_script.pt"

    def found(content):
        file.write_text(content)
        return [fingerprint(load_config(MINI, [f"{key}={file}"]), stage) for stage in range(11)]

    before, after = found("of epoch 9"), found("of epoch 10")
    assert [stage for stage in range(11) if before[stage] != after[stage]] == stages


def test_loss_backend_is_no_part_of_a_trainings_identity():
    def found(override):
        return identities(load_config(MINI, [override]), "teacher/rnnt", "tokens", "data", {})

    assert found("loss.backend=k2") == found("loss.backend=fast_rnnt") == found("loss.backend=auto")
    assert found("loss.prune_range=3") != found("loss.prune_range=5")
