"""Kernel measures of dependence: HSIC with its permutation null, and the kernel conditional test.

HSIC (Gretton et al. 2007, NeurIPS 20) asks for dependence outright, not within strata: z_x *should*
depend on x, and on t only where the design ties t to x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import pdist, squareform

from pyro_fcr.metrics.arrays import FloatArray, codes, draw_rows, matrix
from pyro_fcr.metrics.sides import check_permutations

RANDOM = "random"


@dataclass(frozen=True)
class HSICTest:
    """HSIC of a latent block and a label or numbers, beside what independence would give.

    Parameters
    ----------
    hsic
        Normalised, between 0 and 1: ``HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b))`` (biased
        estimates; centred kernel alignment). Above 0 for independent cells, too.
    null_mean, null_95
        Mean and 95 % quantile over permutations of the cells.
    p_value
        Share of permutations, the identity among them, with an HSIC at least as large.
    n_cells
        Cells looked at.
    """

    hsic: float
    null_mean: float
    null_95: float
    p_value: float
    n_cells: int


def hsic(
    z: npt.ArrayLike,
    other: npt.ArrayLike,
    *,
    n_permutations: int = 200,
    max_cells: int = 2_000,
    seed: int = 0,
) -> HSICTest:
    """Measure how much a block depends on a label or on numbers, with its permutation null.

    Numbers get a Gaussian kernel of standardised dimensions, as wide as the median distance of two
    cells; a label a delta kernel (1 for cells of one label). Time and memory grow with the square
    of the cells.

    Parameters
    ----------
    z
        Latent block, ``(n_cells, n_dims)``.
    other
        A label of each cell, ``(n_cells,)``, or numbers, ``(n_cells, n_other_dims)``.
    n_permutations
        Number of random permutations, at least 19.
    max_cells
        Cells to draw at random where there are more.
    seed
        Of the draw and of the permutations.

    Raises
    ------
    ValueError
        Rows do not fit, values are missing, or one side is constant.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.integers(3, size=300)
    >>> z = rng.normal(size=(300, 2)) + x[:, None]
    >>> hsic(z, x).p_value < 0.01, hsic(rng.normal(size=(300, 2)), x).p_value > 0.05
    (True, True)
    """
    check_permutations(n_permutations)
    block = matrix(z, "z")
    other = _side(other, len(block), "other")
    rng = np.random.default_rng(seed)
    cells = draw_rows(len(block), max_cells, rng)
    left, right = _kernel(block[cells], "z"), _kernel(other[cells], "other")
    orders = [np.arange(len(cells)), *(rng.permutation(len(cells)) for _ in range(n_permutations))]
    found = np.array([np.vdot(left, right[np.ix_(order, order)]) for order in orders])
    null = found[1:]
    return HSICTest(
        hsic=float(found[0]),
        null_mean=float(null.mean()),
        null_95=float(np.quantile(null, 0.95)),
        p_value=float((found >= found[0] - 1e-6).mean()),
        n_cells=len(cells),
    )


def hsic_table(
    latents: Mapping[str, npt.ArrayLike],
    labels: Mapping[str, npt.ArrayLike],
    *,
    n_permutations: int = 200,
    max_cells: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """HSIC of each block with each label and with random numbers of the block's shape.

    Parameters
    ----------
    latents
        Block name to ``(n_cells, n_dims)``.
    labels
        Name of a site (``x``, ``t``) to the label of each cell, ``(n_cells,)``.
    n_permutations, max_cells, seed
        As in `hsic`.

    Returns
    -------
    One row per pair: ``block``, ``other`` (a label, or ``random``), and the fields of `HSICTest`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.integers(3, size=200)
    >>> table = hsic_table({"z_x": rng.normal(size=(200, 2)) + x[:, None]}, {"x": x})
    >>> table["other"].tolist(), bool(table["hsic"][0] > 5 * table["hsic"][1])
    (['x', 'random'], True)
    """
    rng, rows = np.random.default_rng(seed), []
    for block, z in latents.items():
        for name, other in {**labels, RANDOM: rng.normal(size=np.shape(z))}.items():
            found = hsic(z, other, n_permutations=n_permutations, max_cells=max_cells, seed=seed)
            rows.append({"block": block, "other": name, **asdict(found)})
    return pd.DataFrame(rows)


def _side(values: npt.ArrayLike, n_cells: int, name: str) -> npt.NDArray[Any]:
    """Return numbers as a matrix, labels as codes."""
    if np.ndim(values) == 1:
        return codes(values, n_cells, name)
    found = matrix(values, name)
    if len(found) != n_cells:
        raise ValueError(f"{name}: {len(found)} cells, z has {n_cells}.")
    return found


def _kernel(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """Centred kernel of unit size, ``(n, n)``."""
    kernel = _delta(values) if values.ndim == 1 else _gaussian(values)
    kernel = kernel - kernel.mean(axis=0)
    kernel -= kernel.mean(axis=1, keepdims=True)
    if (size := np.linalg.norm(kernel)) < 1e-9 * len(kernel):
        raise ValueError(
            f"{name} is the same in all {len(kernel)} cells: nothing can depend on it."
        )
    return (kernel / size).astype(np.float32)


def _delta(label: npt.NDArray[Any]) -> FloatArray:
    return (label[:, None] == label).astype(np.float64)


def _gaussian(values: npt.NDArray[Any]) -> FloatArray:
    spread = values.std(axis=0)
    distance = pdist(values / np.where(spread > 0, spread, 1.0), "sqeuclidean")
    width = np.median(distance[distance > 0]) if distance.any() else 1.0
    return np.exp(-squareform(distance) / (2 * width))


def kci(
    z: npt.ArrayLike,
    other: npt.ArrayLike,
    given: npt.ArrayLike,
    *,
    max_cells: int = 500,
    seed: int = 0,
) -> float:
    """Kernel conditional independence test of causal-learn, for comparison.

    Zhang, Peters, Janzing and Schölkopf 2011 (UAI 27), with causal-learn's own kernel widths and
    its gamma approximation of the null; labels enter as indicators. Time grows with the cube of the
    cells and the level is approximate, so that `independence_test` is the one to go by where
    `given` is discrete.

    Parameters
    ----------
    z
        Latent block, ``(n_cells, n_dims)``.
    other, given
        A label of each cell, ``(n_cells,)``, or numbers, ``(n_cells, n)``.
    max_cells
        Cells to draw at random where there are more.
    seed
        Of the draw.

    Returns
    -------
    The p-value of ``z ⟂ other | given``.

    Raises
    ------
    ImportError
        causal-learn is not installed.
    ValueError
        Rows do not fit, or values are missing.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, t = rng.integers(3, size=(2, 200))
    >>> p_value = kci(rng.normal(size=(200, 2)), t, x)  # doctest: +SKIP
    """
    try:
        from causallearn.utils.KCI.KCI import KCI_CInd  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ImportError(
            "kci needs causal-learn: pip install 'pyro-fcr[independence]'."
        ) from error
    block = matrix(z, "z")
    others = {name: _side(v, len(block), name) for name, v in (("other", other), ("given", given))}
    cells = draw_rows(len(block), max_cells, np.random.default_rng(seed))
    sides = [_numbers(side[cells], name) for name, side in {"z": block, **others}.items()]
    return float(KCI_CInd().compute_pvalue(*sides)[0])


def _numbers(side: npt.NDArray[Any], name: str) -> FloatArray:
    """Labels as indicators; columns that vary."""
    numbers = side if side.ndim == 2 else pd.get_dummies(side).to_numpy(dtype=np.float64)
    varies = np.ptp(numbers, axis=0) > 0
    if not varies.any():
        raise ValueError(f"{name} is the same in all {len(numbers)} cells that are looked at.")
    return numbers[:, varies]
