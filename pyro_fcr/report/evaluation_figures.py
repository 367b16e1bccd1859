"""Figures of an evaluation: gains over baselines, singular values, latents against the truth."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_fcr.metrics.scoring import SCORES
from pyro_fcr.plots._axes import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    dot,
    grid,
    legend_outside,
    new_axes,
    plain,
)

TRUTH: Final[Mapping[str, str]] = {
    "mcc_within_pearson": "strong MCC, within",
    "weak_mcc_within": "weak MCC, within",
    "r2_within": "block R², within",
    "r2": "block R²",
    "leak_within": "leak, within",
}


def gains(headline: pd.DataFrame) -> Figure:
    """Draw the model's gain over the best baseline, a panel per metric, a row per scale.

    Parameters
    ----------
    headline
        Rows of one scenario, against the best baseline on average, see
        `pyro_fcr.metrics.headline`.
    """
    metrics = [name for name in SCORES if name in set(headline["metric"])]
    figure, axes = grid(len(metrics), 4, width=2.45, height=1.35)
    for ax, metric in zip(axes, metrics, strict=True):
        _gain(ax, headline[headline["metric"] == metric], metric)
    return figure


def _gain(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    for place, row in enumerate(rows.itertuples()):
        sure = row.low > 0 or row.high < 0
        color = BLUE if sure and row.gain > 0 else ORANGE if sure else INK
        ax.plot([row.low, row.high], [place, place], color=color, linewidth=1.6)
        ax.plot(row.gain, place, "o", color=color, markersize=5)
        ax.text(row.gain, place - 0.22, str(row.baseline), ha="center", fontsize=6.5, color=color)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    ax.set_title(metric, fontsize=8.5, loc="left", color=INK)
    ax.set_yticks(range(len(rows)), rows["scale"])
    ax.set_ylim(len(rows) - 0.4, -0.75)
    ax.margins(x=0.25)
    plain(ax)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)


def singular_values(table: pd.DataFrame, tolerance: float) -> Figure:
    """Draw the singular values of the priors' natural parameters, in nats."""
    ax = new_axes(5.2, 2.6)
    for number, (block, rows) in enumerate(table.groupby("block", sort=False)):
        style: dict[str, Any] = {"marker": "os^D"[number % 4], "markersize": 5, "linewidth": 0.8}
        ax.plot(rows["number"], rows["value"].clip(lower=1e-4), color=BLUE, label=block, **style)
    ax.axhline(tolerance, color=ORANGE, linewidth=0.9, linestyle="--")
    ax.text(1, tolerance, f"counts as 0 below {tolerance:g}", color=ORANGE, fontsize=7, va="bottom")
    ax.set(xlabel="direction", ylabel="singular value, nats", yscale="log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if table["block"].nunique() > 1:
        ax.legend(frameon=False, fontsize=8)
    plain(ax)
    return _of(ax)


def truth(table: pd.DataFrame) -> Figure:
    """Draw each measure between its floor and ceiling, see `identifiability_table`."""
    rows = pd.concat([table[table["metric"] == metric] for metric in TRUTH])
    ax = new_axes(7.2, 0.6 + 0.21 * len(rows))
    for place, row in enumerate(rows.itertuples()):
        ends = [row.floor, row.ceiling]
        ax.plot(ends, [place, place], color=FAINT, linewidth=5, solid_capstyle="butt", zorder=1)
        ax.plot(row.value, place, "o", color=_color(row.metric), markersize=5.5, zorder=2)
    labels = [f"{TRUTH[row.metric]}: {row.block}" for row in rows.itertuples()]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(min(-0.05, np.nanmin(rows[["value", "floor"]].to_numpy())), 1.05)
    kinds = [dot("found", BLUE), dot("found, of a leak", ORANGE)]
    span = dot("floor to ceiling", FAINT, marker="", linestyle="-", linewidth=5)
    legend_outside(ax, [*kinds, span])
    plain(ax)
    return _of(ax)


def _color(metric: str) -> str:
    return ORANGE if metric.startswith("leak") else BLUE


def _of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure
