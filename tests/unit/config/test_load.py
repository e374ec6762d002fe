"""The config: what it may hold, what its errors say, and the questions that it answers."""

import re
from pathlib import Path

import pytest
import yaml

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


PHASE = "stage: 3, model: teacher, train: [encoder], loss_scales: {ctc: 1}, num_epochs: 1, base_lr: 1"


@pytest.mark.parametrize(
    "override, says",
    [
        # of one setting: what the schema says
        ("train.max_durations=3", "did you mean `max_duration`"),
        ("train.max_duration=0", "must be positive"),
        ("train.keep_last_k=0", "must be positive"),
        ("train.num_workers=-1", "must not be negative"),
        ("train.betas=[0.9]", "must have 2 or more entries"),
        ("train.betas=[0.9,0.98,0.99]", "must have 2 or fewer entries"),
        ("train.betas=[0.9,1]", "`train.betas` (1.0) must be below 1"),
        ("seed=-1", "must not be negative"),
        ("min_reduction=1.5", "must be below 1"),
        ("min_reduction=-0.1", "must not be negative"),
        ("loss.label_smoothing=2", "must be below 1"),
        ("loss.prune_range=1", "must be at least 2"),
        ("loss.rnnt_type=partial", "must be one of modified, regular"),
        ("features.num_mel_bins=6", "must be at least 7"),
        ("models.student.encoder.subsampling_factor=5", "must be one of 4, 6"),
        ("models.student.encoder.dim=0", "must be positive"),
        ("models.student.encoder.dropout=1", "must be below 1"),
        ("models.teacher.attention_decoder.num_heads=0", "must be positive"),
        ("models.teacher.encoder.dim=1000000000000000000", "must be a whole number of at most 18 digits"),
        ("corpus.train_parts=[]", "must have 1 or more entries"),
        ("corpus.speed_perturb=[0.9,0]", "`corpus.speed_perturb` (0.0) must be positive"),
        ("corpus.synthesis.num_dev=0", "must be positive"),
        ("decode.rescore_weights=[]", "must have 1 or more entries"),
        ("decode.searches=[fast_beam]", "`decode.searches` (fast_beam) must be one of fast_beam_search,"),
        ("decode.searches=[fast_beam_search,fast_beam_search]", "must be there once"),
        ("decode.max_states=0", "must be positive"),
        ("decode.lm_scales=[0.1,-1]", "`decode.lm_scales` (-1.0) must not be negative"),
        ("slurm.gpu.time=2 days", "`slurm.gpu.time` (2 days) must be as sbatch takes it, e.g. 24:00:00"),
        ("slurm.cpu.mem=64 G", "`slurm.cpu.mem` (64 G) must be as sbatch takes it, e.g. 64G"),
        ("phases.student/deep.train=[encoders]", "`phases.student/deep.train` (encoders) must be one of encoder,"),
        ("phases.student/deep.loss_scales.kd=1", "`phases.student/deep.loss_scales.kd` must be one of simple,"),
        ("phases.student/deep.loss_scales.ctc=-1", "`phases.student/deep.loss_scales.ctc` (-1.0) must not be negative"),
        ("phases.student/deep.base_lr=-1", "must be positive"),
        # of several
        ("corpus.min_duration=31", "must be below `corpus.max_duration`"),
        (
            "models.student.attention_decoder.num_heads=5",
            "`models.student.attention_decoder.dim` (128) must be a multiple",
        ),
        (
            "models.student.encoder.subsampling_factor=4",
            "(4) must be that of teacher (6), from which phases.student/rnnt_kd",
        ),
        (
            "phases.student/deep.model=tiny",
            "`phases.student/deep.model` (tiny) must be one of `models`: teacher, student",
        ),
        ("external_teacher.recipe=zipformer", "`external_teacher.path` must be given"),
        ("decode.searches=[fast_beam_search_hotwords]", "`decode.hotwords` must have at least one phrase"),
        ("decode.lm_scales=[]", "`decode.lm_scales` must have at least one entry"),
        ("decode.search_systems=[pupil]", "must be `report_as` of a phase"),
        ("phases.student/deep.teacher=nobody", "must name a phase"),
        ("phases.student/deep.teacher=null", "must name a phase, since its losses distil"),
        ("phases.student/deep.train=[]", "`phases.student/deep.train` ([]) must list at least one part out of"),
        ("augment.max_pause=31", "`augment.max_pause` (31 s) must be at most `corpus.max_duration` (30 s)"),
        ("augment.snr=[nan, 3]", "must be a finite number"),
        ("augment.snr=[3]", "`augment.snr`"),
        ("train.accum_grad=2", "`train.accum_grad` (2) must be given with `train.max_duration`"),
        ("phases.student_copy/deep.start_scales={transducer_kd: 0.1}", "must have a scale in `loss_scales` too"),
        ("phases.student/deep.average=9", "must be at most num_epochs (2)"),
        ("phases.student/deep.report_as=teacher", "must be unique"),
        ("phases.student/deep.loss_scales.simple=0", "must have `simple`"),
        ("phases.student/deep.loss_scales={ctc: 1}", "`phases.student/deep.train` (decoder) must have one of simple"),
        ("phases.student/rnnt_kd.init_from=teacher/rnnt", "not both"),
        ("phases.student/las_kd.init_from=teacher/las", "must be a phase of the same model, `student`, but it trains"),
        ("phases.student/las_kd.teacher=teacher/rnnt", "must have learnt attention_decoder, from which this phase"),
        ("phases.student/deep.teacher=student_copy/rnnt", "must have learnt attention_decoder"),
        # a phase that is not there
        (
            "phases.student/dep.num_epochs=3",
            "`phases.student/dep` is not a phase of this config; did you mean `student/deep`?",
        ),
        ("phases.nonsense.stage=3", "known phases: teacher/rnnt, teacher/las"),
        ("phases.student/new.stage=3", "for a new one these keys must be given: phases.student/new.base_lr"),
        # names, which become folders
        ("name=a b", "`name` ('a b')"),
        ("name=../x", "`name` ('../x')"),
        ("name=fbank", "a folder of run.sh's"),
        ("corpus.train_parts=[a,a]", "`corpus.train_parts` (a) must be there once"),
        ("corpus.dev_parts=[a/b]", "`corpus.dev_parts` ('a/b')"),
        ("corpus.test_parts=[..]", "`corpus.test_parts` ('..')"),
        ("corpus.train_parts=[musan]", "a folder of run.sh's"),
        (f"phases={{log/x: {{{PHASE}}}}}", "`phases.log/x` (log) must not be"),
        (f"phases={{a/x y: {{{PHASE}}}}}", "`phases.a/x y` ('x y')"),
        (f"phases={{a/b/c: {{{PHASE}}}}}", "must be named <system>/<phase>"),
        ("phases.student/deep.report_as=measured", "a folder of run.sh's"),
        ("phases.student/deep.report_as=a/b", "('a/b')"),
    ],
)
def test_wrong_values_are_errors_that_say_what_is_right(override, says):
    with pytest.raises(ConfigError) as e:
        load_config(MINI, [override])
    assert says in str(e.value) and "\n" not in str(e.value)


def test_an_external_teacher_is_reported_as_teacher():
    with pytest.raises(ConfigError, match="the external teacher is reported so"):
        load_config(MINI, ["phases.student/deep.report_as=teacher", "external_teacher.path=/x"])


def test_an_error_names_the_file_or_the_override_that_has_the_value(tmp_path):
    (tmp_path / "base.yaml").write_text(f"base: {MINI}\nloss: {{rnnt_type: partial}}\nseed: -1\n")
    (tmp_path / "x.yaml").write_text("base: base.yaml\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"base.yaml: `loss.rnnt_type` \(partial\) must be one of"):
        load_config(tmp_path / "x.yaml", ["kd.temperature=2"])
    with pytest.raises(ConfigError, match=r"^override \(loss.rnnt_type=half\): `loss.rnnt_type` \(half\) must"):
        load_config(tmp_path / "x.yaml", ["loss.rnnt_type=half"])
    assert load_config(tmp_path / "x.yaml", ["loss.rnnt_type=regular"]).seed == 3


def test_scales_of_an_override_replace_those_of_the_file_and_those_of_a_file_add_to_its_bases(tmp_path):
    def scales(path, *overrides):
        return load_config(path, overrides).phases["teacher/las"].loss_scales

    assert scales(MINI, "phases.teacher/las.loss_scales={attention: 2, ctc: 0.1}") == {"attention": 2.0, "ctc": 0.1}
    assert scales(MINI, "phases.student/deep.loss_scales.ctc=0.1") == {"attention": 1.0}
    whole = "phases.student/deep.loss_scales={simple: 1, pruned: 1, ctc: 1, attention: 1}"
    assert "attention_kd" not in load_config(MINI, [whole]).phases["student/deep"].loss_scales
    assert scales(MINI, "phases={teacher/las: {loss_scales: {ctc: 0.1}}}") == {"attention": 1.0, "ctc": 0.1}
    (tmp_path / "x.yaml").write_text(f"base: {MINI}\nphases: {{teacher/las: {{loss_scales: {{ctc: 0.1}}}}}}\n")
    assert scales(tmp_path / "x.yaml") == {"attention": 1.0, "ctc": 0.1}


def test_a_new_phase_may_be_given_by_overrides():
    keys = PHASE.replace(": ", "=").split(", ")
    cfg = load_config(MINI, [f"phases.teacher/more.{key}" for key in keys if "scales" not in key]
                      + ["phases.teacher/more.loss_scales.ctc=1"])  # fmt: skip
    assert cfg.phases["teacher/more"].loss_scales == {"ctc": 1.0}


def test_what_is_not_given_of_slurms_gpu_jobs_is_what_such_jobs_need():
    slurm = load_config(MINI, ["slurm.gpu.partition=fast"]).slurm
    assert (slurm.gpu.partition, slurm.gpu.gpus, slurm.gpu.mem) == ("fast", 1, "64G")
    assert (slurm.cpu.partition, slurm.cpu.gpus, slurm.cpu.mem) == (None, 0, "32G")


def test_missing_file_lists_what_is_there():
    with pytest.raises(ConfigError, match="mini.yaml"):
        load_config(CONF / "nini.yaml")


def test_missing_key_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("corpus: {train_parts: [a], dev_parts: [b], test_parts: [c]}\n")
    with pytest.raises(ConfigError, match="train.ref_duration"):
        load_config(tmp_path / "x.yaml")


def test_broken_yaml_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "x.yaml")


CLAIM = {"system": "student", "against": "teacher", "kind": "superior"}
STAGE1 = CLAIM | {"system": "student_stage1"}


@pytest.mark.parametrize(
    "claims, says",
    [
        ([CLAIM | {"system": "stud"}], "`claims[0].system` (stud) must be a system: teacher, student_stage1,"),
        ([CLAIM, CLAIM | {"against": "x"}], "`claims[1].against` (x) must be a system: "),
        ([CLAIM | {"against": "student"}], "`claims[0].against` (student) must be another system than `system`"),
        (
            [CLAIM | {"kind": "non_inferior"}],
            "`claims[0].kind` (non_inferior) must have either margin_relative or",
        ),
        (
            [CLAIM | {"kind": "non_inferior", "margin_relative": 0.1, "margin_points": 0.5}],
            "margin_points, but margin_relative and margin_points are both there",
        ),
        ([CLAIM | {"margin_points": 0.5}], "`claims[0].margin_points` must not be given for `kind: superior`"),
        ([CLAIM | {"kind": "non_inferior", "margin_points": 0}], "`claims[0].margin_points` (0.0) must be positive"),
        ([CLAIM | {"pass": "third"}], "`claims[0].pass` (third) must be one of greedy_search, first_pass, two_pass"),
        ([CLAIM | {"sets": ["test"]}], "`claims[0].sets` (test) must be test sets: test-clean, test-other"),
        ([CLAIM | {"sets": []}], "`claims[0].sets` ([]) must have 1 or more entries"),
        ([CLAIM, CLAIM], "`claims[0]` must not say of test-clean what `claims[1]` says; remove one of them"),
        ([CLAIM, CLAIM | {"sets": ["test-other"]}], "`claims[0]` must not say of test-other what `claims[1]` says"),
        (
            [STAGE1 | {"pass": "first_pass"}, STAGE1],  # which has no second pass
            "`claims[0]` must not say of test-clean what `claims[1]` says",
        ),
        ([CLAIM | {"kind": "non_inferior", "margin_relative": 10}], "`claims[0].margin_relative` (10.0) must be below"),
        ([CLAIM | {"margin": 1}], "`claims.margin` is not a key of this config; did you mean `margin_points`?"),
        (["student"], "`claims` (student) must hold keys and values"),
        ([{"system": "student"}], "these keys must be given: claims[0].against, claims[0].kind"),
    ],
)
def test_claims_that_cannot_be_judged_are_errors(tmp_path, claims, says):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"base": str(MINI), "claims": claims}))
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(path)


def test_what_is_missing_is_said_of_the_file_or_override_that_begins_the_section(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"base": str(MINI), "claims": [{"system": "student"}]}))
    with pytest.raises(ConfigError, match=f"^{tmp_path}/c.yaml: these keys must be given: claims.0..against"):
        load_config(tmp_path / "c.yaml")
    override = "models.tiny={joiner_dim: 8}"
    with pytest.raises(ConfigError, match=re.escape(f"override ({override}): these keys must be given: models.tiny.")):
        load_config(MINI, [override])
    with pytest.raises(ConfigError, match=r"given: (models.tiny[^ ]*(, |$))+$"):  # the file's come next
        load_config(tmp_path / "c.yaml", [override])


def test_models_and_phases_that_make_no_sense_are_errors(tmp_path):
    models = {"huge": config_to_dict(load_config(MINI))["models"]["teacher"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"base": str(MINI), "models": models}))
    with pytest.raises(ConfigError, match="`models.huge` must be the `model` of a phase, or be left out"):
        load_config(tmp_path / "c.yaml")
    phases = {name: {"model": "huge"} for name in ("teacher/rnnt", "teacher/las", "teacher/deep")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"base": str(MINI), "models": models, "phases": phases}))
    load_config(tmp_path / "c.yaml")  # the base's teacher is none of its own
    with pytest.raises(ConfigError, match=r"`phases.student/deep.teacher` \(student/deep\) must name another phase"):
        load_config(MINI, ["phases.student/deep.teacher=student/deep"])


def test_round_trip_through_dict_and_file(tmp_path):
    cfg = load_config(MINI, ["train.max_duration=7"])
    assert config_from_dict(config_to_dict(cfg)) == cfg
    save_config(cfg, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == cfg


def test_phases_of_stage():
    assert phases_of_stage(load_config(MINI), 5) == ["student/rnnt_kd", "student_copy/rnnt"]


def test_searched_systems_are_those_of_stage_10_with_a_stateless_decoder():
    assert searched_systems(load_config(MINI)) == ["teacher", "student"]
    assert searched_systems(load_config(MINI, ["decode.searches=[]"])) == []
    assert searched_systems(load_config(MINI, ["models.student.decoder.kind=lstm"])) == ["teacher"]
    assert searched_systems(load_config(MINI, ["decode.search_systems=[student_stage1]"])) == ["student_stage1"]


def test_ranges_may_be_given_either_way_round():
    assert load_config(MINI, ["augment.snr=[20, 0]"]).augment.snr == [0.0, 20.0]


def test_an_external_teacher_must_have_something_to_teach():
    saved = config_to_dict(load_config(MINI, ["external_teacher.path=t.pt"]))
    assert config_to_dict(config_from_dict(saved)) == saved
    by_another_name = [f"phases.{name}.model=student" for name in ("teacher/rnnt", "teacher/las", "teacher/deep")]
    with pytest.raises(ConfigError, match=r"`external_teacher.path` \(t.pt\) must have something to teach"):
        load_config(MINI, [*by_another_name, "external_teacher.path=t.pt"])
