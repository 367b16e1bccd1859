"""Figures of a page as data addresses, so that the page needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_fcr import plots
from pyro_fcr.metrics.response_table import REAL
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.plots import _axes
from pyro_fcr.plots._axes import BLUE, FAINT, INK, ORANGE, plain

_TRUTH: Final[Mapping[str, str]] = {
    "mcc_within_pearson": "strong MCC, within",
    "weak_mcc_within": "weak MCC, within",
    "r2_within": "block R², within",
    "r2_one_map": "block R², within, one map",
    "r2": "block R²",
    "leak_one_map": "leak, within, one map",
}
SCALE_WORDS: Final = {"mean_log1p": "mean of log1p", "log1p_mean": "log1p of mean"}
_BLOCK_ORDER = {"z_x": 0, "z_t": 1, "z_tx": 2}


class UmapGrid(NamedTuple):
    """Images of the latent blocks: a row per block, a column per colouring.

    Attributes
    ----------
    rows
        Block and its images, in the order of `legends`.
    legends
        Column of obs and its levels' colours.
    """

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    legends: tuple[tuple[str, dict[str, str]], ...]


def umap_grid(cells: AnnData, color_by: Sequence[str]) -> UmapGrid:
    """Draw every block that has a UMAP in ``cells.obsm["X_fcr_<block>_umap"]``.

    Parameters
    ----------
    cells
        Cells with UMAPs in ``obsm`` and the labels in ``obs``.
    color_by
        Columns of ``obs``, one column of images each.

    Raises
    ------
    ValueError
        A column is missing.
    """
    legends = tuple((color, plots.category_colors(cells, color)) for color in color_by)
    keys = [key for key in cells.obsm if key.startswith("X_fcr_") and key.endswith("_umap")]
    names = [key.removeprefix("X_fcr_").removesuffix("_umap") for key in keys]
    blocks = sorted(names, key=lambda name: _BLOCK_ORDER.get(name, len(_BLOCK_ORDER)))
    rows = tuple((b, tuple(_umap_png(cells, b, color) for color in color_by)) for b in blocks)
    return UmapGrid(rows, legends)


def _umap_png(cells: AnnData, block: str, color: str) -> str:
    # The page writes block and legend as text; the image is the cloud alone, at twice the pixels.
    figure = Figure(figsize=(4.6, 3.1))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    plots.latent_umap(cells, block, color=color, ax=ax, legend=False)
    ax.set_title("", loc="left")
    ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, pil_kwargs={"optimize": True})
    return _data_address(buffer.getvalue(), "image/png")


def loss_image(history: pd.DataFrame) -> str:
    """Draw the loss by term."""
    return svg(plots.loss_by_term(history)[0].figure)


def response_image(changes: pd.DataFrame) -> str:
    """Draw predicted against real change of one pair, a panel per method.

    Parameters
    ----------
    changes
        A row per method, the measured change among them, and a column per gene; see
        `pyro_fcr.metrics.ResponseTable`.
    """
    predicted = {str(name): row.to_numpy() for name, row in changes.drop(index=REAL).iterrows()}
    genes = list(map(str, changes.columns))
    axes = plots.response_panel(predicted, changes.loc[REAL].to_numpy(), gene_names=genes)
    return svg(axes[0].figure)


def coverage_image(coverage: pd.DataFrame) -> str:
    """Draw observed against nominal coverage by kind."""
    figure = Figure(figsize=(3.4, 3.5), layout="constrained")
    plots.coverage(coverage, ax=figure.add_subplot())
    return svg(figure)


def gains(headline: pd.DataFrame) -> str:
    """Draw the model's gain over the best baseline, a panel per metric, a row per scale.

    Parameters
    ----------
    headline
        Rows of one scenario, against the best baseline on average, see
        `pyro_fcr.metrics.headline`.
    """
    metrics = [name for name in SCORES if name in set(headline["metric"])]
    figure, axes = _axes.grid(len(metrics), 4, width=2.45, height=1.5)
    for ax, metric in zip(axes, metrics, strict=True):
        _gain(ax, headline[headline["metric"] == metric], metric)
    return svg(figure)


def _gain(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    for place, row in enumerate(rows.itertuples()):
        sure = row.low > 0 or row.high < 0
        color = BLUE if sure and row.gain > 0 else ORANGE if sure else INK
        ax.plot([row.low, row.high], [place, place], color=color, linewidth=1.6)
        ax.plot(row.gain, place, "o", color=color, markersize=5)
        ax.text(row.gain, place - 0.22, str(row.baseline), ha="center", fontsize=6.5, color=color)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    score = SCORES[metric]
    ax.set_title(f"{score.title}\n{score.scope}", fontsize=8.5, loc="left", color=INK)
    ax.set_yticks(range(len(rows)), rows["scale"].map(SCALE_WORDS))
    ax.set_ylim(len(rows) - 0.4, -0.75)
    ax.margins(x=0.25)
    plain(ax)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)


def singular_values(table: pd.DataFrame, tolerance: float) -> str:
    """Draw the singular values of the priors' natural parameters, in nats."""
    ax = _axes.new_axes(5.2, 2.6)
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
    return svg(cast(Figure, ax.figure))


def truth(table: pd.DataFrame) -> str:
    """Draw each measure between its floor and ceiling, see `identifiability_table`."""
    rows = pd.concat([table[table["metric"] == metric] for metric in _TRUTH])
    ax = _axes.new_axes(7.2, 0.6 + 0.21 * len(rows))
    for place, row in enumerate(rows.itertuples()):
        ends = [row.floor, row.ceiling]
        ax.plot(ends, [place, place], color=FAINT, linewidth=5, solid_capstyle="butt", zorder=1)
        color = ORANGE if row.metric.startswith("leak") else BLUE
        ax.plot(row.value, place, "o", color=color, markersize=5.5, zorder=2)
        if hasattr(row, "supervised"):
            ax.plot(row.supervised, place, "|", color=INK, markersize=8, zorder=3)
    labels = [f"{_TRUTH[row.metric]}: {row.block}" for row in rows.itertuples()]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(min(-0.05, np.nanmin(rows[["value", "floor"]].to_numpy())), 1.05)
    kinds = [_axes.dot("found", BLUE), _axes.dot("found, of a leak", ORANGE)]
    span = _axes.dot("floor to ceiling", FAINT, marker="", linestyle="-", linewidth=5)
    known = _axes.dot("supervised regression", INK, marker="|")
    _axes.legend_outside(ax, [*kinds, span, *([known] if "supervised" in rows else [])])
    plain(ax)
    return svg(cast(Figure, ax.figure))


def svg(figure: Figure) -> str:
    """Return a figure as a data address of an SVG image; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # A fixed salt and no date: the same results give the same file.
    with rc_context({"svg.hashsalt": "pyro_fcr"}):
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    return svg_address(buffer.getvalue().decode())


def svg_address(svg: str) -> str:
    """Embed an SVG document as an image, where it can neither run scripts nor load anything."""
    return _data_address(svg.encode(), "image/svg+xml")


def _data_address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
