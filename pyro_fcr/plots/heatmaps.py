"""Effects as a heat map: treatments or genes against contexts."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.plots._axes import (
    FAINT,
    INK,
    MUTED,
    check_columns,
    check_unique,
    label_width,
    levels_of,
    new_axes,
    plain,
)

_NO_VALUE = "#dcdcdc"


def effect_heatmap(
    effects: pd.DataFrame,
    *,
    value: str = "estimate",
    rows: str = "treatment",
    columns: str = "context",
    level: float = 0.1,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of one number per treatment and context, or per gene and context.

    Estimates, and whatever has negative entries, are coloured from blue over white to red with
    white at 0; other numbers, such as strengths, from white to dark blue.

    Parameters
    ----------
    effects
        One row per cell of the map. Rows and columns come in the order of the table, or of their
        categories. A cell without a row or without a finite value is grey. With a column
        ``extrapolated`` (bool) cells not seen in training get a marked corner, with a column
        ``qvalue`` those of at most `level` a star.
    value
        Column to show; ``"estimate"`` is a log fold change (natural logarithm).
    rows, columns
        Columns of `effects` that stand on the two axes: ``rows="gene"`` for one treatment.
    level
        Largest ``qvalue`` that gets a star.
    limit
        Value of the darkest colour, for maps that are to be compared; None takes the largest.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        If a column is missing, or if a cell has several rows (several genes or parts of the
        effect): choose one first.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr import plots
    >>> effects = pd.DataFrame(
    ...     {
    ...         "treatment": ["drug A", "drug A", "drug B"],
    ...         "context": ["T cell", "monocyte", "monocyte"],
    ...         "gene": "ISG15",
    ...         "estimate": [1.2, 0.9, -0.3],
    ...         "extrapolated": [False, False, True],
    ...     }
    ... )
    >>> ax = plots.effect_heatmap(effects)
    >>> ax.get_title(loc="left"), [label.get_text() for label in ax.get_yticklabels()]
    ('ISG15', ['drug A', 'drug B'])
    """
    check_columns(effects, [rows, columns, value], name="effects")
    check_unique(effects, [rows, columns], name="effects")
    names = levels_of(effects[rows]), levels_of(effects[columns])
    shown = [column for column in (value, "extrapolated", "qvalue") if column in effects]
    tables = {key: _table(effects, key, (rows, columns), names) for key in shown}
    table = np.ma.masked_invalid(tables.pop(value))
    ax = _axes_for(*names) if ax is None else ax
    colors = _color_scale(table, diverging=value == "estimate", limit=limit)
    cells = ax.pcolormesh(table, edgecolor="white", linewidth=0.6, **colors)
    notes = _mark(ax, tables, _inks(cells.to_rgba(table)), level)
    notes += ["grey: no value"] if table.mask.any() else []
    _finish(ax, names, title=_constant(effects, (rows, columns)), notes=notes)
    _add_colorbar(ax, cells, "log fold change" if value == "estimate" else value, len(names[0]))
    return ax


def _table(
    effects: pd.DataFrame, value: str, keys: tuple[str, str], names: tuple[list[Any], list[Any]]
) -> FloatArray:
    """Value of each cell of the map, ``(n_rows, n_columns)``; NaN where there is none."""
    rows = effects.dropna(subset=list(keys)).astype(dict.fromkeys(keys, object))
    table = rows.pivot(index=keys[0], columns=keys[1], values=value)
    return table.reindex(index=names[0], columns=names[1]).to_numpy(float, na_value=np.nan)


def _color_scale(
    table: np.ma.MaskedArray, *, diverging: bool, limit: float | None
) -> dict[str, Any]:
    limit = limit or float(np.ma.filled(np.abs(table).max(), 0.0)) or 1.0
    diverging = diverging or bool((table < 0).any())
    colors = colormaps["RdBu_r" if diverging else "Blues"].with_extremes(bad=_NO_VALUE)
    return {"cmap": colors, "norm": Normalize(-limit if diverging else 0.0, limit)}


def _inks(faces: FloatArray) -> npt.NDArray[np.str_]:
    """Choose for each cell, ``(n_rows, n_columns, 4)``, a colour that can be read on it."""
    luminance = faces[..., :3] @ [0.299, 0.587, 0.114]
    return np.where(luminance < 0.5, "white", INK)


def _mark(
    ax: Axes, tables: Mapping[str, FloatArray], inks: npt.NDArray[np.str_], level: float
) -> list[str]:
    """Mark cells; give the notes that explain the marks in use."""
    notes = []
    if (unseen := np.argwhere(tables.get("extrapolated", np.zeros((0, 0))) == 1)).size:
        notes.append("○ not seen in training")
        # A fixed distance from the upper right corner, whatever the size of a cell.
        corner = offset_copy(ax.transData, ax.get_figure(root=True), -5, -5, units="points")
        style: dict[str, Any] = {"color": "white", "edgecolors": INK, "linewidths": 0.7}
        ax.scatter(unseen[:, 1] + 1, unseen[:, 0], s=13, transform=corner, **style)
    if "qvalue" in tables:
        notes.append(f"* q ≤ {level:g}")
        for i, j in np.argwhere(tables["qvalue"] <= level):
            style = {"ha": "center", "va": "center_baseline", "color": str(inks[i, j])}
            ax.text(j + 0.5, i + 0.5, "*", fontsize=9, **style)
    return notes


def _constant(effects: pd.DataFrame, keys: tuple[str, str]) -> str:
    """Name what all cells of the map have in common."""
    wording = {"treatment": "{}", "dose": "dose {}", "context": "{}", "gene": "{}", "effect": "{}"}
    found = {c: levels_of(effects[c]) for c in wording if c in effects and c not in keys}
    return ", ".join(wording[c].format(each[0]) for c, each in found.items() if len(each) == 1)


def _axes_for(rows: Sequence[Any], columns: Sequence[Any]) -> Axes:
    width = 0.27 * len(columns) + label_width(rows) + 1.3
    height = 0.23 * max(len(rows), 5) + label_width(columns) + 0.9
    return new_axes(max(width, 2.6), height)


def _finish(
    ax: Axes, names: tuple[Sequence[Any], Sequence[Any]], *, title: str, notes: Sequence[str]
) -> None:
    rows, columns = names
    upright = 90 if max(len(str(column)) for column in columns) > 3 else 0
    ax.set_yticks(np.arange(len(rows)) + 0.5, [str(row) for row in rows])
    ax.set_xticks(np.arange(len(columns)) + 0.5, [str(c) for c in columns], rotation=upright)
    ax.invert_yaxis()
    ax.set_xlabel("\n".join(notes), loc="left")
    plain(ax, title=title)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _add_colorbar(ax: Axes, cells: ScalarMappable, label: str, n_rows: int) -> None:
    figure = cast(Figure, ax.get_figure())
    shape: dict[str, Any] = (
        {"shrink": 0.8, "aspect": 14} if n_rows > 5 else {"shrink": 1.0, "aspect": 7}
    )
    bar = figure.colorbar(cells, ax=ax, pad=0.04, **shape)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8, color=MUTED)
    bar.ax.tick_params(labelsize=7.5, color=FAINT, labelcolor=MUTED, length=3)
