"""Fingerprints touch just the stages that depend on a setting; one that nobody thought of touches all."""

import copy
import dataclasses
from pathlib import Path

import pytest

from twopass_kd.bin.train import identities
from twopass_kd.config.fingerprint import _NEVER, _NOT_AFTER_STAGE_2, _NOT_BEFORE, fingerprint, training_settings
from twopass_kd.config.load import config_to_dict, load_config

MINI = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf/mini.yaml"
STAGES = range(11)


def keys_of(tree, prefix=()):
    """The keys of all settings, as tuples, since names of phases may have a dot."""
    for key, value in tree.items():
        yield from keys_of(value, (*prefix, key)) if isinstance(value, dict) else [(*prefix, key)]


def with_another_value(cfg, keys):
    """A copy in which one setting has a value that it does not have now, sensible or not."""
    other = copy.deepcopy(cfg)
    inside = other
    for key in keys[:-1]:
        inside = inside[key] if isinstance(inside, dict) else getattr(inside, key)
    if isinstance(inside, dict):
        inside[keys[-1]] += 1
    else:
        value = getattr(inside, keys[-1])
        setattr(inside, keys[-1], value + 1 if type(value) in (int, float) else [value, "other"])
    return other


FULL = load_config(MINI)
PHASE = ("phases", "teacher/rnnt")
SETTINGS = [k for k in keys_of(config_to_dict(FULL)) if k[0] != "phases" or k[:2] == PHASE]


def is_listed(keys, table):
    return any(".".join(keys[:n]) in table for n in range(1, len(keys) + 1))


@pytest.mark.parametrize("keys", SETTINGS, ids=".".join)
def test_every_setting_counts_or_is_listed_as_one_that_does_not(keys):
    if keys == ("external_teacher", "path") or keys == ("decode", "arpa"):
        other = copy.deepcopy(FULL)
        setattr(getattr(other, keys[0]), keys[1], "/nowhere")
    else:
        other = with_another_value(FULL, keys)
    changed = [stage for stage in STAGES if fingerprint(FULL, stage) != fingerprint(other, stage)]
    assert bool(changed) != is_listed(keys, _NEVER)
    if not any(is_listed(keys, table) for table in (_NEVER, _NOT_BEFORE, _NOT_AFTER_STAGE_2)):
        assert changed == list(STAGES)
    shared = not any(is_listed(keys, table) for table in (_NEVER, _NOT_AFTER_STAGE_2)) and keys[0] not in (
        "teacher", "student", "phases", "external_teacher", "kd", "min_reduction", "decode", "export"
    )  # fmt: skip
    assert (training_settings(FULL) != training_settings(other)) == shared


def test_what_is_listed_is_a_setting():
    known = {".".join(keys[:n]) for keys in SETTINGS for n in range(1, len(keys) + 1)}
    assert {*_NEVER, *_NOT_BEFORE, *_NOT_AFTER_STAGE_2} <= known


def test_the_walk_meets_all_fields_of_the_schema():
    def fields(kind):
        return {f.name for f in dataclasses.fields(kind)}

    met = {keys[:-1] for keys in SETTINGS}
    for section in met:
        inside = FULL
        for key in section:
            inside = inside[key] if isinstance(inside, dict) else getattr(inside, key)
        if dataclasses.is_dataclass(inside):
            below = {keys[len(section)] for keys in SETTINGS if keys[: len(section)] == section}
            assert below == fields(type(inside))


def test_fingerprint_changes_only_for_the_stages_concerned():
    def changed(override):
        cfg, other = load_config(MINI), load_config(MINI, [override])
        return [stage for stage in range(11) if fingerprint(cfg, stage) != fingerprint(other, stage)]

    assert changed("seed=1") == list(range(11))
    assert changed("corpus.test_parts=[test-clean]") == [0, 1, 2, 8, 9, 10]
    assert changed("train.log_interval=7") == []
    assert changed("loss.backend=k2") == []
    assert changed("tokens.vocab_size=300") == list(range(2, 11))
    assert changed("train.max_duration=7") == list(range(3, 11))
    assert changed("teacher.encoder.dim=300") == list(range(3, 11))
    assert changed("kd.temperature=2") == list(range(5, 11))
    assert changed("phases.student/deep.num_epochs=9") == [7, 8, 9, 10]
    assert changed("decode.beam=8") == [8, 9, 10]
    assert changed("decode.searches=[]") == changed("decode.lm_scales=[0.3]") == [8, 9, 10]
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
