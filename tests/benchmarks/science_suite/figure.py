"""How well z_tx is found against how many conditions there are."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_fcr.files import atomic_write
from pyro_fcr.plots._axes import BLUE, FAINT, INK, MUTED, check_columns, grid, new_axes, plain
from science_suite.records import Record
from science_suite.tables import score_table

_PANELS = {"mcc_pearson": "", "mcc_within_pearson": ", within conditions"}


def draw_sweeps(record: Record, folder: Path) -> list[Path]:
    """Write ``conditions_<setting>.png`` per swept setting and return the files."""
    scores, written = score_table(record), []
    swept = scores["setting"].str.split(" ").str[0]
    for setting, rows in scores.groupby(swept, sort=False):
        n_tx = record.header["settings"][rows["setting"].iloc[0]]["n_tx"]
        written.append(folder / f"conditions_{setting}.png")
        with atomic_write(written[-1]) as draft:
            _sweep(rows, n_tx=n_tx).savefig(draft, dpi=200)
    return written


def _sweep(scores: pd.DataFrame, *, n_tx: int) -> Figure:
    """Draw a row of panels per model."""
    models = list(dict.fromkeys(scores["model"]))
    figure, axes = grid(2 * len(models), 2, width=4.2, height=3.0)
    panels = [(model, metric) for model in models for metric in _PANELS]
    for ax, (model, metric) in zip(axes, panels, strict=True):
        chosen = (scores["model"] == model) & (scores["metric"] == metric)
        title = f"{model}: MCC of z_tx{_PANELS[metric]}"
        rows = scores[chosen & (scores["block"] == "z_tx")]
        mcc_by_conditions(rows, n_latent=n_tx, title=title, ax=ax)
    return figure


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
        Title of the axes.
    ax
        Axes to draw on; None makes a figure.

    >>> scores = pd.DataFrame({"n_conditions": [5, 9, 13], "value": [0.6, 0.7, 0.8]})
    >>> ax = mcc_by_conditions(scores.assign(floor=0.6, ceiling=1.0), n_latent=4)
    >>> ax.get_xlabel()
    'conditions'
    """
    check_columns(scores, ("n_conditions", "value", "floor", "ceiling"), name="scores")
    ax = new_axes(4.2, 3.0) if ax is None else ax
    medians = scores.groupby("n_conditions")[["value", "floor", "ceiling"]].median()
    at, needed = medians.index.to_numpy(), 2 * n_latent + 1
    ax.fill_between(at, medians["floor"], medians["ceiling"], color=FAINT, alpha=0.25, linewidth=0)
    for name in ("ceiling", "floor"):
        ax.plot(at, medians[name], color=MUTED, linewidth=0.9, linestyle=":")
        ax.annotate(
            name, (at[-1], medians[name].iloc[-1]), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=MUTED, annotation_clip=False,
        )  # fmt: skip
    ax.axvline(needed, color=INK, linewidth=0.8, linestyle="--", label=f"2 n + 1 = {needed}")
    ax.plot(at, medians["value"], color=BLUE, linewidth=1.6, label="median over seeds")
    look = {"color": BLUE, "alpha": 0.6, "markersize": 3.5, "markeredgewidth": 0}
    ax.plot(scores["n_conditions"], scores["value"], "o", **look)
    ax.set(xlabel="conditions", ylabel="MCC", ylim=(0, 1.06), title=title)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.title.set_fontsize(9)
    ax.legend(frameon=False, fontsize=7.5, loc="lower right")
    plain(ax)
    return ax
