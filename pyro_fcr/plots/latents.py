"""Cells in the latent blocks, coloured by what is known of them."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from pyro_fcr.plots._axes import dot, legend_outside, new_axes, palette, plain


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

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> cells = AnnData(obs=pd.DataFrame({"treatment": ["drug", "none"]}, index=["a", "b"]))
    >>> plots.category_colors(cells, "treatment")
    {'drug': '#1f77b4', 'none': '#ff7f0e'}
    """
    if color not in adata.obs:
        raise ValueError(f"no column {color!r} in adata.obs, found {list(adata.obs.columns)}")
    values = pd.Categorical(adata.obs[color])
    own = adata.uns.get(f"{color}_colors", ())
    chosen = list(own) if len(own) == len(values.categories) else palette(len(values.categories))
    present = set(values.codes)
    return {
        str(level): chosen[code] for code, level in enumerate(values.categories) if code in present
    }


def latent_umap(
    adata: AnnData, block: str, *, color: str, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """UMAP of one latent block, cells coloured by an obs column.

    Parameters
    ----------
    adata
        Cells with ``obsm["X_fcr_<block>_umap"]``, ``(n_cells, 2)``. The title says how they were
        encoded, where ``uns["fcr"]`` knows, see :func:`pyro_fcr.queries.add_latents_to`.
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

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> cells = AnnData(
    ...     obs=pd.DataFrame({"treatment": ["drug", "none"]}, index=["a", "b"]),
    ...     obsm={"X_fcr_z_t_umap": np.array([[0.0, 1.0], [2.0, 0.5]])},
    ... )
    >>> plots.latent_umap(cells, "z_t", color="treatment").get_title(loc="left")
    'z_t, coloured by treatment'
    """
    key = f"X_fcr_{block}_umap"
    if key not in adata.obsm:
        raise ValueError(f"no {key!r} in adata.obsm, found {list(adata.obsm)}")
    levels = category_colors(adata, color)
    n_columns = legend * (1 + (len(levels) - 1) // 18)
    ax = new_axes(3.9 + 1.4 * n_columns, 4.0) if ax is None else ax
    colors = np.array([levels.get(str(level), "#d9d9d9") for level in adata.obs[color]])
    # A fixed shuffle: drawn in file order, the last level would cover all others.
    order = np.random.default_rng(0).permutation(len(colors))
    points: npt.NDArray = np.asarray(adata.obsm[key])[order]
    size = float(np.clip(18_000 / max(len(points), 1), 0.8, 22))
    ax.scatter(points[:, 0], points[:, 1], s=size, c=colors[order], linewidths=0, rasterized=True)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    encoding = adata.uns.get("fcr", {}).get("encoding")
    shown = block if encoding is None else f"{block} ({encoding})"
    ax.set_title(f"{shown}, coloured by {color}", fontsize=9.5, loc="left")
    plain(ax)
    if legend:
        handles = [dot(level, level_color) for level, level_color in levels.items()]
        legend_outside(ax, handles, n_columns=n_columns)
    return ax
