"""Writes the names of a figure's points beside them, each at the nearest place where it covers little."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.textpath import TextPath

Point = tuple[float, float]

_FONT_SIZE = 7.5
_NEXT_TO = 9  # points (1/72 inch) between a point and a label that needs no line to it
# The places around a point that are tried: how far, and in which direction (cosine, sine).
_REACHES = np.repeat([_NEXT_TO, 14, 20, 28, 38, 50, 64, 80], 24)
_DIRECTIONS = np.tile([[np.cos(angle), np.sin(angle)] for angle in np.pi * np.arange(24) / 12], (8, 1))
_SHARES = np.linspace(0, 1, 20)[:, None]  # of a line, close enough that nothing slips through between them


def label_points(ax: Axes, labels: Sequence[tuple[str, str, Point]], drawn: Sequence[Sequence[Point]]) -> None:
    """Write each (text, colour, point); a line leads to a point that its label does not lie next to.

    Args:
      ax: its limits and its place in the figure must be final.
      labels: in the order in which they choose their places; points in the units of the axes.
      drawn: lines with markers at their corners, which the labels leave free; a lone marker is a line of one point.
    """
    corners = [to_points(ax, line) for line in drawn]
    taken = [_boxes(line, 5) for line in corners]
    taken += [_boxes(_along(*ends), 1) for line in corners for ends in zip(line, line[1:], strict=False)]
    placed = np.empty((0, 4))
    (left, bottom), (right, top) = to_points(ax, list(zip(ax.get_xlim(), ax.get_ylim(), strict=True)))
    for text, colour, point in labels:
        at = to_points(ax, [point])[0]
        width = TextPath((0, 0), text, size=_FONT_SIZE).get_extents().width
        half = np.array([0.56 * width + 2, 0.62 * _FONT_SIZE])  # bold, and in the reader's font
        middles = at + _DIRECTIONS * (_REACHES[:, None] + half)
        boxes = _boxes(middles, half)
        outside = (boxes[:, :2] < (left + 3, bottom + 3)).any(1) | (boxes[:, 2:] > (right, top)).any(1)
        crossed = sum(_overlaps(_boxes(at + share * (middles - at), 1), placed) for share in _SHARES)
        cost = 1.2 * _REACHES + 2 * abs(_DIRECTIONS[:, 1]) + 400 * outside
        cost += 500 * _overlaps(boxes, placed) + 20 * crossed + 20 * _overlaps(boxes, np.concatenate(taken))
        best = cost.argmin()
        placed = np.vstack([placed, boxes[best]])
        line = None
        if _REACHES[best] > _NEXT_TO:
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
            taken.append(_boxes(_along(at, middles[best]), 1))
        style = {"color": colour, "size": _FONT_SIZE, "weight": "bold", "ha": "center", "va": "center"}
        ax.annotate(text, point, middles[best] - at, textcoords="offset points", arrowprops=line, **style)


def to_points(ax: Axes, places: Sequence[Point]) -> np.ndarray:
    """From the units of the axes to points (1/72 inch) in the figure, (N, 2)."""
    return ax.transData.transform(places) * 72 / ax.figure.dpi


def _along(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return start + _SHARES * (end - start)


def _boxes(middles: np.ndarray, half: np.ndarray | float) -> np.ndarray:
    """Left, bottom, right, top of boxes with these middles and this half of their size, (N, 4)."""
    return np.hstack([middles - half, middles + half])


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of `others` each of `boxes` overlaps, (N,)."""
    apart = (boxes[:, None, :2] >= others[:, 2:]) | (boxes[:, None, 2:] <= others[:, :2])
    return (~apart.any(2)).sum(1)
