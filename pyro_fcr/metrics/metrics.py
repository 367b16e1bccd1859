"""How close a predicted response is to the real one, gene by gene.

Every metric compares two vectors of shape ``(n_genes,)``: the *predicted delta* and the *real
delta*, each a change of **mean log1p expression** against the control cells of the same context
(natural logarithm, cells scaled to the same library size). A model, a baseline and a replicate of
the real cells are thereby judged on one scale.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

FloatArray = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[Any] | sparse.spmatrix | sparse.sparray

METRICS = ("pearson_delta_de100", "mse_delta", "cosine_logfc")


def log1p_normalise(counts: Counts, *, target_sum: float = 1e4) -> FloatArray | sparse.csr_matrix:
    """Scale every cell to one library size and take log1p, in float64.

    The same numbers as ``scanpy.pp.normalize_total(target_sum=...)`` followed by
    ``scanpy.pp.log1p``; a cell without any count stays at zero.

    Parameters
    ----------
    counts
        Raw counts, ``(n_cells, n_genes)``, dense or sparse. Not changed.
    target_sum
        Library size that every cell is scaled to.

    Returns
    -------
    A new matrix of the same shape: CSR for sparse input, an array for dense input.

    Raises
    ------
    ValueError
        If `counts` is not a matrix with at least one cell, or has a negative or non-finite entry.
    """
    if sparse.issparse(counts):
        scaled = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
        scaled.sum_duplicates()
        factor = _size_factor(scaled, scaled.data, target_sum)
        scaled.data = np.log1p(scaled.data * np.repeat(factor, np.diff(scaled.indptr)))
        return scaled
    dense = np.asarray(counts, dtype=np.float64)
    return np.log1p(dense * _size_factor(dense, dense, target_sum)[:, None])


def _size_factor(
    counts: FloatArray | sparse.csr_matrix, values: FloatArray, target_sum: float
) -> FloatArray:
    """Per-cell factor that brings a cell to `target_sum`; 0 for a cell without counts."""
    if counts.ndim != 2 or counts.shape[0] == 0:
        raise ValueError(f"counts must be cells x genes with at least one cell, got {counts.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("counts must be finite and not negative: pass raw counts, not log values")
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)


def mean_log1p(counts: Counts, *, target_sum: float = 1e4) -> FloatArray:
    """Mean over cells of log1p expression, the scale of every response metric.

    Parameters
    ----------
    counts
        Raw counts, ``(n_cells, n_genes)``, dense or sparse.
    target_sum
        Library size that every cell is scaled to before log1p.

    Returns
    -------
    ``(n_genes,)``, mean of ``log1p(count / total of the cell * target_sum)``.

    Raises
    ------
    ValueError
        If `counts` is not a matrix with at least one cell, or has a negative or non-finite entry.

    Examples
    --------
    >>> mean_log1p(np.array([[1, 1], [3, 1]]), target_sum=4).round(4).tolist()
    [1.2425, 0.8959]
    """
    return _mean(log1p_normalise(counts, target_sum=target_sum))


def _mean(values: FloatArray | sparse.csr_matrix) -> FloatArray:
    return np.asarray(values.mean(axis=0), dtype=np.float64).ravel()


def response_metrics(
    predicted_delta: npt.ArrayLike, real_delta: npt.ArrayLike, *, n_de: int = 100
) -> dict[str, float]:
    """Compare a predicted with the real change of mean log1p expression.

    Parameters
    ----------
    predicted_delta, real_delta
        ``(n_genes,)``, change of mean log1p expression against control, see `mean_log1p`. A
        prediction with a non-finite entry stands for "not defined" and yields nan throughout.
    n_de
        Number of genes of largest absolute real change that the correlation looks at; all genes
        where there are fewer.

    Returns
    -------
    Three numbers:

    ``pearson_delta_de100``
        Pearson correlation over the `n_de` genes. nan where either change is constant over them,
        as for the prediction of no change: a correlation with a constant is undefined, and 0 would
        be read as a measured lack of agreement.
    ``mse_delta``
        Mean over all genes of the squared difference.
    ``cosine_logfc``
        Cosine of the angle between the two vectors of log fold changes, over all genes. nan where
        one of them is zero.

    Raises
    ------
    ValueError
        If the two are not vectors of the same length, or `real_delta` is not finite.

    Examples
    --------
    >>> scores = response_metrics([1.0, 0.0, -2.0], [2.0, 0.0, -4.0])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'pearson_delta_de100': 1.0, 'mse_delta': 1.667, 'cosine_logfc': 1.0}
    """
    predicted, real = _checked_deltas(predicted_delta, real_delta)
    if not np.isfinite(predicted).all():
        return dict.fromkeys(METRICS, math.nan)
    strongest = largest_changes(real, n_de)
    return {
        "pearson_delta_de100": _pearson(predicted[strongest], real[strongest]),
        "mse_delta": float(np.mean((predicted - real) ** 2)),
        "cosine_logfc": _cosine(predicted, real),
    }


def _checked_deltas(
    predicted_delta: npt.ArrayLike, real_delta: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    predicted = np.asarray(predicted_delta, dtype=np.float64)
    real = np.asarray(real_delta, dtype=np.float64)
    if real.ndim != 1 or real.size == 0 or predicted.shape != real.shape:
        raise ValueError(
            "predicted_delta and real_delta must be vectors of one length, "
            f"got shapes {predicted.shape} and {real.shape}"
        )
    if not np.isfinite(real).all():
        raise ValueError("real_delta has non-finite entries")
    return predicted, real


def largest_changes(real_delta: npt.ArrayLike, n_genes: int) -> npt.NDArray[np.intp]:
    """Positions of the `n_genes` genes of largest absolute change, largest first.

    Parameters
    ----------
    real_delta
        ``(n_genes,)`` changes; among equal ones the earlier gene comes first.
    n_genes
        How many to return; all where there are fewer.

    Examples
    --------
    >>> largest_changes([0.1, -3.0, 2.0], 2).tolist()
    [1, 2]
    """
    return np.argsort(-np.abs(np.asarray(real_delta)), kind="stable")[:n_genes]


def _pearson(a: FloatArray, b: FloatArray) -> float:
    if _is_constant(a) or _is_constant(b):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _is_constant(values: FloatArray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _cosine(a: FloatArray, b: FloatArray) -> float:
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 0 else math.nan


def split_half_ceiling(
    real_counts: Counts,
    control_counts: Counts,
    *,
    seed: int,
    n_splits: int = 10,
    n_de: int = 100,
) -> dict[str, float]:
    """How well one half of the real cells predicts the response of the other half.

    Treated and control cells of one condition are each split at random into two halves; the change
    in one half is scored as a prediction of the change in the other, and the scores are averaged
    over `n_splits` splits. This is the reproducibility of the measurement, the level to aim at. It
    is not a strict bound: each half has half of the cells, so a prediction free of noise can lie
    slightly above it.

    Parameters
    ----------
    real_counts, control_counts
        Raw counts of the treated and of the control cells of one context, ``(n_cells, n_genes)``.
    seed
        Seed of the splits.
    n_splits
        Number of random splits to average over.
    n_de
        As in `response_metrics`.

    Returns
    -------
    The metrics of `response_metrics`.

    Raises
    ------
    ValueError
        If either group has fewer than two cells, or the counts are not valid (see `mean_log1p`).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> control, treated = rng.poisson([[9, 9, 9]] * 500), rng.poisson([[9, 4, 20]] * 500)
    >>> split_half_ceiling(treated, control, seed=0)["pearson_delta_de100"] > 0.99
    True
    """
    treated, control = log1p_normalise(real_counts), log1p_normalise(control_counts)
    for name, values in (("real_counts", treated), ("control_counts", control)):
        if values.shape[0] < 2:
            raise ValueError(f"{name} has {values.shape[0]} cell: two halves need at least two")
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(n_splits):
        (treated_a, treated_b), (control_a, control_b) = (
            _half_means(treated, rng),
            _half_means(control, rng),
        )
        scores.append(response_metrics(treated_a - control_a, treated_b - control_b, n_de=n_de))
    return {name: float(np.mean([score[name] for score in scores])) for name in METRICS}


def _half_means(
    values: FloatArray | sparse.csr_matrix, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    order = rng.permutation(values.shape[0])
    middle = len(order) // 2
    return _mean(values[order[:middle]]), _mean(values[order[middle:]])


def nan_to_null(value: Any) -> Any:
    """Replace non-finite numbers by None, so that the result is valid JSON.

    JSON has no nan; an undefined metric is written as ``null``.

    Parameters
    ----------
    value
        A number, or mappings, lists and tuples of them, nested as deep as you like.

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
