"""The report's figures: matplotlib drawings as inline SVG that follows the page's font and light or dark colours.

Every system keeps one colour (Okabe and Ito's palette, which the colour-blind can tell apart, a little darker so that
text in it can be read on white) and one marker. The style sheet has a lighter shade of each for dark pages.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import System
from twopass_kd.files.seeds_json import SeedsJson
from twopass_kd.report.collect import Curve
from twopass_kd.report.content import format_duration, scan_at_chosen_reward
from twopass_kd.report.labels import label_points

_STYLES = {
    "teacher": ("#0072b2", "s"),
    "student_copy": ("#767676", "v"),
    "student_stage1": ("#b87700", "^"),
    "student_stage2": ("#008560", "D"),
    "student": ("#c85200", "o"),
    "student_scratch": ("#b35c8d", "X"),
    "student_kd": ("#2e8fc4", "P"),
    "tiny_jump": ("#8f6210", "<"),
    "tiny": ("#7a5fb0", ">"),
}
_OTHER_STYLES = list(_STYLES.values())[5:]
_INK, _GRID, PAPER = "#010203", "#040506", "#070809"  # placeholders, replaced by the page's own colours
RC = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), _INK),
}
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
# Left, bottom, width, height in the figure: a layout engine would take half of the time of a page of loss curves, and
# would move the axes after the labels are placed in them.
_PLACE, _PLACE_IN_PANEL = (0.13, 0.135, 0.845, 0.785), (0.25, 0.23, 0.72, 0.65)
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


def new_axes(height: float, title: str, x_label: str, y_label: str, panel: bool = False) -> Axes:
    """Axes in a figure of their own, `height` inches high; `panel` is for one of many small figures."""
    fig = Figure(figsize=(2.7 if panel else 4.6, height))
    return fig.add_axes(_PLACE_IN_PANEL if panel else _PLACE, xlabel=x_label, ylabel=y_label, title=title)


def log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2, 5 and their tenfolds, as plain numbers, of an axis that is logarithmic."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


@matplotlib.rc_context(RC)
def loss_curve(curve: Curve, phase: str) -> Markup:
    """One loss term of one phase against training steps; thin line: train, markers: valid."""
    colour, marker = system_style(phase.split("/")[0])
    ax = new_axes(1.85, curve.term, "training step", "nats per frame", panel=True)
    if curve.train:
        ax.plot(*zip(*_thin(curve.train), strict=True), color=colour, linewidth=1.0, alpha=0.6)
    if curve.valid:
        ax.plot(*zip(*_thin(curve.valid), strict=True), color=colour, linewidth=1.4, marker=marker, markersize=3.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    values = [value for _, value in (*curve.train, *curve.valid)]
    if values and min(values) > 0 and max(values) > 10 * min(values):  # so that its end can be read too
        ax.set_yscale("log")
        log_ticks(ax.yaxis)
        ax.set_ylabel("nats per frame (log)")
    return to_svg(ax.figure, f"{phase}: loss {curve.term} against training step")


@matplotlib.rc_context(RC)
def wer_of_seeds(results: SeedsJson, set_name: str) -> Markup:
    """WER after the last pass of each seed and system; a line joins the systems of a seed, a bar is the mean."""
    ax = new_axes(3.5, set_name, "", "WER (%)")
    last = [s.wer[set_name][Pass.TWO_PASS] or s.wer[set_name][Pass.FIRST_PASS] for s in results.systems]
    for of_seed in zip(*(wer.each for wer in last), strict=True):
        ax.plot(range(len(last)), of_seed, color=_GRID, linewidth=1.0, zorder=1)
    for i, (system, wer) in enumerate(zip(results.systems, last, strict=True)):
        colour, marker = system_style(system.name)
        ax.plot([i - 0.25, i + 0.25], [wer.mean] * 2, color=colour, linewidth=2.0)
        ax.plot([i] * len(wer.each), wer.each, marker, color=colour, markersize=4.5)
    ax.set_xticks(range(len(last)), [system.name.replace("_", "\n") for system in results.systems])
    ax.grid(visible=False, axis="x")
    ax.set_ylim(bottom=0)
    return to_svg(ax.figure, f"{set_name}: WER of each seed and system")


@matplotlib.rc_context(RC)
def wer_against_size(systems: Sequence[System], set_name: str) -> Markup:
    """WER against deployed parameters, a line from each system's first pass to its two passes."""
    ax = new_axes(3.5, set_name, "deployed parameters (millions)", "WER (%)")
    sizes = [system.params.total / 1e6 for system in systems]
    labels, drawn = [], []
    for i, (system, size) in enumerate(zip(systems, sizes, strict=True)):
        colour, marker = system_style(system.name)
        scored = system.wer[set_name]
        # Side by side where systems are of one size, so that their error bars can be told apart.
        size += 0.022 * max(sizes) * (sizes[:i].count(size) - (sizes.count(size) - 1) / 2)
        points = [(size - system.params.attention_decoder / 1e6, scored.first_pass, "none")]
        if scored.two_pass:
            points.append((size, scored.two_pass, colour))
        line = [(x, result.wer) for x, result, _ in points]
        ax.plot(*zip(*line, strict=True), color=colour, linewidth=1.0, alpha=0.6)
        for x, result, face in points:
            low, high = result.ci95
            bar = [[max(result.wer - low, 0)], [max(high - result.wer, 0)]]
            ax.errorbar(x, result.wer, bar, color=colour, elinewidth=1.0, capsize=2)
            ax.plot(x, result.wer, marker=marker, color=colour, markerfacecolor=face, markersize=6)
            drawn.append([(x, low), (x, high)])
        drawn.append(line)
        labels.append((system.name, colour, line[-1]))
    ax.set_xlim(0, 1.3 * max(sizes))
    ax.set_ylim(0, None)
    label_points(ax, labels, drawn)
    return to_svg(ax.figure, f"WER on {set_name} against deployed parameters")


@matplotlib.rc_context(RC)
def weight_scan(systems: Sequence[System]) -> Markup:
    """Dev WER against the weight of the second pass, at the chosen length reward; ring: chosen."""
    ax = new_axes(3.2, "", "weight of the attention decoder in rescoring", "WER on dev (%)")
    labels, drawn = [], []
    for system in systems:
        colour, marker = system_style(system.name)
        points = scan_at_chosen_reward(system)
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.2)
        chosen = min(points, key=lambda p: abs(p[0] - system.rescore_weight))
        ax.plot(*chosen, marker="o", markersize=11, markerfacecolor="none", color=colour, markeredgewidth=1.3)
        drawn.append(points)
        labels.append((system.name, colour, points[-1]))
    right = max(points[-1][0] for points in drawn)
    ax.set_xlim(-0.04 * right, 1.45 * right if right else None)
    ax.set_xticks([x for x in ax.get_xticks() if 0 <= x <= right + 1e-9])
    label_points(ax, labels, drawn)
    return to_svg(ax.figure, "WER on dev against rescoring weight")


@matplotlib.rc_context(RC)
def wer_in_conditions(systems: Sequence[System], set_name: str) -> Markup:
    """Two-pass WER with pauses and in noise: a line of markers for each condition, one for each system."""
    heard = {system.name: system.conditions[set_name] for system in systems if system.conditions.get(set_name)}
    names = list(dict.fromkeys(name for conditions in heard.values() for name in conditions))
    fig = Figure(figsize=(4.6, 0.9 + 0.24 * len(names)), layout="constrained")
    ax = fig.add_subplot(xlabel="two-pass WER (%)", title=set_name)
    for system, conditions in heard.items():
        colour, marker = system_style(system)
        points = [(wers[Pass.TWO_PASS], names.index(name)) for name, wers in conditions.items()]
        ax.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, alpha=0.85, label=system)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, None)
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, loc="upper right")
    return to_svg(fig, f"WER on {set_name} with pauses and in noise")


@matplotlib.rc_context(RC)
def stage_times(rows: Sequence[tuple[str, float]]) -> Markup:
    """Wall time of the stages of run.sh, from (name, seconds)."""
    fig = Figure(figsize=(4.6, 0.55 + 0.27 * len(rows)), layout="constrained")
    ax = fig.add_subplot(xlabel="wall time (minutes)")
    names, minutes = [name for name, _ in rows], [seconds / 60 for _, seconds in rows]
    bars = ax.barh(range(len(rows)), minutes, tick_label=names, color="#0072b2", alpha=0.8, height=0.65)
    ax.bar_label(bars, [format_duration(seconds) for _, seconds in rows], padding=4)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.18 * max(minutes, default=1) or 1)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    return to_svg(fig, "wall time by stage")


def _thin(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `_MAX_POINTS` of them, evenly spread, the last one kept."""
    step = -(-len(points) // _MAX_POINTS)
    return points if step <= 1 else [*points[::step], points[-1]]


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
    text = " ".join(ET.tostring(svg, encoding="unicode").split())  # without the indentation
    for colour, css in _CSS_COLOURS.items():
        text = text.replace(colour, css)
    return Markup(text)
