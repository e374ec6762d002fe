"""Environments that broke run.sh: other encodings, no home, no user's name, CDPATH, little shared memory."""

import subprocess

import pytest

from run_sh import RECIPE, ROOT, TINY, environment, ok
from small_corpus import PARTS
from twopass_kd.config import cli

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_paths_and_words_beyond_ascii_in_an_ascii_locale(tmp_path):
    conf = tmp_path / "cönf.yaml"
    conf.write_text(f"base: {TINY}\nname: nämé\n", encoding="utf-8")
    said = ok("--conf", conf, "--exp-dir", tmp_path / "é", "--dry-run", "decode.hotwords=[ÉTÉ]", **ASCII)
    assert "twopass_kd.bin.train" in said
    show = 'python3 -m twopass_kd.bin.show_config --conf "$1" decode.hotwords=[ÉTÉ]'
    assert "name: nämé" in with_path_sh(show, conf, **ASCII) and "[ÉTÉ]" in with_path_sh(show, conf, **ASCII)


def with_path_sh(shell, *args, unset=(), **env):
    env = {k: v for k, v in {**environment(), **env}.items() if k not in unset}
    command = ["bash", "-c", f"set -eu; . ./path.sh; {shell}", "bash", *map(str, args)]
    done = subprocess.run(command, cwd=RECIPE, env=env, capture_output=True, encoding="utf-8", check=True)
    return done.stdout


def test_a_user_without_home_and_name_gets_them(tmp_path):
    (tmp_path / "id").write_text('#!/bin/sh\n[ "$1" = -u ] && echo 12345\n')
    (tmp_path / "id").chmod(0o755)
    path = f"{tmp_path}:{environment()['PATH']}"
    shell = 'echo "$HOME $LOGNAME"'
    assert with_path_sh(shell, PATH=path, TMPDIR="/tmp", unset=("HOME", "LOGNAME")) == "/tmp 12345\n"
    assert with_path_sh(shell, HOME="/home/a", LOGNAME="a") == "/home/a a\n"


def test_warnings_are_not_errors():
    """Libraries warn of their own age while they are imported."""
    shell = 'echo "<${PYTHONWARNINGS:-}>"'
    assert with_path_sh(shell, PYTHONWARNINGS="error") == "<>\n"
    assert with_path_sh(shell, PYTHONWARNINGS="ignore") == "<ignore>\n"


def test_optimised_python_keeps_what_help_shows():
    assert "synthetic" in with_path_sh("python3 local/synthesize_corpus.py --help", PYTHONOPTIMIZE="2").lower()


def test_cdpath_leads_nowhere_else(tmp_path):
    where = RECIPE.relative_to(ROOT)
    (tmp_path / where).mkdir(parents=True)
    env = {**environment(), "CDPATH": str(tmp_path)}
    done = subprocess.run(
        ["bash", where / "run.sh", "--conf", TINY, "--dry-run"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "twopass_kd.bin.train" in done.stdout, done.stderr
    command = f'. "{where}/path.sh"; echo "$PYTHONPATH"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == f"{RECIPE}\n"


def test_words_that_are_no_numbers_are_not_taken_for_such():
    unusual = {"SLURM_CPUS_PER_TASK": "abc", "OMP_NUM_THREADS": "abc", "COLUMNS": "0", "POSIXLY_CORRECT": "1",
               "TMPDIR": "/nowhere", "BASH_ENV": "/nowhere", "GREP_OPTIONS": "--color=always"}  # fmt: skip
    assert "twopass_kd.bin.train" in ok("--conf", TINY, "--dry-run", **unusual)


def test_run_sh_may_be_edited_while_it_runs(tmp_path):
    """bash reads a script as it goes on."""
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    for path in RECIPE.iterdir():
        if path.name not in ("run.sh", "local"):
            (recipe / path.name).symlink_to(path)
    (recipe / "run.sh").write_bytes((RECIPE / "run.sh").read_bytes())
    (recipe / "local").mkdir()
    stage_1 = "open('run.sh', 'w').write(')\\n' * 20000)\n"
    (recipe / "local" / "prepare_manifests.py").write_text(stage_1)
    for part in PARTS:
        (tmp_path / "corpus" / part).mkdir(parents=True)
        for kind in ("recordings", "supervisions"):
            path = tmp_path / "data" / "manifests" / f"librispeech_{kind}_{part}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (path.parent / f"librispeech_checksums_{part}.tsv").touch()
    (tmp_path / "data" / ".stages").mkdir()
    command = ["bash", recipe / "run.sh", "--conf", TINY, "--corpus-dir", tmp_path / "corpus", "--stage", "1"]
    command += ["--stop-stage", "1", "--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "Stage 1: " in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 598) exited unexpectedly",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
        " shared memory. Please try to raise your shared memory limit.",
        "unable to write to file </torch_2046_1462750217_0>: No space left on device (28)",
        "unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)",
    ],
)
def test_little_shared_memory_is_an_error_that_says_what_to_do(text, capfd, monkeypatch):
    def job():
        raise RuntimeError(text)

    assert cli.exit_status(job) == 1
    assert cli.lost_worker(RuntimeError("CUDA error")) is None
    why = cli.lost_worker(RuntimeError(text))
    assert "train.num_workers=0" in why and "--shm-size" in why and "\n" not in why
    with pytest.raises(RuntimeError, match="CUDA"):
        cli.exit_status(lambda: (_ for _ in ()).throw(RuntimeError("CUDA error")))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 79.10 GiB total capacity)\nmore"),
        MemoryError(),
    ],
)
def test_little_memory_is_an_error_that_says_what_to_do(error, caplog):
    def job():
        raise error

    assert cli.exit_status(job) == 1
    (said,) = caplog.messages
    assert said.startswith("there is not enough memory (") and "train.max_duration" in said and "\n" not in said


def test_an_error_in_a_worker_is_one_line():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\nValueError: cut x-1 is bad\n"
    assert cli.without_traceback(ValueError(text)) == "ValueError: cut x-1 is bad"
    assert cli.without_traceback(ValueError("a\nb")) == "a\nb"
