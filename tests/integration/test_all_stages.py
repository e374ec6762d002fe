"""All stages of run.sh on a few dozen synthetic utterances with tiny models, and what they must leave."""

import importlib.util
import json
import shutil
import subprocess

import pytest
import torch
import yaml

from run_sh import RECIPE, TINY, command, environment, ok
from twopass_kd.data.conditions import CONDITIONS
from twopass_kd.models.checkpoint import load_checkpoint

HAS_K2 = importlib.util.find_spec("k2") is not None
SYSTEMS = ("teacher", "student_copy", "student_stage1", "student_stage2", "student")
SETS = ("dev-clean", "test-clean", "test-other")
PHASES = ("teacher/rnnt", "teacher/las", "student/rnnt_kd", "student/las_kd", "student/deep",
          "student_copy/rnnt", "student_copy/las", "student_copy/deep")  # fmt: skip


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def copied(tiny_experiment, tmp_path):
    """A copy of the experiment to change, and the arguments of run.sh for it."""
    shutil.copytree(tiny_experiment.folder, tmp_path / "exp" / "tiny", symlinks=True)
    return tmp_path / "exp" / "tiny", [*tiny_experiment.args, "--exp-dir", tmp_path / "exp"]


def test_run_sh_ctrl_c_saves_and_goes_on(tiny_experiment):
    experiment, _, interrupted, output = tiny_experiment
    assert interrupted["status"] == 130, interrupted["output"]
    assert "the same command goes on from here" in interrupted["output"]
    assert not interrupted["final"] and interrupted["done"] == ["0.done", "1.done", "2.done"]
    assert output.count("done already") == 3
    epochs = [m["epoch"] for m in jsonl(experiment / "teacher" / "rnnt" / "metrics.jsonl") if m["split"] == "valid"]
    assert epochs == list(range(1, 13))  # none lost, none twice


def test_run_sh_of_several_seeds_trains_what_is_new_and_reports_on_all(tiny_experiment, tmp_path):
    folder = tmp_path / "exp" / "tiny"
    shutil.copytree(tiny_experiment.folder, folder / "seed-42", symlinks=True)  # as the docs say
    args = [*tiny_experiment.args, "--exp-dir", tmp_path / "exp", "--seeds", 2]
    said = ok(*args, "--stage", 9, "--stop-stage", 9)
    assert "seed-43 is left out of the report (stage 8 is not done)" in said and "lowest - highest) of seeds 42" in said
    assert json.loads((folder / "seeds.json").read_text())["unfinished"] == [43]

    said = ok(*args, "--stop-stage", 9, timeout=900)
    assert all(f"seed-42: Stage {stage}: done already" in said for stage in range(3, 10))
    assert "seed-42/" not in said.replace(str(folder), "") and "  seed-43/teacher/rnnt: " in said
    digests = [load_checkpoint(folder / f"seed-{n}" / "teacher/rnnt/final.pt")["weights_digest"] for n in (42, 43)]
    assert digests[0] != digests[1]
    results = json.loads((folder / "seeds.json").read_text())
    assert results["seeds"] == [42, 43] and results["unfinished"] == [] and len(results["systems"]) == 5
    assert all(claim["seeds"] == 2 and claim["verdict"] == "undecided" for claim in results["claims"])
    assert (folder / "seed-43" / "report.html").is_file() and (folder / "seeds.html").is_file()

    said = ok(*args, "--stage", 3, "--stop-stage", 9)
    assert said.count(": done already") == 14 and "lowest - highest) of seeds 42, 43" in said


def test_run_sh_training_leaves_checkpoints_config_and_metrics(tiny_experiment):
    experiment = tiny_experiment.folder
    for phase in PHASES:
        folder = experiment / phase
        for name in ("config.yaml", "metrics.jsonl", "train.log", "tensorboard", "final.pt"):
            assert (folder / name).exists(), (phase, name)
        cfg = yaml.safe_load((folder / "config.yaml").read_text())
        assert cfg["name"] == "tiny" and cfg["phases"]["teacher/rnnt"]["num_epochs"] == 12
        last_epoch = cfg["phases"][phase]["num_epochs"]
        content = torch.load(folder / f"epoch-{last_epoch}.pt", map_location="cpu", weights_only=True)
        assert {"model", "optimizer", "scheduler", "sampler", "config"} <= set(content)
        records = jsonl(folder / "metrics.jsonl")
        assert {r["split"] for r in records} == {"train", "valid"}
        for record in records:
            assert {"split", "epoch", "step", "lr", "seconds", "loss", "terms"} <= set(record)
            expected = cfg["phases"][phase]["loss_scales"]
            assert set(record["terms"]) == set(expected)


def test_run_sh_decoding_leaves_icefall_files_for_every_system(tiny_experiment):
    experiment = tiny_experiment.folder
    for system in SYSTEMS:
        folder = experiment / "decode" / system
        passes = ["greedy_search", "first_pass"] + ["two_pass"] * (system != "student_stage1")
        searched = system in ("teacher", "student")
        further = ["fast_beam_search", "fast_beam_search_LG"] if searched and HAS_K2 else []
        passes += [f"{name}{suffix}" for name in further for suffix in ("", "_two_pass")]
        kinds = ("recogs", "errs", "wer-summary")
        # Models that have learnt nothing may have no word right whose delay could be told.
        found = {p.name for p in folder.glob("*.txt") if not p.name.startswith("symbol-delay-summary-")}
        assert found == {f"{kind}-{s}-{p}.txt" for kind in kinds for s in SETS for p in passes}
        for part, count in zip(SETS, (6, 6, 6)):
            lines = (folder / f"recogs-{part}-first_pass.txt").read_text().splitlines()
            assert len([x for x in lines if "ref=" in x]) == len([x for x in lines if "hyp=" in x]) == count
        decoded = json.loads((folder / "decode.json").read_text())
        assert decoded["system"] == system and list(decoded["searches"]) == further
        assert ("needs k2" in (decoded["searches_left_out"] or "")) == (searched and not HAS_K2)
        for search in decoded["searches"].values():
            assert set(search["wer"]) == set(search["rtf"]) == set(SETS) and search["rescore_weight"] is not None
        parts = ("encoder", "decoder", "joiner", "attention_decoder")
        assert decoded["params"]["total"] == sum(decoded["params"][p] for p in parts)
        assert set(decoded["rtf"]) == set(decoded["audio_seconds"]) == set(SETS)
        assert (decoded["rescore_weight"] is None) == (system == "student_stage1")
        heard = decoded["conditions"]
        assert list(heard) == ([] if system.startswith("student_stage") else list(SETS[1:]))
        for by_condition in heard.values():
            assert list(by_condition) == ["clean", *(condition.name for condition in CONDITIONS)]


def test_run_sh_results_and_report(tiny_experiment):
    experiment, _, _, output = tiny_experiment
    results = json.loads((experiment / "results.json").read_text())
    assert [s["name"] for s in results["systems"]] == list(SYSTEMS)
    sizes = {s["name"]: s["params"]["total"] for s in results["systems"]}
    assert sizes["student"] == sizes["student_copy"] <= 0.5 * sizes["teacher"]
    assert results["compression"]["params"] == pytest.approx(1 - sizes["student"] / sizes["teacher"], abs=0.01)
    for system in results["systems"]:
        for part in ("test-clean", "test-other"):
            low, high = system["wer"][part]["first_pass"]["ci95"]
            assert low <= system["wer"][part]["first_pass"]["wer"] <= high
    assert {claim["set"] for claim in results["claims"]} == {"test-clean", "test-other"}
    assert all(claim["verdict"] != "not measured" for claim in results["claims"])
    assert [s["stage"] for s in results["stages"]] == list(range(11))
    for name in ("report.md", "report.html"):
        text = (experiment / name).read_text().replace("\\_", "_")
        assert "student_copy" in text and "./run.sh --conf" in text and "synthetic" in text.lower()
    assert f"{experiment}/report.html" in output and "student_copy" in output


def test_run_sh_exports_and_measures_on_the_device(tiny_experiment):
    experiment, _, _, output = tiny_experiment
    for system in ("teacher", "student"):
        folder = experiment / "export" / system
        exported = json.loads((folder / "export.json").read_text())
        assert {"encoder.onnx", "attention_decoder.int8.onnx", "tokens.txt", "cpu_jit.pt"} <= set(exported["files"])
        for streaming in exported["streaming"].values():
            assert streaming["same_greedy"] == streaming["utterances"] == 6
    measured = json.loads((experiment / "results.json").read_text())["on_device"]
    runtimes = ["pytorch", "onnx", "onnx-int8", "sherpa-onnx", "sherpa-onnx-int8"]
    assert [(r["system"], r["runtime"]) for r in measured["rows"]] == [
        (system, runtime) for system in ("teacher", "student") for runtime in runtimes
    ]
    for counts in measured["agreement"]["student"]["fp32"].values():
        assert counts["same"] == counts["of"] == 12
    assert "student int8 on disk" in output
    for name in ("report.md", "report.html"):
        assert "sherpa-onnx" in (experiment / name).read_text()


def test_run_sh_marks_and_logs_every_stage(tiny_experiment):
    experiment = tiny_experiment.folder
    for stage in range(11):
        assert json.loads((experiment / ".stages" / f"{stage}.done").read_text())["stage"] == stage
        log = (experiment / "log" / f"stage-{stage}.log").read_text()
        assert log.startswith("# ") and "\r" not in log


def test_run_sh_rerun_does_only_what_changed(copied):
    experiment, args = copied
    before = {p: p.stat().st_mtime_ns for p in experiment.rglob("*.pt")}
    assert ok(*args).count("done already") == 11
    assert "done already" not in ok(*args, "--stage", 9, "--stop-stage", 9, "--force")
    assert ok(*args).count("done already") == 11  # stage 10 reads nothing of stage 9
    output = ok(*args, "--stage", 7, "--stop-stage", 9, "phases.student/deep.base_lr=1.0e-3", "--baseline", "false")
    assert "Stage 7 runs again: its settings or folders changed" in output
    assert "Stage 8 runs again" in output and "Stage 9 runs again" in output
    changed = [p for p in before if not p.exists() or p.stat().st_mtime_ns != before[p]]
    assert {str(p.parent.relative_to(experiment)) for p in changed} == {"student/deep"}


def test_run_sh_exports_nothing_where_no_system_is_named(copied):
    _, args = copied
    output = ok(*args, "--stage", 10, "export.systems=[]")
    assert "Stage 10: nothing to export, since `export.systems` is []" in output and "report.html" in output


def test_run_sh_failing_phase_stops_its_neighbour(copied):
    experiment, args = copied
    (experiment / "student" / "rnnt_kd").rename(experiment / "kept")
    (experiment / "student" / "rnnt_kd").write_text("in the way")
    done = subprocess.run(
        command(*args, "--stage", 5, "--stop-stage", 5, "phases.student_copy/rnnt.num_epochs=100000"),
        env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: student/rnnt_kd failed" in done.stderr and "stage-5.log" in done.stderr
    assert not (experiment / "student_copy" / "rnnt" / "final.pt").exists()


def test_interrupted_training_ends_bit_for_bit_as_an_uninterrupted_one(tiny_experiment, tiny_data, tmp_path):
    train = ["python3", "-m", "twopass_kd.bin.train", "--conf", TINY, "--phase", "teacher/rnnt",
             "--data-dir", tiny_data.data_dir, "--exp-dir", tmp_path, "phases.teacher/rnnt.num_epochs=12"]  # fmt: skip
    in_its_environment = ["bash", "-c", '. ./path.sh && exec "$@"', "-", *map(str, train)]
    env = {**environment(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(in_its_environment, cwd=RECIPE, env=env, check=True, capture_output=True, timeout=120)
    whole = load_checkpoint(tmp_path / "tiny" / "teacher" / "rnnt" / "final.pt")
    resumed = load_checkpoint(tiny_experiment.folder / "teacher" / "rnnt" / "final.pt")
    assert whole["weights_digest"] == resumed["weights_digest"]
