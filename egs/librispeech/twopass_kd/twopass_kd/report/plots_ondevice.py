"""The report's on-device figures: WER against bytes and against real-time factor, a point per system and runtime."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from twopass_kd.report.labels import label_points, to_points
from twopass_kd.report.plots import AXES_PLACE, PAPER, RC, system_style, to_svg
from twopass_kd.scoring.ondevice_results import RUNTIME_TITLES

# Marker and its size, the larger ones drawn first, so that runtimes at one place show as shapes inside each other.
_MARKERS = {
    "pytorch": ("o", 11.0),
    "onnx": ("s", 7.0),
    "onnx-int8": ("D", 6.5),
    "sherpa-onnx": ("^", 6.5),
    "sherpa-onnx-int8": ("v", 6.5),
}
_NEAR = 6.0  # points (1/72 inch) between markers that are labelled together
_LOG_FROM = 4.0  # times from the least to the greatest x


@dataclass
class _Point:
    system: str
    runtime: str
    x: float
    wer: float
    second_pass: bool
    first: tuple[float, float] | None = None  # (x, WER) of the first pass alone


def wer_against_bytes(rows: Sequence[dict[str, Any]], set_name: str) -> Markup:
    """WER of what each runtime does in full against what it needs on disk."""
    points = [_point(row, set_name, lambda row, _: row["bytes"] / 1e6) for row in rows]
    return _draw(points, set_name, "on disk (MB)", f"WER on {set_name} against bytes on disk")


def wer_against_rtf(rows: Sequence[dict[str, Any]], set_name: str) -> Markup:
    """WER against real-time factor, a line from each first pass to its two passes."""
    points = [_point(row, set_name, lambda row, pass_name: row["rtf"][pass_name]) for row in rows]
    for point, row in zip(points, rows, strict=True):
        if point.second_pass:
            point.first = (row["rtf"]["first_pass"], row["wer"][set_name]["first_pass"])
    return _draw(points, set_name, "real-time factor", f"WER on {set_name} against real-time factor")


def _point(row: dict[str, Any], set_name: str, x: Callable[[dict[str, Any], str], float]) -> _Point:
    wer = row["wer"][set_name]
    second_pass = wer["two_pass"] is not None and row["rtf"]["two_pass"] is not None
    pass_name = "two_pass" if second_pass else "first_pass"
    return _Point(row["system"], row["runtime"], x(row, pass_name), wer[pass_name], second_pass)


def _draw(points: Sequence[_Point], set_name: str, x_label: str, description: str) -> Markup:
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(4.6, 3.7))
        ax = fig.add_axes(AXES_PLACE)
        ends = [(p.x, p.wer) for p in points] + [p.first for p in points if p.first]
        _set_limits(ax, ends)
        ax.set_xlabel(x_label + (", log scale" if ax.get_xscale() == "log" else ""))
        ax.set_ylabel("WER (%)")
        ax.set_title(set_name, loc="left")
        for point in sorted(points, key=lambda p: -_MARKERS[p.runtime][1]):
            _draw_point(ax, point)
        labels = [
            (
                f"{members[0].system} {', '.join(RUNTIME_TITLES[p.runtime] for p in members)}",
                system_style(members[0].system)[0],
                (members[0].x, members[0].wer),
            )
            for members in _groups(ax, points)
        ]
        label_points(ax, labels, [[p.first, (p.x, p.wer)] if p.first else [(p.x, p.wer)] for p in points])
        return to_svg(fig, description)


def _draw_point(ax: Axes, point: _Point) -> None:
    colour = system_style(point.system)[0]
    marker, size = _MARKERS[point.runtime]
    hollow = {"markerfacecolor": PAPER, "markeredgecolor": colour, "markeredgewidth": 1.1}
    filled = {"markerfacecolor": colour, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
    if point.first:
        ax.plot(*zip(point.first, (point.x, point.wer), strict=True), color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        ax.plot(*point.first, marker=marker, markersize=0.7 * size, **hollow)
    ax.plot(point.x, point.wer, marker=marker, markersize=size, **(filled if point.second_pass else hollow))


def _set_limits(ax: Axes, ends: Sequence[tuple[float, float]]) -> None:
    """Room for labels around the points; x logarithmic where it spans much."""
    xs, wers = zip(*ends, strict=True)
    if min(xs) > 0 and max(xs) > _LOG_FROM * min(xs):
        room = (max(xs) / min(xs)) ** 0.3
        ax.set_xscale("log")
        ax.set_xlim(min(xs) / room, max(xs) * room)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.set_xlim(0, 1.35 * max(xs) or 1)
    room = max(0.28 * (max(wers) - min(wers)), 0.05 * max(wers), 0.1)
    ax.set_ylim(max(min(wers) - room, 0), max(wers) + room)


def _groups(ax: Axes, points: Sequence[_Point]) -> list[list[_Point]]:
    """One system's points that lie on each other together, the highest first."""
    groups: list[list[_Point]] = []
    places = to_points(ax, [(p.x, p.wer) for p in points])
    at = {id(point): place for point, place in zip(points, places, strict=True)}
    for point in sorted(points, key=lambda p: (-p.wer, p.x)):
        for group in groups:
            if group[0].system == point.system and math.dist(at[id(group[0])], at[id(point)]) < _NEAR:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups
