"""What the clusters of a latent block agree with, and its two-dimensional picture."""

import functools
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pyro_fcr.metrics.arrays import check_rows, draw_rows
from pyro_fcr.values import checked

_SCORES = {"nmi": normalized_mutual_info_score, "ari": adjusted_rand_score}
_IGRAPH: dict[str, Any] = {"flavor": "igraph", "n_iterations": 2, "directed": False}


@checked()
def cluster_agreement(
    latents: Mapping[str, NDArray[np.floating]],
    labels: pd.DataFrame | Mapping[str, ArrayLike],
    *,
    resolution: float = 1.0,
    n_neighbors: int = 15,
    max_cells: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare each block's Leiden clusters with each labelling of the cells.

    Clusters are those of a plain scanpy analysis: `scanpy.pp.neighbors` on the latent (exact
    neighbours), then `scanpy.tl.leiden` with igraph. Mind that a block's encoder may have been
    given the label it is compared with; what a high value then says is that the label was kept.
    Compare only values of equally many cells: more cells make more clusters.

    Parameters
    ----------
    latents
        Block name to ``(n_cells, n_dims)``.
    labels
        Label name to ``(n_cells,)``, in the order of the latents' rows.
    resolution, n_neighbors
        Resolution of Leiden, and neighbours of each cell in the graph.
    max_cells
        Cells to draw at random where there are more: exact neighbours take time that grows with the
        square of the cells.
    seed
        Seed of the draw, the graph and the clusters.

    Returns
    -------
    Columns ``block, label, metric, value``. Metrics: ``nmi``, normalised mutual information
    (arithmetic mean), 0 to 1, above 0 for unrelated partitions into many parts; ``ari``, adjusted
    Rand index, 0 by chance, 1 for the same partition.

    Raises
    ------
    ValueError
        If a block or a labelling does not have one row per cell.
    ImportError
        If igraph is not installed: it is under the GPL, and comes with the extra ``leiden``.

    Examples
    --------
    >>> latent = np.repeat([[0.0, 0.0], [9.0, 9.0]], 40, axis=0)
    >>> latent = latent + np.random.default_rng(0).normal(size=(80, 2))
    >>> cluster_agreement({"z_x": latent}, {"x": np.repeat(["a", "b"], 40)}, resolution=0.1)
      block label metric  value
    0   z_x     x    nmi    1.0
    1   z_x     x    ari    1.0
    """
    if find_spec("igraph") is None:
        raise ImportError("Leiden clusters need igraph: pip install 'pyro-fcr[leiden]'.")
    codes = {str(name): pd.factorize(np.asarray(values))[0] for name, values in labels.items()}
    check_rows({**latents, **codes})
    rows = draw_rows(len(next(iter(latents.values()))), max_cells, seed)
    found = []
    for block, latent in latents.items():
        clusters = _leiden(latent[rows], resolution=resolution, n_neighbors=n_neighbors, seed=seed)
        for label, values in codes.items():
            for metric, score in _SCORES.items():
                found.append((block, label, metric, float(score(values[rows], clusters))))
    return pd.DataFrame(found, columns=["block", "label", "metric", "value"])


def _leiden(
    latent: NDArray[np.floating], *, resolution: float, n_neighbors: int, seed: int
) -> NDArray[np.intp]:
    graph = _neighbours(latent, n_neighbors=n_neighbors, seed=seed)
    sc.tl.leiden(graph, resolution=resolution, random_state=seed, **_IGRAPH)
    return graph.obs["leiden"].cat.codes.to_numpy()


def _neighbours(latent: NDArray[np.floating], *, n_neighbors: int, seed: int) -> AnnData:
    _keep_compiled()
    cells = AnnData(np.asarray(latent, dtype=np.float32))
    # Exact neighbours, which scanpy by itself takes for few cells only; latents are narrow enough.
    sc.pp.neighbors(
        cells, n_neighbors=n_neighbors, use_rep="X", transformer="sklearn", random_state=seed
    )
    return cells


@functools.cache
def _keep_compiled() -> None:
    """Keep on disk what numba compiles of UMAP, as UMAP itself does of a part: 5 s a process."""
    with warnings.catch_warnings(action="ignore", category=ImportWarning):  # no tensorflow
        from umap import layouts, umap_  # noqa: PLC0415 (takes a second, ten when it is new)

    for function in (*vars(umap_).values(), *vars(layouts).values()):
        if hasattr(function, "enable_caching"):
            function.enable_caching()


@checked()
def umap(latent: NDArray[np.floating], *, seed: int, n_neighbors: int = 15) -> NDArray[np.float32]:
    """Draw a latent block in two dimensions by UMAP, as scanpy does.

    Parameters
    ----------
    latent
        ``(n_cells, n_dims)``.
    seed
        Seed of the neighbour graph and of the layout.
    n_neighbors
        Neighbours of each cell in the graph.

    Returns
    -------
    ``(n_cells, 2)``.
    """
    cells = _neighbours(latent, n_neighbors=n_neighbors, seed=seed)
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]
