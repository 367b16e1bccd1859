"""Kernel tests of dependence, by causal-learn: HSIC, and the conditional test beside our own.

HSIC (Gretton et al. 2007, NeurIPS 20) asks for dependence outright, not within strata: z_x *should*
depend on x, and on t only where the design ties t to x.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import gamma

from pyro_fcr.metrics.arrays import FloatArray, check_rows, codes, draw_rows, matrix
from pyro_fcr.values import checked


@dataclass(frozen=True)
class HSICTest:
    """HSIC of a latent block and a label or numbers, beside what independence would give.

    Parameters
    ----------
    hsic
        Normalised, between 0 and 1: ``HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b))`` (biased
        estimates; centred kernel alignment). Above 0 for independent cells, too.
    null_mean, null_95
        Mean and 95 % quantile under independence, by a gamma approximation.
    p_value
        Probability of an HSIC at least as large under independence.
    n_cells
        Cells looked at.
    """

    hsic: float
    null_mean: float
    null_95: float
    p_value: float
    n_cells: int


@checked()
def hsic(z: ArrayLike, other: ArrayLike, *, max_cells: int = 2_000, seed: int = 0) -> HSICTest:
    """Measure how much a block depends on a label or on numbers, and test it.

    Both sides get a Gaussian kernel of standardised dimensions, as wide as the root mean squared
    distance of two cells; labels enter as indicators. Time and memory grow with the square of the
    cells.

    Parameters
    ----------
    z
        Latent block, ``(n_cells, n_dims)``.
    other
        A label of each cell, ``(n_cells,)``, or numbers, ``(n_cells, n_other_dims)``.
    max_cells
        Cells to draw at random where there are more.
    seed
        Seed of that draw.

    Raises
    ------
    ImportError
        causal-learn is not installed.
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
    sides = _sides({"z": z, "other": other}, max_cells, seed)
    # Standardised dimensions add 2 each to the mean squared distance of two cells.
    widths = [np.sqrt(2.0 * side.shape[1]) for side in sides]
    test = _causal_learn().KCI_UInd(est_width="manual", kwidthx=widths[0], kwidthy=widths[1])
    found, left, right = test.HSIC_V_statistic(*test.kernel_matrix(*sides))
    shape, scale = test.get_kappa(left, right)
    null, size = gamma(shape, scale=scale), np.linalg.norm(left) * np.linalg.norm(right)
    return HSICTest(
        hsic=float(found / size),
        null_mean=float(null.mean() / size),
        null_95=float(null.ppf(0.95) / size),
        p_value=float(null.sf(found)),
        n_cells=len(left),
    )


@checked()
def hsic_table(
    latents: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike],
    *,
    max_cells: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the HSIC of each block with each label and with random numbers of its shape.

    Parameters
    ----------
    latents
        Block name to ``(n_cells, n_dims)``.
    labels
        Name of a site (``x``, ``t``) to the label of each cell, ``(n_cells,)``.
    max_cells, seed
        See :func:`hsic`.

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
        for name, other in {**labels, "random": rng.normal(size=np.shape(z))}.items():
            found = hsic(z, other, max_cells=max_cells, seed=seed)
            rows.append({"block": block, "other": name, **asdict(found)})
    return pd.DataFrame(rows)


def kci(
    z: ArrayLike, other: ArrayLike, given: ArrayLike, *, max_cells: int = 500, seed: int = 0
) -> float:
    """Test conditional independence by kernels, for comparison.

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
        Seed of that draw.

    Returns
    -------
    The p-value of ``z ⟂ other | given``.

    Raises
    ------
    ImportError
        causal-learn is not installed.
    ValueError
        Rows do not fit, values are missing, or one side is constant.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, t = rng.integers(3, size=(2, 200))
    >>> kci(rng.normal(size=(200, 2)), t, x) > 0.05
    True
    """
    sides = _sides({"z": z, "other": other, "given": given}, max_cells, seed)
    return float(_causal_learn().KCI_CInd().compute_pvalue(*sides)[0])


def _causal_learn() -> ModuleType:
    try:
        import causallearn.utils.KCI.KCI as kernels  # noqa: N811, PLC0415 (an extra)
    except ImportError as error:
        raise ImportError(
            "HSIC and kci need causal-learn: pip install 'pyro-fcr[independence]'."
        ) from error
    return kernels


def _sides(values: Mapping[str, ArrayLike], max_cells: int, seed: int) -> list[FloatArray]:
    """Return the columns that vary, of each side's numbers in some cells."""
    numbers = {"z": matrix(values["z"], "z")}
    numbers |= {name: _numbers(side, name) for name, side in values.items() if name != "z"}
    check_rows(numbers)
    cells, sides = draw_rows(len(numbers["z"]), max_cells, seed), []
    for name, side in numbers.items():
        varies = np.ptp(side[cells], axis=0) > 0
        if not varies.any():
            raise ValueError(f"{name} is the same in all {len(cells)} cells that are looked at.")
        sides.append(side[cells][:, varies])
    return sides


def _numbers(values: ArrayLike, name: str) -> FloatArray:
    """Return numbers as a matrix, or a label as indicators."""
    if np.ndim(values) != 1:
        return matrix(values, name)
    label = codes(values, np.size(values), name)
    return np.eye(label.max() + 1)[label]
