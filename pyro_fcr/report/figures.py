"""Figures of the report as data addresses, so that the page needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from matplotlib import rc_context
from matplotlib.figure import Figure

from pyro_fcr import plots

_BLOCK_ORDER = {"z_x": 0, "z_t": 1, "z_tx": 2}


@dataclass(frozen=True)
class UmapGrid:
    """Images of the latent blocks: a row per block, a column per colouring.

    Parameters
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
        If a column is missing.
    """
    legends = tuple((color, plots.category_colors(cells, color)) for color in color_by)
    names = [key.removeprefix("X_fcr_").removesuffix("_umap") for key in _umap_keys(cells)]
    blocks = sorted(names, key=lambda name: _BLOCK_ORDER.get(name, len(_BLOCK_ORDER)))
    rows = tuple((b, tuple(_umap_png(cells, b, color) for color in color_by)) for b in blocks)
    return UmapGrid(rows, legends)


def _umap_keys(cells: AnnData) -> list[str]:
    return [key for key in cells.obsm if key.startswith("X_fcr_") and key.endswith("_umap")]


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
    """Loss by term, as a data address of an SVG image."""
    return svg(plots.loss_by_term(history)[0].figure)


def response_image(
    responses: Mapping[str, npt.ArrayLike], real: npt.ArrayLike, gene_names: Sequence[str]
) -> str:
    """Predicted against real change of every prediction, as a data address of an SVG image."""
    axes = plots.response_panel(
        {name: np.asarray(delta, float) for name, delta in responses.items()},
        real,
        gene_names=gene_names,
    )
    return svg(axes[0].figure)


def coverage_image(coverage: Sequence[Mapping[str, Any]]) -> str:
    """Observed against nominal coverage by kind, as a data address of an SVG image."""
    figure = Figure(figsize=(3.4, 3.5), layout="constrained")
    plots.coverage(pd.DataFrame(list(coverage)), ax=figure.add_subplot())
    return svg(figure)


def svg(figure: Figure) -> str:
    """Give a figure as a data address of an SVG image; the same figure gives the same bytes."""
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
