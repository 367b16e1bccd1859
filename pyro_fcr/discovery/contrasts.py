"""Does a treatment act differently in one context? Contrasts of cells' own expression, with errors.

The scale is the logarithm of a condition's pooled expression, ``log(sum of counts / sum of library
sizes)``: what a treatment multiplies expression by is then the same number in every context,
however deep the libraries and however strong the gene. (On the mean of log1p values it is not, and
shared responses look like interactions.) For log1p data it is the plain mean.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from pyro_fcr.metrics.arrays import Codes, FloatArray

_PSEUDOCOUNT = 0.5  # keeps the logarithm of a gene that a condition did not show


class Error(NamedTuple):
    """How uncertain estimates are, and how uncertain that is.

    Attributes
    ----------
    variance
        Sampling variance.
    doubt
        The square of the variance by its degrees of freedom. Like variances, doubts of independent
        estimates add up: with squared weights variances, with fourth powers of them doubts
        (Satterthwaite 1946, Biometrics Bulletin 2:110).
    """

    variance: FloatArray
    doubt: FloatArray

    def of_sum(self, weights: FloatArray) -> "Error":
        """Return the error of the weighted sum over the first axis."""
        return Error((weights**2 * self.variance).sum(0), (weights**4 * self.doubt).sum(0))

    def z_value(self, estimate: npt.ArrayLike) -> FloatArray:
        """Return estimates by their t distribution as standard normal values; 0 without error."""
        known = self.variance > 0
        variance = np.where(known, self.variance, 1.0)
        ratio = np.where(known, estimate, 0.0) / np.sqrt(variance)
        tail = np.maximum(stats.t.sf(np.abs(ratio), self._df), 1e-300)
        return np.sign(ratio) * stats.norm.isf(tail)

    def interval(self, estimate: npt.ArrayLike, level: float) -> FloatArray:
        """Return the ends of intervals of estimates by their t distribution, ``(2, ...)``."""
        width = stats.t.ppf((1 + level) / 2, self._df) * np.sqrt(self.variance)
        return np.array([estimate - width, estimate + width])

    @property
    def _df(self) -> FloatArray:
        variance = np.where(self.variance > 0, self.variance, 1.0)
        return 1.0 / np.maximum(self.doubt / variance**2, 1e-9)


@dataclass(frozen=True, eq=False)
class ConditionCells:
    """Cells of known conditions: their log mean expression and its sampling error.

    Errors are those of leaving out one unit (a cell, or a replicate) at a time, so a gene that owes
    its counts to one cell has a large one; those of counts are at least Poisson. Their degrees of
    freedom follow from the kurtosis of what units add: k cells that hold all counts of a gene are
    worth 2 k of them, however many others there are.

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
    def totals(self) -> FloatArray:
        """Summed expression of each condition, ``(n_conditions, n_genes)``."""
        return self._by_condition(self._units.y)

    @cached_property
    def expressing(self) -> FloatArray:
        """Number of cells of each condition that express a gene, ``(n_conditions, n_genes)``."""
        shown = sparse.csr_matrix(self.expression) != 0
        return _sum(shown.astype(np.float64), self.condition, self.n_conditions)

    @cached_property
    def sizes(self) -> FloatArray:
        """Summed library size of each condition, ``(n_conditions, 1)``."""
        return self._by_condition(self._units.library[:, None])

    @cached_property
    def mean(self) -> FloatArray:
        """Log mean expression, or mean of log1p values, ``(n_conditions, n_genes)``."""
        sizes = np.maximum(self.sizes, 1e-12)
        return np.log((self.totals + _PSEUDOCOUNT) / sizes) if self.log else self.totals / sizes

    def effect_error(self, treated: int, untreated: int) -> Error:
        """Return the error of a difference of conditions' means, ``(n_genes,)`` each."""
        if self.replicate is None:
            ends = [treated, untreated]
            return Error(*(moment[ends] for moment in self.error)).of_sum(np.ones((2, 1)))
        changes = self._replicates_of(treated) - self._replicates_of(untreated)
        floor = self._poisson[treated] + self._poisson[untreated]
        return _error((changes**2).sum(0), (changes**4).sum(0), self._fewest(), floor)

    def read(self, weights: FloatArray, conditions: Codes) -> tuple[float, Error]:
        """Read the genes of some conditions along one direction.

        Parameters
        ----------
        weights
            Weights of conditions and genes, ``(n, n_genes)``.
        conditions
            Numbers of the conditions, ``(n,)``.

        Returns
        -------
        The weighted sum of the means, and its error, in which the genes' correlation between units
        is contained.
        """
        row = np.full(self.n_conditions, -1)
        row[conditions] = np.arange(len(conditions))
        units = np.flatnonzero(row[self._units.condition] >= 0)
        own = row[self._units.condition[units]]
        resting = (self._at_rest[conditions] * weights).sum(1)[own] * self._step[units]
        rows, columns = (excess := self._excess[units].tocoo()).coords
        score = np.bincount(rows, excess.data * weights[own[rows], columns], len(units)) + resting
        score *= self._correction[self._units.condition[units]]
        floor = (weights**2 * (self._poisson - self._jackknife)[conditions].clip(0)).sum(1)
        if self.replicate is not None:
            score = np.bincount(self._units.replicate[units], score)
            second, fourth = (score**2).sum(), (score**4).sum()
            error = _error(second, fourth, self._fewest(), second + floor.sum())
        else:
            second, fourth = (np.bincount(own, score**k, len(conditions)) for k in (2, 4))
            each = _error(second, fourth, self._n_units[conditions, 0], second + floor)
            error = each.of_sum(np.ones(1))
        return float((self.mean[conditions] * weights).sum()), error

    @cached_property
    def _units(self) -> "_Units":
        y = sparse.csr_matrix(self.expression, dtype=np.float64)
        if self.replicate is None:
            return _Units(y, self.library, self.condition, self.condition)
        named = np.column_stack([self.condition, self.replicate])
        names, unit = np.unique(named, axis=0, return_inverse=True)
        sums = [_group(unit.ravel(), len(names)) @ values for values in (y, self.library)]
        return _Units(*sums, *names.T)

    def _by_condition(self, values: Any) -> FloatArray:
        return _sum(values, self._units.condition, self.n_conditions)

    @cached_property
    def _n_units(self) -> FloatArray:
        return self._by_condition(np.ones((len(self._units.condition), 1)))

    def _fewest(self) -> FloatArray:
        return self._n_units[self._n_units > 0].min()

    @property
    def _correction(self) -> FloatArray:
        """Of the jackknife: root of (n - 1) / n, for each condition."""
        return np.sqrt(1 - 1 / np.maximum(self._n_units[:, 0], 1))

    @cached_property
    def _step(self) -> FloatArray:
        """How far a unit without expression moves means that are at rest, ``(n_units,)``."""
        share = self._units.library / self.sizes[self._units.condition, 0]
        share = np.minimum(share, 1 - 1e-9)
        return np.log1p(-share) if self.log else share / (1 - share)

    @property
    def _at_rest(self) -> FloatArray:
        return np.ones_like(self.totals) if self.log else -self.mean

    @cached_property
    def _moves(self) -> FloatArray:
        """How far units move their condition's means, where they express, as in ``_units.y``."""
        y, _, condition, _ = self._units
        rows = np.repeat(np.arange(y.shape[0]), np.diff(y.indptr))
        if self.log:
            totals = self.totals[condition[rows], y.indices] + _PSEUDOCOUNT
            return self._step[rows] - np.log1p(-y.data / totals)
        rest = self.sizes[condition[rows], 0] - self._units.library[rows]
        return self._resting + y.data / np.maximum(rest, 1e-9)

    @cached_property
    def _resting(self) -> FloatArray:
        """The same, if they did not express."""
        y, _, condition, _ = self._units
        rows = np.repeat(np.arange(y.shape[0]), np.diff(y.indptr))
        return self._at_rest[condition[rows], y.indices] * self._step[rows]

    def _like_y(self, values: FloatArray) -> sparse.csr_matrix:
        y = self._units.y
        return sparse.csr_matrix((values, y.indices, y.indptr), shape=y.shape)

    @cached_property
    def _excess(self) -> sparse.csr_matrix:
        return self._like_y(self._moves - self._resting)

    def _moment(self, power: int) -> FloatArray:
        moved = self._by_condition(self._like_y(self._moves**power - self._resting**power))
        steps = self._by_condition(self._step[:, None] ** power)
        return (moved + self._at_rest**power * steps) * self._correction[:, None] ** power

    @cached_property
    def _jackknife(self) -> FloatArray:
        return np.maximum(self._moment(2), 0.0)

    @cached_property
    def _poisson(self) -> FloatArray:
        """Variance of the log of counts that are Poisson; counts of cells vary no less."""
        return 1.0 / (self.totals + _PSEUDOCOUNT) if self.log else np.zeros_like(self.totals)

    @cached_property
    def error(self) -> Error:
        """Errors of the conditions' means, each ``(n_conditions, n_genes)``."""
        return _error(self._jackknife, self._moment(4), self._n_units, self._poisson)

    def _replicates_of(self, condition: int) -> FloatArray:
        rows = np.flatnonzero(self._units.condition == condition)
        resting = np.outer(self._step[rows], self._at_rest[condition])
        changes = self._excess[rows].toarray() + resting
        found = np.zeros((int(self._units.replicate.max()) + 1, changes.shape[1]))
        found[self._units.replicate[rows]] = changes * self._correction[condition]
        return found


class _Units(NamedTuple):
    """What is left out at a time: cells, or the sums of a replicate's cells in a condition."""

    y: sparse.csr_matrix
    library: FloatArray
    condition: Codes
    replicate: Codes


def _error(second: Any, fourth: Any, n_units: Any, floor: Any) -> Error:
    """Return the error from sums of powers of what units add."""
    kurtosis = fourth / np.maximum(second**2, 1e-300)
    heavy = (kurtosis - 1 / np.maximum(n_units, 1)) / 2
    inverse = np.maximum(1 / np.maximum(n_units - 1, 1e-9), heavy)
    variance = np.maximum(second, floor)
    return Error(variance, variance**2 * inverse)


def _group(groups: Codes, n_groups: int) -> sparse.csr_matrix:
    members = (np.ones(len(groups)), (groups, np.arange(len(groups))))
    return sparse.csr_matrix(members, shape=(n_groups, len(groups)))


def _sum(values: Any, groups: Codes, n_groups: int) -> FloatArray:
    total = _group(groups, n_groups) @ values
    return np.asarray(total.toarray() if sparse.issparse(total) else total)
