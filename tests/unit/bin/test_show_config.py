import subprocess
import sys

import pytest
import yaml

from run_sh import RECIPE
from twopass_kd.bin.show_config import main
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


@pytest.mark.parametrize(
    "args, said", [(["name=my run"], "must be made of letters"), (["nonsense"], "look like key=value")]
)
def test_show_config_errors_are_one_line(capsys, args, said):
    assert main(["--conf", str(MINI), *args]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_show_config_does_not_import_torch():
    code = "import sys, twopass_kd.bin.show_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=RECIPE, check=True)
