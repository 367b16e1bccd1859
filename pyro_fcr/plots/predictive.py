"""Checks of a fit: whether it predicts data like its own, and whether its intervals hold."""

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy import sparse

from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.plots._axes import (
    BLUE,
    FAINT,
    ORANGE,
    check_columns,
    color_of,
    decades,
    levels_of,
    new_axes,
    plain,
)
from pyro_fcr.values import check_choice


def _mean(counts: npt.NDArray[Any]) -> FloatArray:
    return counts.mean(axis=0, dtype=np.float64)


def _variance(counts: npt.NDArray[Any]) -> FloatArray:
    # Sums of whole numbers are exact in float64: equal counts in another order are equal here, and
    # rare genes have many ties between observed and predicted.
    return np.square(counts, dtype=np.float64).mean(axis=0) - _mean(counts) ** 2


def _zeros(counts: npt.NDArray[Any]) -> FloatArray:
    return (counts == 0).mean(axis=0)


_STATISTICS: Final[dict[str, tuple[str, Callable[[Any], FloatArray]]]] = {
    "mean": ("mean count", _mean),
    "variance": ("variance of counts", _variance),
    "zeros": ("fraction of zeros", _zeros),
}


def ppc(
    observed: npt.ArrayLike | sparse.sparray | sparse.spmatrix,
    draws: npt.ArrayLike,
    *,
    statistic: Literal["mean", "variance", "zeros"] = "mean",
    level: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Posterior predictive check: a statistic of every gene, observed against predicted.

    Parameters
    ----------
    observed
        ``(n_cells, n_genes)`` counts, dense or sparse.
    draws
        ``(n_draws, n_cells, n_genes)`` drawn counts of the same cells, two draws or more.
    statistic
        Over the cells of a gene: mean, variance or fraction of zeros.
    level
        Probability of the central interval over the draws.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        If the shapes do not fit, there is one draw only, or there is no such statistic.

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> rng = np.random.default_rng(0)
    >>> rate = rng.gamma(1.0, size=30)
    >>> observed, draws = rng.poisson(rate, (50, 30)), rng.poisson(rate, (20, 50, 30))
    >>> ax = plots.ppc(observed, draws, statistic="zeros")
    >>> ax.get_ylabel()
    'predicted fraction of zeros'
    """
    check_choice("statistic", statistic, _STATISTICS)
    counts, drawn = _checked(observed, draws, axes="n_cells, n_genes")
    label, function = _STATISTICS[statistic]
    real, predicted = function(counts), np.stack([function(draw) for draw in drawn])
    lower, middle, upper = _central(predicted, level)
    inside = (lower <= real) & (real <= upper)
    ax = new_axes(3.6, 3.8) if ax is None else ax
    for rows, color, order in ((inside, BLUE, 2), (~inside, ORANGE, 3)):
        style: dict[str, Any] = {"color": color, "zorder": order, "rasterized": len(real) > 1000}
        ax.vlines(real[rows], lower[rows], upper[rows], linewidth=0.8, alpha=0.5, **style)
        ax.scatter(real[rows], middle[rows], s=7, linewidths=0, alpha=0.8, **style)
    _compare(ax, np.concatenate([real, lower, upper]), log=statistic != "zeros")
    ax.set(xlabel=f"observed {label}", ylabel=f"predicted {label}")
    plain(ax, title=f"{inside.mean():.0%} of genes inside their {level:.0%} interval")
    return ax


def _checked(observed: Any, draws: npt.ArrayLike, *, axes: str) -> tuple[Any, Any]:
    counts = observed.toarray() if sparse.issparse(observed) else np.asarray(observed)
    drawn = np.asarray(draws)
    if counts.ndim != len(axes.split()) or drawn.shape[1:] != counts.shape:
        raise ValueError(
            f"observed has shape {counts.shape} and draws {drawn.shape}; expected ({axes}) and "
            f"(n_draws, {axes})"
        )
    if len(drawn) < 2:
        raise ValueError(f"draws has {len(drawn)} draw; an interval needs 2 or more.")
    return counts, drawn


def _central(draws: FloatArray, level: float) -> FloatArray:
    """Lower end, median and upper end over the draws, ``(3, ...)``."""
    tail = (1.0 - level) / 2.0
    return np.quantile(draws, [tail, 0.5, 1.0 - tail], axis=0)


def _compare(ax: Axes, values: FloatArray, *, log: bool) -> None:
    """Set one scale for both axes and draw the diagonal."""
    high = float(values.max(initial=0.0)) or 1.0
    limits = (-0.02 * high, 1.04 * high)
    if log and (positive := values[values > 0]).size:
        # Linear below the smallest value, so that genes without any count have a place.
        low = float(positive.min())
        limits = (-0.2 * low if values.min() <= 0 else 0.8 * low, 1.4 * high)
        ax.set_xscale("symlog", linthresh=low, linscale=0.3)
        ax.set_yscale("symlog", linthresh=low, linscale=0.3)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks([0, *decades(low, high)])
            axis.set_minor_locator(NullLocator())
    ax.plot(limits, limits, color=FAINT, linewidth=0.9, zorder=1)
    ax.set(xlim=limits, ylim=limits, aspect="equal")


def ppc_counts(
    observed: npt.ArrayLike,
    draws: npt.ArrayLike,
    *,
    gene: str = "",
    level: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Posterior predictive check of one gene: how many cells have which count.

    Shares stand on a square root scale, on which rare counts can be seen beside the zeros. Up to 30
    counts stand for themselves; more are put together in bins of one width, and the last bin holds
    all larger counts.

    Parameters
    ----------
    observed
        ``(n_cells,)`` counts of the gene.
    draws
        ``(n_draws, n_cells)`` drawn counts of the same cells, two draws or more.
    gene
        Its name, for the title.
    level
        Probability of the central interval over the draws.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        If the shapes do not fit or there is one draw only.

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> rng = np.random.default_rng(0)
    >>> ax = plots.ppc_counts(rng.poisson(2.0, 100), rng.poisson(2.0, (20, 100)), gene="ISG15")
    >>> ax.get_title(loc="left")
    'ISG15'
    """
    counts, drawn = _checked(observed, draws, axes="n_cells")
    width, last = _bins(np.concatenate([counts, drawn.ravel()]))
    shares = [_shares(cells, width, last) for cells in (counts, *drawn)]
    lower, middle, upper = _central(np.stack(shares[1:]), level)
    ax = new_axes(3.8, 2.8) if ax is None else ax
    starts = width * np.arange(last + 1)
    bars = ax.bar(starts, shares[0], 0.85 * width, color="#c9c9c9")
    ax.vlines(starts, lower, upper, color=BLUE, linewidth=1.4)
    dots = ax.scatter(starts, middle, s=12, color=BLUE, zorder=3)
    names = ["observed", f"predicted, {level:.0%} interval"]
    ax.legend(handles=[bars, dots], labels=names, frameon=False, fontsize=8)
    ax.set_yscale("function", functions=(np.sqrt, np.square))
    beyond = max(counts.max(), drawn.max()) >= starts[-1] + width
    ax.set_xlabel(f"count (last bar: {starts[-1]} or more)" if beyond else "count")
    ax.set_ylabel("share of cells (square root scale)")
    ax.set_ylim(0, 1.05 * max(shares[0].max(), upper.max()))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    plain(ax, title=gene)
    return ax


def _bins(counts: npt.NDArray[Any]) -> tuple[int, int]:
    """Width of a bin and number of the last one."""
    largest = int(np.ceil(np.quantile(counts, 0.999)))
    width = 1 + largest // 30
    return width, largest // width


def _shares(counts: npt.NDArray[Any], width: int, last: int) -> FloatArray:
    bins = np.minimum(np.asarray(counts, dtype=np.int64) // width, last)
    return np.bincount(bins, minlength=last + 1) / len(counts)


def coverage(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How often intervals hold the truth, against how often they should.

    A line below the diagonal is of intervals that are too narrow.

    Parameters
    ----------
    table
        One row per kind and level: ``nominal`` and ``observed`` coverage, from 0 to 1, and
        ``kind``, what the intervals are of. Missing values are left out.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr import plots
    >>> table = pd.DataFrame({"nominal": [0.5, 0.9], "observed": [0.4, 0.8], "kind": "mean"})
    >>> plots.coverage(table).get_xlabel()
    'nominal coverage'
    """
    check_columns(table, ["nominal", "observed", "kind"], name="table")
    ax = new_axes(3.4, 3.5) if ax is None else ax
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, zorder=1)
    for kind, color in color_of(levels_of(table["kind"])).items():
        line = table[table["kind"] == kind].dropna(subset=["nominal", "observed"])
        line = line.sort_values("nominal")
        style: dict[str, Any] = {"color": color, "linewidth": 1.4, "marker": "o", "markersize": 3.5}
        ax.plot(line["nominal"], line["observed"], label=str(kind), **style)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    ax.set(xlabel="nominal coverage", ylabel="observed coverage")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    plain(ax)
    return ax
