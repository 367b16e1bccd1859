"""Latents as checked matrices, labels as codes, and means of groups of cells."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.intp]
Blocks: TypeAlias = Mapping[str, ArrayLike]


def matrix(values: ArrayLike, name: str) -> FloatArray:
    """Return a finite float matrix of cells x dimensions; raise ValueError if it is not one."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be cells x dimensions and not empty, got {array.shape}.")
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ValueError(f"{name} is not finite in {len(rows)} cells; the first is row {rows[0]}.")
    return array


def matrices(blocks: Blocks, name: str) -> dict[str, FloatArray]:
    """Check every block of a mapping, and that all have the same cells."""
    if not blocks:
        raise ValueError(f"{name} has no blocks; expected a mapping of block name to latents.")
    checked = {block: matrix(values, f"{name} {block}") for block, values in blocks.items()}
    check_rows(checked)
    return checked


def checked_blocks(
    truth: Blocks, estimate: Blocks, condition: ArrayLike | None
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], Codes]:
    """Check two mappings of the same cells; all codes are 0 without conditions."""
    true, estimated = matrices(truth, "truth"), matrices(estimate, "estimate")
    one, other = next(iter(true.values())), next(iter(estimated.values()))
    check_rows({"truth": one, "estimate": other})
    if condition is None:
        return true, estimated, np.zeros(len(one), dtype=np.intp)
    return true, estimated, condition_codes(condition, len(one))


def check_rows(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless all arrays have one row per cell."""
    rows = {name: len(values) for name, values in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"Latents and labels must have one row per cell, got {rows}.")


def codes(labels: ArrayLike, n_cells: int, name: str = "label") -> Codes:
    """Code the levels of a label by numbers from 0, in the order in which they occur.

    Raises
    ------
    ValueError
        There is not one label per cell, or labels are missing.

    Examples
    --------
    >>> codes(["b", "a", "b"], 3)
    array([0, 1, 0])
    """
    array = np.asarray(labels)
    if array.shape != (n_cells,):
        raise ValueError(f"{name}: shape {array.shape}; expected {(n_cells,)}, one label per cell.")
    found = pd.factorize(array)[0].astype(np.intp)
    if missing := int((found < 0).sum()):
        raise ValueError(f"{name}: missing in {missing} cells; leave these cells out everywhere.")
    return found


def joint_codes(*labels: ArrayLike, n_cells: int | None = None) -> Codes:
    """Code the combinations of labels that occur, ``(n_cells,)``.

    Parameters
    ----------
    *labels
        Labellings of the cells, such as x and t, each ``(n_cells,)``.
    n_cells
        Number of cells, where there may be no labelling; all cells are then of one level.

    Raises
    ------
    ValueError
        The labellings differ in length, or a label is missing.

    Examples
    --------
    >>> joint_codes(["a", "a", "b"], [0, 1, 1]).tolist()
    [0, 1, 2]
    """
    joint = np.zeros(len(np.asarray(labels[0])) if n_cells is None else n_cells, dtype=np.intp)
    for label in labels:
        own = codes(label, len(joint))
        joint = np.unique(joint * (own.max() + 1) + own, return_inverse=True)[1]
    return joint


def condition_codes(condition: ArrayLike, n_cells: int) -> Codes:
    """Code conditions by numbers from 0; there have to be two at least."""
    found = codes(condition, n_cells, "condition")
    if found.max() == 0:
        raise ValueError("condition has one level for all cells; leave it out.")
    return found


def group_means(values: FloatArray, group: Codes, n_groups: int | None = None) -> FloatArray:
    """Return the mean of each group, ``(n_groups, n_dims)``; 0 for a group without cells."""
    n_groups = int(group.max()) + 1 if n_groups is None else n_groups
    sums = np.stack([np.bincount(group, column, n_groups) for column in values.T], axis=1)
    return sums / np.maximum(np.bincount(group, minlength=n_groups), 1)[:, None]


def remove_condition_means(latent: ArrayLike, condition: ArrayLike) -> FloatArray:
    """Subtract from every cell's latent the mean of its condition.

    What is left holds nothing that the labels alone could tell about the mean. (Scales may still
    differ between conditions; they are part of what makes latents identifiable.)

    Parameters
    ----------
    latent
        ``(n_cells, n_dims)``.
    condition
        Label of each cell, ``(n_cells,)``, one for every combination of x and t, see
        :func:`joint_codes`.

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
    group = condition_codes(condition, len(values))
    within = values - group_means(values, group)[group]
    within[:, within.std(axis=0) <= 1e-9 * (values.std(axis=0) + 1e-300)] = 0.0
    return within


def shuffle_within(group: Codes, rng: np.random.Generator) -> Codes:
    """Return a random order of rows that stay among those of their group, ``(n,)``."""
    rows = np.empty(len(group), dtype=np.intp)
    rows[np.argsort(group, kind="stable")] = np.lexsort((rng.random(len(group)), group))
    return rows


def draw_rows(n_cells: int, most: int, seed: int | np.random.Generator) -> Codes:
    """Return the positions of all cells, or of `most` drawn ones where there are more, sorted."""
    if n_cells <= most:
        return np.arange(n_cells)
    return np.sort(np.random.default_rng(seed).choice(n_cells, most, replace=False))


def nan_to_null(value: Any) -> Any:
    """Replace non-finite numbers by None, so that the result is valid JSON.

    JSON has no nan; an undefined metric is written as ``null``.

    Parameters
    ----------
    value
        A number, or mappings, lists and tuples of numbers, nested to any depth.

    Returns
    -------
    The same structure of dicts, lists and plain Python numbers.

    Examples
    --------
    >>> nan_to_null({"additive": {"cosine_logfc": float("nan"), "mse_delta": 0.5}})
    {'additive': {'cosine_logfc': None, 'mse_delta': 0.5}}
    """
    if isinstance(value, Mapping):
        return {key: nan_to_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
