import copy
import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from matplotlib.textpath import TextPath

from fake_experiment import write_fake_experiment
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config
from twopass_kd.files.decode_json import DecodeJson, Pass
from twopass_kd.files.ondevice_json import Agreement, DeviceRow, Difference, Int8Comparison, OnDeviceJson, RuntimeName
from twopass_kd.report import plots_ondevice
from twopass_kd.report.collect import Report, collect
from twopass_kd.report.content import stage_rows
from twopass_kd.report.render import render_html, render_markdown, render_results_md
from twopass_kd.scoring.on_device import (
    COST_GROUPS,
    cost_cells,
    how_measured,
    percent_same,
    quantization_lines,
    read_on_device,
    sentences,
    size_line,
    streaming_lines,
)
from twopass_kd.scoring.results import build_results, load_results, write_results
from twopass_kd.scoring.summary import summary_text
from twopass_kd.scoring.wer import write_decoding_results

CONF = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf/mini.yaml"
SETS = ["test-clean", "test-other"]
RUNTIME_TITLES = {name: name.title for name in RuntimeName}
HOSTILE = "<script>alert('1')</script>"


@pytest.fixture(scope="module")
def cfg() -> Config:
    return load_config(CONF, ["decode.bootstrap_samples=50"])


@pytest.fixture(scope="module")
def experiment(cfg: Config, tmp_path_factory) -> Path:
    made = write_fake_experiment(tmp_path_factory.mktemp("exp"), cfg, num_utts=10, curves=False, on_device=True)
    write_results(build_results(cfg, made, progress=False), made / "results.json")
    return made


@pytest.fixture(scope="module")
def report(cfg: Config, experiment: Path) -> Report:
    return collect(cfg, experiment, CONF)


@pytest.fixture
def content(experiment: Path) -> dict[str, Any]:
    return json.loads((experiment / "ondevice.json").read_text())


@pytest.fixture
def on_device(experiment: Path) -> OnDeviceJson:
    return OnDeviceJson.model_validate_json((experiment / "ondevice.json").read_text())


@pytest.fixture
def decoded(experiment: Path) -> dict[str, DecodeJson]:
    paths = (experiment / "decode").glob("*/decode.json")
    return {path.parent.name: DecodeJson.model_validate_json(path.read_text()) for path in paths}


def test_build_results_takes_what_stage_10_measured(experiment: Path, content):
    assert json.loads((experiment / "results.json").read_text())["on_device"] == content
    assert load_results(experiment).on_device == OnDeviceJson.model_validate_json(json.dumps(content))


def test_build_results_without_stage_10(tmp_path: Path, cfg: Config):
    made = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=4, curves=False)
    results = build_results(cfg, made, progress=False)
    assert results.on_device is None and "on the device" not in summary_text(results)
    plain = results.model_dump()
    del plain["on_device"]  # as scored before stage 10 existed
    (made / "results.json").write_text(json.dumps(plain))
    report = collect(cfg, made, CONF)
    assert "on the device" not in summary_text(report.results)
    for text in (render_html(report), render_markdown(report), render_results_md(report)):
        assert "on the device" not in text.lower() and "sherpa-onnx int8" not in text


def test_build_results_of_a_retrained_system_leaves_the_measurements_out(tmp_path: Path, cfg: Config, caplog):
    made = write_fake_experiment(
        tmp_path, cfg, systems=["teacher", "student"], num_utts=4, curves=False, on_device=True
    )
    decoded = json.loads((made / "decode/student/decode.json").read_text())
    (made / "student/deep/identity").write_text("another\n")
    (made / "decode/student/decode.json").write_text(json.dumps({**decoded, "identity": "another"}))
    assert build_results(cfg, made, progress=False).on_device is None
    assert len(caplog.messages) == 1 and re.search(
        r"ondevice\.json: is of another student .* run stage 10 again", caplog.messages[0]
    )


def test_what_lacks_a_set_or_is_of_an_unknown_system_is_left_out(experiment, on_device, decoded, caplog):
    path = experiment / "ondevice.json"
    assert read_on_device(path, decoded, SETS) == on_device and not caplog.messages
    assert read_on_device(path, decoded, [*SETS, "dev-other"]) is None
    assert "not measured on dev-other; left out, run stage 10 again" in caplog.messages[-1]
    assert read_on_device(path, {"student": decoded["student"]}, SETS) is None
    assert "teacher" in caplog.messages[-1]
    decoded["student"].beam = 8  # stage 8 ran again with another one
    assert read_on_device(path, decoded, SETS) is None
    assert "another beam than stage 8 has now" in caplog.messages[-1]


@pytest.mark.parametrize(
    "keys, value, message",
    [
        ((), [], r" \(\[\]\) must be an object"),
        (("rows", 2, "rtf", "first_pass"), "fast", r"`rows\[2\]\.rtf\.first_pass` \('fast'\) must be a valid number"),
        (("rows", 0, "bytes"), True, r"`rows\[0\]\.bytes` \(True\) must be a valid integer"),
        (("rows", 0, "final_ms"), 3, r"`rows\[0\]\.final_ms` \(3\) must be an object"),
        (("rows", 1, "runtime"), "abacus", r"`rows\[1\]\.runtime` \('abacus'\) must be 'pytorch', 'onnx'"),
        (("rows", 1, "wer", "test-clean"), {"first_pass": 1}, r"must have greedy_search, two_pass"),
        (("agreement", "student", "fp32"), 1, r"`agreement\.student\.fp32` \(1\) must be an object"),
        (("int8", "student", "test-clean", "two_pass", "ci95"), None, r"ci95` \(None\) must be a valid array"),
        (("int8", "student", "test-clean", "two_pass", "ci95"), [1.0], r"ci95` must have item 1"),
        (("quantization", "student", "left_out"), 3, r"`quantization\.student\.left_out` \(3\) must be a valid array"),
        (("rows",), [], r"`rows` \(\[\]\) must have at least 1 item"),
        (("long_audio",), {"minutes": [1]}, r"`long_audio` must have peak_mb"),
    ],
)
def test_malformed_content_is_named_with_file_field_and_stage(tmp_path, content, decoded, keys, value, message):
    holder: Any = {"top": content}
    path = ["top", *keys]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (tmp_path / "ondevice.json").write_text(json.dumps(value if not keys else content))
    with pytest.raises(ValueError, match=rf"ondevice\.json.*{message}.*; run stage 10 again"):
        read_on_device(tmp_path / "ondevice.json", decoded, SETS)


def test_null_is_allowed_where_there_is_no_second_pass(tmp_path, content, decoded):
    for row in content["rows"]:
        row.update(final_ms=None, second_pass_share=None)
        row["rtf"]["two_pass"] = None
    (tmp_path / "ondevice.json").write_text(json.dumps(content))
    rows = read_on_device(tmp_path / "ondevice.json", decoded, SETS).rows
    assert cost_cells(rows[0])[3] == "-"
    for draw in (plots_ondevice.wer_against_bytes, plots_ondevice.wer_against_rtf):
        ET.fromstring(draw(rows, "test-clean"))


def test_build_results_with_a_file_that_is_not_json_names_stage_10(tmp_path: Path, cfg: Config):
    made = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=4, curves=False)
    (made / "ondevice.json").write_text('{"rows"')
    with pytest.raises(ValueError, match=r"ondevice\.json must be JSON.*run stage 10 again"):
        build_results(cfg, made, progress=False)


def test_sentences_are_computed(on_device):
    on_device.int8["student"].size_ratio = 0.125
    on_device.int8["student"].sets["test-other"][Pass.TWO_PASS] = Difference(delta_wer=1.2, ci95=(0.4, 2.1), p=0.004)
    found = sentences(on_device)
    assert found[0] == "student int8 on disk: 0.125 of the teacher's fp32 bytes, 1/8.0 (aim: at most 1/6)"
    assert "student int8 vs fp32, two-pass, test-other: +1.20 (95% CI +0.40 to +2.10, p=0.004)" in found
    assert sum("int8 vs fp32" in s for s in found) == 4
    agreement = "sherpa-onnx against our search on the same padded audio, student fp32, greedy: "
    assert agreement + "same text for 99.8% (599 of 600)" in found
    assert not any("teacher int8" in s or "teacher fp32," in s for s in found)


def test_quantization_lines_with_and_without_layers_left_out(on_device):
    on_device.quantization["teacher"].left_out = []
    assert quantization_lines(on_device) == [
        "teacher int8: 0 of 5 layers left in float32, chosen on dev-clean: "
        "WER 7.50% in float32, 8.10% with all in int8, 7.60% as exported",
        "student int8: 1 of 5 layers left in float32 (encoder/layers.4.lstm), chosen on dev-clean: "
        "WER 7.50% in float32, 8.10% with all in int8, 7.60% as exported",
    ]


def test_streaming_lines_count_over_the_sets(on_device):
    on_device.streaming["student"]["test-other"].same_greedy = 298
    on_device.streaming["student"]["test-other"].encoder_difference = 2.5e-5
    assert streaming_lines(on_device)[1] == (
        "student, streaming ONNX against offline PyTorch: same greedy text for 598 of 600 utterances of test-clean, "
        "test-other; encoder outputs differ by 2.5e-05 at most"
    )


def test_size_line_without_a_teacher(on_device):
    on_device.int8["student"].size_ratio = None
    assert size_line(on_device) is None
    on_device.int8 = {}
    assert size_line(on_device) is None


def test_percent_same_is_100_only_for_all():
    assert percent_same(Agreement(same=2999, of=3000, different=["a"])) == "99.9%"
    assert percent_same(Agreement(same=3000, of=3000, different=[])) == "100.0%"


def test_cost_cells_fill_the_columns(on_device):
    columns = sum(len(below) or 1 for _, below in COST_GROUPS)
    row = on_device.rows[2]
    cells = cost_cells(row)
    assert len(cells) == columns
    assert cells[0] == f"{row.bytes / 1e6:.2f}" and cells[3] == f"{row.rtf.two_pass:.4f}"
    assert cells[4:8] == [f"{ms:.1f}" for times in (row.chunk_ms, row.final_ms) for ms in (times.p50, times.p95)]
    assert cells[8:] == ["+17%", f"{row.peak_mb:.1f}"]


def test_summary_text_has_the_compact_table(experiment: Path):
    lines = summary_text(load_results(experiment)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("on the device"))
    table = lines[start + 1 : start + 13]
    assert len({len(line) for line in table}) == 1
    row = next(line.split() for line in table if line.startswith("student") and " onnx-int8" in line)
    assert row == ["student", "onnx-int8", "1.26", "8.54", "7.34", "0.0009", "0.0010", "0.3/0.5", "0.7/1.1", "64.9"]
    assert lines[start + 13].startswith("student int8 on disk: ")


def test_markdown_has_the_section_and_whole_tables(report: Report, on_device):
    text, short = render_markdown(report), render_results_md(report)
    assert "## On the device\n" in text and "### On the device\n" in short
    for page in (text, short):
        assert how_measured(on_device).split(";")[0] in page
        assert "Peak resident memory while streaming one long recording: 80.1 MB for 1 min, 80.9 MB for 60 min." in page
        assert "- student int8 vs fp32, two-pass, test-other: +0.04" in page
        assert "- student int8: 1 of 5 layers left in float32 (encoder/layers.4.lstm), chosen on dev-clean: WER" in page
        assert "| student | fp32 | greedy | 99.8% (599 of 600) | 103-0003-0 |" in page
        for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1, block
        assert "| test-other | student | ONNX int8 |" in page and "| dev-clean | student | ONNX int8 |" not in page


def test_html_has_the_section_with_tables_and_figures(report: Report):
    page = render_html(report)
    root = ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    section = next(s for s in root.iter("section") if s.get("id") == "ondevice")
    assert [s.get("id") for s in root.iter("section")].index("ondevice") == 3
    assert len(list(section.iter("svg"))) == 2 * len(report.results.corpus.test_parts)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert [len(t.findall("tbody/tr")) for t in section.iter("table")] == [10, 10, 8, 8]
    for table in section.iter("table"):
        widths = {len(row) for row in table.findall("tbody/tr")}
        top = table.find("thead/tr")
        assert widths == {sum(int(cell.get("colspan", 1)) for cell in top)}
    used = set(re.findall(r"var\(--(\w+)", ET.tostring(section, encoding="unicode")))
    assert {"c0072b2", "cc85200", "paper", "grid"} <= used
    dark = page[page.index("prefers-color-scheme: dark") :]
    assert all(f"--{name}:" in dark for name in used)
    assert "#070809" not in page


def test_reports_escape_what_stage_10_left(tmp_path: Path, cfg: Config, report: Report):
    hostile = copy.copy(report)
    hostile.results = report.results.model_copy(deep=True)
    on_device = hostile.results.on_device
    on_device.set = on_device.rows[0].system = HOSTILE
    agreement = Agreement(same=1, of=2, different=[HOSTILE])
    on_device.agreement = {HOSTILE: {HOSTILE: {HOSTILE: agreement}}}
    difference = Difference(delta_wer=0.0, ci95=(0.0, 0.0), p=1.0)
    on_device.int8 = {HOSTILE: Int8Comparison(**{HOSTILE: {Pass.TWO_PASS: difference}})}
    page = render_html(hostile)
    ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    assert "<script" not in page + render_markdown(hostile) + render_results_md(hostile)


def test_reports_with_stage_10_among_the_stages(tmp_path: Path, cfg: Config):
    made = write_fake_experiment(tmp_path, cfg, systems=["student"], num_utts=4, curves=False, on_device=True)
    marker = {"stage": 10, "title": "on the device", "seconds": 90, "finished": "2026-01-01T10:00:00"}
    (made / ".stages/10.done").write_text(json.dumps(marker))
    results = build_results(cfg, made, progress=False)
    assert stage_rows(results)[-1] == ("10 on the device", 90.0) and results.on_device.rows
    write_decoding_results(made / "decode/student", "test-clean", "two_pass", [("a", ["YES"], ["YES"])])
    write_results(results, made / "results.json")
    assert "10 on the device" in render_markdown(collect(cfg, made, CONF))


def rows_at(places) -> list[DeviceRow]:
    """Rows of teacher and student on every runtime, at (bytes, WER) with a second pass except for sherpa-onnx."""
    rows = []
    for i, (size, wer) in enumerate(places):
        system, runtime = ("teacher", "student")[i // 5], list(RUNTIME_TITLES)[i % 5]
        two_pass = i % 5 < 3
        wers = {"greedy_search": wer + 2, "first_pass": wer + 1, "two_pass": wer if two_pass else None}
        rtf = {"greedy_search": 0.0, "first_pass": size / 1e9, "two_pass": 1.2 * size / 1e9 if two_pass else None}
        others = {"identity": "", "chunk_ms": {"p50": 1, "p95": 2}, "final_ms": None, "second_pass_share": None}
        wer = {"test-clean": wers}
        rows.append(DeviceRow(system=system, runtime=runtime, bytes=int(size), rtf=rtf, wer=wer, peak_mb=1.0, **others))
    return rows


def labels(svg: str) -> list[tuple[str, float, float, float, float]]:
    """(text, left, top, right, bottom) of the labels in an SVG, in its own unit, as wide as in its font."""
    found = []
    for e in ET.fromstring(svg).iter("text"):
        if e.text.split()[0] in ("teacher", "student"):
            assert "text-anchor: middle" in e.get("style")
            x, y = float(e.get("x")), float(e.get("y"))
            width = TextPath((0, 0), e.text, size=7.5).get_extents().width
            found.append((e.text, x - width / 2, y - 6, x + width / 2, y))
    return found


SPREAD = random.Random(7)
ARRANGEMENTS = {
    "apart": [(1e6 * (1 + i), 5 + i % 5 + (i > 4)) for i in range(10)],
    "all in one place": [(4_000_000, 7.0)] * 10,
    "nearly in one place": [(4_000_000 + 60_000 * i, 7.0 + 0.01 * i) for i in range(10)],
    "in one row": [(int(1e6 * 1.3**i), 7.0) for i in range(10)],
    "in one column": [(4_000_000, 5 + 0.2 * i) for i in range(10)],
    **{f"random {k}": [(SPREAD.randint(500_000, 9_000_000), SPREAD.uniform(5, 12)) for _ in range(10)] for k in "abc"},
}


@pytest.mark.parametrize("places", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("draw", [plots_ondevice.wer_against_bytes, plots_ondevice.wer_against_rtf])
def test_labels_name_every_point_inside_the_figure_without_overlap(draw, places):
    svg = draw(rows_at(places), "test-clean")
    found = labels(svg)
    named = [f"{text.split()[0]} {runtime}" for text, *_ in found for runtime in text.split(" ", 1)[1].split(", ")]
    assert sorted(named) == sorted(f"{s} {r}" for s in ("teacher", "student") for r in RUNTIME_TITLES.values())
    width, height = (float(v) for v in ET.fromstring(svg).get("viewBox").split()[2:])
    for i, (_, left, top, right, bottom) in enumerate(found):
        assert left > 0 and top > 0 and right < width and bottom < height
        for _, *other in found[i + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (found[i], other)


def test_axis_is_logarithmic_only_where_it_spans_much():
    near, far = ([(size * (1 + 0.1 * i), 7.0 + i) for i in range(10)] for size in (1e6, 1e6))
    far[0] = (2e5, 7.0)
    assert ">on disk (MB)<" in plots_ondevice.wer_against_bytes(rows_at(near), "test-clean")
    assert ">on disk (MB), log scale<" in plots_ondevice.wer_against_bytes(rows_at(far), "test-clean")
