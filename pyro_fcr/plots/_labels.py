"""Names beside the points of a scatter plot, placed so that they hide little."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

_ANGLES = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
_RADII = (3.0, 6.0, 10.0, 15.0, 21.0, 28.0, 36.0)


FloatArray = npt.NDArray[np.float64]


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        """Area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def count(self, points: FloatArray) -> int:
        """How many of the points, ``(n, 2)``, lie in the box."""
        above, below = points > (self.left, self.bottom), points < (self.right, self.top)
        return int((above & below).all(axis=1).sum())


def label_points(
    ax: Axes,
    points: FloatArray,
    names: Sequence[str],
    *,
    rows: Sequence[int],
    fontsize: float = 7.0,
) -> None:
    """Write the names of some points, one after the other, each where it hides least.

    Greedy: every name tries places around its point and takes the one that overlaps least with
    names set before, with all points and with the outside of the axes, and lies nearest. Limits and
    the layout of the figure must be final.

    Parameters
    ----------
    ax
        Axes that show `points`.
    points
        ``(n_points, 2)`` in data coordinates; those beyond the names are only kept clear.
    names
        ``(n_names,)``, of the first points.
    rows
        Points to name, the most important first.
    fontsize
        In typographic points.
    """
    to_points = 72.0 / cast(Figure, ax.get_figure(root=True)).dpi
    anchors = obstacles = ax.transData.transform(points) * to_points
    frame = _Box(*np.multiply(ax.get_window_extent().extents, to_points))
    placed: list[_Box] = []
    for row in rows:
        width = TextPath((0, 0), names[row], size=fontsize).get_extents().width
        half = np.array([width + 5.0, 1.3 * fontsize]) / 2.0
        offset, box = _best_place(obstacles, anchors[row], half, frame=frame, placed=placed)
        placed.append(box)
        obstacles = np.concatenate([obstacles, _leader(anchors[row], offset)])
        _annotate(ax, names[row], points[row], offset, fontsize=fontsize)


def _leader(anchor: FloatArray, offset: FloatArray) -> FloatArray:
    """Points along the line from a point to the middle of its name, both ends left out."""
    return anchor + np.linspace(0.1, 0.9, 9)[:, None] * offset


def _best_place(
    obstacles: FloatArray,
    anchor: FloatArray,
    half: FloatArray,
    *,
    frame: _Box,
    placed: Sequence[_Box],
) -> tuple[FloatArray, _Box]:
    """Centre of the name relative to its point, and its box, both in typographic points."""
    radii, angles = np.array(list(product(_RADII, _ANGLES))).T
    offsets = (radii[:, None] + half) * np.column_stack([np.cos(angles), np.sin(angles)])
    boxes = [_Box(*(anchor + offset - half), *(anchor + offset + half)) for offset in offsets]
    costs = [
        _cost(box, obstacles, frame=frame, placed=placed)
        + 12.0 * sum(other.count(_leader(anchor, offset)) for other in placed)
        + 1.5 * radius
        for box, offset, radius in zip(boxes, offsets, radii, strict=True)
    ]
    best = int(np.argmin(costs))
    return offsets[best], boxes[best]


def _cost(box: _Box, obstacles: FloatArray, *, frame: _Box, placed: Sequence[_Box]) -> float:
    area = (box.right - box.left) * (box.top - box.bottom)
    outside = area - box.overlap(frame)
    shared = sum(box.overlap(other) for other in placed)
    return 4.0 * box.count(obstacles) + 8.0 * shared + 10.0 * outside


def _annotate(
    ax: Axes,
    name: str,
    point: FloatArray,
    offset: FloatArray,
    *,
    fontsize: float,
) -> None:
    note = ax.annotate(
        name,
        (point[0], point[1]),
        xytext=(offset[0], offset[1]),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=fontsize,
        color="#222222",
        zorder=5,
        path_effects=[withStroke(linewidth=1.6, foreground="white")],
        arrowprops={"arrowstyle": "-", "color": "#8f8f8f", "linewidth": 0.5, "shrinkA": 0},
    )
    # The layout was fixed before the names were placed; it must not move for them.
    note.set_in_layout(False)
