import dataclasses
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fake_experiment import write_fake_experiment
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config
from twopass_kd.files.decode_json import ScanPoint
from twopass_kd.files.results_json import System
from twopass_kd.report.collect import Report, collect, read_metrics, run_command
from twopass_kd.report.content import format_duration, scan_at_chosen_reward, stage_rows
from twopass_kd.report.render import render_html, render_markdown, render_results_md, write_reports
from twopass_kd.scoring.listening import delay_rows
from twopass_kd.scoring.results import build_results, write_results
from twopass_kd.scoring.wer import write_decoding_results

CONF = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf/mini.yaml"
SECTIONS = ("wer", "claims", "size", "weights", "losses", "time", "worst", "environment", "commands")
HOSTILE = "<script>alert('1')</script>"


@pytest.fixture(scope="module")
def cfg() -> Config:
    return load_config(CONF, ["decode.bootstrap_samples=200"])


def scored(cfg: Config, exp_dir: Path, **kwargs) -> Path:
    experiment = write_fake_experiment(exp_dir, cfg, **kwargs)
    write_results(build_results(cfg, experiment, progress=False), experiment / "results.json")
    return experiment


@pytest.fixture(scope="module")
def experiment(cfg: Config, tmp_path_factory) -> Path:
    return scored(cfg, tmp_path_factory.mktemp("exp"))


@pytest.fixture(scope="module")
def report(cfg: Config, experiment: Path) -> Report:
    return collect(cfg, experiment, CONF, ["seed=42"])


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(report)


class Reader(HTMLParser):
    """Collects tags and attributes; what a browser would load or run is in here if anything is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


def test_html_is_well_formed(page: str):
    ET.fromstring(page.replace("<!DOCTYPE html>", ""))  # written as XML too: every tag closed, every & escaped


def test_html_loads_nothing(page: str):
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data", "background"):
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
    assert "http://" not in page and "https://" not in page and "//" not in "".join(re.findall(r"url\((.*?)\)", page))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "@import" not in page and ("meta", "content", policy) in reader.attributes


def test_html_ids_are_unique_and_every_reference_resolves(page: str):
    reader = Reader(page)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for _, name, value in reader.attributes if name == "href"} | set(
        re.findall(r"url\(#(.*?)\)", page)
    )
    assert wanted and wanted <= set(ids)


def test_html_has_all_sections_and_figures(page: str, cfg: Config):
    root = ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    sections = {s.get("id"): s for s in root.iter("section")}
    assert tuple(sections) == SECTIONS
    figures = {key: len(list(s.iter("svg"))) for key, s in sections.items()}
    curves = sum(1 + len(phase.loss_scales) for phase in cfg.phases.values())  # the total loss and each term
    assert {k: n for k, n in figures.items() if n} == {"wer": 2, "weights": 1, "losses": curves, "time": 1}
    text = "".join(root.itertext())
    for name in cfg.phases:
        assert name in text
    assert "synthetic speech" in text and "58.3%" in text and "./run.sh --conf mini seed=42" in text


def test_html_numbers_are_those_of_results(report: Report, page: str):
    text = re.sub(r"<[^>]+>", " ", page)
    for system in report.results.systems:
        for per_set in system.wer.values():
            for name in ("greedy_search", "first_pass", "two_pass"):
                if per_set[name]:
                    assert f"{per_set[name].wer:.2f}" in text
        assert f"{system.params.total:,}" in text


def test_html_axes_have_labels_with_units(page: str):
    for label in (
        "deployed parameters (millions)",
        "WER (%)",
        "WER on dev (%)",
        "wall time (minutes)",
        "training step",
    ):
        assert f">{label}</text>" in page
    assert page.count(">nats per frame") == page.count(">training step<")


def test_html_figures_follow_dark_mode(page: str):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert "currentColor" in figures and "#010203" not in figures and "#040506" not in figures
    used = set(re.findall(r"var\(--(c[0-9a-f]{6})", page))
    dark = page[page.index("prefers-color-scheme: dark") :]
    assert used and all(f"--{name}:" in dark for name in used)


def test_worst_utterances_are_the_worst_and_aligned(report: Report, page: str):
    worst = report.worst
    assert (worst.system, worst.pass_name, worst.set_name) == ("student", "two_pass", "test-clean")
    errors = [u.errors for u in worst.utterances]
    assert 0 < len(errors) <= 10 and errors == sorted(errors, reverse=True)
    root = ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    first = next(a for a in root.iter("article"))
    tables = first.findall("./div/table")[1:]
    words = [[cell.text for cell in table.iter("td")] for table in tables]
    assert words == [[w or "–" for w in pair] for pair in worst.utterances[0].pairs]
    assert sum(table.get("class") != "ok" for table in tables) == worst.utterances[0].errors


def test_reports_escape_what_the_data_holds(tmp_path: Path, cfg: Config):
    experiment = scored(cfg, tmp_path, systems=["student"], num_utts=4, curves=False)
    folder = experiment / "decode/student"
    rows = [(HOSTILE, ["A&B", HOSTILE], ["]]>", "| x |", "```"])]
    write_decoding_results(folder, "test-clean", "two_pass", rows)
    report = collect(cfg, experiment, CONF, command=f"./run.sh --conf 'a b' {HOSTILE}")
    report.results.conf = report.results.corpus.kind = HOSTILE
    report.untrained.append(HOSTILE)
    page = render_html(report)
    assert "<script" not in page and "&lt;script&gt;" in page
    ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    for text in (render_markdown(report), render_results_md(report)):
        outside_code = re.sub(r"```text.*?\n```\n", "", text, flags=re.S)
        outside_code = "\n".join(line for line in outside_code.splitlines() if not line.startswith("    "))
        assert "<script" not in outside_code


def test_markdown_has_all_sections(report: Report):
    text = render_markdown(report)
    titles = re.findall(r"^## (.*)$", text, flags=re.M)
    assert titles == [
        "Word error rate",
        "Claims",
        "Size, speed, training time",
        "Losses",
        "Rescoring weight on dev",
        "Wall time by stage",
        "Worst utterances",
        "Environment",
        "Commands",
    ]
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1, block


def test_markdown_alignment_lines_up(report: Report):
    block = re.search(r"```text\n(.*?)```", render_markdown(report), flags=re.S).group(1)
    first = block.split("\n\n")[0].splitlines()
    ref, hyp, marks = (re.findall(r"\S+", line) for line in first[1:4])
    assert len(ref) == len(hyp) == len(report.worst.utterances[0].pairs) + 1
    for mark in re.finditer(r"\S", first[3]):
        column = mark.start()
        assert first[1][column] != " " and first[1][column - 1] == " "
    assert len(marks) == report.worst.utterances[0].errors


def test_results_md_says_what_it_is(report: Report):
    text = render_results_md(report)
    assert text.startswith("<!-- generated by") and "do not edit" in text.splitlines()[0]
    for needed in (
        "synthetic",
        "2,938,000",
        "1,224,000",
        "./run.sh --conf mini",
        "- seed: 42",
        "- cpu: ",
        "58.3% fewer",
    ):
        assert needed in text
    assert str(CONF.parents[1]) not in text


def test_results_md_keeps_other_experiments_with_recorded_speech_first(report: Report):
    recorded = dataclasses.replace(report, results=report.results.model_copy(deep=True))
    recorded.results.conf, recorded.results.corpus.synthetic = "an4", False
    synthetic = render_results_md(report)
    both = render_results_md(recorded, synthetic)
    headings = [line for line in both.splitlines() if line.startswith("## ")]
    assert headings == ["## an4", "## mini"] and both.count("<!-- generated by") == 1
    assert both.endswith(synthetic.partition("## mini")[2]) and render_results_md(report, both) == both
    assert render_results_md(recorded, both) == both
    of_seeds = both.replace("WER in %", "WER in %, mean and range over seeds")
    with pytest.raises(ValueError, match="section mini of RESULTS.md is of several seeds"):
        render_results_md(report, of_seeds)


def test_commands_are_those_that_run_sh_takes():
    settings = ["seeds=[42, 43]", "seed=43", "decode.beam=8"]
    assert run_command(CONF, settings) == "./run.sh --conf mini 'seeds=[42, 43]' --seed 43 decode.beam=8"
    assert run_command(CONF, ["seed=7"]) == "./run.sh --conf mini seed=7"


def test_reports_without_baseline_curves_or_stages(tmp_path: Path, cfg: Config):
    experiment = scored(cfg, tmp_path, systems=["student_stage1"], num_utts=6, curves=False)
    shutil.rmtree(experiment / ".stages")
    write_results(build_results(cfg, experiment, progress=False), experiment / "results.json")
    report = collect(cfg, experiment, CONF)
    assert report.worst.pass_name == "first_pass" and report.untrained == list(cfg.phases)
    page = render_html(report)
    ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    for needed in (
        "not measured, since one of them was not decoded",
        "No system has a second pass",
        "Without metrics",
        "No stage of run.sh",
        "Not decoded",
    ):
        assert needed in page
        assert needed in render_markdown(report)


def test_reports_of_a_perfect_system(tmp_path: Path, cfg: Config):
    experiment = scored(cfg, tmp_path, systems=["teacher"], num_utts=4, curves=False)
    rows = [("a", ["YES"], ["YES"])]
    for set_name in ("test-clean", "test-other", "dev-clean"):
        for suffix in ("greedy_search", "first_pass", "two_pass"):
            write_decoding_results(experiment / "decode/teacher", set_name, suffix, rows)
    write_results(build_results(cfg, experiment, progress=False), experiment / "results.json")
    report = collect(cfg, experiment, CONF)
    assert report.worst.utterances == []
    assert "no errors" in render_html(report) and "no errors" in render_markdown(report)


def test_reports_take_the_titles_of_stages_from_the_markers(tmp_path: Path, cfg: Config, report: Report):
    assert stage_rows(report.results)[3] == ("3 title of 3", 402.0)
    experiment = scored(cfg, tmp_path, systems=["student"], num_utts=4, curves=False)
    (experiment / ".stages/3.done").write_text('{"stage": 3, "seconds": 1, "finished": "now"}')
    write_results(build_results(cfg, experiment, progress=False), experiment / "results.json")
    untitled = collect(cfg, experiment, CONF)
    assert stage_rows(untitled.results)[3] == ("stage 3", 1.0)
    for text in (render_markdown(untitled), render_html(untitled)):
        assert "4 title of 4" in text and ">stage 3<" in text.replace("| stage 3 |", ">stage 3<")


def test_reports_say_how_real_time_factors_were_measured(report: Report, page: str):
    for text in (page, render_markdown(report), render_results_md(report)):
        assert "each on one thread, other jobs beside it" in text


def test_reports_mark_a_test_set_that_is_a_dev_set(tmp_path: Path, report: Report, page: str):
    mark = "(dev set: the rescoring weight was chosen on it)"
    assert mark not in page + render_markdown(report) + render_results_md(report)
    cfg = load_config(CONF, ["decode.bootstrap_samples=100", "corpus.dev_parts=[test-other]"])
    both = collect(cfg, scored(cfg, tmp_path, systems=["student"], num_utts=4, curves=False), CONF)
    for text in (render_markdown(both), render_results_md(both)):
        assert re.findall(r"^\| (test-.*?) \| student \|", text, flags=re.M) == ["test-clean", f"test-other {mark}"]
    heads = [
        h.text for h in ET.fromstring(render_html(both).replace("<!DOCTYPE html>", "")).iter("th") if h.get("colspan")
    ]
    assert heads[:2] == ["test-clean", f"test-other {mark}"] and sum("test-other" in h for h in heads) == 1


def test_report_command_that_cannot_write_says_so_in_one_line(tmp_path: Path, cfg: Config):
    experiment = scored(cfg, tmp_path, systems=["student"], num_utts=4, curves=False)
    (experiment / "report.md").mkdir()
    command = [sys.executable, "-m", "twopass_kd.bin.report", "--conf", CONF, "--exp-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONF.parents[1])
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("report: error: ") and "free disk space, run the same command again" in done.stderr


def test_write_reports_leaves_all_files(report: Report, tmp_path: Path):
    small = dataclasses.replace(report, phases=report.phases[:1])
    paths = write_reports(small, tmp_path, tmp_path / "RESULTS.md")
    assert sorted(p.name for p in paths) == ["RESULTS.md", "report.html", "report.md"]
    assert all(p.stat().st_size > 1000 for p in paths)


def test_collect_without_results_names_stage_9(tmp_path: Path, cfg: Config):
    with pytest.raises(ValueError, match=r"results\.json must exist.*stage 9"):
        collect(cfg, tmp_path, CONF)


def test_collect_with_results_of_another_config(experiment: Path):
    other = load_config(CONF, ["corpus.test_parts=[test-clean]"])
    with pytest.raises(ValueError, match=r"must be of this config.*score again"):
        collect(other, experiment, CONF)


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (("systems",), [], r": `systems` \(\[\]\) must have at least 1 item"),
        (("systems", 0, "wer", "test-clean"), None, r": `systems\[0\].wer.test-clean` \(None\) must be an object"),
        (("systems", 0, "wer"), {}, r": `wer` of student must have test-clean, test-other"),
        (
            ("systems", 0, "params", "total"),
            "many",
            r": `systems\[0\].params.total` \('many'\) must be a valid integer",
        ),
        (("environment",), None, r": `environment` \(None\) must be an object"),
        (
            ("claims", 0, "verdict"),
            "true",
            r": `claims\[0\].verdict` \('true'\) must be 'shown', 'refuted'",
        ),
        (("corpus", "synthetic"), 1, r": `corpus.synthetic` \(1\) must be a valid boolean"),
        (("stages", 0, "title"), None, r": `stages\[0\].title` \(None\) must be a valid string"),
        (("on_device",), {}, r": `on_device` must have set"),
    ],
)
def test_collect_results_that_were_edited_are_named(tmp_path: Path, cfg: Config, keys, value, message):
    experiment = scored(cfg, tmp_path, systems=["student"], num_utts=4, curves=False)
    path = experiment / "results.json"
    results = holder = json.loads(path.read_text())
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"results\.json{message}.*; run stage 9 again"):
        collect(cfg, experiment, CONF)


def test_collect_without_the_students_transcripts(tmp_path: Path, cfg: Config):
    experiment = scored(cfg, tmp_path, systems=["student"], num_utts=4, curves=False)
    (experiment / "decode/student/recogs-test-clean-two_pass.txt").unlink()
    with pytest.raises(ValueError, match=r"recogs-test-clean-two_pass\.txt must exist.*stage 8"):
        collect(cfg, experiment, CONF)


METRIC = '{"split": "train", "epoch": 1, "step": %d, "seconds": 2.5, "loss": %s, "terms": {"ctc": 1.0}}'


def test_read_metrics_last_line_of_a_step_counts(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([METRIC % (20, 3), METRIC % (10, 5), METRIC % (20, 4)]) + "\n")
    phase = read_metrics(path, "teacher/rnnt")
    assert [(c.term, c.train, c.valid) for c in phase.curves] == [
        ("loss", [(10, 5.0), (20, 4.0)], []),
        ("ctc", [(10, 1.0), (20, 1.0)], []),
    ]
    assert (phase.steps, phase.seconds) == (20, 2.5)


@pytest.mark.parametrize("line", ['{"split": "train"', "[]", '{"split": "test", "step": 1}', METRIC % (1, '"x"')])
def test_read_metrics_malformed_names_file_and_line(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    assert read_metrics(path, "teacher/rnnt").steps == 0  # nothing was reported yet
    path.write_text(f"{METRIC % (1, 2)}\n{line}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: must be"):
        read_metrics(path, "teacher/rnnt")


def test_scan_at_chosen_reward_leaves_the_other_rewards_out():
    scan = [{"weight": w, "length_reward": r, "wer": 10 * w + r} for w in (0.5, 0.0) for r in (0.0, 1.0)]
    system = System.model_construct(length_reward=1.0, weight_scan=[ScanPoint(**point) for point in scan])
    assert scan_at_chosen_reward(system) == [(0.0, 1.0), (0.5, 6.0)]


@pytest.mark.parametrize("seconds, text", [(3, "3.0 s"), (42, "42 s"), (408, "6.8 min"), (11160, "3.1 h")])
def test_format_duration(seconds: float, text: str):
    assert format_duration(seconds) == text


def test_reports_have_the_table_of_searches_where_there_are_some(cfg: Config, experiment: Path, tmp_path: Path):
    searched = scored(cfg, tmp_path, searched=("student",))
    for render, heading in ((render_markdown, "## Further searches"), (render_html, '<section id="searches">')):
        assert heading not in render(collect(cfg, experiment, CONF))
        text = render(collect(cfg, searched, CONF)).replace("\\_", "_")
        assert heading in text and "fast_beam_search_LG (scale 0.05)" in text


def test_reports_show_pauses_noise_and_delays_where_they_are_known(cfg: Config, experiment: Path, tmp_path: Path):
    heard = scored(cfg, tmp_path, listened=("teacher", "student_stage1", "student_stage2"), on_device=True)
    report = collect(cfg, heard, CONF, [])
    shown = [row[1] for row in delay_rows(report.results) if row[2] == "greedy"]
    assert shown == ["teacher", "student_stage1"] * 2, "the second has the first pass of the one before it"
    page, markdown, results_md = render_html(report), render_markdown(report), render_results_md(report)
    root = ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    sections = {section.get("id"): section for section in root.iter("section")}
    assert len(list(sections["conditions"].iter("svg"))) == 2 and "delays" in sections
    for text in ("".join(sections["conditions"].itertext()), markdown, results_md):
        assert "babble-10dB" in text and "15.00" in text and "7.88" in text
    for text in ("".join(sections["delays"].itertext()), markdown, results_md):
        assert "1,234" in text and "120" in text and "400" in text and "wait for the chunk" in text
    without = collect(cfg, experiment, CONF, [])
    assert "With pauses" not in render_markdown(without) and 'id="delays"' not in render_html(without)
