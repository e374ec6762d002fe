"""The report's on-device figures: WER against bytes and against real-time factor, a point per system and runtime."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.ondevice_json import DeviceRow, RuntimeName
from twopass_kd.report.plots import PAPER, RC, system_style, to_svg

# Marker and its size, the larger ones drawn first, so that runtimes at one place show as shapes inside each other.
_MARKERS = {
    "pytorch": ("o", 11.0),
    "onnx": ("s", 7.0),
    "onnx-int8": ("D", 6.5),
    "sherpa-onnx": ("^", 6.5),
    "sherpa-onnx-int8": ("v", 6.5),
}
_FONT_SIZE = 7.5
_NEAR = 6.0  # points (1/72 inch) between markers that are labelled together
_SWEEPS = 4  # over all labels, each moving out of the others' way
_LOG_FROM = 4.0  # times from the least to the greatest x

Place = tuple[float, ...]  # x, y in points
Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


@dataclass
class _Point:
    system: str
    runtime: RuntimeName
    x: float
    wer: float
    second_pass: bool
    first: tuple[float, float] | None = None  # (x, WER) of the first pass alone


@dataclass
class _Label:
    text: str
    colour: str
    x: float
    y: float
    width: float
    box: Box | None = None
    leader: Sequence[Box] = ()  # pieces of the line that leads to a label that is not next to its point


def wer_against_bytes(rows: Sequence[DeviceRow], set_name: str) -> str:
    """WER of what each runtime does in full against what it needs on disk. Returns inline SVG."""
    points = [_point(row, set_name, lambda row, _: row.bytes / 1e6) for row in rows]
    return _draw(points, set_name, "on disk (MB)", f"WER on {set_name} against bytes on disk")


def wer_against_rtf(rows: Sequence[DeviceRow], set_name: str) -> str:
    """WER against real-time factor, a line from each first pass to its two passes. Returns inline SVG."""
    points = [_point(row, set_name, lambda row, pass_name: row.rtf[pass_name]) for row in rows]
    for point, row in zip(points, rows, strict=True):
        if point.second_pass:
            point.first = (row.rtf.first_pass, row.wer[set_name].first_pass)
    return _draw(points, set_name, "real-time factor", f"WER on {set_name} against real-time factor")


def _point(row: DeviceRow, set_name: str, x: Callable[[DeviceRow, Pass], float]) -> _Point:
    wer = row.wer[set_name]
    second_pass = wer.two_pass is not None and row.rtf.two_pass is not None
    pass_name = Pass.TWO_PASS if second_pass else Pass.FIRST_PASS
    return _Point(row.system, row.runtime, x(row, pass_name), wer[pass_name], second_pass)


def _draw(points: Sequence[_Point], set_name: str, x_label: str, description: str) -> str:
    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(4.6, 3.7))
        ax = fig.add_axes((0.135, 0.125, 0.855, 0.795))  # fixed: labels are placed in its points
        ends = [(p.x, p.wer) for p in points] + [p.first for p in points if p.first]
        _set_limits(ax, ends)
        ax.set_xlabel(x_label + (", log scale" if ax.get_xscale() == "log" else ""))
        ax.set_ylabel("WER (%)")
        ax.set_title(set_name, loc="left")
        for point in sorted(points, key=lambda p: -_MARKERS[p.runtime][1]):
            _draw_point(ax, point)
        _place_labels(ax, points)
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


def _place_labels(ax: Axes, points: Sequence[_Point]) -> None:
    """A label by each point, or group of one system's points, where it covers as little as can be; lines lead far."""
    scale = 72 / ax.figure.dpi
    at = [tuple(scale * v for v in ax.transData.transform((p.x, p.wer))) for p in points]
    markers = list(at)
    lines: list[Box] = []
    for point, end in zip(points, at, strict=True):
        if point.first:
            start = tuple(scale * v for v in ax.transData.transform(point.first))
            markers.append(start)
            lines += _along(start, end)
    labels = []
    for members in _groups(points, at):
        text = f"{points[members[0]].system} {', '.join(points[i].runtime.title for i in members)}"
        x, y = (sum(at[i][axis] for i in members) / len(members) for axis in (0, 1))
        width = TextPath((0, 0), text, size=_FONT_SIZE).get_extents().width * 1.12  # bold, in the reader's font
        labels.append(_Label(text, system_style(points[members[0]].system)[0], x, y, width))
    left, bottom, right, top = (scale * v for v in ax.bbox.extents)
    frame = (left + 3, bottom + 3, right, top)
    for _ in range(_SWEEPS):
        for label in labels:
            _settle(label, [other for other in labels if other is not label and other.box], frame, markers, lines)
    for label in labels:
        _draw_label(ax, label, scale)


def _draw_label(ax: Axes, label: _Label, scale: float) -> None:
    point = ax.transData.inverted().transform((label.x / scale, label.y / scale))
    (left, bottom, right, top), offset = label.box, {"textcoords": "offset points", "color": label.colour}
    middle = ((left + right) / 2 - label.x, (bottom + top) / 2 - label.y)
    ax.annotate(label.text, point, middle, ha="center", va="center", size=_FONT_SIZE, weight="bold", **offset)
    if label.leader:
        x, y = _nearest(label.box, label.x, label.y)
        line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
        ax.annotate("", point, (x - label.x, y - label.y), arrowprops=line, **offset)


def _groups(points: Sequence[_Point], at: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Indices of one system's points that lie on each other, the highest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(points)), key=lambda i: (-at[i][1], at[i][0])):
        near = (g for g in groups if points[g[0]].system == points[i].system and math.dist(at[g[0]], at[i]) < _NEAR)
        group = next(near, None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _settle(
    label: _Label, others: Sequence[_Label], frame: Box, markers: Sequence[Place], lines: Sequence[Box]
) -> None:
    """Move a label to the place with the least cost: near its point, inside `frame`, off all that is drawn there."""
    least = math.inf
    for reach in (9, 14, 20, 28, 38, 50, 64, 80):
        for k in range(24):
            c, s = math.cos(math.pi * k / 12), math.sin(math.pi * k / 12)
            half = (label.width / 2 + 2, 0.62 * _FONT_SIZE)
            box = _around(label.x + c * (reach + half[0]), label.y + s * (reach + half[1]), *half)
            leader = _along((label.x, label.y), _nearest(box, label.x, label.y))[1:] if reach > 9 else []
            cost = 1.2 * reach + 2 * abs(s) + 8 * sum(_overlap(box, line) for line in lines)
            if box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]:
                cost += 400
            for x, y in markers:
                if math.dist((x, y), (label.x, label.y)) > 1:
                    cost += 50 * _overlap(box, _around(x, y, 5, 5)) + 25 * _overlap(box, _around(x, y, 12, 7))
            for other in others:
                cost += 500 * _overlap(box, other.box)
                cost += 100 * any(_overlap(box, piece) for piece in other.leader)
                cost += 100 * any(_overlap(other.box, piece) for piece in leader)
            if cost < least:
                least, label.box, label.leader = cost, box, leader


def _nearest(box: Box, x: float, y: float) -> Place:
    """The point of a box that is nearest to (x, y)."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _along(start: Place, end: Place) -> list[Box]:
    """A line as small boxes, from its start to its end."""
    count = max(2, int(math.dist(start, end) / 5))
    steps = (k / count for k in range(count + 1))
    return [_around(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1]), 1, 1) for s in steps]


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
