"""What the figures share: colours, axes, legends, and the look into a table before it is drawn."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from scanpy.plotting import palettes

from pyro_fcr.data.errors import listed
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.metrics.arrays import FloatArray

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#c4c4c4"
BLUE, ORANGE = "#0072b2", "#d55e00"  # of the Okabe-Ito palette, told apart by every reader

# Columns that are results; the others say what a result is of.
NUMBERS = {
    "estimate", "sd", "lower", "upper", "spread_lower", "spread_upper", "extrapolated", "support",
    "reference", "uncertainty", "strength", "z", "pvalue", "qvalue", "n_cells", "n_genes",
}  # fmt: skip


def check_columns(frame: pd.DataFrame, columns: Iterable[str], *, name: str) -> None:
    """Refuse a table without rows or without one of the columns.

    Raises
    ------
    ValueError
        Names the missing columns and those that were found.
    """
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(
            f"{name} has no column {listed(missing)}, found {listed(frame.columns, limit=20)}"
        )
    if frame.empty:
        raise ValueError(f"{name} has no rows: nothing to draw")


def check_unique(frame: pd.DataFrame, keys: Sequence[str], *, name: str) -> None:
    """Refuse a table with several rows where a figure has one place.

    Raises
    ------
    ValueError
        Names the place and the columns in which its rows differ.
    """
    frame = frame.dropna(subset=list(keys))
    twice = frame.duplicated(list(keys), keep=False)
    if not twice.any():
        return
    first = frame[twice].iloc[0]
    same = frame[(frame[list(keys)] == first[list(keys)]).all(axis=1)]
    differ = [c for c in same if c not in NUMBERS and same[c].nunique(dropna=False) > 1]
    place = ", ".join(f"{key} {str(first[key])!r}" for key in keys)
    mend = f"they differ in {listed(differ)}: choose one" if differ else "drop the duplicates"
    raise ValueError(f"{name} has {len(same)} rows for {place}; {mend}")


def levels_of(values: pd.Series) -> list[Any]:
    """Levels that occur: of a categorical in its order, else as they come; no missing ones."""
    found = values.dropna().unique()
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [level for level in values.cat.categories if level in set(found)]
    return list(found)


def check_levels(values: pd.Series, wanted: Sequence[Any], *, name: str) -> None:
    """Refuse levels that a column does not have, and a choice of none.

    Raises
    ------
    ValueError
        Names the first unknown level, those that were found and the nearest one.
    """
    known = levels_of(values)
    if not wanted:
        raise ValueError(f"No {values.name} is chosen; {name} has {listed(known)}.")
    for level in wanted:
        if level not in known:
            hint = did_you_mean(str(level), map(str, known))
            raise ValueError(f"Unknown {values.name} {level!r}; {name} has {listed(known)}.{hint}")


def palette(n_levels: int) -> list[str]:
    """Return one colour per level from scanpy's default palettes; grey beyond 102."""
    for colors in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n_levels <= len(colors):
            return list(colors[:n_levels])
    return ["#808080"] * n_levels


def new_axes(width: float, height: float) -> Axes:
    """Make a figure with one axes, in inches."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def grid(
    n_panels: int, n_columns: int, *, width: float, height: float
) -> tuple[Figure, npt.NDArray[Any]]:
    """Make a figure with `n_panels` axes of a width and height in inches, row by row."""
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08)
    figure = Figure(figsize=(width * n_columns, height * n_rows), layout=layout)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in axes[n_panels:]:
        ax.remove()
    return figure, axes[:n_panels]


def name_axes(
    panels: npt.NDArray[Any], n_columns: int, *, xlabel: str, ylabel: str | None = None
) -> None:
    """Label the axes of a grid at its left and lower rim."""
    for ax in panels[::n_columns]:
        ax.set_ylabel(ylabel)
    for ax in panels[-n_columns:]:
        ax.set_xlabel(xlabel)


def plain(ax: Axes, *, title: str | None = None) -> None:
    """Keep two faint spines and small muted labels, and a title at the left."""
    if title is not None:
        ax.set_title(title, fontsize=9, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=FAINT, linewidth=0.8)
    ax.tick_params(labelsize=7.5, color=FAINT, labelcolor=MUTED, length=3)
    ax.xaxis.label.set(color=MUTED, fontsize=8.5)
    ax.yaxis.label.set(color=MUTED, fontsize=8.5)


def dot(label: str, color: str, **style: Any) -> Line2D:
    """Make the entry of a legend that shows a marker alone."""
    look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 5} | style
    return Line2D([], [], color=color, label=label, **look)


def legend_outside(ax: Axes, handles: Sequence[Any], *, n_columns: int = 1) -> None:
    """Put a legend to the right of the axes."""
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=n_columns,
        frameon=False,
        fontsize=8,
        handletextpad=0.4,
    )


def legend_beside(figure: Figure, handles: Sequence[Any], *, title: str | None = None) -> None:
    """Widen a figure for a legend to the right of all panels."""
    n_columns = 1 + len(handles) // max(int(figure.get_figheight() / 0.2), 1)
    width = 0.5 + label_width([title or "", *(handle.get_label() for handle in handles)])
    figure.set_figwidth(figure.get_figwidth() + n_columns * width)
    figure.legend(
        handles=handles,
        loc="outside right upper",
        ncols=n_columns,
        frameon=False,
        fontsize=8,
        handletextpad=0.4,
        title=title,
        title_fontsize=8.5,
        alignment="left",
    )


def label_width(labels: Iterable[Any], *, per_letter: float = 0.066) -> float:
    """Estimate the width of the longest label in inches."""
    return per_letter * max((len(str(label)) for label in labels), default=0)


def color_of(levels: Sequence[Any]) -> Mapping[Any, str]:
    """Return the colour of each level."""
    return dict(zip(levels, palette(len(levels)), strict=True))


def decades(low: float, high: float) -> FloatArray:
    """Return about six powers of ten, at most, between two positive values."""
    exponents = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    return 10.0 ** exponents[:: 1 + len(exponents) // 7]
