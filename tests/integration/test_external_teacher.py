"""run.sh from stage 3 on with a teacher from outside: TorchScript with icefall's names, no attention decoder."""

import json
import subprocess

import pytest
import torch

from run_sh import RECIPE, TINY, environment, error, ok
from tiny import lively
from twopass_kd.config.load import load_config
from twopass_kd.export.torchscript import export_torchscript
from twopass_kd.models.checkpoint import build_model

STUDENTS = ("student_copy", "student_stage1", "student_stage2", "student")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data):
    """Stages 3 to 10 with a teacher in a folder of its own: (root, options, what run.sh printed)."""
    root = tmp_path_factory.mktemp("external")
    cfg = load_config(TINY)
    torch.manual_seed(0)
    (root / "teacher").mkdir()
    export_torchscript(lively(build_model(cfg, "teacher", 50).eval()), root / "teacher" / "cpu_jit.pt")
    tokens = (tiny_data.data_dir / "lang_bpe_50" / "tokens.txt").read_text(encoding="utf-8")
    (root / "teacher" / "tokens.txt").write_text(tokens, encoding="utf-8")
    options = [*tiny_data.options, "--exp-dir", root / "exp"]
    options += ["--teacher", "teacher/cpu_jit.pt"]  # from the caller's folder
    return root, options, ok(*options, "--stage", 3, timeout=900, cwd=root)


def test_run_sh_with_a_teacher_trains_students_only(finished):
    root, _, output = finished
    assert "Stage 3: nothing to train, the teacher is " in output and "Stage 4: nothing to train" in output
    assert not (root / "exp" / "tiny" / "teacher").exists()
    stage1 = (root / "exp" / "tiny" / "student" / "rnnt_kd" / "train.log").read_text()
    assert "decoder.embedding, decoder.conv, joiner.decoder_proj" in stage1 and "transducer_kd" in stage1
    for phase in ("las_kd", "deep"):
        log = (root / "exp" / "tiny" / "student" / phase / "train.log").read_text()
        assert "has no attention decoder: no LAS KD" in log
        terms = json.loads((root / "exp/tiny/student" / phase / "metrics.jsonl").read_text().splitlines()[0])["terms"]
        assert "attention" in terms and "attention_kd" not in terms


def test_run_sh_with_a_teacher_compares_first_passes(finished):
    root, _, output = finished
    results = json.loads((root / "exp" / "tiny" / "results.json").read_text())
    assert [s["name"] for s in results["systems"]] == ["teacher", *STUDENTS]
    assert results["systems"][0]["wer"]["test-clean"]["two_pass"] is None
    claims = [claim for claim in results["claims"] if claim["against"] == "teacher"]
    assert [(claim["set"], claim["pass_name"]) for claim in claims] == [
        ("test-clean", "first_pass"), ("test-other", "first_pass")
    ]  # fmt: skip
    assert all(claim["verdict"] in ("shown", "refuted", "undecided") for claim in claims)
    for against in ("first pass WER is less than 10% above teacher's: ", "two-pass WER is below student_copy's: "):
        assert f"student's {against}" in output
    assert [p.parent.name for p in (root / "exp" / "tiny" / "export").glob("*/export.json")] == ["student"]
    assert (root / "exp" / "tiny" / "report.html").is_file()


def test_run_sh_with_a_teacher_is_done_when_it_is_done(finished):
    root, options, _ = finished
    assert ok(*options, "--stage", 5, cwd=root).count("done already") == 6


def test_scan_of_the_frame_shift_prints_the_nearest(finished, tiny_data):
    root, _, _ = finished
    teacher = f"external_teacher.path={root / 'teacher' / 'cpu_jit.pt'}"
    scan = ["python3", "-m", "twopass_kd.bin.scan_frame_shift", "--conf", TINY, "--data-dir",
            tiny_data.data_dir, "--exp-dir", root / "exp", "--max-shift", 2, teacher]  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", '. ./path.sh && exec "$@"', "-", *map(str, scan)], cwd=RECIPE, env=environment(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:6]]
    losses = {int(row[0]): float(row[1]) for row in rows}
    assert list(losses) == [-2, -1, 0, 1, 2]
    nearest = min(losses, key=losses.get)
    assert [row[0] for row in rows if "nearest" in row] == [str(nearest)]
    assert f"distil with kd.frame_shift={nearest}" in done.stdout


def test_run_sh_with_a_teacher_that_is_no_file_is_an_error(finished):
    assert "`--teacher` (" in error("--conf", TINY, "--teacher", "nowhere.pt")
