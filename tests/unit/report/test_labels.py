import pytest
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from twopass_kd.report.labels import label_points, to_points


def axes():
    ax = Figure(figsize=(4.6, 3.5)).add_axes((0.13, 0.13, 0.85, 0.8))
    ax.set(xlim=(0, 4), ylim=(0, 20))
    return ax


def boxes(ax) -> list[tuple[float, float, float, float]]:
    """Left, bottom, right, top of the labels in points, without the room around them."""
    found = []
    for note in ax.texts:
        (x, y), (dx, dy) = to_points(ax, [note.xy])[0], note.xyann
        width = TextPath((0, 0), note.get_text(), size=7.5).get_extents().width
        found.append((x + dx - width / 2, y + dy - 3, x + dx + width / 2, y + dy + 3))
    return found


@pytest.mark.parametrize("points", [[(1.3, 8.0), (1.3, 8.1), (1.1, 9.0), (1.2, 14.0)], [(2.0, 5.0)] * 5])
def test_labels_cover_neither_each_other_nor_a_marker_and_stay_inside(points):
    ax = axes()
    marker = (1.95, 8.0)  # where a label right of the first point would lie
    label_points(
        ax, [(f"student_stage{i}", "#000000", p) for i, p in enumerate(points)], [[p] for p in points] + [[marker]]
    )
    found = boxes(ax)
    left, bottom, right, top = (72 / ax.figure.dpi * v for v in ax.bbox.extents)
    for i, (x0, y0, x1, y1) in enumerate(found):
        assert left < x0 and bottom < y0 and x1 < right and y1 < top
        for x, y in to_points(ax, [*points, marker]):
            assert not (x0 < x < x1 and y0 < y < y1)
        for other in found[i + 1 :]:
            assert x1 <= other[0] or other[2] <= x0 or y1 <= other[1] or other[3] <= y0


def test_a_line_leads_to_the_point_of_a_label_that_lies_away():
    ax = axes()
    label_points(ax, [(name, "#000000", (2.0, 5.0)) for name in "abcdefghijklmnopqrst"], [[(2.0, 5.0)]])
    leads = [note.arrow_patch is not None for note in ax.texts]
    assert not leads[0] and leads[-1]
