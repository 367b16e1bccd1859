"""Disentanglement, completeness and informativeness, of dimensions and of blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.metrics.arrays import Blocks, Codes, FloatArray, checked_blocks
from pyro_fcr.metrics.regression import Regression, draw_roles, r2, regress

_LEAST_R2 = 0.05


def dci(
    truth: Blocks, estimate: Blocks, *, condition: npt.ArrayLike | None = None, seed: int = 0
) -> pd.DataFrame:
    """Disentanglement, completeness and informativeness (Eastwood and Williams 2018, ICLR).

    One regression (that of :func:`block_r2`) predicts all true from all estimated dimensions. The
    importance of an estimated for a true dimension is how much the held-out squared error, in units
    of the true variance, grows when the estimated one is permuted (within conditions, if given).
    A true dimension that is predicted with an R2 below 0.05 is served by none.

    Parameters
    ----------
    truth, estimate
        Block name to ``(n_cells, n_dims)``; at least two blocks each, which may differ in name.
    condition
        Labels, ``(n_cells,)``, for importances and informativeness *within conditions*.
    seed
        Of the division of the cells, the Fourier features and the permutations.

    Returns
    -------
    Rows ``dimensions`` and ``blocks`` (importances summed within blocks); columns:

    ``disentanglement``
        1 if every estimated one serves one true one only: one minus the entropy of its importances,
        in units of the largest possible, weighted by importance.
    ``completeness``
        1 if every true one is served by one estimated one only; plain mean over the true, those
        served by none counting as 0.
    ``informativeness``
        Held-out R2 of all true from all estimated dimensions, weighted by variance; the same in
        both rows.

    Raises
    ------
    ValueError
        As for :func:`block_r2`, or there are fewer than two blocks on a side.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z = {name: rng.normal(size=(2000, 2)) for name in ("z_x", "z_t")}
    >>> dci(z, z).round(2).to_numpy().tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    true, estimated, codes = checked_blocks(truth, estimate, condition)
    if min(len(true), len(estimated)) < 2:
        raise ValueError(
            f"dci compares blocks, two or more on a side, got truth {list(true)} and estimate "
            f"{list(estimated)}"
        )
    importances, informativeness = _importances(
        np.concatenate(list(estimated.values()), axis=1),
        np.concatenate(list(true.values()), axis=1),
        codes=codes,
        seed=seed,
    )
    by_block = _summed(_summed(importances, estimated).T, true).T
    levels = {"dimensions": importances, "blocks": by_block}
    rows = {level: (*_entropies(table), informativeness) for level, table in levels.items()}
    columns = ["disentanglement", "completeness", "informativeness"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _importances(
    latent: FloatArray, target: FloatArray, *, codes: Codes, seed: int
) -> tuple[FloatArray, float]:
    """Give importances ``(n_estimated, n_true)`` and the R2 of the regression."""
    roles = draw_roles(codes, seed=seed)
    fitted = regress(latent, target, codes=codes, roles=roles, seed=seed)
    held, rng = roles.test, np.random.default_rng(seed)
    z, y, labels = latent[held], target[held], codes[held]
    baseline = fitted.baseline(labels)
    unit = ((y - baseline) ** 2).mean(axis=0)
    errors = [_errors(fitted, z, y, labels)]
    for column in range(z.shape[1]):
        permuted = z.copy()
        permuted[:, column] = z[_permutation(labels, rng), column]
        errors.append(_errors(fitted, permuted, y, labels))
    growth = np.maximum(np.stack(errors[1:]) - errors[0], 0.0)
    growth = np.divide(growth, unit, out=np.zeros_like(growth), where=unit > 0)
    growth[:, errors[0] > (1.0 - _LEAST_R2) * unit] = 0.0  # noise would have an entropy too
    return growth, r2(y, fitted(z, labels), baseline)


def _errors(fitted: Regression, z: FloatArray, y: FloatArray, codes: Codes) -> FloatArray:
    return np.asarray(((y - fitted(z, codes)) ** 2).mean(axis=0))


def _permutation(codes: Codes, rng: np.random.Generator) -> Codes:
    """Shuffle rows among those of the same code."""
    rows = np.empty(len(codes), dtype=np.intp)
    shuffled = np.lexsort((rng.random(len(codes)), codes))
    rows[np.argsort(codes, kind="stable")] = shuffled
    return rows


def _summed(table: FloatArray, blocks: dict[str, FloatArray]) -> FloatArray:
    starts = np.cumsum([0, *(values.shape[1] for values in blocks.values())])[:-1]
    return np.add.reduceat(table, starts, axis=0)


def _entropies(importances: FloatArray) -> tuple[float, float]:
    """Disentanglement and completeness of ``(n_estimated, n_true)`` importances."""
    total = importances.sum()
    weights = importances.sum(axis=1) / total if total > 0 else importances.sum(axis=1)
    return float(weights @ _purity(importances)), float(_purity(importances.T).mean())


def _purity(importances: FloatArray) -> FloatArray:
    """One minus the relative entropy of each row; 0 for a row without importance."""
    total = importances.sum(axis=1, keepdims=True)
    shares = np.divide(importances, total, out=np.zeros_like(importances), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    purity = 1.0 + (shares * logs).sum(axis=1) / np.log(importances.shape[1])
    return np.where(total[:, 0] > 0, purity, 0.0)
