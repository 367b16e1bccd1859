"""Predicted against real change of every gene."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.scores import largest_changes, pearson
from pyro_fcr.plots._axes import BLUE, FAINT, INK, MUTED, grid, new_axes, plain
from pyro_fcr.plots._labels import label_points

_CHANGE = "change of mean log1p expression"


def response_scatter(
    predicted_delta: npt.ArrayLike,
    real_delta: npt.ArrayLike,
    *,
    gene_names: Sequence[str],
    title: str = "",
    n_label: int = 10,
    intervals: npt.ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Predicted against real change of every gene, with the diagonal.

    Parameters
    ----------
    predicted_delta, real_delta
        ``(n_genes,)`` change of mean log1p expression against control. A prediction with
        non-finite entries is shown as not defined.
    gene_names
        ``(n_genes,)``.
    title
        Set before the Pearson correlation over the (up to) 100 genes of largest real change, which
        are the dark points.
    n_label
        Number of genes to name, those of largest absolute real change.
    intervals
        ``(2, n_genes)`` lower and upper end of the predicted change; drawn for the named genes
        only, where bars do not hide one another. Non-finite ends are left out.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        If `gene_names` or `intervals` do not have the genes of `real_delta`.

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> predicted, real = np.array([0.4, 1.2, -0.4]), np.array([0.0, 1.0, -0.5])
    >>> ax = plots.response_scatter(
    ...     predicted,
    ...     real,
    ...     gene_names=["ACTB", "ISG15", "FOS"],
    ...     intervals=[predicted - 0.2, predicted + 0.2],
    ... )
    >>> ax.get_title()
    'r = 0.98'
    """
    predicted, real = np.asarray(predicted_delta, float), np.asarray(real_delta, float)
    rows = largest_changes(real, n_label)
    bars = _bars(intervals, len(real))[:, rows]
    ax = new_axes(3.6, 3.8) if ax is None else ax
    _scatter(ax, predicted, real, title=title, limits=_limits([predicted, real, bars.ravel()]))
    if intervals is not None:
        style: dict[str, Any] = {"color": BLUE, "linewidth": 0.9, "alpha": 0.75, "zorder": 2.5}
        ax.vlines(real[rows], bars[0], bars[1], **style)
    ax.set(xlabel=f"real {_CHANGE}", ylabel=f"predicted {_CHANGE}")
    cast(Figure, ax.get_figure(root=True)).draw_without_rendering()
    along = np.column_stack([np.tile(real[rows], 9), np.linspace(bars[0], bars[1], 9).ravel()])
    _label_genes(ax, predicted, real, gene_names=gene_names, n_label=n_label, avoid=along)
    return ax


def _bars(intervals: npt.ArrayLike | None, n_genes: int) -> FloatArray:
    """Return the ends of the bars, ``(2, n_genes)``; NaN where there is none."""
    bars = np.full((2, n_genes), np.nan) if intervals is None else np.array(intervals, float)
    if bars.shape != (2, n_genes):
        raise ValueError(
            f"intervals has shape {bars.shape}; expected (2, {n_genes}): the lower and upper end "
            "for each gene of real_delta"
        )
    return np.where(np.isfinite(bars).all(axis=0), bars, np.nan)


def _scatter(
    ax: Axes, predicted: FloatArray, real: FloatArray, *, title: str, limits: tuple[float, float]
) -> None:
    strongest = largest_changes(real, 100)
    correlation = pearson(predicted[strongest], real[strongest])
    r = f"r = {correlation:.2f}" if np.isfinite(correlation) else "r undefined"
    ax.set_title(f"{title}\n{r}".strip(), fontsize=9, color=INK, linespacing=1.35)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.axline((0, 0), slope=1, color=FAINT, linewidth=0.9, zorder=1)
    plain(ax)
    if not np.isfinite(predicted).all():
        ax.text(0.5, 0.5, "not defined", transform=ax.transAxes, ha="center", color=MUTED)
        return
    dark = np.isin(np.arange(len(real)), strongest)
    style: dict[str, Any] = {"s": 9, "alpha": 0.75, "linewidths": 0, "rasterized": len(real) > 1000}
    for rows, color, order in ((~dark, "#b5b5b5", 2), (dark, BLUE, 3)):
        ax.scatter(real[rows], predicted[rows], color=color, zorder=order, **style)


def _label_genes(
    ax: Axes,
    predicted: FloatArray,
    real: FloatArray,
    *,
    gene_names: Sequence[str],
    n_label: int,
    avoid: FloatArray | None = None,
) -> None:
    if len(gene_names) != len(real):
        raise ValueError(f"{len(gene_names)} gene names for {len(real)} genes")
    if np.isfinite(predicted).all():
        names, rows = [str(name) for name in gene_names], largest_changes(real, n_label).tolist()
        points = np.column_stack([real, predicted])
        if avoid is not None:
            points = np.vstack([points, avoid[np.isfinite(avoid).all(axis=1)]])
        label_points(ax, points, names, rows=rows)


def _limits(values: Sequence[FloatArray]) -> tuple[float, float]:
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    margin = 0.12 * (high - low) or 1.0
    return low - margin, high + margin


def response_panel(
    responses: Mapping[str, npt.ArrayLike],
    real_delta: npt.ArrayLike,
    *,
    gene_names: Sequence[str],
    n_label: int = 8,
    n_columns: int = 4,
) -> npt.NDArray[Any]:
    """Predicted against real change for the model and each baseline, on shared axes.

    Parameters
    ----------
    responses
        Name to predicted change, ``(n_genes,)``; drawn in this order.
    real_delta
        ``(n_genes,)`` real change of mean log1p expression.
    gene_names
        ``(n_genes,)``.
    n_label
        Number of genes to name in each panel.
    n_columns
        Panels per row.

    Returns
    -------
    ``(n_responses,)`` axes.

    Raises
    ------
    ValueError
        If there is no response to draw.

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> real = np.array([0.0, 1.0, -0.5])
    >>> responses = {"fcr": 0.9 * real, "control mean": np.zeros(3)}
    >>> axes = plots.response_panel(responses, real, gene_names=["ACTB", "ISG15", "FOS"])
    >>> [ax.get_title().splitlines()[0] for ax in axes]
    ['fcr', 'control mean']
    """
    if not responses:
        raise ValueError("responses is empty: nothing to draw")
    real = np.asarray(real_delta, float)
    predicted = {name: np.asarray(values, float) for name, values in responses.items()}
    limits = _limits([real, *predicted.values()])
    figure, axes = grid(len(predicted), n_columns, width=2.6, height=3.1)
    for ax, (name, values) in zip(axes, predicted.items(), strict=True):
        _scatter(ax, values, real, title=name, limits=limits)
    for ax in np.delete(axes, np.s_[::n_columns]):
        ax.tick_params(labelleft=False)
    figure.supxlabel(f"real {_CHANGE}", fontsize=9)
    figure.supylabel("predicted change", fontsize=9)
    figure.draw_without_rendering()
    for ax, values in zip(axes, predicted.values(), strict=True):
        _label_genes(ax, values, real, gene_names=gene_names, n_label=n_label)
    return axes
