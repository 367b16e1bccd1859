"""How much of the true latent blocks an estimate recovers: correlations, block R2, leakage.

Each measure has a *raw* form and one *within conditions* (`condition` given), in which what labels
alone could tell counts for nothing. Raw numbers are high already for an estimate that copies the
labels, so claims about latents rest on the second form. Here `condition` must name the full
condition of a cell, each (x, t) its own, see :func:`joint_codes`.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from sklearn.preprocessing import scale

from pyro_fcr.metrics import arrays
from pyro_fcr.metrics.arrays import Blocks, Codes, FloatArray
from pyro_fcr.metrics.regression import draw_roles, r2, regress
from pyro_fcr.values import check_choice, checked

Method = Literal["pearson", "spearman"]


def mcc(
    truth: ArrayLike,
    estimate: ArrayLike,
    *,
    method: Method = "pearson",
    condition: ArrayLike | None = None,
) -> float:
    """Return the strong mean correlation coefficient: true dimensions against estimated ones.

    It is the mean over the true dimensions of the absolute correlation with the estimated dimension
    that the best one-to-one match gives it (Hungarian), as in Khemakhem et al. 2020, AISTATS. It is
    blind to order, sign and scale; with Spearman, to any monotone map of single dimensions.

    Parameters
    ----------
    truth, estimate
        ``(n_cells, n_dims)`` each; the number of dimensions may differ. A true dimension without
        a partner, and a constant one on either side, counts as 0.
    method
        Correlation of values or of ranks.
    condition
        Labels, ``(n_cells,)``: correlations after :func:`remove_condition_means` on both sides.

    Returns
    -------
    A number from 0 to 1. Mind that its floor is high: a random rotation of 8 dimensions has .63,
    see :func:`rotation_floor`.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, or there is one condition only.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(500, 3))
    >>> round(mcc(z, -z[:, [2, 0, 1]]), 6)
    1.0
    """
    a, b = _pair_within(truth, estimate, condition)
    return _matched(a, b, method) / a.shape[1]


def _pair_within(
    truth: ArrayLike, estimate: ArrayLike, condition: ArrayLike | None
) -> tuple[FloatArray, FloatArray]:
    a, b = arrays.matrix(truth, "truth"), arrays.matrix(estimate, "estimate")
    arrays.check_rows({"truth": a, "estimate": b})
    if len(a) < 4:
        raise ValueError(f"got {len(a)} cells; a correlation needs 4 or more.")
    if condition is None:
        return a, b
    return arrays.remove_condition_means(a, condition), arrays.remove_condition_means(b, condition)


def _matched(a: FloatArray, b: FloatArray, method: Method) -> float:
    """Sum the absolute correlations of the best match."""
    check_choice("method", method, get_args(Method))
    if method == "spearman":
        a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    correlations = np.abs(scale(a).T @ scale(b)) / len(a)
    rows, columns = linear_sum_assignment(correlations, maximize=True)
    return float(correlations[rows, columns].clip(0.0, 1.0).sum())


@checked()
def weak_mcc(
    truth: ArrayLike,
    estimate: ArrayLike,
    *,
    method: Method = "pearson",
    condition: ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Return the mean correlation coefficient up to a linear map of the block.

    Canonical correlation analysis on a random half of the cells aligns the two, and :func:`mcc`
    scores the other half, so that many dimensions do not score by chance.

    Parameters
    ----------
    truth, estimate, method, condition
        See :func:`mcc`. Constant and linearly dependent dimensions of the truth count as 0.
    seed
        Seed of the halves.

    Returns
    -------
    A number from 0 to 1; 1 for every invertible linear map of the truth.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, or there is one condition only.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(500, 3))
    >>> round(weak_mcc(z, z @ rng.normal(size=(3, 3))), 6)
    1.0
    """
    a, b = _pair_within(truth, estimate, condition)
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(a)), 2)
    a, b = scale(a), scale(b)
    whiten_a, whiten_b = _whitening(a[first]), _whitening(b[first])
    if 0 in (whiten_a.shape[1], whiten_b.shape[1]):
        return 0.0
    cross = (a[first] @ whiten_a).T @ (b[first] @ whiten_b)
    left, _, right = np.linalg.svd(cross, full_matrices=False)
    aligned = a[second] @ whiten_a @ left, b[second] @ whiten_b @ right.T
    return _matched(*aligned, method) / a.shape[1]


def _whitening(values: FloatArray) -> FloatArray:
    """Return the map to uncorrelated directions of equal length; those without spread drop out."""
    _, scales, directions = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    kept = scales > 1e-8 * max(scales.max(), 1e-300)
    return directions[kept].T / scales[kept]


def rotation_floor(
    truth: ArrayLike,
    *,
    method: Method = "pearson",
    condition: ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Return the strong MCC of an estimate that has the right block with its dimensions mixed.

    It is the mean over ten random rotations of the standardised truth, on at most 4,000 cells.
    What an estimate scores beyond it, it has found about single dimensions.

    Parameters
    ----------
    truth, method, condition
        See :func:`mcc`.
    seed
        Seed of the rotations and of the cells.

    Returns
    -------
    A number from 0 to 1; 1 for a single dimension, which nothing can mix.

    Raises
    ------
    ValueError
        An entry is not finite, or there is one condition only.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(4000, 8))
    >>> round(rotation_floor(z), 1)
    0.6
    """
    rng = np.random.default_rng(seed)
    values = scale(_pair_within(truth, truth, condition)[0])
    values = values[rng.permutation(len(values))[:4_000]]
    n_dims = values.shape[1]
    rotations = [np.linalg.qr(rng.normal(size=(n_dims, n_dims)))[0] for _ in range(10)]
    return float(np.mean([_matched(values, values @ q, method) for q in rotations])) / n_dims


def block_r2(
    truth: Blocks,
    estimate: Blocks,
    *,
    condition: ArrayLike | None = None,
    own_maps: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how well each true block is predicted from each estimated one, on held-out cells.

    The regression is nonlinear (ridge on linear, hinge, polynomial and Fourier features; with
    `condition` also an intercept and a shrunk linear map of each condition's own). At most 14,000
    cells are used, four sevenths to fit, one to choose penalties, two to test. R2 of a block weighs
    its dimensions by their variance: squared errors, and those of the baseline, are summed first.

    Parameters
    ----------
    truth, estimate
        Block name to ``(n_cells, n_dims)``.
    condition
        Labels, ``(n_cells,)``: R2 *within conditions*. The baseline is the condition's mean (of
        fitting cells) instead of the overall mean, so that labels alone score 0. Conditions of
        fewer than 7 of the cells used are left out.
    own_maps
        Whether a condition may have a linear map of its own. Without, one regression has to serve
        all conditions: an estimate that is right within each, but turned from one to the next, is
        found out. With `condition` only.
    seed
        Seed of the division of the cells and of the Fourier features.

    Returns
    -------
    One row per estimated, one column per true block, at most 1; about 0 where nothing is
    predicted; nan for a true block without variance.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, there is one condition only, or too few
        cells are left.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, noise = np.repeat([0.0, 3.0], 1000), rng.normal(size=(2000, 2))
    >>> truth = {"z_x": x[:, None] + noise}
    >>> copied = {"z_x": x[:, None] + rng.normal(size=(2000, 2))}
    >>> block_r2(truth, copied).round(1).to_numpy().tolist()
    [[0.7]]
    >>> block_r2(truth, copied, condition=x).round(1).abs().to_numpy().tolist()
    [[0.0]]
    >>> turned = {"z_x": noise * np.where(x > 0, -1.0, 1.0)[:, None]}
    >>> own = block_r2({"z_x": noise}, turned, condition=x)
    >>> one = block_r2({"z_x": noise}, turned, condition=x, own_maps=False)
    >>> [round(float(table.loc["z_x", "z_x"]), 1) for table in (own, abs(one))]
    [1.0, 0.0]
    """
    given = arrays.checked_blocks(truth, estimate, condition)
    return block_r2_tables(*given, seed=seed)[0 if own_maps else 1]


def block_r2_tables(
    truth: Mapping[str, FloatArray], estimate: Mapping[str, FloatArray], codes: Codes, *, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables of :func:`block_r2`, with and without maps of the conditions' own."""
    roles, target = draw_roles(codes, seed=seed), np.concatenate(list(truth.values()), axis=1)
    held = roles.test
    scores: list[dict[str, dict[str, float]]] = [{}, {}]
    for block, latent in estimate.items():
        fitted = regress(latent, target, codes=codes, roles=roles, seed=seed)
        for table, each in zip(scores, (fitted, fitted.with_one_map()), strict=True):
            found = (target[held], each(latent[held], codes[held]), each.baseline(codes[held]))
            table[block] = _by_block(found, truth)
    own, one = (pd.DataFrame.from_dict(each, orient="index")[list(truth)] for each in scores)
    return own, one


def _by_block(
    found: tuple[FloatArray, FloatArray, FloatArray], blocks: Mapping[str, FloatArray]
) -> dict[str, float]:
    """Return R2 by block of columns, from target, prediction and baseline."""
    ends = np.cumsum([values.shape[1] for values in blocks.values()])[:-1]
    parts = zip(*(np.split(array, ends, axis=1) for array in found), strict=True)
    return {block: r2(*part) for block, part in zip(blocks, parts, strict=True)}


def leakage(table: pd.DataFrame) -> dict[str, float]:
    """Return the largest and the mean off-diagonal entry of a :func:`block_r2` table.

    Parameters
    ----------
    table
        One row per estimated, one column per true block, of the same names.

    Returns
    -------
    ``max`` and ``mean``. Entries below 0 count as 0, nan is passed over.

    Raises
    ------
    ValueError
        Rows and columns do not have the same names, or there is one block only.

    Examples
    --------
    >>> names = ["z_x", "z_t"]
    >>> leakage(pd.DataFrame([[0.9, 0.1], [0.3, 0.8]], index=names, columns=names))
    {'max': 0.3, 'mean': 0.2}
    """
    if set(table.index) != set(table.columns) or len(table) < 2:
        raise ValueError(
            f"leakage needs a table of the same two or more blocks both ways, got rows "
            f"{list(table.index)} and columns {list(table.columns)}."
        )
    values = table.loc[table.columns].to_numpy(dtype=np.float64)
    leaks = pd.Series(values[~np.eye(len(values), dtype=bool)]).clip(lower=0.0)
    return {"max": float(leaks.max()), "mean": float(leaks.mean())}
