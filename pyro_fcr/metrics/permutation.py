"""The two sides of an independence test, what may change places, and how dependent they look.

Two statistics, of a block whitened within each stratum and of random Fourier features of it (Rahimi
and Recht 2007): the second sees variances and curves, too, and is HSIC (Gretton 2007) in time
linear in cells. Both are shares between 0 and 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaln

from pyro_fcr.metrics import arrays
from pyro_fcr.metrics.arrays import Codes, FloatArray

Statistic: TypeAlias = Callable[[Codes], FloatArray]

LEVEL = 0.05
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
            Pool of each unit; units of one pool change places, ``(n_units,)``.
        permuted
        What the units are, in words.
    """

    rows: Codes
    stratum: Codes
    unit: Codes
    pool: Codes
    permuted: str

    @cached_property
    def sizes(self) -> Codes:
        """Cells of each stratum, ``(n_strata,)``."""
        return np.bincount(self.stratum)

    @cached_property
    def slices(self) -> list[slice]:
        """The rows of each stratum."""
        ends = np.cumsum(self.sizes)
        return [slice(*rows) for rows in zip(ends - self.sizes, ends, strict=True)]

    def shuffle(self, rng: np.random.Generator) -> Codes:
        """Draw a random arrangement: for each unit, the unit whose value it gets."""
        return arrays.shuffle_within(self.pool, rng)

    def centre(self, values: FloatArray) -> FloatArray:
        """Subtract the mean of each stratum."""
        return values - arrays.group_means(values, self.stratum)[self.stratum]


def strata_of_label(label: Codes, stratum: Codes, replicate: Codes | None) -> Strata:
    """Decide what changes places where a label is permuted; there are no rows if nothing can."""
    if replicate is None:
        return _cells_of(label, stratum, "cells")
    place = arrays.joint_codes(stratum, replicate)
    if _n_levels(label, place).max() > 1:
        return _cells_of(label, place, "cells within replicates")
    # A replicate with one label everywhere is one unit, in however many strata it occurs.
    unit = replicate if _n_levels(label, replicate).max() == 1 else place
    rows = _usable(label, stratum)
    unit, numbers = _number(unit[rows]), _number(stratum[rows])
    return Strata(rows, numbers, unit, _pools(unit, numbers), "replicates")


def strata_of_pair(stratum: Codes, replicate: Codes | None) -> Strata:
    """Let cells change places within strata, and within replicates where these are known."""
    words = "cells" if replicate is None else "cells within replicates"
    place = stratum if replicate is None else arrays.joint_codes(stratum, replicate)
    return _cells_of(np.arange(len(stratum)), place, words)


def _cells_of(label: Codes, stratum: Codes, permuted: str) -> Strata:
    rows = _usable(label, stratum)
    numbers = _number(stratum[rows])
    return Strata(rows, numbers, np.arange(len(rows)), numbers, permuted)


def _number(values: Codes) -> Codes:
    return np.unique(values, return_inverse=True)[1]


def _n_levels(label: Codes, group: Codes) -> Codes:
    """Count the levels of a label in each group, ``(n_groups,)``."""
    return pd.Series(label).groupby(group).nunique().to_numpy()


def _usable(label: Codes, stratum: Codes) -> Codes:
    """Return the cells of strata with at least two levels, by stratum."""
    order = np.argsort(stratum, kind="stable")
    return order[(_n_levels(label, stratum) > 1)[stratum[order]]]


def _pools(unit: Codes, stratum: Codes) -> Codes:
    """Code the units by the strata that they occur in, ``(n_units,)``."""
    occurs = np.zeros((unit.max(initial=-1) + 1, stratum.max(initial=-1) + 1), dtype=bool)
    occurs[unit, stratum] = True
    return pd.factorize(pd.Series(map(tuple, occurs), dtype=object))[0].astype(np.intp)


def smallest_share(label: Codes | None, strata: Strata) -> float:
    """Return the share of all arrangements that look exactly like the observed one, at least.

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
    """Code the pools so that those that share a stratum have one number, ``(n_pools,)``."""
    links = (strata.pool[strata.unit], strata.stratum)
    meet = sparse.csr_matrix((np.ones(len(strata.unit)), links))
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
    """Return features of a Gaussian kernel whose squared width is the number of dimensions."""
    n_dims = white.shape[1]
    angle = white @ rng.normal(scale=n_dims**-0.5, size=(n_dims, N_FREQUENCIES))
    return strata.centre(np.hstack([np.cos(angle), np.sin(angle)]))


def label_statistic(
    block: FloatArray, label: Codes, strata: Strata, rng: np.random.Generator
) -> Statistic:
    """Return what measures the variance within strata that lies between labels, as a share.

    The first share is of the block's variance, the second of its features'.
    """
    white, ranks = whiten(block, strata)
    features = np.hstack([white, _fourier(white, strata, rng)])
    total = (ranks * strata.sizes).sum(), (features[:, white.shape[1] :] ** 2).sum()
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
    """Return what measures the mean squared canonical correlation and the kernels' alignment."""
    (left, left_ranks), (right, right_ranks) = whiten(block, strata), whiten(other, strata)
    curves, other_curves = _fourier(left, strata, rng), _fourier(right, strata, rng)
    linear = (np.minimum(left_ranks, right_ranks) * strata.sizes).sum()
    own = _crossed(curves, curves, strata) * _crossed(other_curves, other_curves, strata)
    most = np.sqrt(own).sum()

    def shared(order: Codes) -> FloatArray:
        crossed = _crossed(left, right[order], strata).sum()
        aligned = _crossed(curves, other_curves[order], strata).sum()
        return np.array([crossed / linear, aligned / most])

    return shared


def _crossed(left: FloatArray, right: FloatArray, strata: Strata) -> FloatArray:
    """Return the squared cross-covariance in each stratum times its cells, ``(n_strata,)``."""
    size = [((left[rows].T @ right[rows]) ** 2).sum() for rows in strata.slices]
    return np.array(size) / strata.sizes


def p_value(found: FloatArray) -> float:
    """Return the share at least as large, by the larger of the two standardised statistics."""
    spread = found.std(axis=0)
    standardised = (found - found.mean(axis=0)) / np.where(spread > 1e-12, spread, np.inf)
    top = standardised.max(axis=1)
    return float((top >= top[0] - 1e-9).mean())


@dataclass(frozen=True, eq=False)
class Sides:
    """Block and other side, for the cells of a test that count.

    Parameters
    ----------
    block
        The directions of the block that vary, ``(n, n_dims)``, centred within strata.
    second
        The label of each unit, ``(n_units,)``, or the other block, ``(n, n_other_dims)``.
    strata
        What changes places.
    statement
        What is tested, for errors.
    """

    block: FloatArray
    second: NDArray[Any]
    strata: Strata
    statement: str

    @property
    def of_label(self) -> bool:
        """Whether the other side is a label."""
        return self.second.ndim == 1

    def shares(
        self, block: FloatArray, second: NDArray[Any], n_permutations: int, rng: np.random.Generator
    ) -> FloatArray:
        """Return both statistics of the given arrangement, then of random ones, ``(1 + n, 2)``."""
        kind = label_statistic if self.of_label else pair_statistic
        statistic = kind(block, second, self.strata, rng)
        observed = statistic(np.arange(len(self.strata.pool)))
        drawn = [statistic(self.strata.shuffle(rng)) for _ in range(n_permutations)]
        return np.array([observed, *drawn])

    def check_reach(self, n_permutations: int) -> float:
        """Return the smallest p-value that can come out; raise if it is above 0.05."""
        if n_permutations < 19:
            raise ValueError(
                f"n_permutations: {n_permutations} cannot show a p-value of {LEVEL}; 19 can."
            )
        smallest = smallest_share(self.second if self.of_label else None, self.strata)
        if smallest > LEVEL:
            raise ValueError(
                f"{self.statement}: too few {self.strata.permuted} to permute; the smallest "
                f"p-value that can come out is {smallest:.2g}, expected {LEVEL} or less."
            )
        return max(smallest, 1 / (1 + n_permutations))


def both_sides(
    z: ArrayLike, other: ArrayLike, stratum: ArrayLike, replicate: ArrayLike | None, statement: str
) -> Sides:
    """Check what a test is given and leave out cells that say nothing, see `independence_test`."""
    block, other = arrays.matrix(z, f"{statement}: z"), np.asarray(other)
    n = len(block)
    given = arrays.codes(stratum, n, f"{statement}: stratum")
    groups = None if replicate is None else arrays.codes(replicate, n, f"{statement}: replicate")
    side = _label_side if other.ndim == 1 else _block_side
    second, strata = side(other, given, groups, statement)
    return Sides(_varying(block, strata, f"{statement}: z"), second, strata, statement)


def _label_side(
    other: NDArray[Any], stratum: Codes, replicate: Codes | None, statement: str
) -> tuple[Codes, Strata]:
    label = arrays.codes(other, len(stratum), f"{statement}: label")
    if label.max() >= max(len(label) // 2, 2):
        raise ValueError(
            f"{statement}: the label has {label.max() + 1} levels in {len(label)} cells; pass "
            "numbers as a block, (n_cells, n_dims)."
        )
    strata = strata_of_label(label, stratum, replicate)
    _check_rows(strata, "two levels of the label", statement)
    second = np.empty(len(strata.pool), dtype=np.intp)
    second[strata.unit] = label[strata.rows]
    return second, strata


def _block_side(
    other: NDArray[Any], stratum: Codes, replicate: Codes | None, statement: str
) -> tuple[FloatArray, Strata]:
    values = arrays.matrix(other, f"{statement}: other")
    if len(values) != len(stratum):
        raise ValueError(
            f"{statement}: {len(stratum)} cells of z, {len(values)} of the other block."
        )
    strata = strata_of_pair(stratum, replicate)
    _check_rows(strata, "two cells", statement)
    return _varying(values, strata, f"{statement}: other"), strata


def _varying(block: FloatArray, strata: Strata, name: str) -> FloatArray:
    varying = wide(block[strata.rows], strata)
    if not varying.shape[1]:
        raise ValueError(f"{name} is constant within every stratum: there is nothing to test.")
    return varying


def _check_rows(strata: Strata, wanted: str, statement: str) -> None:
    if not len(strata.rows):
        where = "replicate of a stratum" if "within" in strata.permuted else "stratum"
        raise ValueError(
            f"{statement}: no {where} has {wanted}, so that nothing can change places. The columns "
            "are confounded (one follows from the other): the data cannot tell."
        )


def beyond_chance(found: FloatArray) -> FloatArray:
    """Rescale the observed statistics: 0 is the mean of the permutations, 1 stays 1, ``(2,)``."""
    chance = found[1:].mean(axis=0)
    return (found[0] - chance) / np.maximum(1.0 - chance, 1e-12)
