"""Distance between predicted and real populations of cells, not only between their means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.spatial.distance import cdist

from pyro_fcr.metrics.metrics import FloatArray


def e_distance(
    predicted: Any, real: Any, *, weights: npt.ArrayLike | None = None
) -> FloatArray | float:
    """Energy distance between two groups of cells.

    ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` with Euclidean distances (Székely and Rizzo 2013, JSPI
    143:1249; for perturbed cells Peidli et al. 2024, Nature Methods 21:531, there with squared
    distances). The means within a group leave out a cell's distance to itself, so that the value is
    unbiased, and may be slightly negative for populations that are the same.

    Parameters
    ----------
    predicted, real
        Expression of cells on one scale, such as log1p, ``(n_cells, n_genes)``, dense or sparse;
        two cells or more.
    weights
        Of the real cells, each row adding up to 1, ``(n_rows, n_cells)``, see
        :func:`pyro_fcr.metrics.profiles.bootstrap_weights`; None weighs all the same.

    Returns
    -------
    On the scale of the expression: a number, or ``(n_rows,)`` with weights.

    Raises
    ------
    ValueError
        A group has fewer than two cells, or the genes differ in number.

    Examples
    --------
    >>> e_distance(np.array([[0.0], [0.0]]), np.array([[3.0], [3.0]]))
    6.0
    """
    x, y = (np.asarray(g.toarray() if sparse.issparse(g) else g) for g in (predicted, real))
    if len(x) < 2 or len(y) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"predicted and real must be 2 cells or more of the same genes, got {x.shape} and "
            f"{y.shape}"
        )
    w = np.full((1, len(y)), 1.0 / len(y)) if weights is None else np.asarray(weights)
    across = w @ cdist(y, x).mean(axis=1)
    inside_x = cdist(x, x).sum() / (len(x) * (len(x) - 1))
    inside_y = ((w @ cdist(y, y)) * w).sum(axis=1) * len(y) / (len(y) - 1)
    distance = 2 * across - inside_x - inside_y
    return float(distance[0]) if weights is None else distance
