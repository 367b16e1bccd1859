"""Expression against dose, gene by gene and context by context."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from pyro_fcr.data.errors import listed
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.plots._axes import (
    MUTED,
    NUMBERS,
    check_columns,
    check_levels,
    check_unique,
    color_of,
    decades,
    dot,
    grid,
    legend_beside,
    legend_outside,
    levels_of,
    name_axes,
    plain,
)

_CURVE = ("treatment", "dose", "gene", "estimate", "lower", "upper", "extrapolated")
_FEW = 8  # doses that can each have a tick and a marker


def dose_response(
    curve: pd.DataFrame,
    *,
    genes: Sequence[str],
    real: pd.DataFrame | None = None,
    context: str | Sequence[str] | None = None,
    ylabel: str = "expression",
    n_columns: int = 4,
    axes: Sequence[Axes] | None = None,
) -> npt.NDArray[Any]:
    """Estimate with its interval over the doses of one treatment, a panel per gene.

    A colour is a context. Lines are dashed from the last dose that was seen in training. Doses that
    span more than a factor of 10 get a logarithmic axis, which is linear between dose 0, where
    there is one, and the smallest other dose.

    Parameters
    ----------
    curve
        One row per gene, context and dose: ``dose``, ``gene``, ``estimate``, ``lower``, ``upper``,
        ``extrapolated`` (bool), ``treatment`` (one) and the columns of the context.
    genes
        Genes to show, in this order.
    real
        Points beside the lines: ``dose``, ``gene``, ``value`` on the scale of the estimate, and the
        columns of the context. Contexts that `curve` does not have are left out.
    context
        Column or columns of `curve` that tell contexts apart; None takes every other column that is
        no result (``sd``, ``support``).
    ylabel
        What is estimated, and its scale.
    n_columns
        Panels per row.
    axes
        ``(n_genes,)`` axes to draw on; None makes a figure.

    Returns
    -------
    ``(n_genes,)`` axes.

    Raises
    ------
    ValueError
        If a column, a gene or an axes is missing, if there are several treatments, or if a gene has
        two estimates for one context and dose.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr import plots
    >>> curve = pd.DataFrame({"dose": [0.0, 0.1, 1.0, 10.0], "estimate": [0.0, 0.2, 0.9, 1.0]})
    >>> curve = curve.assign(lower=curve["estimate"] - 0.1, upper=curve["estimate"] + 0.1)
    >>> curve["extrapolated"] = curve["dose"] > 1
    >>> curve = curve.assign(treatment="drug", cell_line="A549", gene="CDKN1A")
    >>> (ax,) = plots.dose_response(curve, genes=["CDKN1A"], ylabel="log fold change")
    >>> ax.get_xscale(), ax.get_xlabel()
    ('symlog', 'dose of drug')
    """
    check_columns(curve, _CURVE, name="curve")
    treatment = _only_treatment(curve)
    keys = _context_columns(curve, context)
    lines = _with_context(curve, keys, name="curve")
    check_levels(lines["gene"], genes, name="curve")
    check_unique(lines, ["gene", "_context", "dose"], name="curve")
    colors = color_of(levels_of(lines["_context"]))
    points = _points(real, keys, colors)
    panels = _panels(axes, len(genes), n_columns)
    for ax, gene in zip(panels, genes, strict=True):
        _draw_lines(ax, lines[lines["gene"] == gene], colors)
        _draw_points(ax, points[points["gene"] == gene], colors)
        _dose_axis(ax, curve["dose"], points["dose"])
        plain(ax, title=gene)
    columns = n_columns if axes is None else 1
    name_axes(panels, columns, xlabel=f"dose of {treatment}", ylabel=ylabel)
    _explain(panels, _handles(lines, points, colors), own=axes is None)
    return panels


def _only_treatment(curve: pd.DataFrame) -> str:
    treatments = levels_of(curve["treatment"])
    if len(treatments) != 1:
        raise ValueError(
            f"curve has {len(treatments)} treatments, {listed(treatments)}; choose one, "
            "as in curve[curve['treatment'] == ...]"
        )
    return str(treatments[0])


def _context_columns(curve: pd.DataFrame, context: str | Sequence[str] | None) -> list[str]:
    if context is None:
        return [column for column in curve if column not in NUMBERS.union(_CURVE)]
    return [context] if isinstance(context, str) else list(context)


def _with_context(frame: pd.DataFrame, keys: Sequence[str], *, name: str) -> pd.DataFrame:
    """Add the context as one text, ``_context``."""
    check_columns(frame, keys, name=name)
    texts = [frame[key].astype(str) for key in keys]
    context = texts[0].str.cat(texts[1:], sep=", ") if texts else ""
    return frame.assign(_context=context)


def _points(
    real: pd.DataFrame | None, keys: Sequence[str], colors: Mapping[str, str]
) -> pd.DataFrame:
    columns = ["dose", "gene", "value"]
    if real is None:
        return pd.DataFrame(columns=[*columns, "_context"])
    check_columns(real, columns, name="real")
    points = _with_context(real, keys, name="real")
    return points[points["_context"].isin(list(colors))]


def _panels(axes: Sequence[Axes] | None, n_genes: int, n_columns: int) -> npt.NDArray[Any]:
    if axes is None:
        return grid(n_genes, n_columns, width=2.3, height=2.1)[1]
    if len(axes) != n_genes:
        raise ValueError(f"{len(axes)} axes for {n_genes} genes")
    return np.asarray(axes, dtype=object)


def _draw_lines(ax: Axes, rows: pd.DataFrame, colors: Mapping[str, str]) -> None:
    for context, color in colors.items():
        part = rows[rows["_context"] == context].sort_values("dose")
        band: dict[str, Any] = {"color": color, "alpha": 0.45 / (2 + len(colors)), "linewidth": 0}
        ax.fill_between(part["dose"], part["lower"], part["upper"], **band)
        seen = part["estimate"].mask(part["extrapolated"].astype(bool))
        marker = "o" if len(part) <= _FEW else None
        ax.plot(part["dose"], part["estimate"], color=color, linewidth=1.2, linestyle=(0, (2, 1.5)))
        ax.plot(part["dose"], seen, color=color, linewidth=1.6, marker=marker, markersize=2.6)


def _draw_points(ax: Axes, points: pd.DataFrame, colors: Mapping[str, str]) -> None:
    for context, color in colors.items():
        part = points[points["_context"] == context]
        style: dict[str, Any] = {"s": 16, "facecolor": "white", "linewidths": 1.1, "zorder": 3}
        ax.scatter(part["dose"], part["value"], edgecolor=color, **style)


def _dose_axis(ax: Axes, predicted: pd.Series, measured: pd.Series) -> None:
    marked = np.unique(measured.to_numpy(float))
    doses = np.union1d(marked, predicted.to_numpy(float))
    positive = doses[doses > 0]
    if positive.size == 0 or positive[-1] <= 10 * positive[0]:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        return
    if doses[0] <= 0:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.7)
    else:
        ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    few = [ticks for ticks in (doses, marked) if 0 < len(ticks) <= _FEW]
    if few:
        ax.set_xticks(few[0], _tick_labels(few[0]))
    else:
        ax.set_xticks([*doses[doses == 0], *decades(positive[0], positive[-1])])


def _tick_labels(doses: FloatArray) -> list[str]:
    """Name the doses but those too near their left neighbour on the log scale."""
    positive = doses[doses > 0]
    step = (positive[-1] / positive[0]) ** 0.2
    labels, last = [], 0.0
    for dose in doses:
        is_near = last > 0 and dose < step * last
        labels.append("" if is_near else f"{dose:g}")
        last = last if is_near else dose
    return labels


def _handles(lines: pd.DataFrame, points: pd.DataFrame, colors: Mapping[str, str]) -> list[Line2D]:
    handles = [Line2D([], [], color=c, linewidth=1.6, label=str(x)) for x, c in colors.items() if x]
    if lines["extrapolated"].any():
        dashed: dict[str, Any] = {"color": MUTED, "linewidth": 1.2, "linestyle": (0, (2, 1.5))}
        handles.append(Line2D([], [], label="not seen in training", **dashed))
    if len(points):
        handles.append(dot("real cells", MUTED, markerfacecolor="white", markersize=4))
    return handles


def _explain(panels: npt.NDArray[Any], handles: Sequence[Line2D], *, own: bool) -> None:
    if not handles:
        return
    if own:
        legend_beside(panels[0].figure, handles)
    else:
        legend_outside(panels[-1], handles)
