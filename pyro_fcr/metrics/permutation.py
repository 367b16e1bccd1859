"""Cells in strata: what may change places with what, and how dependent an arrangement looks.

Two statistics, of a block whitened within each stratum and of random Fourier features of it (Rahimi
and Recht 2007): the second sees variances and curves, too, and is HSIC (Gretton 2007) in time
linear in cells. Both are shares between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaln

from pyro_fcr.metrics.arrays import Codes, FloatArray, joint_codes

Statistic: TypeAlias = Callable[[Codes], FloatArray]

N_FREQUENCIES = 32
NARROW = 1e-4  # of the widest direction's variance: a dimension that the model does not use


@dataclass(frozen=True, eq=False)
class Strata:
    """The cells that count, and the units that change places.

    Parameters
    ----------
    rows
        Cells that count, by stratum, ``(n,)``.
    stratum
        Number of the stratum of each, ``(n,)``, ascending from 0 without gaps.
    unit
        Number of the unit of each, ``(n,)``: the cell itself, or its replicate.
    pool
        Of each unit: units of one pool change places, ``(n_units,)``.
    permuted
        What the units are, in words.
    """

    rows: Codes
    stratum: Codes
    unit: Codes
    pool: Codes
    permuted: str

    @cached_property
    def bounds(self) -> Codes:
        """First row of each stratum, and the end, ``(n_strata + 1,)``."""
        return np.searchsorted(self.stratum, np.arange(self.stratum[-1] + 2))

    @property
    def slices(self) -> list[slice]:
        """The rows of each stratum."""
        return [slice(a, b) for a, b in pairwise(self.bounds)]

    @cached_property
    def _by_pool(self) -> Codes:
        return np.argsort(self.pool, kind="stable")

    def shuffle(self, rng: np.random.Generator) -> Codes:
        """Draw a random arrangement: for each unit, the unit whose value it gets."""
        order = np.empty_like(self._by_pool)
        order[self._by_pool] = np.lexsort((rng.random(len(self.pool)), self.pool))
        return order

    def centre(self, values: FloatArray) -> FloatArray:
        """Subtract the mean of each stratum."""
        sums = np.add.reduceat(values, self.bounds[:-1], axis=0)
        return values - (sums / np.diff(self.bounds)[:, None])[self.stratum]


def strata_of_label(label: Codes, stratum: Codes, replicate: Codes | None) -> Strata:
    """Decide what changes places where a label is permuted; no rows if nothing can."""
    if replicate is None:
        return _cells_of(label, stratum, "cells")
    place = joint_codes(stratum, replicate)
    if _n_levels(label, place).max() > 1:
        return _cells_of(label, place, "cells within replicates")
    # A replicate with one label everywhere is one unit, in however many strata it occurs.
    unit = replicate if _n_levels(label, replicate).max() == 1 else place
    rows = _usable(label, stratum)
    unit = np.unique(unit[rows], return_inverse=True)[1]
    pool = _pools(unit, stratum[rows])
    return Strata(rows, _number(stratum[rows]), unit, pool, "replicates")


def strata_of_pair(stratum: Codes, replicate: Codes | None) -> Strata:
    """Cells change places within strata, and within replicates where these are known."""
    words = "cells" if replicate is None else "cells within replicates"
    place = stratum if replicate is None else joint_codes(stratum, replicate)
    return _cells_of(np.arange(len(stratum)), place, words)


def _cells_of(label: Codes, stratum: Codes, permuted: str) -> Strata:
    rows = _usable(label, stratum)
    numbers = _number(stratum[rows])
    return Strata(rows, numbers, np.arange(len(rows)), numbers, permuted)


def _number(values: Codes) -> Codes:
    return np.unique(values, return_inverse=True)[1]


def _n_levels(label: Codes, group: Codes) -> Codes:
    """Count the levels of a label in each group, ``(n_groups,)``."""
    pairs = np.unique(np.column_stack([group, label]), axis=0)
    return np.bincount(pairs[:, 0])


def _usable(label: Codes, stratum: Codes) -> Codes:
    """Cells of strata with at least two levels, by stratum."""
    order = np.argsort(stratum, kind="stable")
    return order[(_n_levels(label, stratum) > 1)[stratum[order]]]


def _pools(unit: Codes, stratum: Codes) -> Codes:
    """Units that occur in the same strata, ``(n_units,)``."""
    shape = (unit.max(initial=-1) + 1, stratum.max(initial=-1) + 1)
    where = sparse.csr_matrix((np.ones(len(unit), dtype=bool), (unit, stratum)), shape=shape)
    where.sum_duplicates()
    occurs = [tuple(where.indices[a:b]) for a, b in pairwise(where.indptr)]
    return pd.factorize(pd.Series(occurs, dtype=object))[0].astype(np.intp)


def smallest_share(label: Codes | None, strata: Strata) -> float:
    """Share of all arrangements that look exactly like the observed one, at least.

    Labels whose counts agree in every pool can be renamed into one another without a change of the
    statistic: three replicates against three have 20 arrangements, of which two look alike. None
    stands for values that are all different.
    """
    size = np.bincount(strata.pool)
    if label is None:
        return float(np.exp(-gammaln(size + 1).sum()))
    counts = np.zeros((len(size), label.max() + 1))
    np.add.at(counts, (strata.pool, label), 1)
    log_share = gammaln(counts + 1).sum() - gammaln(size + 1).sum()
    group = _linked(strata)
    for number in np.unique(group):
        columns = counts[group == number]
        alike = np.unique(columns[:, columns.any(axis=0)], axis=1, return_counts=True)[1]
        log_share += gammaln(alike + 1).sum()
    return float(np.exp(log_share))


def _linked(strata: Strata) -> Codes:
    """Pools that share a stratum get one number, ``(n_pools,)``."""
    links = np.unique(np.column_stack([strata.pool[strata.unit], strata.stratum]), axis=0)
    shape = (links[:, 0].max() + 1, links[:, 1].max() + 1)
    meet = sparse.csr_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=shape)
    return connected_components(meet @ meet.T, directed=False)[1].astype(np.intp)


def wide(block: FloatArray, strata: Strata) -> FloatArray:
    """Centre a block within strata and keep the directions that vary, ``(n, n_kept)``.

    Not one is kept of a block that is constant within strata.
    """
    centred = strata.centre(block)
    variance, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    scale = np.abs(block).max(initial=0.0)
    kept = variance > max(NARROW * variance.max(initial=0.0), (1e-10 * scale) ** 2)
    return centred @ (directions[:, kept] / np.sqrt(variance[kept]))


def whiten(block: FloatArray, strata: Strata) -> tuple[FloatArray, Codes]:
    """Return a centred block identity covariance in each stratum, and its rank there."""
    white, ranks = np.zeros_like(block), []
    for rows in strata.slices:
        left, size, right = np.linalg.svd(block[rows], full_matrices=False)
        kept = size > 1e-6 * max(size.max(initial=0.0), 1e-6)
        white[rows] = np.sqrt(len(left)) * left[:, kept] @ right[kept]
        ranks.append(kept.sum())
    return white, np.array(ranks)


def _fourier(white: FloatArray, strata: Strata, rng: np.random.Generator) -> FloatArray:
    """Features of a Gaussian kernel whose squared width is the number of dimensions."""
    n_dims = white.shape[1]
    angle = white @ rng.normal(scale=n_dims**-0.5, size=(n_dims, N_FREQUENCIES))
    return strata.centre(np.hstack([np.cos(angle), np.sin(angle)]))


def label_statistic(
    block: FloatArray, label: Codes, strata: Strata, rng: np.random.Generator
) -> Statistic:
    """Share of variance within strata that lies between labels: of the block, of its features."""
    white, ranks = whiten(block, strata)
    features = np.hstack([white, _fourier(white, strata, rng)])
    total = (ranks * np.diff(strata.bounds)).sum(), (features[:, white.shape[1] :] ** 2).sum()
    n_levels = label.max() + 1
    n_groups, ends = len(strata.slices) * n_levels, np.arange(len(features) + 1)

    def between(order: Codes) -> FloatArray:
        group = strata.stratum * n_levels + label[order][strata.unit]
        member = sparse.csr_matrix((np.ones(len(group)), group, ends), (len(group), n_groups))
        sums = member.T @ features
        size = np.maximum(np.bincount(group, minlength=n_groups), 1)
        column = (sums**2 / size[:, None]).sum(axis=0)
        return np.array([column[: white.shape[1]].sum(), column[white.shape[1] :].sum()]) / total

    return between


def pair_statistic(
    block: FloatArray, other: FloatArray, strata: Strata, rng: np.random.Generator
) -> Statistic:
    """Mean squared canonical correlation within strata; alignment of the kernels' features."""
    (left, left_ranks), (right, right_ranks) = whiten(block, strata), whiten(other, strata)
    curves, other_curves = _fourier(left, strata, rng), _fourier(right, strata, rng)
    linear = (np.minimum(left_ranks, right_ranks) * np.diff(strata.bounds)).sum()
    own = np.sqrt(_crossed(curves, curves, strata) * _crossed(other_curves, other_curves, strata))

    def shared(order: Codes) -> FloatArray:
        crossed = _crossed(left, right[order], strata).sum()
        return np.array(
            [crossed / linear, _crossed(curves, other_curves[order], strata).sum() / own.sum()]
        )

    return shared


def _crossed(left: FloatArray, right: FloatArray, strata: Strata) -> FloatArray:
    """Squared size of the cross-covariance in each stratum times its cells, ``(n_strata,)``."""
    size = [((left[rows].T @ right[rows]) ** 2).sum() for rows in strata.slices]
    return np.array(size) / np.diff(strata.bounds)


def shares(
    statistic: Statistic, strata: Strata, n_permutations: int, rng: np.random.Generator
) -> FloatArray:
    """Both statistics of the observed arrangement, then of random ones, ``(1 + n, 2)``."""
    observed = statistic(np.arange(len(strata.pool)))
    drawn = [statistic(strata.shuffle(rng)) for _ in range(n_permutations)]
    return np.array([observed, *drawn])


def p_value(found: FloatArray) -> float:
    """``(1 + n at least as large) / (1 + n)`` for the larger of the two standardised statistics."""
    spread = found.std(axis=0)
    standardised = (found - found.mean(axis=0)) / np.where(spread > 1e-12, spread, np.inf)
    top = standardised.max(axis=1)
    return float((top >= top[0] - 1e-9).mean())
