"""How well latents are found against how many conditions there are."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.plots._axes import BLUE, FAINT, INK, MUTED, check_columns, new_axes, plain

_COLUMNS = ("n_conditions", "value", "floor", "ceiling")


def mcc_by_conditions(
    scores: pd.DataFrame, *, n_latent: int, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw the MCC of a block over the number of conditions, with what the theory asks for.

    Points are fits and the line joins their medians; floor and ceiling are medians, too. The
    upright line stands at ``2 n_latent + 1`` conditions, from which on the block can be identified
    component by component (Mao et al. 2024).

    Parameters
    ----------
    scores
        A row per fit, of one block and metric: ``n_conditions``, ``value``, ``floor``, ``ceiling``.
    n_latent
        Dimensions of the block.
    title
        Of the axes.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        The table has no rows or lacks a column.

    Examples
    --------
    >>> from pyro_fcr.plots import mcc_by_conditions
    >>> scores = pd.DataFrame({"n_conditions": [5, 9, 13], "value": [0.6, 0.7, 0.8]})
    >>> ax = mcc_by_conditions(scores.assign(floor=0.6, ceiling=1.0), n_latent=4)
    >>> ax.get_xlabel()
    'conditions'
    """
    check_columns(scores, _COLUMNS, name="scores")
    ax = new_axes(4.2, 3.0) if ax is None else ax
    medians = scores.groupby("n_conditions")[["value", "floor", "ceiling"]].median()
    at, needed = medians.index.to_numpy(), 2 * n_latent + 1
    ax.fill_between(at, medians["floor"], medians["ceiling"], color=FAINT, alpha=0.25, linewidth=0)
    for name in ("ceiling", "floor"):
        ax.plot(at, medians[name], color=MUTED, linewidth=0.9, linestyle=":")
        _name_line(ax, name, at, medians[name].to_numpy())
    ax.axvline(needed, color=INK, linewidth=0.8, linestyle="--", label=f"2 n + 1 = {needed}")
    ax.plot(at, medians["value"], color=BLUE, linewidth=1.6, label="median over seeds")
    ax.plot(
        scores["n_conditions"], scores["value"], "o", color=BLUE, alpha=0.6, markersize=3.5,
        markeredgewidth=0,
    )  # fmt: skip
    ax.set(xlabel="conditions", ylabel="MCC", ylim=(0, 1.06), title=title)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.title.set_fontsize(9)
    ax.legend(frameon=False, fontsize=7.5, loc="lower right")
    plain(ax)
    return ax


def _name_line(ax: Axes, name: str, at: Sequence[float], values: FloatArray) -> None:
    ax.annotate(
        name, (at[-1], values[-1]), xytext=(3, 0), textcoords="offset points", va="center",
        fontsize=7.5, color=MUTED, annotation_clip=False,
    )  # fmt: skip
