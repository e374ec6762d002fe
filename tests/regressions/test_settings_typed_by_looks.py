"""Settings used to mean what YAML makes of their looks: NO was false, `run #2` `run`, an open bracket a traceback."""

import importlib
import sys

import pytest

from run_sh import RECIPE, ROOT, TINY, error
from twopass_kd.config.load import config_from_dict, config_to_dict, load_config, save_config
from twopass_kd.config.schema import ConfigError

WORDS = ["NO", "YES", "ON", "007", "1e3", "12:30", "2020-01-01", "0x10"]


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part] if isinstance(cfg, dict) else getattr(cfg, part)
    return cfg


@pytest.mark.parametrize(
    "override, value",
    [
        ("name=007", "007"),
        ("name=NO", "NO"),
        ("decode.arpa=/corpora/run #2: a/lm.arpa", "/corpora/run #2: a/lm.arpa"),
        ("decode.arpa=[x", "[x"),
        ("decode.arpa=${HOME}/\\${x}/\\", "${HOME}/\\${x}/\\"),
        ("decode.arpa=null", None),
        ("external_teacher.options=", ""),
        (f"decode.hotwords=[{','.join(WORDS)}]", WORDS),
        ("decode.hotwords=[ null , 'A, B', \"C\", DON'T, 'TIS,]", ["null", "A, B", "C", "DON'T", "'TIS"]),
        ("decode.hotwords=['TIS,'TWAS]", ["'TIS", "'TWAS"]),
        ("decode.hotwords=[]", []),
        ("slurm.cpu.options=[--exclude=node[1-3],--account=x]", ["--exclude=node[1-3]", "--account=x"]),
        ("slurm.gpu.time=24:00:00", "24:00:00"),
        ("train.max_duration=1e3", 1000.0),
        ("train.num_workers=010", 10),
        ("corpus.speed_perturb=[0.9, 1.1]", [0.9, 1.1]),
        ("export.systems=null", None),
        ("phases.teacher/las.loss_scales={attention: 1e-1, ctc: 0.25}", {"attention": 0.1, "ctc": 0.25}),
    ],
)
def test_an_override_is_of_the_schemas_type(tmp_path, override, value):
    needed = ["external_teacher.path=x"] * override.startswith("external")
    cfg = load_config(TINY, [*needed, override])
    found = value_of(cfg, override.split("=")[0])
    assert found == value
    save_config(cfg, tmp_path / "config.yaml")
    if not needed:  # which has replaced the teacher's phases in what is saved
        assert load_config(tmp_path / "config.yaml") == config_from_dict(config_to_dict(cfg)) == cfg


@pytest.mark.parametrize(
    "override, says",
    [
        ("corpus.train_parts=[train-clean", "must be a list in brackets"),
        ("corpus.train_parts=train", "must be a list in brackets"),
        ("decode.hotwords=[a,,b]", "between its commas"),
        ("decode.arpa=", "decode.arpa=null is for none"),
        ("decode.arpa=???", "must be text"),
        ("decode.arpa=\udcff", "must be in UTF-8"),
        ("train.max_duration=abc", "`train.max_duration` (abc) must be a finite number"),
        ("train.max_duration=nan", "(nan) must be a finite number"),
        ("train.ref_duration=", "() must be a finite number"),
        ("train.max_duration=", "train.max_duration=null is for none"),
        ("train.num_workers=1.0", "(1.0) must be a whole number"),
        ("corpus.musan=2", "(2) must be true or false"),
        ("corpus.speed_perturb=[0.9,x]", "(x) must be a finite number"),
        ("phases.student/deep.loss_scales={ctc: 1", "not valid YAML"),
        ("phases.student/deep.loss_scales={ctc: 1, ctc: 2}", "`ctc` is there twice"),
        ("phases.student/deep.loss_scales={ctc: a}", "loss_scales.ctc` (a) must be a finite number"),
        ("phases.student/deep=3", "must hold keys and values"),
        ("train.log_interval.x=3", "is not a key"),
        ("=3", "must look like key=value"),
        ("train", "must look like key=value"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override, says):
    with pytest.raises(ConfigError) as e:
        load_config(TINY, [override])
    shown = ascii(override)[1:-1] if "\udcff" in override else override
    assert says in str(e.value) and shown in str(e.value) and "\n" not in str(e.value)


def test_words_in_a_file_are_those_words(tmp_path):
    (tmp_path / "x.yaml").write_text(f"base: {TINY}\nname: 007\ndecode: {{hotwords: [{', '.join(WORDS)}, 'null']}}\n")
    cfg = load_config(tmp_path / "x.yaml")
    assert cfg.name == "007" and cfg.decode.hotwords == [*WORDS, "null"]


@pytest.mark.parametrize(
    "text, says",
    [
        (f"base: {TINY}\nname: é\n".encode("latin-1"), "x.yaml, line 2, must be in UTF-8"),
        (f"base: {TINY}\n".encode("utf-16"), "x.yaml, line 1, must be in UTF-8"),
        (f"base: {TINY}\n\tname: x", "x.yaml, line 2: "),
        (f"base: {TINY}\nname: a\nname: b", "x.yaml, line 3: `name` is there twice"),
        (f"base: {TINY}\n~: 3", "x.yaml, line 2: a key must be a word"),
        (f"base: {TINY}\ndecode: {{hotwords: [null]}}", 'in quotes, "null" is a word'),
        (f"base: {TINY}\ndecode:\n", "x.yaml: `decode` (null) must hold keys and values"),
        (f"base: {TINY}\ntrain: {{max_duration: abc}}", "x.yaml: `train.max_duration` (abc) must be a finite number"),
        (f"base: {TINY}\n---\nname: y", "x.yaml, line 2: "),
        (f"base: {TINY}\nkd: &x {{kind: *x}}", "x.yaml, line 2: "),
        ("base: x.yaml", "must not lead back"),
        ("base: nowhere.yaml", "`base` ("),
        ("base: [a]", "must be the name of a YAML file"),
        ("", "must hold keys and values"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it_and_the_place(tmp_path, text, says):
    (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as e:
        load_config(tmp_path / "x.yaml")
    assert says in str(e.value) and "x.yaml" in str(e.value) and "\n" not in str(e.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "x.yaml").write_bytes(f"base: {TINY}\n".encode("utf-8-sig"))
    assert load_config(tmp_path / "x.yaml").name == "x"


def test_run_sh_says_it_on_one_line():
    override = "corpus.train_parts=[train-clean"
    said = error("--conf", TINY, "--dry-run", override)
    assert said == f"error: override ({override}): the value must be a list in brackets, e.g. [a,b]\n"


BIN = [
    "decode",
    "estimate",
    "export",
    "benchmark_device",
    "report",
    "scan_frame_shift",
    "score",
    "show_config",
    "train",
]
LOCAL = ["compute_fbank", "download_corpus", "filter_cuts", "prepare_manifests", "synthesize_corpus", "train_bpe"]
BENCHMARKS = ["ddp_throughput", "resume_cost", "searches", "train_step"]
OPTIONS = {
    **dict.fromkeys(["decode", "export"], ["--system", "student"]),
    "train": ["--phase", "teacher/rnnt"],
    "compute_fbank": ["--data-dir", "none"],
    "download_corpus": ["--corpus-dir", "none"],
    "filter_cuts": ["--data-dir", "none"],
    "prepare_manifests": ["--data-dir", "none", "--corpus-dir", "none"],
    "synthesize_corpus": ["--corpus-dir", "none"],
    "train_bpe": ["--data-dir", "none"],
}


@pytest.mark.parametrize("program", [*(f"twopass_kd.bin.{name}" for name in BIN), *LOCAL, *BENCHMARKS])
def test_every_program_says_it_on_one_line(program, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(RECIPE / "local"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    options = OPTIONS.get(program.split(".")[-1], [])
    monkeypatch.setattr(sys, "argv", [program, "--conf", str(TINY), *options, "train.max_duration=abc"])
    module = importlib.import_module(program)
    try:
        status = module.main()
    except SystemExit as e:
        print(e.code, file=sys.stderr)
        status = 1
    said = capfd.readouterr().err
    assert status == 1 and "override (train.max_duration=abc): `train.max_duration` (abc)" in said
    assert "Traceback" not in said
