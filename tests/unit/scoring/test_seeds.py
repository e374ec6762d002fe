"""Several seeds: means, ranges and a report on all of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_experiment import write_fake_experiment
from run_sh import RECIPE
from twopass_kd.bin.report_seeds import main
from twopass_kd.bin.score import main as score
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import ConfigError
from twopass_kd.files.decode_json import Pass
from twopass_kd.scoring.seeds import build_seeds, load_seeds
from twopass_kd.scoring.summary import seeds_text

CONF = RECIPE / "conf" / "mini.yaml"
SETTINGS = ["seeds=[42, 43, 44, 45]", "decode.bootstrap_samples=100", "decode.searches=[]"]


def config(*overrides):
    return load_config(CONF, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory) -> Path:
    """Three of four seeds; the last one lacks a system."""
    folder = tmp_path_factory.mktemp("exp")
    for seed in (42, 43, 44):
        systems = ["teacher", "student_copy", "student"] + ["student_stage1"] * (seed < 44)
        write_fake_experiment(folder, config(f"seed={seed}"), systems=systems, listened=["teacher", "student"])
    return folder


@pytest.fixture(scope="module")
def results(exp_dir):
    return build_seeds(config(), exp_dir, [42, 43, 44], progress=False)


def test_systems_that_all_seeds_have_have_a_mean_and_a_range(results, exp_dir):
    assert [system.name for system in results.systems] == ["teacher", "student_copy", "student"]
    assert results.not_in_all == ["student_stage1"] and results.unfinished == [45]
    found = results.systems[2].wer["test-clean"][Pass.TWO_PASS]
    summaries = [exp_dir / f"mini/seed-{s}/decode/student/wer-summary-test-clean-two_pass.txt" for s in (42, 43, 44)]
    assert [round(wer, 2) for wer in found.each] == [float(path.read_text().split()[-1]) for path in summaries]
    assert found.mean == pytest.approx(sum(found.each) / 3)
    assert (found.low, found.high) == (min(found.each), max(found.each))
    clean = [
        json.loads(path.with_name("decode.json").read_text())["conditions"]["test-clean"]["clean"]["two_pass"]
        for path in summaries
    ]
    assert results.systems[2].conditions["test-clean"]["clean"][Pass.TWO_PASS] == pytest.approx(sum(clean) / 3)


def test_claims_are_judged_over_all_seeds(results):
    assert [claim.seeds for claim in results.claims] == [3] * 4 and all(claim.p_holm for claim in results.claims)
    text = seeds_text(results)
    assert "mean (lowest - highest) of seeds 42, 43, 44" in text and text.count(", 7 speakers, 3 seeds)") == 4
    assert text.endswith("not in all: student_stage1") and "seeds that are not finished: 45" in text


def test_a_seed_that_is_none_of_the_configs_is_an_error(exp_dir):
    with pytest.raises(ValueError, match=r"`--finished` \(7\) must be one of `seeds`: 42, 43, 44, 45"):
        build_seeds(config(), exp_dir, [7], progress=False)
    with pytest.raises(ConfigError, match=r"`seed` \(1\) must be one of `seeds`: 42, 43, 44, 45; say which one"):
        write_fake_experiment(exp_dir, config("seed=1"))


def test_a_training_does_not_count_as_two_seeds(exp_dir, tmp_path):
    with pytest.raises(ValueError, match=r"`--finished` \(42\) must be there once"):
        build_seeds(config(), exp_dir, [42, 42, 43], progress=False)
    copied = shutil.copytree(exp_dir, tmp_path / "exp")
    shutil.rmtree(copied / "mini/seed-44")
    shutil.copytree(copied / "mini/seed-43", copied / "mini/seed-44")
    with pytest.raises(ValueError, match="seed-43 and seed-44 must not hold the same training of teacher; .*stage 3"):
        build_seeds(config(), copied, [42, 43, 44], progress=False)


def test_the_command_writes_all_pages_and_a_section_of_results_md(exp_dir, tmp_path, monkeypatch, capsys):
    results_md = tmp_path / "RESULTS.md"
    results_md.write_text("# Results\n\n## other\n\nkept\n\n## mini\n\nreplaced\n")
    argv = ["report_seeds", "--conf", str(CONF), "--exp-dir", str(exp_dir), "--finished", "42", "43", "44"]
    argv += ["--command", "./run.sh --seeds 4", "--results-md", str(results_md), *SETTINGS]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert "student" in capsys.readouterr().out
    assert load_seeds(exp_dir / "mini").seeds == [42, 43, 44]
    section = results_md.read_text()
    assert "kept" in section and "replaced" not in section and "    ./run.sh --seeds 4\n" in section
    page, markdown = ((exp_dir / "mini" / name).read_text() for name in ("seeds.html", "seeds.md"))
    assert page.count("<svg") == 2 and all(f'href="seed-{seed}/report.html"' in page for seed in (42, 43, 44))
    for text in (page, markdown):
        assert "Not finished, so left out" in text and "With pauses and in noise" in text and "3 seeds" in text
    assert "{{" not in page and "None" not in markdown


def test_results_md_shows_the_seed_that_is_measured_on_the_device(exp_dir, tmp_path, monkeypatch):
    experiment = write_fake_experiment(tmp_path / "exp", config("seed=43"), on_device=True, listened=["teacher"])
    shutil.copytree(exp_dir / "mini/seed-42", tmp_path / "exp/mini/seed-42")
    folders = ["--conf", str(CONF), "--exp-dir", str(tmp_path / "exp")]
    for bin_main, args in ((score, []), (main, ["--finished", "42", "43", "--results-md", str(tmp_path / "R.md")])):
        settings = [*SETTINGS, "seed=43"] if bin_main is score else SETTINGS
        monkeypatch.setattr(sys, "argv", ["x", *folders, *args, *settings])
        bin_main()
    assert (experiment / "results.json").is_file()
    section = (tmp_path / "R.md").read_text()
    assert "### When words appear, seed 43" in section and "### On the device, seed 43" in section


def test_without_seeds_the_command_says_what_to_do():
    command = [sys.executable, "-m", "twopass_kd.bin.report_seeds", "--conf", str(CONF)]
    done = subprocess.run(command, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode == 1 and "`seeds` ([]) must list the seeds" in done.stderr
