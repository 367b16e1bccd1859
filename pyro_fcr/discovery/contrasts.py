"""Does a treatment act differently in one context? Contrasts of cells' own expression, with errors.

The scale is the logarithm of a condition's pooled expression, ``log(sum of counts / sum of library
sizes)``: what a treatment multiplies expression by is then the same number in every context,
however deep the libraries and however strong the gene. (On the mean of log1p values it is not, and
shared responses look like interactions.) For log1p data it is the plain mean.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from pyro_fcr.metrics.arrays import Codes, FloatArray


@dataclass(frozen=True, eq=False)
class ConditionCells:
    """Cells of known conditions: their log mean expression and its sampling error.

    Parameters
    ----------
    expression
        Counts, or log1p values with ``log=False``, ``(n_cells, n_genes)``.
    library
        Library size of each cell, ``(n_cells,)``; ones for log1p values.
    condition
        Number of each cell's condition, ``(n_cells,)``.
    n_conditions
        How many conditions there are.
    replicate
        Number of each cell's replicate (donor, library), ``(n_cells,)``; errors then come from the
        spread between replicates. None takes cells as independent.
    log
        Whether to take the logarithm of pooled expression.

    Examples
    --------
    >>> cells = ConditionCells(np.array([[4.0, 6.0], [1.0, 9.0]]), np.array([10.0, 10.0]),
    ...                        np.array([0, 1]), 2)
    >>> cells.mean.round(2)
    array([[-0.8 , -0.43],
           [-1.9 , -0.05]])
    """

    expression: sparse.csr_matrix | npt.NDArray[Any]
    library: FloatArray
    condition: Codes
    n_conditions: int
    replicate: Codes | None = None
    log: bool = True

    @cached_property
    def _y(self) -> sparse.csr_matrix:
        return sparse.csr_matrix(self.expression, dtype=np.float64)

    def _sum(self, values: Any, groups: Codes, n_groups: int) -> FloatArray:
        shape = (n_groups, len(groups))
        ones = np.ones(len(groups))
        total = sparse.csr_matrix((ones, (groups, np.arange(len(groups)))), shape=shape) @ values
        return np.asarray(total.toarray() if sparse.issparse(total) else total)

    @cached_property
    def totals(self) -> FloatArray:
        """Summed expression of each condition, ``(n_conditions, n_genes)``."""
        return self._sum(self._y, self.condition, self.n_conditions)

    @cached_property
    def sizes(self) -> FloatArray:
        """Summed library size of each condition, ``(n_conditions, 1)``."""
        return self._sum(self.library[:, None], self.condition, self.n_conditions)

    @cached_property
    def _level(self) -> FloatArray:
        # Half a count keeps the logarithm of a gene that a condition did not show.
        return (self.totals + 0.5 * self.log) / np.maximum(self.sizes, 1e-12)

    @property
    def mean(self) -> FloatArray:
        """Log mean expression, or mean of log1p values, ``(n_conditions, n_genes)``."""
        return np.log(self._level) if self.log else self._level

    @property
    def _slope(self) -> FloatArray:
        """Derivative of the mean by the summed residuals of a condition's cells."""
        return 1.0 / (self.sizes * self._level if self.log else self.sizes)

    def effect_variance(self, treated: int, untreated: int) -> FloatArray:
        """Return the sampling variance of a difference of conditions' means, ``(n_genes,)``."""
        if self.replicate is None:
            return self._variance[treated] + self._variance[untreated]
        difference = self._by_replicate(treated) - self._by_replicate(untreated)
        return self._correction * (difference**2).sum(axis=0)

    @cached_property
    def _variance(self) -> FloatArray:
        """By the delta method, each cell on its own, ``(n_conditions, n_genes)``."""
        y, size = self._y, self.library[:, None]
        squares = self._sum(y.multiply(y).tocsr(), self.condition, self.n_conditions)
        crossed = self._sum(y.multiply(size).tocsr(), self.condition, self.n_conditions)
        sizes = self._sum(size**2, self.condition, self.n_conditions)
        residual = squares - 2 * self._level * crossed + self._level**2 * sizes
        return (np.maximum(residual, 0.0) + 0.5 * self.log) * self._slope**2

    def _by_replicate(self, condition: int) -> FloatArray:
        rows = np.flatnonzero(self.condition == condition)
        groups = self._replicates[rows]
        n = int(self._replicates.max()) + 1
        expected = self._level[condition] * self._sum(self.library[rows, None], groups, n)
        return (self._sum(self._y[rows], groups, n) - expected) * self._slope[condition]

    @property
    def _replicates(self) -> Codes:
        return np.arange(len(self.condition)) if self.replicate is None else self.replicate

    @property
    def _correction(self) -> float:
        """Factor for the degree of freedom that each condition's mean takes."""
        return 1.0 if self.replicate is None else 1.0 + 1.0 / max(self.degrees_of_freedom, 1e-9)

    @cached_property
    def degrees_of_freedom(self) -> float:
        """Fewest replicates of a condition, less one; infinite for errors between cells."""
        if self.replicate is None:
            return np.inf
        pairs = np.unique(np.column_stack([self.condition, self.replicate]), axis=0)
        return float(np.unique(pairs[:, 0], return_counts=True)[1].min() - 1)

    def z_value(self, ratio: npt.ArrayLike) -> FloatArray:
        """Turn estimates divided by their standard errors into standard normal values.

        Few replicates make errors uncertain: with them the ratio has a t distribution.
        """
        ratio, df = np.asarray(ratio, dtype=np.float64), self.degrees_of_freedom
        if np.isinf(df):
            return ratio
        return np.sign(ratio) * stats.norm.isf(np.maximum(stats.t.sf(np.abs(ratio), df), 1e-300))

    def project(self, weights: FloatArray, conditions: Codes) -> tuple[FloatArray, FloatArray]:
        """Read all genes of some conditions along one direction.

        Parameters
        ----------
        weights
            Weights of the genes, ``(n_genes,)``.
        conditions
            Numbers of the conditions, ``(n,)``.

        Returns
        -------
        The weighted sum of the means, ``(n,)``, and its sampling covariance, ``(n, n)``, in which
        the genes' correlation between cells is contained.
        """
        parts = np.zeros((int(self._replicates.max()) + 1, len(conditions)))
        for column, condition in enumerate(conditions):
            rows = np.flatnonzero(self.condition == condition)
            loading = weights * self._slope[condition]
            expected = self.library[rows] * (self._level[condition] @ loading)
            score = self._y[rows] @ loading - expected
            np.add.at(parts[:, column], self._replicates[rows], score)
        return self.mean[conditions] @ weights, self._correction * parts.T @ parts


def deviation(effects: FloatArray) -> FloatArray:
    """Return each context's effect less the median over contexts, ``(n_contexts, ...)``.

    The median, not the mean: where a treatment acts differently in one context only, the mean moves
    as well and every other context would seem to differ too.
    """
    return effects - np.median(effects, axis=0)


def shrink(
    observed: FloatArray, variance: FloatArray, expected: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Shrink noisy contrasts towards what a model expects of them, as far as the data allow.

    Adaptive shrinkage (Stephens 2017, Biostatistics 18:275) around a prediction: the truth is taken
    as ``b * expected`` plus a deviation from a mixture of centred normals. The slope b (between 0
    for a model that does not help and 1) and the mixture are fitted to all genes.

    Parameters
    ----------
    observed, variance
        Contrasts of the genes and their sampling variance, ``(n_genes,)``.
    expected
        The model's contrasts, fitted on other cells, ``(n_genes,)``.

    Returns
    -------
    Posterior mean and standard deviation, ``(n_genes,)``.

    Examples
    --------
    >>> truth = np.random.default_rng(0).normal(size=500)
    >>> noisy = truth + np.random.default_rng(1).normal(size=500)
    >>> mean, sd = shrink(noisy, np.ones(500), truth)
    >>> bool(np.abs(mean - truth).mean() < 0.1 * np.abs(noisy - truth).mean())
    True
    """
    if not len(observed):
        return observed, observed
    power = (expected**2 / variance).sum()
    slope = np.clip((expected * observed / variance).sum() / power, 0.0, 1.0) if power > 0 else 0.0
    prior = slope * expected
    rest = observed - prior
    spread = np.sqrt(np.quantile(variance, 0.1)) * 2.0 ** np.arange(-3, 6)
    total = spread**2 + variance[:, None]
    likelihood = stats.norm.pdf(rest[:, None], scale=np.sqrt(total)) + 1e-300
    share = np.full(len(spread), 1.0 / len(spread))
    for _ in range(300):
        member = likelihood * share
        member /= member.sum(axis=1, keepdims=True)
        share = member.mean(axis=0)
    factor = spread**2 / total
    means = factor * rest[:, None]
    mean = (member * means).sum(axis=1)
    second = (member * (factor * variance[:, None] + means**2)).sum(axis=1)
    return prior + mean, np.sqrt(np.maximum(second - mean**2, 0.0))
