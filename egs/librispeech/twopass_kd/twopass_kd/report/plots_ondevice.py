"""The report's on-device figures: WER against bytes and against real-time factor, a point per system and runtime."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes

from twopass_kd.files.ondevice_json import DeviceRow, RuntimeName
from twopass_kd.report.labels import label_points, to_points
from twopass_kd.report.plots import PAPER, RC, log_ticks, new_axes, system_style, to_svg

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
    runtime: RuntimeName
    x: float
    wer: float
    second_pass: bool
    first: tuple[float, float] | None = None  # (x, WER) of the first pass alone


def wer_against_bytes(rows: Sequence[DeviceRow], set_name: str) -> Markup:
    """WER of what each runtime does in full against what it needs on disk."""
    points = [_point(row, set_name) for row in rows]
    for point, row in zip(points, rows, strict=True):
        point.x, point.first = row.bytes / 1e6, None
    return _draw(points, set_name, "on disk (MB)", f"WER on {set_name} against bytes on disk")


def wer_against_rtf(rows: Sequence[DeviceRow], set_name: str) -> Markup:
    """WER against real-time factor, a line from each first pass to its two passes."""
    points = [_point(row, set_name) for row in rows]
    return _draw(points, set_name, "real-time factor", f"WER on {set_name} against real-time factor")


def _point(row: DeviceRow, set_name: str) -> _Point:
    """At its real-time factor."""
    wer, rtf = row.wer[set_name], row.rtf
    first = (rtf.first_pass, wer.first_pass)
    if wer.two_pass is None or rtf.two_pass is None:
        return _Point(row.system, row.runtime, *first, second_pass=False)
    return _Point(row.system, row.runtime, rtf.two_pass, wer.two_pass, second_pass=True, first=first)


@matplotlib.rc_context(RC)
def _draw(points: Sequence[_Point], set_name: str, x_label: str, description: str) -> Markup:
    ax = new_axes(3.7, set_name, x_label, "WER (%)")
    lines = [[p.first, (p.x, p.wer)] if p.first else [(p.x, p.wer)] for p in points]
    _set_limits(ax, [end for line in lines for end in line])
    for point in sorted(points, key=lambda p: -_MARKERS[p.runtime][1]):
        _draw_point(ax, point)
    labels = []
    for first, *others in _groups(ax, points):
        runtimes = ", ".join(p.runtime.title for p in (first, *others))
        labels.append((f"{first.system} {runtimes}", system_style(first.system)[0], (first.x, first.wer)))
    label_points(ax, labels, lines)
    return to_svg(ax.figure, description)


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
        ax.set_xlabel(f"{ax.get_xlabel()}, log scale")
        log_ticks(ax.xaxis)
    else:
        ax.set_xlim(0, 1.35 * max(xs) or 1)
    room = max(0.28 * (max(wers) - min(wers)), 0.05 * max(wers), 0.1)
    ax.set_ylim(max(min(wers) - room, 0), max(wers) + room)


def _groups(ax: Axes, points: Sequence[_Point]) -> list[list[_Point]]:
    """One system's points that lie on each other together, the highest first."""

    def lie_together(a: _Point, b: _Point) -> bool:
        return a.system == b.system and math.dist(*to_points(ax, [(a.x, a.wer), (b.x, b.wer)])) < _NEAR

    groups: list[list[_Point]] = []
    for point in sorted(points, key=lambda p: (-p.wer, p.x)):
        group = next((g for g in groups if lie_together(g[0], point)), None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return groups
