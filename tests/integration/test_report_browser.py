"""The HTML report in a real browser: it loads and asks for nothing, and is laid out at laptop and phone width."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from fake_experiment import write_fake_experiment
from twopass_kd.config.load import load_config
from twopass_kd.report.collect import collect
from twopass_kd.report.render import write_reports, write_seeds_reports
from twopass_kd.scoring.results import build_results, write_results
from twopass_kd.scoring.seeds import build_seeds

CONF = Path(__file__).parents[2] / "egs/librispeech/twopass_kd/conf/mini.yaml"
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
SECTIONS = ["wer", "claims", "size", "ondevice", "weights", "losses", "time", "worst", "environment"]
SECTIONS += ["commands"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # whatever the browser itself wants does not leave the machine
# The report forbids scripts, so a page around it measures it from outside.
PROBE = """<!DOCTYPE html><body style="margin:0">
<iframe id="page" style="width:%dpx;height:900px;border:0" srcdoc="%s"></iframe><pre id="out"></pre>
<script>
document.getElementById("page").addEventListener("load", (event) => {
  const doc = event.target.contentDocument, box = (e) => e.getBoundingClientRect();
  const sections = [...doc.querySelectorAll("section")].map(
    (e) => ({id: e.id, top: box(e).top, bottom: box(e).bottom, left: box(e).left, right: box(e).right}));
  const figures = [...doc.querySelectorAll("svg")].map((e) => [box(e).width, box(e).height]);
  const labels = [...doc.querySelectorAll("#ondevice svg")].map((svg) => [...svg.querySelectorAll("text")].map((e) => (
    {text: e.textContent, left: box(e).left - box(svg).left, right: box(svg).right - box(e).right,
     x: [box(e).left, box(e).right], y: [box(e).top, box(e).bottom]})));
  const small = [...doc.querySelectorAll("svg text")].map((e) => box(e).height);
  document.getElementById("out").textContent = JSON.stringify({
    scroll: doc.documentElement.scrollWidth, client: doc.documentElement.clientWidth, sections, figures, labels,
    smallest: Math.min(...small), font: getComputedStyle(doc.body).fontFamily});
});
</script>"""

WHY_NOT = "chromium is not installed (tests/install_programs.sh installs it, as root)"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    cfg = load_config(CONF, ["decode.bootstrap_samples=100"])
    experiment = write_fake_experiment(tmp_path_factory.mktemp("exp"), cfg, num_utts=30, on_device=True)
    write_results(build_results(cfg, experiment, progress=False), experiment / "results.json")
    write_reports(collect(cfg, experiment, CONF), experiment)
    return experiment / "report.html"


@pytest.fixture(scope="module")
def page_of_seeds(tmp_path_factory) -> Path:
    folder, seeds = tmp_path_factory.mktemp("exp"), "seeds=[1, 2, 3]"
    for seed in (1, 2, 3):
        cfg = load_config(CONF, [seeds, f"seed={seed}"])
        write_fake_experiment(folder, cfg, num_utts=30, listened=["teacher", "student"])
    results = build_seeds(load_config(CONF, [seeds]), folder, [1, 2, 3], progress=False)
    write_seeds_reports(results, folder, "./run.sh --seeds 3")
    return folder / "seeds.html"


def browse(page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """The page's DOM after loading on stdout; its console on stderr."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *flags]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def console(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def requested_by_pages(log: Path) -> list[str]:
    """URLs in chromium's network log that a page asked for; the browser's own have no page's origin as initiator."""
    events = [e["params"] for e in json.loads(log.read_text(encoding="utf-8"))["events"] if "params" in e]
    return [p["url"] for p in events if "url" in p and p.get("initiator", "not an origin") != "not an origin"]


def test_report_in_a_browser_is_silent_and_asks_for_nothing(page: Path, tmp_path: Path):
    log = tmp_path / "net.json"
    done = browse(page, tmp_path, f"--log-net-log={log}")
    assert console(done) == []
    assert requested_by_pages(log) == []
    assert re.findall(r'<section id="([a-z]+)"', done.stdout) == SECTIONS


def test_report_of_seeds_in_a_browser(page_of_seeds: Path, tmp_path: Path):
    log = tmp_path / "net.json"
    assert console(browse(page_of_seeds, tmp_path, f"--log-net-log={log}")) == [] == requested_by_pages(log)
    for width in (1280, 390):
        found = lay_out(page_of_seeds, tmp_path, width)
        assert found["scroll"] == found["client"] <= width, "the page must not scroll sideways"
        assert [s["id"] for s in found["sections"]] == ["wer", "claims", "size", "conditions", "environment"]
        assert all(0 <= section["left"] and section["right"] <= width for section in found["sections"])
        assert len(found["figures"]) == 2 and all(180 < w < width and h > 90 for w, h in found["figures"])
        assert found["smallest"] > 8


def test_browser_check_notices_a_request_and_an_error(page: Path, tmp_path: Path):
    """The test above can fail: a page that does what the report must not do is noticed."""
    bad = tmp_path / "bad.html"
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    bad.write_text(text.replace("</body>", '<img src="http://localhost:9/x.png"/><script>nothing()</script></body>'))
    log = tmp_path / "net.json"
    done = browse(bad, tmp_path, f"--log-net-log={log}")
    assert any("nothing is not defined" in line for line in console(done))
    assert "http://localhost:9/x.png" in requested_by_pages(log)


def lay_out(page: Path, folder: Path, width: int) -> dict:
    """What `PROBE` finds of a page in a window of this width."""
    probe = folder / "probe.html"
    probe.write_text(PROBE % (width, escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    dom = browse(probe, folder, "--virtual-time-budget=5000", f"--window-size={max(width, 600)},1000").stdout
    return json.loads(unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, flags=re.S).group(1)))


@pytest.mark.parametrize("width", [1280, 390])
def test_report_is_laid_out(page: Path, tmp_path: Path, width: int):
    found = lay_out(page, tmp_path, width)
    assert found["scroll"] == found["client"] <= width, "the page must not scroll sideways"
    assert [s["id"] for s in found["sections"]] == SECTIONS
    for above, below in zip(found["sections"], found["sections"][1:], strict=False):
        assert above["bottom"] <= below["top"] + 1
    for section in found["sections"]:
        assert section["bottom"] - section["top"] > 80 and 0 <= section["left"] and section["right"] <= width
    assert found["figures"] and all(w > 180 and h > 90 for w, h in found["figures"])
    assert found["smallest"] > 8, "text in figures must be readable"
    assert "system-ui" in found["font"], "the style sheet must apply"
    assert len(found["labels"]) == 4
    for figure in found["labels"]:
        assert len(figure) > 15, "ticks, axes and a label for each runtime"
        for i, one in enumerate(figure):
            assert one["left"] >= 0 and one["right"] >= 0, f"{one['text']} is cut off"
            for other in figure[i + 1 :]:
                inside = [min(one[k][1], other[k][1]) - max(one[k][0], other[k][0]) for k in "xy"]
                # boxes of text have empty rims above and below the letters
                assert inside[0] <= 0 or inside[1] <= 3, f"{one['text']} covers {other['text']}"
