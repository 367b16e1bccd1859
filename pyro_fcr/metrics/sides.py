"""The two sides of an independence test: checked, and reduced to the cells that say something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_fcr.metrics import permutation
from pyro_fcr.metrics.arrays import Codes, FloatArray, codes, matrix
from pyro_fcr.metrics.permutation import Strata

LEVEL = 0.05


def check_permutations(n_permutations: int) -> None:
    """Raise ValueError if so few permutations cannot show a p-value of 0.05."""
    if n_permutations < 19:
        raise ValueError(
            f"n_permutations: {n_permutations} cannot show a p-value of {LEVEL}, 19 can."
        )


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
    second: npt.NDArray[Any]
    strata: Strata
    statement: str

    @property
    def of_label(self) -> bool:
        """Whether the other side is a label."""
        return self.second.ndim == 1

    def shares(
        self,
        block: FloatArray,
        second: npt.NDArray[Any],
        n_permutations: int,
        rng: np.random.Generator,
    ) -> FloatArray:
        """Both statistics, of the given arrangement and of random ones, ``(1 + n, 2)``."""
        kind = permutation.label_statistic if self.of_label else permutation.pair_statistic
        statistic = kind(block, second, self.strata, rng)
        return permutation.shares(statistic, self.strata, n_permutations, rng)

    def check_reach(self, n_permutations: int) -> float:
        """Return the smallest p-value that can come out; raise if it is above 0.05."""
        check_permutations(n_permutations)
        smallest = permutation.smallest_share(self.second if self.of_label else None, self.strata)
        if smallest > LEVEL:
            raise ValueError(
                f"{self.statement}: too few {self.strata.permuted} to permute: the smallest "
                f"p-value that can come out is {smallest:.2g}, wanted {LEVEL} or less."
            )
        return max(smallest, 1 / (1 + n_permutations))


def both_sides(
    z: npt.ArrayLike,
    other: npt.ArrayLike,
    stratum: npt.ArrayLike,
    replicate: npt.ArrayLike | None,
    statement: str,
) -> Sides:
    """Check what a test is given and leave out cells that say nothing, see `independence_test`."""
    block, other = matrix(z, f"{statement}: z"), np.asarray(other)
    n = len(block)
    given = codes(stratum, n, f"{statement}: stratum")
    groups = None if replicate is None else codes(replicate, n, f"{statement}: replicate")
    side = _label_side if other.ndim == 1 else _block_side
    second, strata = side(other, given, groups, statement)
    return Sides(_varying(block, strata, f"{statement}: z"), second, strata, statement)


def _label_side(
    other: npt.NDArray[Any], stratum: Codes, replicate: Codes | None, statement: str
) -> tuple[Codes, Strata]:
    label = codes(other, len(stratum), f"{statement}: label")
    if label.max() >= max(len(label) // 2, 2):
        raise ValueError(
            f"{statement}: the label has {label.max() + 1} levels in {len(label)} cells; pass "
            "numbers as a block, (n_cells, n_dims)."
        )
    strata = permutation.strata_of_label(label, stratum, replicate)
    _check_rows(strata, "two levels of the label", statement)
    second = np.empty(len(strata.pool), dtype=np.intp)
    second[strata.unit] = label[strata.rows]
    return second, strata


def _block_side(
    other: npt.NDArray[Any], stratum: Codes, replicate: Codes | None, statement: str
) -> tuple[FloatArray, Strata]:
    values = matrix(other, f"{statement}: other")
    if len(values) != len(stratum):
        raise ValueError(
            f"{statement}: {len(stratum)} cells of z, {len(values)} of the other block."
        )
    strata = permutation.strata_of_pair(stratum, replicate)
    _check_rows(strata, "two cells", statement)
    return _varying(values, strata, f"{statement}: other"), strata


def _varying(block: FloatArray, strata: Strata, name: str) -> FloatArray:
    varying = permutation.wide(block[strata.rows], strata)
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
