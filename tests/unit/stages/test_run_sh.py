"""run.sh's options, checks and markers. The stages themselves: tests/integration/test_all_stages.py."""

import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from run_sh import RECIPE, TINY, environment, error, ok, run
from twopass_kd.bin import run_stages
from twopass_kd.config.load import load_config
from twopass_kd.stages.markers import write_marker
from twopass_kd.stages.plan import Plan
from twopass_kd.stages.run import StageRun

SMALL = ["corpus.synthesis.num_sentences=8", "corpus.synthesis.num_fragments=4", "corpus.synthesis.num_dev=2",
         "corpus.synthesis.num_test=2"]  # fmt: skip

MUSAN = ["corpus.musan=true"]


def dry(*args, **kwargs):
    return ok("--dry-run", "--conf", TINY, *args, **kwargs).splitlines()


def test_run_sh_help_lists_every_option_that_it_takes():
    taken = {option for action in run_stages.get_parser()._actions for option in action.option_strings}
    assert set(re.findall("^  (--[a-z-]+) ", ok("--help"), re.MULTILINE)) == taken and "--stop-stage" in taken


@pytest.mark.parametrize(
    "args, said",
    [
        (["--stge", "3"], ["`--stge` is not an option", "--stage --stop-stage --conf"]),
        (["--stage"], ["`--stage` must be followed by a value"]),
        (["--exp-dir", "--force"], ["`--exp-dir` must be followed by a value"]),
        (["--teacher", ""], ["`--teacher` must be followed by a value"]),
        (["--exp-dir="], ["`--exp-dir` must be followed by a value"]),
        (["--stage", "08"], ["`--stage` (08) must be a whole number from 0 to 10"]),
        (["--stage", "11"], ["`--stage` (11) must be a whole number from 0 to 10"]),
        (["--stage", "4", "--stop-stage", "3"], ["`--stop-stage` (3) must not be before `--stage` (4)"]),
        (["--nj", "0"], ["`--nj` (0)"]),
        (["--threads", "two"], ["`--threads` (two)"]),
        (["--baseline", "no"], ["`--baseline` (no) must be true or false"]),
        (["mini"], ["`mini` must be an option or key=value"]),
        (["--conf", "nope"], ["`--conf` (nope) must be a YAML file", " mini"]),
        (["--conf", TINY, "tain.max_duration=3"], ["`tain` is not a key", "`train`"]),
        (["--conf", TINY, "phases.student/deep.stage=4"], ["`phases.student/deep` (stage 4) must be in a later stage"]),
        (["--conf", TINY, "corpus.kind=folder"], ["`--corpus-dir` must name the corpus"]),
    ],
)
def test_run_sh_bad_arguments_say_what_to_do(args, said):
    message = error("--dry-run", *args)
    for words in said:
        assert words in message


def test_run_sh_dry_run_prints_the_commands_of_the_stages_asked_for():
    lines = dry("--stage", 3, "--stop-stage", 5, "--threads", 4, "train.max_duration=10")
    phases = [line.split("--phase ")[1].split()[0] for line in lines]
    assert phases == ["teacher/rnnt", "teacher/las", "teacher/deep", "student/rnnt_kd", "student_copy/rnnt"]
    assert [line.split()[0] for line in lines] == ["OMP_NUM_THREADS=4"] * 5
    assert all(line.endswith(" train.max_duration=10") for line in lines)


def test_run_sh_dry_run_of_everything_calls_each_program():
    lines = dry()
    programs = [next(w for w in line.split() if w.startswith(("local/", "twopass_kd.bin."))) for line in lines]
    data = ("get_corpus", "prepare_manifests", "compute_fbank", "train_bpe", "filter_cuts")
    assert programs[:5] == [f"local/{name}.py" for name in data]
    bins = [p.split(".")[-1] for p in programs[5:]]
    assert bins[:16] == ["train"] * 9 + ["decode"] * 5 + ["score", "report"]
    assert bins[16:] == ["export", "export", "benchmark_device", "score", "report"]
    files = {p if p.endswith(".py") else p.replace(".", "/") + ".py" for p in programs}
    assert [f for f in files if not (RECIPE / f).is_file()] == []


def test_run_sh_says_before_the_first_stage_that_the_last_one_cannot_run(tmp_path):
    options = ["--conf", TINY, "--corpus-dir", tmp_path / "c", "--data-dir", tmp_path / "d", "--exp-dir",
               tmp_path / "e", "models.student.decoder.kind=lstm"]  # fmt: skip
    said = error(*options)
    assert "`models.student.decoder.kind` (lstm) must be stateless for stage 10" in said
    assert "or stop before (--stop-stage 9)" in said and not list(tmp_path.iterdir())
    assert "sbatch" not in error(*options, "--launcher", "slurm") and not list(tmp_path.iterdir())
    assert "not done" in ok(*options, "--status")  # an older experiment's can still be seen
    assert "bin.decode --system student" in ok(*options, "--dry-run", "--stop-stage", 9)


def test_run_sh_ends_with_the_report_where_nothing_is_exported():
    lines = ok("--dry-run", "--conf", TINY, "export.systems=[]", "decode.searches=[]").splitlines()
    assert "twopass_kd.bin.report" in lines[-1] and not [line for line in lines if "export --" in line]
    assert len([line for line in lines if "twopass_kd.bin.report" in line]) == 1
    jobs = ok("--dry-run", "--conf", TINY, "export.systems=[]", "decode.searches=[]", "--launcher", "slurm")
    assert re.findall("--job-name=([^ ]*)", jobs)[-1] == "s9.tiny"


def test_run_sh_without_baseline_leaves_it_out():
    lines = dry("--stage", 5, "--baseline", "false")
    assert not [line for line in lines if "student_copy" in line]
    assert lines[0].startswith("OMP_NUM_THREADS=") and "--phase student/rnnt_kd" in lines[0]


def test_run_sh_of_several_seeds_makes_data_once_and_goes_to_the_device_once():
    lines = dry("--seeds", 2, "--exp-dir", "x")
    seeds = [line.split(" seed=")[1].split()[0] for line in lines if " seed=" in line]
    assert lines[0].endswith("'seeds=[42, 43]' seed=42") and sum("get_corpus" in line for line in lines) == 1
    trained = [line for line in lines if "bin.train" in line]
    assert len(trained) == 18 and sum(line.endswith("seed=43") for line in trained) == 9
    assert {line.split()[-1] for line in lines if "bin.export" in line or "benchmark_device" in line} == {"seed=42"}
    (report,) = (line for line in lines if "bin.report_seeds" in line)
    assert " --finished 42 43 --command './run.sh " in report and " seed=" not in report
    assert lines.index(report) < min(i for i, line in enumerate(lines) if "bin.export" in line)
    assert set(seeds) == {"42", "43"}


def test_run_sh_of_one_seed_among_others_makes_no_report_on_all():
    lines = dry("--seed", 7, "--stage", 3, "seeds=[5, 7]")
    assert all(line.endswith("'seeds=[5, 7]' seed=7") or "seeds=[5, 7]' seed=7" in line for line in lines)
    assert not [line for line in lines if "report_seeds" in line]


@pytest.mark.parametrize(
    "args, said",
    [
        (["--seeds", "0"], "`--seeds` (0) must be a whole number from 1"),
        (["--seeds", "2", "--seed", "44"], "`--seed` (44) must be one of the seeds: 42, 43"),
        (["--seed", "42"], "`--seed` (42) must be one of the seeds: there are none; say --seeds N"),
        (["seeds=[1, 2, 1]"], "`seeds` (1) must be there once"),
        (["seeds=[1, 2]", "seed=2"], "`seed=2` must not be given beside several seeds; for one of them say --seed 2"),
        (["seeds=[1, 2]", "--seeds", "3"], "`--seeds` (3) must not be given beside `seeds` (1, 2)"),
    ],
)
def test_run_sh_seeds_that_cannot_be(args, said):
    assert said in error("--dry-run", "--conf", TINY, *args)


def test_run_sh_submits_an_array_of_seeds_for_each_stage_that_trains_or_decodes():
    text = ok("--dry-run", "--conf", TINY, "--launcher", "slurm", "--seeds", 3, "slurm.feature_jobs=1")
    jobs = {re.search("--job-name=([^ ]*)", line)[1]: line for line in text.splitlines() if line.startswith("sbatch")}
    arrays = [name for name, line in jobs.items() if "--array=0,1,2" in line]
    assert arrays == [f"s{stage}.tiny" for stage in range(3, 9)]
    assert "--dependency=afterok:" in jobs["s3.tiny"] and "--dependency=aftercorr:" in jobs["s4.tiny"]
    assert "--dependency=afterany:" in jobs["s9.tiny"] and "--dependency=afterok:" in jobs["s10.tiny"]
    assert text.count('--seed "${seeds[$SLURM_ARRAY_TASK_ID]}"') == 6 and text.count("\nseeds=(42 43 44)\n") == 6


def test_run_sh_submits_one_seed_alone_and_any_seed():
    text = ok("--dry-run", "--conf", TINY, "--launcher", "slurm", "--seed", 20240, "--stage", 3, "seeds=[20240, 7]")
    assert "--array" not in text and " --seed 20240 " in text and "seed-20240/log" in text


def test_run_sh_external_teacher_of_two_generations(tmp_path):
    (tmp_path / "t.pt").touch()
    text = ok("--dry-run", "--conf", "mini_progressive", "--teacher", tmp_path / "t.pt", "--stage", 3)
    assert "teacher/rnnt" not in text and "--phase tiny/rnnt_kd" in text
    exported = {line.split("--system ")[1].split()[0] for line in text.splitlines() if "bin.export" in line}
    assert exported == {"student", "tiny"}


def test_run_sh_of_several_seeds_goes_on_with_those_that_are_decoded(tmp_path):
    options = ["--conf", TINY, "--data-dir", tmp_path / "data", "--exp-dir", tmp_path, "seeds=[1, 2]"]
    assert ok(*options, "--stage", 9, "--stop-stage", 9, "--dry-run").count("bin.score") == 2  # as if both were
    plan = Plan(load_config(TINY, ["seeds=[1, 2]", "seed=2"]), True, None, tmp_path / "data", tmp_path / "tiny/seed-2")
    for path in plan.outputs(8):
        path.parent.mkdir(parents=True)
        path.touch()
    write_marker(plan, 8, seconds=1)
    said = ok(*options, "--stage", 9, "--stop-stage", 9, "--dry-run")
    assert "seed-1 is left out of the report (stage 8 is not done)" in said
    assert re.findall("bin.score .*--exp-dir [^ ]* (?:.*)(seed=[0-9])", said) == ["seed=2"]
    status = ok(*options, "--status")
    assert re.findall("^8 .*?(not done|done)", status, re.MULTILINE) == ["not done", "done"] and "again" not in status
    plan.outputs(8)[0].unlink()
    assert f"but runs again: {plan.outputs(8)[0]} is missing" in ok(*options, "--status")
    settings = [*options, "decode.beam=3", "--status"]
    assert "but runs again: its settings or folders changed" in ok(*settings)


def test_run_sh_downloads_librispeech_into_its_usual_folders():
    lines = dry("--stop-stage", 2, "corpus.kind=librispeech")
    assert "local/get_corpus.py" in lines[0] and "--corpus-dir download/LibriSpeech" in lines[0]
    assert all("--data-dir data" in line for line in lines[1:] if line.startswith("OMP_NUM_THREADS="))


def test_run_sh_relative_paths_in_settings_are_the_callers(tmp_path):
    for name in ("my.arpa", "teacher.pt", "tokens.txt"):
        (tmp_path / name).touch()
    settings = ["decode.arpa=my.arpa", "external_teacher.path=teacher.pt", "external_teacher.tokens=tokens.txt"]
    text = ok("--dry-run", "--stage", 9, "--stop-stage", 9, *settings, cwd=tmp_path)
    for name in ("my.arpa", "teacher.pt", "tokens.txt"):
        assert f"={tmp_path}/{name}" in text
    assert "`decode.arpa` (" in error("--dry-run", "--stage", 9, "decode.arpa=no.arpa", cwd=tmp_path)
    ok("--dry-run", "--stage", 9, "decode.arpa=null", cwd=tmp_path)


def test_run_sh_folders_that_look_like_options_are_none():
    assert "--exp-dir ./-x" in dry("--stage", 9, "--stop-stage", 9, "--exp-dir", "-x", cwd=RECIPE)[0]


def test_run_sh_names_results_that_were_edited(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/results.json must be JSON.*run stage 9 again, with --force"):
        StageRun([Plan(None, True, None, tmp_path, tmp_path)], Namespace(force=False), []).show_results()


def test_run_sh_submits_no_jobs_for_stages_without_trainings(tmp_path):
    (tmp_path / "teacher.pt").touch()
    options = ["--dry-run", "--launcher", "slurm", "--teacher", tmp_path / "teacher.pt", "--stage"]
    text = ok(*options, 3, "--stop-stage", 5)
    assert "Stage 3: nothing to train" in text and text.count("sbatch") == 1 and "--job-name=s5.mini" in text
    assert "sbatch" not in ok(*options, 3, "--stop-stage", 4)
    text = ok(*options, 2, "--stop-stage", 5)
    assert re.findall("--job-name=([^ ]*)", text)[-2:] == ["s2.mini", "s5.mini"]


def test_run_sh_relative_paths_are_the_callers(tmp_path):
    (tmp_path / "my conf é").mkdir()
    shutil.copy(RECIPE / "conf" / "mini.yaml", tmp_path / "my conf é" / "own.yaml")
    text = ok("--dry-run", "--stage", 9, "--conf", "my conf é/own.yaml", "--exp-dir", "../x", cwd=tmp_path)
    first = text.splitlines()[0]
    assert f"--exp-dir {tmp_path.parent}/x" in first
    assert "own.yaml" in first


@pytest.mark.parametrize("stage, maker", [(1, 0), (2, 1), (3, 2), (4, 2), (8, 2), (9, 8), (10, 2)])
def test_run_sh_missing_input_names_the_stage_that_makes_it(tmp_path, stage, maker):
    message = error("--conf", TINY, "--stage", stage, "--corpus-dir", tmp_path / "c", "--data-dir", tmp_path / "d",
                    "--exp-dir", tmp_path / "e")  # fmt: skip
    assert f"stage {maker} makes it: ./run.sh --stage 0 --stop-stage {maker}" in message  # nothing at all is there
    assert not (tmp_path / "e").exists()


def test_run_sh_says_that_the_data_were_made_with_other_settings(tmp_path):
    """Once trained on without a word, e.g. without the copies of corpus.speed_perturb."""
    marker = tmp_path / "data" / ".stages" / "2.done"
    marker.parent.mkdir(parents=True)
    marker.write_text('{"stage": 2, "settings": "0123456789abcdef", "seconds": 1}\n')
    dirs = ["--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"]
    result = run("--conf", TINY, *dirs, "--stage", 3, "--stop-stage", 3)
    assert f"note: {tmp_path / 'data'} was made with other settings of corpus, features or tokens" in result.stdout


def test_run_sh_missing_teacher_names_its_stage(tmp_path):
    data = tmp_path / "the user's data"
    (data / ".stages").mkdir(parents=True)  # made by run.sh, so it is not read to be checked
    for name in ("fbank/librispeech_cuts_train-clean.jsonl.gz", "fbank/librispeech_cuts_dev-clean.jsonl.gz",
                 "lang_bpe_50/bpe.model", "lang_bpe_50/tokens.txt"):  # fmt: skip
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    message = error("--conf", TINY, "--stage", 5, "--data-dir", data, "--exp-dir", tmp_path / "e")
    made_by = "stage 4 makes it: ./run.sh --stage 3 --stop-stage 4"
    assert f"tiny/teacher/deep/final.pt is missing, which stage 5 reads; {made_by}" in message
    message = error("--conf", TINY, "--stage", 3, "--data-dir", data, "--exp-dir", tmp_path / "e", *MUSAN)
    assert "fbank/musan_cuts.jsonl.gz is missing, which stage 3 reads; stage 2 makes it" in message


def test_run_sh_tries_the_gpus_before_it_trains(tmp_path):
    data = tmp_path / "data"
    (data / ".stages").mkdir(parents=True)
    for name in ("fbank/librispeech_cuts_train-clean.jsonl.gz", "fbank/librispeech_cuts_dev-clean.jsonl.gz",
                 "lang_bpe_50/bpe.model", "lang_bpe_50/tokens.txt"):  # fmt: skip
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    python = tmp_path / "bin" / "python3"  # in which check_env finds a GPU that fails
    python.parent.mkdir()
    log = tmp_path / "calls"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *bin.check_env*) echo "$*" >{log}; echo "error: GPU 0 fails" >&2; exit 1 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    args = ["--conf", TINY, "--stage", 3, "--stop-stage", 3, "--data-dir", data, "--exp-dir", tmp_path / "e",
            "loss.backend=auto"]  # fmt: skip
    path = f"{python.parent}:{environment()['PATH']}"
    assert "error: GPU 0 fails" in error(*args, PATH=path, CUDA_VISIBLE_DEVICES="0")
    assert log.read_text() == f"-m twopass_kd.bin.check_env --conf {TINY} loss.backend=auto\n"
    assert not (tmp_path / "e" / "tiny" / "log").exists()
    log.unlink()
    assert "stage 3 (teacher RNN-T) failed" in error(*args, PATH=path, CUDA_VISIBLE_DEVICES="")
    assert not log.exists()  # there is no GPU


def test_run_sh_folder_corpus_without_its_parts_is_an_error(tmp_path):
    message = error("--conf", TINY, "corpus.kind=folder", "--corpus-dir", tmp_path, "--data-dir", tmp_path / "d",
                    "--exp-dir", tmp_path / "e", "--stop-stage", 0)  # fmt: skip
    assert f"`--corpus-dir` ({tmp_path}) must have a folder train-clean" in message


def test_run_sh_skips_what_is_done_and_reruns_what_changed(tmp_path):
    dirs = ["--corpus-dir", tmp_path / "a corpus é" / "LibriSpeech", "--data-dir", tmp_path / "the data é",
            "--exp-dir", tmp_path / "exp é 1"]  # fmt: skip
    args = ["--conf", TINY, *dirs, "--stop-stage", 1, *SMALL]
    first = ok(*args)
    assert "Stage 0: corpus" in first and "Stage 1: Lhotse manifests" in first and "done already" not in first
    marker = tmp_path / "the data é" / ".stages" / "1.done"
    content = json.loads(marker.read_text())
    assert content["stage"] == 1 and content["title"] == "Lhotse manifests"
    assert content["seconds"] >= 0 and content["fingerprint"] and content["finished"]
    experiment = tmp_path / "exp é 1" / "tiny"
    assert json.loads((experiment / ".stages" / "1.done").read_text()) == content
    assert (experiment / "log" / "stage-1.log").stat().st_size > 0

    again = ok(*args)
    assert again.count("done already") == 2

    # another experiment on the same data has nothing to do either, and knows the times
    args[args.index("--exp-dir") + 1] = tmp_path / "exp2"
    assert ok(*args).count("done already") == 2
    assert json.loads((tmp_path / "exp2" / "tiny" / ".stages" / "0.done").read_text())["stage"] == 0

    changed = ok(*args, "corpus.max_left_out=0.02")
    assert "Stage 0 runs again: its settings or folders changed" in changed and "Stage 1 runs again" in changed

    ok(*args, "corpus.max_left_out=0.02", "--stop-stage", 0, "--force")
    assert "Stage 1 runs again: stage 0 ran since" in ok(*args, "corpus.max_left_out=0.02")

    lost = next((tmp_path / "the data é" / "manifests").glob("*supervisions*"))
    lost.unlink()
    assert f"{lost} is missing" in ok(*args, "corpus.max_left_out=0.02")
    assert lost.is_file()

    forced = ok(*args, "corpus.max_left_out=0.02", "--force")
    assert "done already" not in forced and "runs again" not in forced


def test_run_sh_failing_stage_shows_the_end_of_its_log_and_is_not_done(tmp_path):
    corpus = tmp_path / "c"
    for part in ("train-clean", "dev-clean", "test-clean", "test-other"):
        (corpus / part).mkdir(parents=True)
    dirs = ["--corpus-dir", corpus, "--data-dir", tmp_path / "d", "--exp-dir", tmp_path / "e"]
    message = error("--conf", TINY, "--stage", 1, "--stop-stage", 1, *dirs)
    log = tmp_path / "e" / "tiny" / "log" / "stage-1.log"
    assert f"stage 1 (Lhotse manifests) failed; its log: {log}" in message
    assert log.read_text().splitlines()[-1] in message
    assert not (tmp_path / "d" / ".stages").exists()


@pytest.fixture
def icefall(tmp_path) -> Path:
    """A folder that looks like an icefall checkout, with the recipe linked into it."""
    root = tmp_path / "my icefall"
    (root / "icefall").mkdir(parents=True)
    (root / "icefall" / "__init__.py").write_text("found = True\n")
    (root / "egs" / "librispeech").mkdir(parents=True)
    (root / "egs" / "librispeech" / "twopass_kd").symlink_to(RECIPE)
    return root


def imports_icefall(folder, **env) -> subprocess.CompletedProcess:
    shell = ". ./path.sh && cd / && python3 -c 'import icefall, twopass_kd; print(icefall.__file__)'"
    return subprocess.run(
        ["bash", "-euc", shell], cwd=folder, env={**environment(), **env}, capture_output=True, text=True
    )


def test_path_sh_finds_icefall_around_a_linked_recipe(icefall):
    link = icefall / "egs" / "librispeech" / "twopass_kd"
    done = imports_icefall(link, PWD=str(link))
    assert done.stdout.strip() == str(icefall / "icefall" / "__init__.py"), done.stderr


def test_path_sh_finds_icefall_around_a_copied_recipe(icefall):
    link = icefall / "egs" / "librispeech" / "twopass_kd"
    link.unlink()
    ignore = shutil.ignore_patterns("data", "exp*", "download", "__pycache__")
    shutil.copytree(RECIPE, link, ignore=ignore)
    done = imports_icefall(link)
    assert done.stdout.strip() == str(icefall / "icefall" / "__init__.py"), done.stderr
    lines = subprocess.run(
        [link / "run.sh", "--dry-run", "--stage", "9"], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "--conf conf/mini.yaml" in lines


def test_path_sh_takes_icefall_root(icefall):
    assert imports_icefall(RECIPE, ICEFALL_ROOT=str(icefall)).stdout.strip().endswith("my icefall/icefall/__init__.py")
    wrong = imports_icefall(RECIPE, ICEFALL_ROOT=str(icefall / "egs"))
    assert wrong.returncode != 0
    assert "`ICEFALL_ROOT`" in wrong.stderr and "must be an icefall checkout" in wrong.stderr


def test_path_sh_without_an_environment_says_what_to_do(tmp_path):
    recipe = tmp_path / "egs" / "librispeech" / "twopass_kd"
    recipe.mkdir(parents=True)
    for name in ("run.sh", "path.sh", "cmd.sh", "conf"):
        source = RECIPE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, recipe / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    done = subprocess.run(
        [recipe / "run.sh", "--dry-run"], env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "`import pydantic, lhotse` fails in" in done.stderr
    assert "make venv" in done.stderr and "pip install -e" in done.stderr


@pytest.mark.parametrize(
    ("imports", "there", "taken"),
    [
        ("pydantic, lhotse", [".venv", ".venv-torch2"], "active"),
        ("k2, lhotse", [".venv", ".venv-torch2"], ".venv"),
        ("nothing", [".venv", ".venv-torch2"], ".venv"),
        ("nothing", [".venv-torch2"], ".venv-torch2"),
    ],
)
def test_path_sh_takes_active_environment_then_venv_then_torch2(tmp_path, imports, there, taken):
    recipe = tmp_path / "egs" / "librispeech" / "twopass_kd"
    recipe.mkdir(parents=True)
    shutil.copy(RECIPE / "path.sh", recipe)
    for name in ("active", *there):
        python = tmp_path / name / "bin" / "python3"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\n[ "$2" = "import {imports}" ]\n')
        python.chmod(0o755)
    path = f"{tmp_path}/active/bin:/usr/bin:/bin"
    code = f'. "{recipe}/path.sh" && command -v python3'
    env = {"PATH": path, "VIRTUAL_ENV": f"{tmp_path}/active"}
    done = subprocess.run(["bash", "-c", code], env=env, capture_output=True, text=True)
    assert ("lacks pydantic or lhotse, so" in done.stderr) == (taken != "active")
    assert done.stdout.strip() == str(tmp_path / taken / "bin" / "python3"), done.stderr


def test_run_sh_needs_no_environment_for_help():
    assert run("--help", PATH="/usr/bin:/bin").returncode == 0
