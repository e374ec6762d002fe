"""The report's figures: matplotlib drawings as inline SVG that follows the page's font and light or dark colours.

Every system keeps one colour (Okabe and Ito's palette, which the colour-blind can tell apart, a little darker so that
text in it can be read on white) and one marker. The style sheet has a lighter shade of each for dark pages.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from twopass_kd.report.collect import Curve
from twopass_kd.report.content import format_duration, scan_at_chosen_reward
from twopass_kd.report.labels import label_points

_STYLES = {
    "teacher": ("#0072b2", "s"),
    "student_copy": ("#767676", "v"),
    "student_stage1": ("#b87700", "^"),
    "student_stage2": ("#008560", "D"),
    "student": ("#c85200", "o"),
}
_OTHER_STYLES = (("#b35c8d", "X"), ("#2e8fc4", "P"), ("#8f6210", "<"), ("#7a5fb0", ">"))
_INK, _GRID, PAPER = "#010203", "#040506", "#070809"  # placeholders, replaced by the page's own colours
RC = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
}
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
# Left, bottom, width, height: a layout engine would move the axes under the labels, and take its time.
AXES_PLACE = (0.13, 0.135, 0.845, 0.785)
_MAX_POINTS = 300  # of a curve; more than a panel has pixels only makes the page heavy


def system_style(name: str) -> tuple[str, str]:
    """(colour, matplotlib marker) of a system. Names outside the recipe's own get one of the remaining colours."""
    if name in _STYLES:
        return _STYLES[name]
    return _OTHER_STYLES[sum(name.encode()) % len(_OTHER_STYLES)]


def themed(colour: str) -> str:
    """The CSS value of a system's colour: the page's own shade of it where it has one."""
    return f"var(--c{colour[1:]}, {colour})"


_CSS_COLOURS = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: themed(colour) for colour, _ in (*_STYLES.values(), *_OTHER_STYLES)},
}


def loss_curve(curve: Curve, phase: str) -> Markup:
    """One loss term of one phase against training steps; thin line: train, markers: valid."""
    colour, marker = system_style(phase.split("/")[0])
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(2.7, 1.85))  # fixed margins: a layout engine would take half of the time of 32 panels
        ax = fig.add_axes((0.25, 0.23, 0.72, 0.65))
        if curve.train:
            ax.plot(*zip(*_thin(curve.train), strict=True), color=colour, linewidth=1.0, alpha=0.6)
        if curve.valid:
            ax.plot(*zip(*_thin(curve.valid), strict=True), color=colour, linewidth=1.4, marker=marker, markersize=3.5)
        ax.set_title(curve.term, loc="left")
        ax.set_xlabel("training step")
        ax.set_ylabel("nats per frame")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        _fit_losses(ax, [*curve.train, *curve.valid])
        return to_svg(fig, f"{phase}: loss {curve.term} against training step")


def wer_against_size(systems: Sequence[dict[str, Any]], set_name: str) -> Markup:
    """WER against deployed parameters, a line from each system's first pass to its two passes."""
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(4.6, 3.5))
        ax = fig.add_axes(AXES_PLACE)
        width = max(s["params"]["total"] for s in systems) / 1e6
        shift = _side_by_side(systems, width)
        labels, drawn = [], []
        for system in systems:
            colour, marker = system_style(system["name"])
            scored = system["wer"][set_name]
            total, dx = system["params"]["total"] / 1e6, shift[system["name"]]
            points = [(total - system["params"]["attention_decoder"] / 1e6 + dx, scored["first_pass"], "none")]
            if scored["two_pass"]:
                points.append((total + dx, scored["two_pass"], colour))
            ax.plot([p[0] for p in points], [p[1]["wer"] for p in points], color=colour, linewidth=1.0, alpha=0.6)
            for x, result, face in points:
                low, high = result["wer"] - result["ci95"][0], result["ci95"][1] - result["wer"]
                ax.errorbar(x, result["wer"], [[max(low, 0)], [max(high, 0)]], color=colour, elinewidth=1.0, capsize=2)
                ax.plot(x, result["wer"], marker=marker, color=colour, markerfacecolor=face, markersize=6)
                drawn.append([(x, result["ci95"][0]), (x, result["wer"]), (x, result["ci95"][1])])
            corners = [(x, result["wer"]) for x, result, _ in points]
            drawn.append(corners)
            labels.append((system["name"], colour, corners[-1]))
        ax.set_xlim(0, 1.3 * width)
        ax.set_ylim(0, None)
        ax.set_xlabel("deployed parameters (millions)")
        ax.set_ylabel("WER (%)")
        ax.set_title(set_name, loc="left")
        label_points(ax, labels, drawn)
        return to_svg(fig, f"WER on {set_name} against deployed parameters")


def weight_scan(systems: Sequence[dict[str, Any]]) -> Markup:
    """Dev WER against the weight of the second pass, at the chosen length reward; ring: chosen."""
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(4.6, 3.2))
        ax = fig.add_axes(AXES_PLACE)
        labels, drawn, right = [], [], 0.0
        for system in systems:
            colour, marker = system_style(system["name"])
            points = scan_at_chosen_reward(system)
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.2)
            chosen = min(points, key=lambda p: abs(p[0] - system["rescore_weight"]))
            ax.plot(*chosen, marker="o", markersize=11, markerfacecolor="none", color=colour, markeredgewidth=1.3)
            drawn.append(points)
            labels.append((system["name"], colour, points[-1]))
            right = max(right, points[-1][0])
        ax.set_xlim(-0.04 * right, 1.45 * right if right else None)
        ax.set_xticks([x for x in ax.get_xticks() if 0 <= x <= right + 1e-9])
        ax.set_xlabel("weight of the attention decoder in rescoring")
        ax.set_ylabel("WER on dev (%)")
        label_points(ax, labels, drawn)
        return to_svg(fig, "WER on dev against rescoring weight")


def stage_times(rows: Sequence[tuple[str, float]]) -> Markup:
    """Wall time of the stages of run.sh, from (name, seconds)."""
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(4.6, 0.55 + 0.27 * len(rows)), layout="constrained")
        ax = fig.add_subplot()
        minutes = [seconds / 60 for _, seconds in rows]
        ax.barh(range(len(rows)), minutes, color="#0072b2", alpha=0.8, height=0.65)
        for y, (_, seconds) in enumerate(rows):
            ax.annotate(format_duration(seconds), (seconds / 60, y), (4, 0), textcoords="offset points", va="center")
        ax.set_yticks(range(len(rows)), [name for name, _ in rows])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.18 * max(minutes, default=1) or 1)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("wall time (minutes)")
        return to_svg(fig, "wall time by stage")


def _thin(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `_MAX_POINTS` of them, evenly spread, the last one kept."""
    step = -(-len(points) // _MAX_POINTS)
    return points if step <= 1 else [*points[::step], points[-1]]


def _fit_losses(ax: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Logarithmic where a loss falls more than tenfold, so that its end can be read too."""
    values = [value for _, value in points]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel("nats per frame (log)")


def _side_by_side(systems: Sequence[dict[str, Any]], width: float) -> dict[str, float]:
    """Horizontal shifts (millions of parameters) that keep the error bars of systems of one size apart."""
    by_size: dict[int, list[str]] = {}
    for system in systems:
        by_size.setdefault(system["params"]["total"], []).append(system["name"])
    shift = {}
    for names in by_size.values():
        for i, name in enumerate(names):
            shift[name] = 0.022 * width * (i - (len(names) - 1) / 2)
    return shift


def to_svg(fig: Figure, description: str) -> Markup:
    """A figure drawn under `RC` as an `<svg>` element for the page, in the page's colours.

    `description` is read out in place of the figure. It must be another one for each figure of the page, since
    matplotlib makes the names that a figure's parts are referred to by from it.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": description}):
        fig.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = ET.fromstring(out.getvalue())
    svg.attrib = {"viewBox": svg.attrib["viewBox"], "role": "img", "aria-label": description}
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]  # inside HTML, SVG needs no namespaces
        if element.tag == "g":
            element.attrib.pop("id", None)  # nothing refers to groups, and every figure has the same ones
        if _XLINK_HREF in element.attrib:
            element.set("href", element.attrib.pop(_XLINK_HREF))
    text = ET.tostring(svg, encoding="unicode")
    for colour, css in _CSS_COLOURS.items():
        text = text.replace(colour, css)
    return Markup(text)
