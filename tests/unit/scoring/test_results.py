import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_experiment import SIZES, SYSTEMS, speaker, write_fake_experiment
from twopass_kd.bin import score
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config
from twopass_kd.scoring.results import (
    build_results,
    ignored_systems,
    load_results,
    write_results,
)
from twopass_kd.scoring.summary import summary_text
from twopass_kd.scoring.wer import corpus_wer, paired_bootstrap, read_recogs, score_wer

RECIPE = Path(__file__).parents[3] / "egs/librispeech/twopass_kd"
CONF = RECIPE / "conf/mini.yaml"


@pytest.fixture(scope="module")
def cfg() -> Config:
    return load_config(CONF, ["decode.bootstrap_samples=300"])


@pytest.fixture(scope="module")
def scored(cfg: Config, tmp_path_factory):
    experiment = write_fake_experiment(tmp_path_factory.mktemp("exp"), cfg)
    return experiment, build_results(cfg, experiment, progress=False)


def recogs(experiment: Path, system: str, set_name: str, suffix: str):
    return read_recogs(experiment / "decode" / system / f"recogs-{set_name}-{suffix}.txt")


def test_build_results_has_the_schema_of_the_design(scored):
    _, results = scored
    results = json.loads(json.dumps(results.model_dump()))
    assert {"conf", "corpus", "seed", "environment", "systems", "compression", "claims"} <= set(results)
    assert results["conf"] == "mini" and results["seed"] == 42
    assert results["corpus"]["kind"] == "mini" and results["corpus"]["synthetic"] is True
    assert [s["name"] for s in results["systems"]] == list(SYSTEMS)
    for system in results["systems"]:
        assert {"name", "phase", "params", "bytes", "wer", "rtf", "train_seconds"} <= set(system)
        for per_set in system["wer"].values():
            assert {"greedy_search", "first_pass", "two_pass", "ref_words"} <= set(per_set)
    assert [(c["against"], c["set"]) for c in results["claims"]] == [
        (against, name) for against in ("teacher", "student_copy") for name in ("test-clean", "test-other")
    ]
    assert results["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    json.dumps(results, allow_nan=False)


def test_build_results_numbers_are_those_of_the_transcripts(scored):
    experiment, results = scored
    student = results.systems[-1]
    for suffix in ("greedy_search", "first_pass", "two_pass"):
        rows = recogs(experiment, "student", "test-other", suffix)
        speakers = {cut_id: speaker(cut_id) for cut_id, _, _ in rows}
        expected = score_wer(rows, 300, seed=42, speakers=speakers)
        assert expected.ci95 != score_wer(rows, 300, seed=42).ci95
        entry = student.wer["test-other"][suffix]
        assert entry == expected
    assert student.wer["test-other"].ref_words == corpus_wer(rows).ref_words


def test_build_results_claims_are_of_the_student_minus_the_other(scored):
    experiment, results = scored
    student, copied = (recogs(experiment, s, "test-clean", "two_pass") for s in ("student", "student_copy"))
    expected = paired_bootstrap(copied, student, 300, seed=42)
    found = next(c for c in results.claims if (c.against, c.set) == ("student_copy", "test-clean"))
    assert found.by_speaker is True and found.clusters == 7
    assert found.delta_wer == pytest.approx(expected.delta_wer) and found.delta_wer < 0


def test_build_results_compression(scored):
    expected = 1 - sum(SIZES["student"]) / sum(SIZES["teacher"])
    assert scored[1].compression.model_dump() == {
        "system": "student",
        "params": pytest.approx(expected),
        "bytes": pytest.approx(expected),
    }


def test_compression_is_of_the_smallest_system_that_is_exported(tmp_path: Path):
    cfg = load_config(CONF, ["decode.bootstrap_samples=20", "export.systems=[teacher, student, student_copy]"])
    experiment = write_fake_experiment(tmp_path, cfg)
    for name, share in (("student_copy", 0.2), ("student_stage1", 0.1)):  # the second is not exported
        path = experiment / f"decode/{name}/decode.json"
        content = json.loads(path.read_text())
        content["params"] = {part: int(share * size) for part, size in content["params"].items()}
        path.write_text(json.dumps(content))
    results = build_results(cfg, experiment, progress=False)
    assert results.smallest == results.compression.system == "student_copy" and results.compression.params > 0.8


def test_build_results_stage1_has_no_second_pass(scored):
    stage1 = next(s for s in scored[1].systems if s.name == "student_stage1")
    assert stage1.wer["test-clean"].two_pass is None and stage1.wer["test-clean"].first_pass.wer > 0


def test_build_results_stages_in_order(scored):
    assert [s.stage for s in scored[1].stages] == list(range(9))
    assert scored[1].stages[3].model_dump() == {
        "stage": 3,
        "title": "title of 3",
        "seconds": 402,
        "finished": "2026-01-01T03:00:00",
    }


def test_build_results_stage_without_a_title(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    (experiment / ".stages/3.done").write_text('{"stage": 3, "seconds": 1, "finished": "now"}')
    titles = [s.title for s in build_results(cfg, experiment, progress=False).stages]
    assert titles[2:5] == ["title of 2", "stage 3", "title of 4"]


def test_build_results_ignores_systems_that_the_config_no_longer_reports(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["teacher", "student"], num_utts=5)
    assert ignored_systems(cfg, experiment) == []
    shutil.move(experiment / "decode/teacher", experiment / "decode/old_teacher")
    assert ignored_systems(cfg, experiment) == ["old_teacher"]
    results = build_results(cfg, experiment, progress=False)
    assert [s.name for s in results.systems] == ["student"] and "teacher" in results.not_decoded
    shutil.rmtree(experiment / "decode/student")
    with pytest.raises(ValueError, match=r"must hold decoded systems of the config \(teacher, .*stage 8"):
        build_results(cfg, experiment, progress=False)


def test_build_results_of_a_retrained_checkpoint_names_stage_8(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    path = experiment / "student/deep/identity"
    path.write_text("another")
    with pytest.raises(
        ValueError, match=r"student/decode\.json \(identity identity of student/deep\).*another.*stage 8"
    ):
        build_results(cfg, experiment, progress=False)
    path.unlink()  # nothing to compare with
    assert build_results(cfg, experiment, progress=False).systems[0].name == "student"


def test_build_results_decoded_without_an_identity_is_malformed(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    path = experiment / "decode/student/decode.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "identity"}))
    with pytest.raises(ValueError, match=r"decode\.json must have identity; decode again \(stage 8\)"):
        build_results(cfg, experiment, progress=False)


@pytest.mark.parametrize(
    "systems, missing",
    [
        (["teacher", "student"], ["student_copy", "student_stage1", "student_stage2"]),
        (["student_copy", "student"], ["teacher", "student_stage1", "student_stage2"]),
        (["teacher"], ["student_copy", "student_stage1", "student_stage2", "student"]),
    ],
)
def test_build_results_scores_what_there_is(tmp_path: Path, cfg: Config, systems, missing):
    experiment = write_fake_experiment(tmp_path, cfg, systems=systems, num_utts=10)
    results = build_results(cfg, experiment, progress=False)
    assert [s.name for s in results.systems] == systems
    assert results.not_decoded == missing
    assert (results.compression is None) == (not {"teacher", "student"} <= set(systems))
    for claim in results.claims:
        assert (claim.verdict == "not measured") == (not {claim.system, claim.against} <= set(systems))
    assert f"not decoded, so not scored: {', '.join(missing)}" in summary_text(results)


def test_build_results_without_decoding_names_stage_8(tmp_path: Path, cfg: Config):
    with pytest.raises(ValueError, match=r"must hold decoded systems.*stage 8"):
        build_results(cfg, tmp_path / "mini", progress=False)


def test_build_results_missing_recogs_names_file_and_stage(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    (experiment / "decode/student/recogs-test-other-two_pass.txt").unlink()
    with pytest.raises(ValueError, match=r"recogs-test-other-two_pass\.txt must exist.*stage 8"):
        build_results(cfg, experiment, progress=False)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("decode/student/decode.json", '{"phase": "x"', r"decode\.json must be JSON.*decode again \(stage 8\)"),
        ("decode/student/decode.json", '{"phase": "x"}', r"must have beam, .*identity, params, bytes.*stage 8"),
        ("decode/student/decode.json", "[]", r"decode\.json \(\[\]\) must be an object; decode again"),
        (".stages/3.done", "[]", r"3\.done \(\[\]\) must be an object; remove it"),
        (
            ".stages/3.done",
            '{"stage": 3, "seconds": "1", "finished": "now"}',
            r"3\.done: `seconds` \('1'\) must be a valid number",
        ),
        ("ondevice.json", "[]", r"ondevice\.json \(\[\]\) must be an object; run stage 10 again"),
        ("decode/student/recogs-test-clean-two_pass.txt", "", r"two_pass\.txt is empty"),
        (".stages/3.done", "done", r"3\.done must be JSON"),
        (".stages/3.done", '{"stage": 3}', r"3\.done must have seconds, finished"),
    ],
)
def test_build_results_malformed_file_is_named(tmp_path: Path, cfg: Config, name: str, text: str, message: str):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    (experiment / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        build_results(cfg, experiment, progress=False)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("params", 3, r"`params` \(3\) must be an object"),
        ("params", {}, r"`params` must have encoder, decoder, joiner, attention_decoder, total"),
        ("train_seconds", "long", r"`train_seconds` \('long'\) must be a valid number"),
        ("weight_scan", [{"weight": 1}], r"`weight_scan\[0\]` must have length_reward, wer"),
        ("rtf", {"test-clean": 1}, r"`rtf.test-clean` \(1\) must be an object"),
        ("searches", [], r"`searches` \(\[\]\) must be an object"),
    ],
)
def test_build_results_edited_decode_json_is_named(tmp_path: Path, cfg: Config, key: str, value, message: str):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    path = experiment / "decode/student/decode.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=rf"decode\.json: {message}; decode again \(stage 8\)"):
        build_results(cfg, experiment, progress=False)


def test_build_results_identity_that_is_not_text_is_another(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    (experiment / "student/deep/identity").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"decode\.json \(identity.*must be of the checkpoint in .*student/deep"):
        build_results(cfg, experiment, progress=False)


def test_build_results_systems_on_different_utterances_is_an_error(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["teacher", "student"], num_utts=5)
    path = experiment / "decode/teacher/recogs-test-clean-two_pass.txt"
    path.write_text(path.read_text().replace("100-0000-0", "100-9999-0"))
    with pytest.raises(ValueError, match="cut 100-0000-0 is in one system's transcripts only"):
        build_results(cfg, experiment, progress=False)


def test_results_round_trip(tmp_path: Path, scored):
    write_results(scored[1], tmp_path / "results.json")
    assert load_results(tmp_path) == scored[1]
    with pytest.raises(ValueError, match="stage 9"):
        load_results(tmp_path / "elsewhere")


def test_summary_text_columns_line_up(scored):
    text = summary_text(scored[1])
    assert "synthetic speech" in text
    table = text.split("\n\n")[1].splitlines()[1:8]
    assert len({len(line) for line in table}) == 1
    assert table[0].split()[0] == "system" and table[-1].split()[0] == "student" and "58.3%" in table[-1]


def test_summary_text_marks_a_test_set_that_is_a_dev_set(tmp_path: Path):
    cfg = load_config(CONF, ["decode.bootstrap_samples=100", "corpus.dev_parts=[test-other]"])
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    text = summary_text(build_results(cfg, experiment, progress=False))
    marked = [line for line in text.splitlines() if "dev set: the rescoring weight was chosen on it" in line]
    assert len(marked) == 1 and marked[0].startswith("test-other (")


def test_score_command(tmp_path: Path, cfg: Config, monkeypatch, capsys):
    exp_dir = tmp_path / "exp with spaces é"

    def run_score(*settings: str) -> str:
        monkeypatch.setattr(sys, "argv", ["score", "--conf", str(CONF), "--exp-dir", str(exp_dir), *settings])
        score.main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit, match="stage 8"):
        run_score()
    experiment = write_fake_experiment(exp_dir, cfg, systems=["teacher", "student"], num_utts=8)
    said = run_score("decode.bootstrap_samples=50")
    assert "student's two-pass WER is less than 10% above teacher's: undecided (" in said and "ignored" not in said
    assert json.loads((experiment / "results.json").read_text())["bootstrap_samples"] == 50
    shutil.move(experiment / "decode/teacher", experiment / "decode/old_teacher")
    assert run_score("decode.bootstrap_samples=50").startswith("ignored: old_teacher (")


def test_score_command_that_cannot_write_says_so_in_one_line(tmp_path: Path, cfg: Config):
    experiment = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=5)
    command = [sys.executable, "-m", "twopass_kd.bin.score", "--conf", CONF, "--exp-dir", tmp_path]
    done = subprocess.run(
        [*command, "decode.bootstrap_samples=50"],
        capture_output=True,
        text=True,
        cwd=RECIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),  # as a disk with 100 bytes left
    )
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message.startswith("score: error: ") and "free disk space, run the same command again" in message
    assert [p.name for p in experiment.glob("*results*")] == []


def test_scoring_and_reporting_do_not_import_torch():
    code = "import sys, twopass_kd.bin.score, twopass_kd.bin.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=RECIPE)
    assert done.stdout.strip() == "False", done.stderr


def test_further_searches_are_in_results_and_summary(cfg: Config, tmp_path: Path):
    experiment = write_fake_experiment(tmp_path, cfg, systems=("teacher", "student"), searched=("student",))
    results = build_results(cfg, experiment, progress=False)
    teacher, student = results.systems
    assert teacher.searches == {} and list(student.searches) == ["fast_beam_search", "fast_beam_search_LG"]
    lines = [line.split() for line in summary_text(results).splitlines()]
    assert ["student", "fast_beam_search", "8.25", "7.50", "8.25", "7.50", "0.0123"] in lines
    assert ["student", "fast_beam_search_LG", "(scale", "0.05)", "8.25", "7.50", "8.25", "7.50", "0.0123"] in lines
    own = student.wer["test-clean"]
    beam = next(line for line in lines if line[:2] == ["student", "modified_beam_search"])
    assert beam[2:4] == [f"{own[key].wer:.2f}" for key in ("first_pass", "two_pass")]


def test_searches_that_were_left_out_are_told_once(cfg: Config, tmp_path: Path):
    experiment = write_fake_experiment(tmp_path, cfg, systems=("teacher", "student"))
    assert "further searches" not in summary_text(build_results(cfg, experiment, progress=False))
    for system in ("teacher", "student"):
        path = experiment / "decode" / system / "decode.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "searches_left_out": "k2 is not installed"}))
    text = summary_text(build_results(cfg, experiment, progress=False))
    assert text.count("further searches were left out: k2 is not installed") == 1
