import subprocess
import sys
from pathlib import Path

import pytest

from run_sh import RECIPE, TINY
from twopass_kd.config.fingerprint import fingerprint
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import ConfigError
from twopass_kd.stages.plan import Plan

MINI = RECIPE / "conf" / "mini.yaml"


def plan_of(conf, *overrides, baseline=True):
    return Plan(load_config(conf, overrides), baseline, Path("corpus"), Path("data"), Path("exp") / conf.stem)


@pytest.mark.parametrize("override, said", [
    (["phases.student/deep.stage=9"], "must be from 3 to 7"),
    (["phases.teacher/rnnt.init_from=teacher/las", "phases.teacher/rnnt.stage=4"], "or below it in the same"),
    (["decode.arpa=/no/such.arpa"], "`decode.arpa` (/no/such.arpa) must exist"),
])  # fmt: skip
def test_plan_says_what_cannot_be(override, said):
    with pytest.raises(ConfigError) as e:
        plan_of(MINI, *override).check()
    assert said in str(e.value)


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
    plan = plan_of(TINY, "corpus.musan=true", "train.cache_frozen_encoders=false")
    for stage in range(11):
        assert all(path in plan.outputs(maker) for maker, path in plan.inputs(stage))
    makers = [sorted({maker for maker, _ in plan.inputs(stage)}) for stage in range(11)]
    assert makers == [[], [0], [1], [2], [2, 3, 4], [2, 4], [2, 4, 5], [2, 4, 6], [2, 4, 5, 6, 7], [8],
                      [2, 4, 5, 6, 7, 8]]  # fmt: skip


def test_plan_does_not_import_torch():
    code = "import sys, twopass_kd.bin.run_stages; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=RECIPE, check=True)
