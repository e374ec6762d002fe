import argparse
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from run_sh import RECIPE, TINY
from twopass_kd.config.fingerprint import fingerprint
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import ConfigError
from twopass_kd.stages import slurm
from twopass_kd.stages.check_plan import check_plan
from twopass_kd.stages.markers import is_done, why_again, write_marker
from twopass_kd.stages.plan import Plan
from twopass_kd.stages.run import StageRun

MINI = RECIPE / "conf" / "mini.yaml"


def plan_of(conf, *overrides, baseline=True):
    return Plan(load_config(conf, overrides), baseline, Path("corpus"), Path("data"), Path("exp") / conf.stem)


@pytest.mark.parametrize("override, said", [
    (["phases.student/deep.stage=9"], "must be from 3 to 7"),
    (["phases.student/rnnt_kd.stage=3"], "(stage 3) must be in a later stage than teacher/deep"),
    (["phases.teacher/rnnt.init_from=teacher/las", "phases.teacher/rnnt.stage=4"],
     "`phases.teacher/rnnt` and `phases.teacher/las` must not both need each other; see `init_from`"),
    (["models.student.encoder.dim=192"], "`models.student` (1,"),
    (["decode.arpa=/no/such.arpa"], "`decode.arpa` (/no/such.arpa) must exist"),
])  # fmt: skip
def test_plan_says_what_cannot_be(override, said):
    with pytest.raises(ConfigError) as e:
        check_plan(plan_of(MINI, *override), range(11))
    assert said in str(e.value)


def test_generations_must_get_smaller_and_not_need_what_is_left_out():
    conf = RECIPE / "conf" / "mini_progressive.yaml"
    check_plan(plan_of(conf, baseline=False), range(11))
    same_size = ["models.tiny.encoder.dim=128", "models.tiny.attention_decoder.dim=128"]
    with pytest.raises(ConfigError, match=r"`models.tiny` \(\d+,\d+ .*\) must be smaller than student .*; shrink it"):
        check_plan(plan_of(conf, *same_size), range(11))
    check_plan(plan_of(conf, *same_size), range(3))
    with pytest.raises(ConfigError, match="`phases.tiny/rnnt_kd` must not .*student_copy/deep.*--baseline true"):
        check_plan(plan_of(conf, "phases.tiny/rnnt_kd.teacher=student_copy/deep", baseline=False), range(11))


def test_marker_of_another_config_says_whose_it_is(tmp_path):
    mini = replace(plan_of(MINI), experiment=tmp_path)
    for path in mini.outputs(8):
        path.parent.mkdir(parents=True)
        path.touch()
    write_marker(mini, 8, seconds=1)
    assert is_done(mini, 8)
    write_marker(replace(mini, cfg=replace(mini.cfg, name="my_mini")), 8, seconds=1)  # which has the same settings
    assert why_again(mini, 8) == "it is of another config, my_mini" and not is_done(mini, 8)


LSTM = ["models.teacher.decoder.kind=lstm", "models.student.decoder.kind=lstm"]
BIG_STUDENT = ["models.student.decoder.kind=lstm", "min_reduction=0.5"]
NOTHING_REPORTED = [*(f"phases.{phase}.report_as=null" for phase in load_config(MINI).phases), "claims=[]"]


@pytest.mark.parametrize("overrides, stages, said", [
    # stages 8 and 9
    (NOTHING_REPORTED, [8], "`phases.*.report_as` must name at least one system"),
    (NOTHING_REPORTED, [9], "(--stop-stage 7)"),
    (LSTM, [8], "`decode.searches` (fast_beam_search, fast_beam_search_LG) must have systems to decode"),
    (["export.systems=[]"], [8], "say decode.searches=[], or name systems in `decode.search_systems`"),
    ([*BIG_STUDENT, "decode.search_systems=[student]"], [8], "`models.student.decoder.kind`"
     " (lstm) must be stateless for fast_beam_search, fast_beam_search_LG"),
    (["decode.search_systems=[student_copy]"], [8], "`decode.search_systems` (student_copy) must not be the"),
    # stage 10
    (LSTM, [10], "`models.teacher.decoder.kind` (lstm) must be stateless for stage 10, since"),
    (BIG_STUDENT, [10], "leave student out of `export.systems` (export.systems=[]: nothing is"
     " exported), or stop before (--stop-stage 9)"),
    (NOTHING_REPORTED + ["phases.student_copy/deep.report_as=student_copy"], [10], "`export.systems` must name what"),
    (["export.systems=[student_copy]"], [10], "`export.systems` (student_copy) must not be the baseline's"),
])  # fmt: skip
def test_no_stage_is_left_to_find_that_it_cannot_run(overrides, stages, said):
    plan = plan_of(MINI, *overrides, baseline=False)
    with pytest.raises(ConfigError) as e:
        check_plan(plan, stages)
    assert said in str(e.value)
    check_plan(plan, [stage for stage in range(8) if stage not in stages])


@pytest.mark.parametrize("missing, stages, said", [
    ("sherpa_onnx", range(11), "stage 10 needs sherpa-onnx, which is not installed; do `pip install sherpa-onnx`"),
    ("kaldingram", range(9), "fast_beam_search_LG needs kaldingram"),
    ("jinja2", [9], "stop before (--stop-stage 8)"),
])  # fmt: skip
def test_a_package_that_a_stage_lacks_is_an_error_before_the_first_stage(monkeypatch, missing, stages, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(ConfigError) as e:
        check_plan(plan_of(MINI), stages)
    assert said in str(e.value)
    check_plan(plan_of(MINI), range(8))


def test_without_k2_its_searches_are_left_out_which_is_said(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "k2" else name)
    check_plan(plan_of(MINI), range(11))
    assert "note: k2 is not installed, so that stage 8 leaves out fast_beam_search" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((RECIPE / "conf").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_yaml_can_run_all_stages(path):
    plan = plan_of(path)
    check_plan(plan, range(11))
    assert plan.has_nothing_to_do(10) == path.stem.endswith("_lstm")


def test_plan_knows_phases_systems_and_what_they_need():
    plan = plan_of(TINY)
    assert plan.parts() == ["train-clean", "dev-clean", "test-clean", "test-other"]
    assert plan.needs("student/deep") == ["student/las_kd", "teacher/deep"] and plan.needs("teacher/rnnt") == []
    assert [plan.phases(n) for n in (0, 3, 7)] == [[], ["teacher/rnnt"], ["student/deep", "student_copy/deep"]]
    assert plan.systems()["student_copy"] == "student_copy/deep" and plan.needs("student") == ["student/deep"]
    assert plan.settings(3) == fingerprint(plan.cfg, 3)
    without = plan_of(TINY, baseline=False)
    assert "student_copy" not in without.systems() and without.phases(7) == ["student/deep"]


def test_plan_inputs_are_outputs_of_the_stages_that_they_name():
    plan = plan_of(TINY, "corpus.musan=true")
    for stage in range(11):
        assert all(path in plan.outputs(maker) for maker, path in plan.inputs(stage))
    makers = [sorted({maker for maker, _ in plan.inputs(stage)}) for stage in range(11)]
    assert makers == [[], [0], [1], [2], [2, 3, 4], [2, 4], [2, 4, 5], [2, 4, 6], [2, 4, 5, 6, 7], [8],
                      [2, 4, 5, 6, 7, 8]]  # fmt: skip


def test_plan_does_not_import_torch():
    code = "import sys, twopass_kd.bin.run_stages; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=RECIPE, check=True)


def test_where_data_are_new_all_seeds_are_tasks_of_slurms_arrays(monkeypatch):
    settings = ["seeds=[1, 2]", "slurm.feature_jobs=1"]
    plans = [plan_of(TINY, *settings, f"seed={seed}") for seed in (1, 2)]
    args = argparse.Namespace(
        force=False, dry_run=False, stop_stage=8, world_size=1, nnodes=1, conf="tiny", overrides=settings
    )
    monkeypatch.setattr(slurm, "is_done", lambda plan, stage: stage > 2)
    jobs = slurm.chain(StageRun(plans, args, [], plans[0]), args, ["./run.sh"], 0)
    arrays = [option for job in jobs for option in job.options if option.startswith("--array")]
    assert arrays == ["--array=0,1"] * 6
