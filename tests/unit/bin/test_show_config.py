import subprocess
import sys

import pytest
import yaml

from run_sh import RECIPE, TINY
from twopass_kd.bin.show_config import main, phases_to_train, plan, systems
from twopass_kd.config.fingerprint import fingerprint
from twopass_kd.config.load import load_config

MINI = RECIPE / "conf" / "mini.yaml"


def printed(capsys, *args) -> str:
    assert main(["--conf", str(MINI), *args]) == 0
    return capsys.readouterr().out


def test_show_config_whole_is_yaml_that_loads_again(capsys, tmp_path):
    (tmp_path / "mini.yaml").write_text(printed(capsys))
    assert load_config(tmp_path / "mini.yaml") == load_config(MINI)


def test_show_config_overrides_are_in_what_it_shows(capsys):
    assert yaml.safe_load(printed(capsys, "tokens.vocab_size=99"))["tokens"]["vocab_size"] == 99


def test_show_config_prints_the_plan(capsys):
    rows = dict(line.split("\t") for line in printed(capsys, "--plan").splitlines())
    assert rows["vocab_size"] == "128" and rows["test_parts"] == "test-clean test-other"
    assert rows["phases.5"] == "student/rnnt_kd student_copy/rnnt" and rows["phases.0"] == ""
    assert rows["fingerprint.3"] == fingerprint(load_config(MINI), 3)
    rows = dict(line.split("\t") for line in printed(capsys, "--plan", "--no-baseline").splitlines())
    assert rows["phases.5"] == "student/rnnt_kd"


@pytest.mark.parametrize("args, said", [
    (["--plan", "name=my run"], "must be made of letters"),
    (["--plan", "phases.student/deep.stage=9"], "must be from 3 to 7"),
    (["--plan", "phases.teacher/rnnt.init_from=teacher/las", "phases.teacher/rnnt.stage=4"], "or below it in the same"),
    (["nonsense"], "must look like key=value"),
])  # fmt: skip
def test_show_config_errors_are_one_line(capsys, args, said):
    assert main(["--conf", str(MINI), *args]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_show_config_plan_has_all_that_run_sh_reads():
    cfg = load_config(TINY)
    rows = dict(plan(cfg))
    assert rows["parts"].split() == ["train-clean", "dev-clean", "test-clean", "test-other"]
    assert rows["needs.student/deep"].split() == ["student/las_kd", "teacher/deep"]
    assert rows["stage.student/las_kd"] == "6"
    assert rows["needs.teacher/rnnt"] == "" and rows["cpu_ranks.teacher/rnnt"] == "2"
    assert [rows[f"phases.{n}"].split() for n in (3, 7)] == [["teacher/rnnt"], ["student/deep", "student_copy/deep"]]
    assert rows["phase.student_copy"] == "student_copy/deep"
    without = dict(plan(cfg, baseline=False))
    assert "student_copy" in rows["systems"].split() and "student_copy" not in without["systems"].split()
    assert phases_to_train(cfg, 7, baseline=False) == ["student/deep"]
    assert ["student", "student/deep"] in systems(cfg)


def test_show_config_does_not_import_torch():
    code = "import sys, twopass_kd.bin.show_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=RECIPE, check=True)
