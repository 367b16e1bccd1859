"""Latents as checked matrices, conditions as codes, and what is left within a condition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.metrics.metrics import FloatArray

Codes = npt.NDArray[np.intp]
Blocks = Mapping[str, npt.ArrayLike]


def remove_condition_means(latent: npt.ArrayLike, condition: npt.ArrayLike) -> FloatArray:
    """Take the mean of its condition off every cell's latent.

    What is left holds nothing that the labels alone could tell about the mean. (Scales may still
    differ between conditions; they are part of what makes latents identifiable.)

    Parameters
    ----------
    latent
        ``(n_cells, n_dims)``.
    condition
        Label of each cell, ``(n_cells,)``: every combination of x and t its own, see
        :func:`joint_condition`.

    Returns
    -------
    ``(n_cells, n_dims)``, mean 0 in every condition. A dimension that is constant within all
    conditions becomes exactly 0, a cell alone in its condition too.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, a label is missing, or there is one condition
        only.

    Examples
    --------
    >>> remove_condition_means([[1.0], [3.0], [10.0], [12.0]], ["a", "a", "b", "b"]).ravel()
    array([-1.,  1., -1.,  1.])
    """
    values = matrix(latent, "latent")
    codes = condition_codes(condition, len(values))
    within = values - group_means(values, codes)[codes]
    within[:, within.std(axis=0) <= 1e-9 * (values.std(axis=0) + 1e-300)] = 0.0
    return within


def joint_condition(*labels: npt.ArrayLike) -> Codes:
    """Give every combination of labels that occurs a number.

    Parameters
    ----------
    *labels
        Labellings of the cells, such as x and t, each ``(n_cells,)``.

    Returns
    -------
    ``(n_cells,)``, the same number for cells that agree in all labellings.

    Raises
    ------
    ValueError
        The labellings differ in length, or a label is missing.

    Examples
    --------
    >>> joint_condition(["a", "a", "b"], [0, 1, 1]).tolist()
    [0, 1, 2]
    """
    joint = np.zeros(np.shape(labels[0]), dtype=np.intp)
    for label in labels:
        codes = _codes(label, len(joint))
        joint = pd.factorize(joint * (codes.max() + 1) + codes)[0]
    return joint


def matrix(values: npt.ArrayLike, name: str) -> FloatArray:
    """Give a float matrix of cells x dimensions, or say what is wrong with it."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be cells x dimensions and not empty, got {array.shape}")
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ValueError(f"{name} is not finite in {len(rows)} cells, the first is row {rows[0]}")
    return array


def pair(truth: npt.ArrayLike, estimate: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Check two matrices of the same cells."""
    a, b = matrix(truth, "truth"), matrix(estimate, "estimate")
    check_rows({"truth": a, "estimate": b})
    if len(a) < 4:
        raise ValueError(f"got {len(a)} cells, at least 4 are needed for a correlation")
    return a, b


def matrices(blocks: Blocks, name: str) -> dict[str, FloatArray]:
    """Check every block of a mapping, and that all have the same cells."""
    if not blocks:
        raise ValueError(f"{name} has no blocks, wanted a mapping of block name to latents")
    checked = {block: matrix(values, f"{name} {block}") for block, values in blocks.items()}
    check_rows(checked)
    return checked


def checked_blocks(
    truth: Blocks, estimate: Blocks, condition: npt.ArrayLike | None
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], Codes]:
    """Check two mappings of the same cells; all codes are 0 without conditions."""
    true, estimated = matrices(truth, "truth"), matrices(estimate, "estimate")
    check_rows({"truth": next(iter(true.values())), "estimate": next(iter(estimated.values()))})
    n_cells = len(next(iter(true.values())))
    if condition is None:
        return true, estimated, np.zeros(n_cells, dtype=np.intp)
    return true, estimated, condition_codes(condition, n_cells)


def check_rows(latents: Mapping[str, FloatArray]) -> None:
    """Raise ValueError unless all have one row per cell."""
    rows = {name: len(values) for name, values in latents.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"latents must have one row per cell, got {rows}")


def condition_codes(condition: npt.ArrayLike, n_cells: int) -> Codes:
    """Give conditions numbers from 0; there have to be two at least."""
    codes = _codes(condition, n_cells)
    if codes.max() == 0:
        raise ValueError("condition has one level for all cells: leave it out")
    return codes


def _codes(condition: npt.ArrayLike, n_cells: int) -> Codes:
    labels = np.asarray(condition)
    if labels.shape != (n_cells,):
        raise ValueError(f"labels must have one entry per cell, ({n_cells},), got {labels.shape}")
    codes = pd.factorize(labels)[0]
    if (codes < 0).any():
        raise ValueError(f"the label of row {np.flatnonzero(codes < 0)[0]} is missing")
    return codes


def group_means(values: FloatArray, codes: Codes, n_groups: int | None = None) -> FloatArray:
    """Means per group, ``(n_groups, n_dims)``; 0 for a group without cells."""
    n_groups = int(codes.max()) + 1 if n_groups is None else n_groups
    sums = np.stack([np.bincount(codes, column, n_groups) for column in values.T], axis=1)
    return sums / np.maximum(np.bincount(codes, minlength=n_groups), 1)[:, None]
