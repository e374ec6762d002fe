"""The config: strict, typed, and its fingerprints touch just the stages that depend on a key."""

from pathlib import Path

import pytest

from twopass_kd.bin.train import identities
from twopass_kd.config.fingerprint import fingerprint
from twopass_kd.config.load import (
    config_from_dict,
    config_to_dict,
    load_config,
    phases_of_stage,
    save_config,
    searched_systems,
)
from twopass_kd.config.schema import ConfigError

CONF = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf"
MINI = CONF / "mini.yaml"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_yaml_loads(path):
    assert load_config(path).name == path.stem


@pytest.mark.parametrize(
    "override, says",
    [
        ("train.max_durations=3", "did you mean `max_duration`"),
        ("train.max_duration=abc", "train.max_duration"),
        ("train.max_duration=0", "must be positive"),
        ("corpus.train_parts=train", "corpus.train_parts"),
        ("kd.kind=partial", "must be one of full, collapsed"),
        ("student.encoder.subsampling_factor=5", "must be one of 4, 6"),
        ("phases.student/deep.teacher=nobody", "must name a phase"),
        ("phases.student/deep.teacher=null", "must name a phase, since its losses distil"),
        ("phases.student/deep.train=[encoders]", "must list parts out of"),
        ("features.num_mel_bins=6", "must be at least 7"),
        ("phases.student/deep.train=[]", "`phases.student/deep.train` ([]) must list at least one part out of"),
        ("teacher.encoder.dim=1000000000000000000", "must be a whole number of at most 18 digits"),
        ("phases.student/deep.loss_scales.kd=1", "must use terms out of"),
        ("phases.student/deep.average=9", "must be from 1 to num_epochs"),
        ("phases.student/deep.report_as=teacher", "must be unique"),
        ("phases.nonsense.stage=3", "must be given"),
        ("phases.student/rnnt_kd.init_from=teacher/rnnt", "not both"),
        ("phases.student/deep.base_lr=-1", "must be positive"),
        ("phases.student/deep.loss_scales.simple=0", "must have `simple`"),
        ("phases.student/deep.loss_scales.ctc=-1", "must not be negative"),
        ("student.encoder.subsampling_factor=4", "must be equal to distil"),
        ("student.attention_decoder.num_heads=5", "must be a multiple"),
        ("loss.prune_range=1", "must be at least 2"),
        ("loss.label_smoothing=2", "must be in [0, 1)"),
        ("train.keep_last_k=0", "must be positive"),
        ("corpus.train_parts=[]", "at least one entry"),
        ("decode.rescore_weights=[]", "at least one entry"),
        ("decode.searches=[fast_beam]", "must list searches out of fast_beam_search,"),
        ("decode.searches=[fast_beam_search,fast_beam_search]", "must be there once"),
        ("decode.searches=[fast_beam_search_hotwords]", "`decode.hotwords` must have at least one phrase"),
        ("decode.search_systems=[pupil]", "must be `report_as` of a phase"),
        ("decode.lm_scales=[]", "`decode.lm_scales` must have at least one entry"),
        ("decode.max_states=0", "must be positive"),
        ("decode.lm_scales=[0.1,-1]", "must not be negative"),
        ("external_teacher.recipe=zipformer", "`external_teacher.path` must be given"),
        ("min_reduction=1.5", "must be in [0, 1)"),
        ("train", "must look like key=value"),
    ],
)
def test_wrong_values_are_errors_that_say_what_is_right(override, says):
    with pytest.raises(ConfigError) as e:
        load_config(MINI, [override])
    assert says in str(e.value)


def test_missing_file_lists_what_is_there():
    with pytest.raises(ConfigError, match="mini.yaml"):
        load_config(CONF / "nini.yaml")


def test_missing_key_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("corpus: {train_parts: [a], dev_parts: [b], test_parts: [c]}\n")
    with pytest.raises(ConfigError, match="train.max_duration"):
        load_config(tmp_path / "x.yaml")


def test_broken_yaml_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "x.yaml")


def test_round_trip_through_dict_and_file(tmp_path):
    cfg = load_config(MINI, ["train.max_duration=7"])
    assert config_from_dict(config_to_dict(cfg)) == cfg
    save_config(cfg, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == cfg


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


def test_phases_of_stage():
    assert phases_of_stage(load_config(MINI), 5) == ["student/rnnt_kd", "student_copy/rnnt"]


def test_searched_systems_are_those_of_stage_10_with_a_stateless_decoder():
    assert searched_systems(load_config(MINI)) == ["teacher", "student"]
    assert searched_systems(load_config(MINI, ["decode.searches=[]"])) == []
    assert searched_systems(load_config(MINI, ["student.decoder.kind=lstm"])) == ["teacher"]
    assert searched_systems(load_config(MINI, ["decode.search_systems=[student_stage1]"])) == ["student_stage1"]
    with pytest.raises(ConfigError, match=r"`student.decoder.kind` \(lstm\) must be stateless for fast_beam_search"):
        load_config(MINI, ["student.decoder.kind=lstm", "decode.search_systems=[student]"])
