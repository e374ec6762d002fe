"""Writes the pages of a report from their templates. Whatever comes from data is escaped, in HTML and in Markdown."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from twopass_kd.files.seeds_json import SeedsJson
from twopass_kd.files.write import write_text_atomically
from twopass_kd.report import plots, plots_ondevice
from twopass_kd.report.collect import Report
from twopass_kd.report.content import aligned_lines, page_content
from twopass_kd.report.seeds_content import seeds_content

_SYNTHETIC = "The corpus is synthetic"  # in the templates of RESULTS.md
_SEEDS = "mean and range over seeds"


def write_reports(report: Report, experiment: Path, results_md: Path | None = None) -> list[Path]:
    """Write `report.html`, `report.md` and, where asked for, RESULTS.md. Returns their paths."""
    pages = {experiment / "report.md": render_markdown(report), experiment / "report.html": render_html(report)}
    if results_md is not None:
        path = Path(results_md)
        pages[path] = render_results_md(report, path.read_text(encoding="utf-8") if path.is_file() else "")
    for path, text in pages.items():
        write_text_atomically(path, text)
    return list(pages)


def write_seeds_reports(
    results: SeedsJson, folder: Path, command: str, results_md: Path | None = None, device: Report | None = None
) -> list[Path]:
    """Write `seeds.html`, `seeds.md` and, where asked for, RESULTS.md. Returns their paths.

    Args:
      folder: that of the experiments of all seeds.
      command: what made them, to be shown.
      device: of the seed that RESULTS.md shows on the device.
    """
    content = seeds_content(results, command)
    pages = {
        folder / "seeds.md": _render(_MARKDOWN, "seeds.md.j2", content),
        folder / "seeds.html": _render(_HTML, "seeds.html.j2", content),
    }
    if results_md is not None:
        path = Path(results_md)
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        one = dict.fromkeys(("delays", "searches", "on_device")) if device is None else page_content(device)
        one["device_seed"] = None if device is None else device.results.seed
        pages[path] = _with_section(before, _render(_MARKDOWN, "results_seeds.md.j2", {**one, **content}))
    for path, text in pages.items():
        write_text_atomically(path, text)
    return list(pages)


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page: style, figures and text inside, nothing loaded from anywhere."""
    return _render(_HTML, "report.html.j2", page_content(report))


def render_markdown(report: Report) -> str:
    """The whole report as Markdown; what `report.html` draws is tables here."""
    return _render(_MARKDOWN, "report.md.j2", page_content(report))


def render_results_md(report: Report, before: str = "") -> str:
    """The RESULTS.md that is kept with the recipe, in the habit of icefall's: parameter count, command, table.

    Args:
      before: what it was; sections of other experiments stay. Recorded speech comes before synthetic speech.
    """
    return _with_section(before, _render(_MARKDOWN, "results.md.j2", page_content(report)))


def _with_section(before: str, new: str) -> str:
    """RESULTS.md with a new section, the one of its title left out.

    Raises:
      ValueError: one seed would take the place of several.
    """
    title, own = new.split("\n## ", 1)
    name, sections = own.partition("\n")[0], []
    for section in before.split("\n## ")[1:]:
        if section.partition("\n")[0] != name:
            sections.append(section.strip())
        elif _SEEDS in section and _SEEDS not in own:
            raise ValueError(
                f"the section {name} of RESULTS.md is of several seeds, of which this one would take the place; report"
                " on them (python3 -m twopass_kd.bin.report_seeds), or remove it there first"
            )
    sections = sorted([own.strip(), *sections], key=lambda section: _SYNTHETIC in section)
    return "\n\n## ".join([title.strip(), *sections]) + "\n"


def _render(environment: Environment, template: str, content: dict[str, Any]) -> str:
    return environment.get_template(template).render(content).strip() + "\n"


def _escape_markdown(value: Any) -> Any:
    """Plain text inside Markdown: nothing in it may open a tag, a table cell or emphasis. Markup stays as it is."""
    if hasattr(value, "__html__"):
        return value
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|*_`[]":
        text = text.replace(mark, "\\" + mark)
    return Markup(text)


_HTML = Environment(
    loader=PackageLoader("twopass_kd.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_HTML.globals.update(plots=plots, plots_ondevice=plots_ondevice, aligned_lines=aligned_lines)
_MARKDOWN = _HTML.overlay(finalize=_escape_markdown)
