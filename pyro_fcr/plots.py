"""Figures of a fitted model: loss terms, latent blocks, predicted against real responses.

Every function returns axes and leaves pyplot alone: without `ax` it makes a figure of its own, to
be had as ``ax.figure`` and saved with ``ax.figure.savefig(path)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scanpy.plotting import palettes

from pyro_fcr._labels import label_points
from pyro_fcr.evaluation.metrics import FloatArray, largest_changes, response_metrics

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#c4c4c4"
BLUE = "#0072b2"  # of the Okabe-Ito palette, beside grey told apart by every reader

_SPLITS = {"train": ("train", "#8f8f8f", 1.2), "heldout": ("held out", BLUE, 1.6)}
_CHANGE = "change of mean log1p expression"


def loss_by_term(history: pd.DataFrame, *, n_columns: int = 4) -> npt.NDArray[Any]:
    """One small panel per term of the objective over epochs, train and held-out lines.

    Values are unweighted, in nats per cell. A panel is cut to the range after the first fifth of
    the epochs where the start alone would flatten the rest; the line then enters from outside.

    Parameters
    ----------
    history
        One row per epoch with columns ``train/<term>`` and ``heldout/<term>``; other columns are
        left out. The epoch is the column ``epoch`` where there is one, else the index. Missing
        entries (epochs that were not evaluated) are skipped.
    n_columns
        Panels per row.

    Returns
    -------
    ``(n_terms,)`` axes in the order of the terms, `loss` and `elbo` first.

    Raises
    ------
    ValueError
        If no column is called ``train/<term>`` or ``heldout/<term>``.
    """
    terms = _terms(history)
    if not terms:
        raise ValueError(
            f"history has no train/<term> or heldout/<term>, found {list(history.columns)}"
        )
    figure, axes = _grid(len(terms), n_columns, width=2.55, height=1.85)
    for ax, term in zip(axes, terms, strict=True):
        _draw_term(ax, history, term)
    for ax in axes[::n_columns]:
        ax.set_ylabel("nats per cell")
    for ax in axes[-n_columns:]:
        ax.set_xlabel("epoch")
    handles = [
        Line2D([], [], color=color, linewidth=width, label=label)
        for label, color, width in _SPLITS.values()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    return axes


def _terms(history: pd.DataFrame) -> list[str]:
    names = [str(column).partition("/") for column in history.columns]
    found = list(dict.fromkeys(term for split, _, term in names if split in _SPLITS))
    return sorted(found, key=lambda term: {"loss": 0, "elbo": 1}.get(term, 2))


def _draw_term(ax: Axes, history: pd.DataFrame, term: str) -> None:
    epochs = history["epoch"] if "epoch" in history else pd.Series(history.index, history.index)
    shown = []
    for split, (_, color, width) in _SPLITS.items():
        if f"{split}/{term}" in history:
            values = history[f"{split}/{term}"].dropna()
            ax.plot(epochs[values.index], values, color=color, linewidth=width)
            shown.append(values)
    _cut_to_late_range(ax, shown)
    ax.set_title(f"{term} (higher is better)" if term == "elbo" else term, fontsize=9, loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    _plain(ax)


def _cut_to_late_range(ax: Axes, lines: Sequence[pd.Series]) -> None:
    late = np.concatenate([line.to_numpy(float)[len(line) // 5 :] for line in lines])
    every = np.concatenate([line.to_numpy(float) for line in lines])
    late, every = late[np.isfinite(late)], every[np.isfinite(every)]
    if late.size and 0 < np.ptp(late) < np.ptp(every) / 3:
        margin = 0.08 * np.ptp(late)
        ax.set_ylim(late.min() - margin, late.max() + margin)


def category_colors(adata: AnnData, color: str) -> dict[str, str]:
    """Colour of each level of an obs column, as scanpy would choose it.

    Parameters
    ----------
    adata
        Colours in ``adata.uns["<color>_colors"]`` are honoured where there is one for each level;
        else scanpy's default palettes of 20, 28 and 102 colours are used, and grey beyond.
    color
        Column of ``obs``, taken as categorical.

    Returns
    -------
    Level to colour, in the order of the categories. Levels without cells are left out.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    if color not in adata.obs:
        raise ValueError(f"no column {color!r} in adata.obs, found {list(adata.obs.columns)}")
    values = pd.Categorical(adata.obs[color])
    own = adata.uns.get(f"{color}_colors", ())
    chosen = list(own) if len(own) == len(values.categories) else _palette(len(values.categories))
    present = set(values.codes)
    return {
        str(level): chosen[code] for code, level in enumerate(values.categories) if code in present
    }


def _palette(n_levels: int) -> list[str]:
    for colors in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n_levels <= len(colors):
            return list(colors[:n_levels])
    return ["#808080"] * n_levels


def latent_umap(
    adata: AnnData, block: str, *, color: str, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """UMAP of one latent block, cells coloured by an obs column.

    Parameters
    ----------
    adata
        Cells with ``obsm["X_fcr_<block>_umap"]``, ``(n_cells, 2)``.
    block
        Name of the block, such as ``"z_tx"``.
    color
        Column of ``obs``, taken as categorical; see `category_colors`. Cells without a level are
        light grey.
    ax
        Axes to draw on; None makes a figure.
    legend
        Whether the levels are listed to the right of the axes.

    Raises
    ------
    ValueError
        If the column or the UMAP is missing.
    """
    key = f"X_fcr_{block}_umap"
    if key not in adata.obsm:
        raise ValueError(f"no {key!r} in adata.obsm, found {list(adata.obsm)}")
    levels = category_colors(adata, color)
    n_columns = legend * (1 + (len(levels) - 1) // 18)
    ax = _new_axes(3.9 + 1.4 * n_columns, 4.0) if ax is None else ax
    colors = np.array([levels.get(str(level), "#d9d9d9") for level in adata.obs[color]])
    # A fixed shuffle: drawn in file order, the last level would cover all others.
    order = np.random.default_rng(0).permutation(len(colors))
    points = np.asarray(adata.obsm[key])[order]
    size = float(np.clip(18_000 / max(len(points), 1), 0.8, 22))
    ax.scatter(points[:, 0], points[:, 1], s=size, c=colors[order], linewidths=0, rasterized=True)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.set_title(f"{block}, coloured by {color}", fontsize=9.5, loc="left")
    _plain(ax)
    if legend:
        _legend_outside(ax, levels, n_columns)
    return ax


def _legend_outside(ax: Axes, levels: Mapping[str, str], n_columns: int) -> None:
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=color, label=level)
        for level, color in levels.items()
    ]
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=n_columns,
        frameon=False,
        fontsize=8,
        handletextpad=0.2,
    )


def response_scatter(
    predicted_delta: npt.ArrayLike,
    real_delta: npt.ArrayLike,
    *,
    gene_names: Sequence[str],
    title: str = "",
    n_label: int = 10,
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
    ax
        Axes to draw on; None makes a figure.
    """
    predicted, real = np.asarray(predicted_delta, float), np.asarray(real_delta, float)
    ax = _new_axes(3.6, 3.8) if ax is None else ax
    _scatter(ax, predicted, real, title=title, limits=_limits([predicted, real]))
    ax.set(xlabel=f"real {_CHANGE}", ylabel=f"predicted {_CHANGE}")
    cast(Figure, ax.get_figure(root=True)).draw_without_rendering()
    _label_genes(ax, predicted, real, gene_names=gene_names, n_label=n_label)
    return ax


def _scatter(
    ax: Axes, predicted: FloatArray, real: FloatArray, *, title: str, limits: tuple[float, float]
) -> None:
    pearson = response_metrics(predicted, real)["pearson_delta_de100"]
    r = f"r = {pearson:.2f}" if np.isfinite(pearson) else "r undefined"
    ax.set_title(f"{title}\n{r}".strip(), fontsize=9, color=INK, linespacing=1.35)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.axline((0, 0), slope=1, color=FAINT, linewidth=0.9, zorder=1)
    _plain(ax)
    if not np.isfinite(predicted).all():
        ax.text(0.5, 0.5, "not defined", transform=ax.transAxes, ha="center", color=MUTED)
        return
    strongest = np.zeros(len(real), dtype=bool)
    strongest[largest_changes(real, 100)] = True
    style: dict[str, Any] = {"s": 9, "alpha": 0.75, "linewidths": 0, "rasterized": len(real) > 1000}
    for rows, color, order in ((~strongest, "#b5b5b5", 2), (strongest, BLUE, 3)):
        ax.scatter(real[rows], predicted[rows], color=color, zorder=order, **style)


def _label_genes(
    ax: Axes, predicted: FloatArray, real: FloatArray, *, gene_names: Sequence[str], n_label: int
) -> None:
    if len(gene_names) != len(real):
        raise ValueError(f"{len(gene_names)} gene names for {len(real)} genes")
    if np.isfinite(predicted).all():
        names, rows = [str(name) for name in gene_names], largest_changes(real, n_label).tolist()
        label_points(ax, np.column_stack([real, predicted]), names, rows=rows)


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
    """
    if not responses:
        raise ValueError("responses is empty: nothing to draw")
    real = np.asarray(real_delta, float)
    predicted = {name: np.asarray(values, float) for name, values in responses.items()}
    limits = _limits([real, *predicted.values()])
    figure, axes = _grid(len(predicted), n_columns, width=2.6, height=3.1)
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


def _new_axes(width: float, height: float) -> Axes:
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _grid(
    n_panels: int, n_columns: int, *, width: float, height: float
) -> tuple[Figure, npt.NDArray[Any]]:
    """Figure with `n_panels` axes, row by row."""
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08)
    figure = Figure(figsize=(width * n_columns, height * n_rows), layout=layout)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in axes[n_panels:]:
        ax.remove()
    return figure, axes[:n_panels]


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=FAINT, linewidth=0.8)
    ax.tick_params(labelsize=7.5, color=FAINT, labelcolor=MUTED, length=3)
    ax.xaxis.label.set(color=MUTED, fontsize=8.5)
    ax.yaxis.label.set(color=MUTED, fontsize=8.5)
