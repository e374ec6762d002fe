"""The report's figures: matplotlib drawings as inline SVG that follows the page's font and light or dark colours.

Every system keeps one colour (Okabe and Ito's palette, which the colour-blind can tell apart, a little darker so that
text in it can be read on white) and one marker. The style sheet has a lighter shade of each for dark pages.
"""

import hashlib
import html
import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from twopass_kd.files.results_json import System
from twopass_kd.report.content import format_duration, scan_at_chosen_reward

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
_MAX_POINTS = 300  # of a curve; more than a panel has pixels only makes the page heavy


def system_style(name: str) -> tuple[str, str]:
    """(colour, matplotlib marker) of a system. Names outside the recipe's own get one of the remaining colours."""
    if name in _STYLES:
        return _STYLES[name]
    return _OTHER_STYLES[sum(name.encode()) % len(_OTHER_STYLES)]


def themed(colour: str) -> str:
    """The CSS value of a system's colour: the page's own shade of it where it has one."""
    return f"var(--c{colour[1:]}, {colour})"


def loss_curve(train: Sequence[tuple[int, float]], valid: Sequence[tuple[int, float]], system: str, term: str) -> str:
    """One loss term of one phase against training steps; thin line: train, markers: valid. Returns inline SVG."""
    colour, marker = system_style(system)
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(2.7, 1.85))  # fixed margins: a layout engine would take half of the time of 32 panels
        ax = fig.add_axes((0.25, 0.23, 0.72, 0.65))
        if train:
            ax.plot(*zip(*_thin(train), strict=True), color=colour, linewidth=1.0, alpha=0.6)
        if valid:
            ax.plot(*zip(*_thin(valid), strict=True), color=colour, linewidth=1.4, marker=marker, markersize=3.5)
        ax.set_title(term, loc="left")
        ax.set_xlabel("training step")
        ax.set_ylabel("nats per frame")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        _fit_losses(ax, [*train, *valid])
        return to_svg(fig, f"loss {term} against training step")


def wer_against_size(systems: Sequence[System], set_name: str) -> str:
    """WER against deployed parameters, a line from each system's first pass to its two passes. Returns inline SVG."""
    with matplotlib.rc_context(RC):
        fig, ax = _figure(4.6, 3.5)
        width = max(s.params.total for s in systems) / 1e6
        shift = _side_by_side(systems, width)
        labels = []
        for system in systems:
            colour, marker = system_style(system.name)
            scored = system.wer[set_name]
            total, dx = system.params.total / 1e6, shift[system.name]
            points = [(total - system.params.attention_decoder / 1e6 + dx, scored.first_pass, "none")]
            if scored.two_pass:
                points.append((total + dx, scored.two_pass, colour))
            ax.plot([p[0] for p in points], [p[1].wer for p in points], color=colour, linewidth=1.0, alpha=0.6)
            for x, result, face in points:
                low, high = result.wer - result.ci95[0], result.ci95[1] - result.wer
                ax.errorbar(x, result.wer, [[max(low, 0)], [max(high, 0)]], color=colour, elinewidth=1.0, capsize=2)
                ax.plot(x, result.wer, marker=marker, color=colour, markerfacecolor=face, markersize=6)
            labels.append((points[-1][0], points[-1][1].wer, system.name))
        ax.set_xlim(0, 1.42 * width)
        ax.set_ylim(0, None)
        ax.set_xlabel("deployed parameters (millions)")
        ax.set_ylabel("WER (%)")
        ax.set_title(set_name, loc="left")
        _label_points(ax, labels, offset=0.025 * width)
        return to_svg(fig, f"WER on {set_name} against deployed parameters")


def weight_scan(systems: Sequence[System]) -> str:
    """Dev WER against the weight of the second pass, at the chosen length reward; ring: chosen. Returns inline SVG."""
    with matplotlib.rc_context(RC):
        fig, ax = _figure(4.6, 3.2)
        labels, right = [], 0.0
        for system in systems:
            colour, marker = system_style(system.name)
            points = scan_at_chosen_reward(system)
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.2)
            chosen = min(points, key=lambda p: abs(p[0] - system.rescore_weight))
            ax.plot(*chosen, marker="o", markersize=11, markerfacecolor="none", color=colour, markeredgewidth=1.3)
            labels.append((*points[-1], system.name))
            right = max(right, points[-1][0])
        ax.set_xlim(-0.04 * right, 1.45 * right if right else None)
        ax.set_xticks([x for x in ax.get_xticks() if 0 <= x <= right + 1e-9])
        ax.set_xlabel("weight of the attention decoder in rescoring")
        ax.set_ylabel("WER on dev (%)")
        _label_points(ax, labels, offset=0.03 * right)
        return to_svg(fig, "WER on dev against rescoring weight")


def stage_times(rows: Sequence[tuple[str, float]]) -> str:
    """Wall time of the stages of run.sh, from (name, seconds). Returns inline SVG."""
    with matplotlib.rc_context(RC):
        fig, ax = _figure(4.6, 0.55 + 0.27 * len(rows))
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


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.add_subplot()


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


def _side_by_side(systems: Sequence[System], width: float) -> dict[str, float]:
    """Horizontal shifts (millions of parameters) that keep the error bars of systems of one size apart."""
    by_size: dict[int, list[str]] = {}
    for system in systems:
        by_size.setdefault(system.params.total, []).append(system.name)
    shift = {}
    for names in by_size.values():
        for i, name in enumerate(names):
            shift[name] = 0.022 * width * (i - (len(names) - 1) / 2)
    return shift


def _label_points(ax: Axes, labels: Sequence[tuple[float, float, str]], offset: float) -> None:
    """Names right of their points, in their colours, moved apart where they would overlap; dots lead to a far point."""
    low, high = ax.get_ylim()
    gap = 0.068 * (high - low)
    columns: dict[float, list[tuple[float, float, str]]] = {}
    for x, y, name in sorted(labels, reverse=True):
        near = next((c for c in columns if abs(c - x) < 10 * offset), x)
        columns.setdefault(near, []).append((x, y, name))
    for members in columns.values():
        edge = max(m[0] for m in members) + offset
        placed: float | None = None
        for x, y, name in sorted(members, key=lambda m: m[1]):
            placed = y if placed is None else max(y, placed + gap)
            colour = system_style(name)[0]
            if edge - x > 3.5 * offset:
                ax.plot([x, edge], [y, placed], color=colour, linewidth=0.9, linestyle=":")
            ax.text(edge, placed, f" {name}", color=colour, va="center", fontweight="bold")


def to_svg(fig: Figure, description: str) -> str:
    """A figure drawn under `RC` as an `<svg>` element, with nothing that reaches outside the page or clashes inside."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": description}):
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # it would style the whole page
    used = set(re.findall(r"#([\w-]+)\)", svg)) | set(re.findall(r'href="#([\w-]+)"', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:10] + "-"
    for name in used:
        svg = re.sub(rf'(id="|#){re.escape(name)}(?=["\)])', rf"\g<1>{prefix}{name}", svg)
    for colour, _ in (*_STYLES.values(), *_OTHER_STYLES):
        svg = svg.replace(colour, themed(colour))
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)").replace(PAPER, "var(--paper)")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-label="LABEL">', svg, count=1
    )
    svg = re.sub(r"\s+", " ", svg.replace("xlink:href", "href"))
    return svg.replace("LABEL", html.escape(description), 1)
