"""The two sides of an independence test: checked, and reduced to the cells that say something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_fcr.metrics import permutation
from pyro_fcr.metrics.metrics import FloatArray
from pyro_fcr.metrics.permutation import Design, IntArray

LEVEL = 0.05


def check_permutations(n_permutations: int) -> None:
    """Raise ValueError if so few permutations cannot show a p-value of 0.05."""
    if n_permutations < 19:
        raise ValueError(
            f"n_permutations: {n_permutations} cannot show a p-value of {LEVEL}, 19 can."
        )


def matrix(values: npt.ArrayLike, name: str) -> FloatArray:
    """Give numbers as float64; raise ValueError if they are not ``(n_cells, n_dims)``, finite."""
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name}: shape {matrix.shape}, wanted (n_cells, n_dims).")
    if wrong := int((~np.isfinite(matrix)).any(axis=1).sum()):
        raise ValueError(f"{name}: not finite in {wrong} cells.")
    return matrix


@dataclass(frozen=True, eq=False)
class Sides:
    """Block and other side, for the cells of a test that count.

    Parameters
    ----------
    block
        The directions of the block that vary, ``(n, n_dims)``, centred within strata.
    second
        The label of each unit, ``(n_units,)``, or the other block, ``(n, n_other_dims)``.
    design
        What changes places.
    statement
        What is tested, for errors.
    """

    block: FloatArray
    second: npt.NDArray[Any]
    design: Design
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
        statistic = kind(block, second, self.design, rng)
        return permutation.shares(statistic, self.design, n_permutations, rng)

    def check_reach(self, n_permutations: int) -> float:
        """Give the smallest p-value that can come out; raise if it is above 0.05."""
        check_permutations(n_permutations)
        smallest = permutation.smallest_share(self.second if self.of_label else None, self.design)
        if smallest > LEVEL:
            raise ValueError(
                f"{self.statement}: too few {self.design.permuted} to permute: the smallest "
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
    strata = permutation.codes(stratum, n, f"{statement}: stratum")
    groups = None
    if replicate is not None:
        groups = permutation.codes(replicate, n, f"{statement}: replicate")
    side = _label_side if other.ndim == 1 else _block_side
    second, design = side(other, strata, groups, statement)
    return Sides(_varying(block, design, f"{statement}: z"), second, design, statement)


def _label_side(
    other: npt.NDArray[Any], strata: IntArray, groups: IntArray | None, statement: str
) -> tuple[IntArray, Design]:
    label = permutation.codes(other, len(strata), f"{statement}: label")
    if label.max() >= max(len(label) // 2, 2):
        raise ValueError(
            f"{statement}: the label has {label.max() + 1} levels in {len(label)} cells; pass "
            "numbers as a block, (n_cells, n_dims)."
        )
    design = permutation.design_of_label(label, strata, groups)
    _check_rows(design, "two levels of the label", statement)
    second = np.empty(len(design.pool), dtype=np.intp)
    second[design.unit] = label[design.rows]
    return second, design


def _block_side(
    other: npt.NDArray[Any], strata: IntArray, groups: IntArray | None, statement: str
) -> tuple[FloatArray, Design]:
    values = matrix(other, f"{statement}: other")
    if len(values) != len(strata):
        raise ValueError(
            f"{statement}: {len(strata)} cells of z, {len(values)} of the other block."
        )
    design = permutation.design_of_pair(strata, groups)
    _check_rows(design, "two cells", statement)
    return _varying(values, design, f"{statement}: other"), design


def _varying(block: FloatArray, design: Design, name: str) -> FloatArray:
    varying = permutation.wide(block[design.rows], design)
    if not varying.shape[1]:
        raise ValueError(f"{name} is constant within every stratum: there is nothing to test.")
    return varying


def _check_rows(design: Design, wanted: str, statement: str) -> None:
    if not len(design.rows):
        where = "replicate of a stratum" if "within" in design.permuted else "stratum"
        raise ValueError(
            f"{statement}: no {where} has {wanted}, so that nothing can change places. The columns "
            "are confounded (one follows from the other): the data cannot tell."
        )


def beyond_chance(found: FloatArray) -> FloatArray:
    """Rescale the observed statistics: 0 is the mean of the permutations, 1 stays 1, ``(2,)``."""
    chance = found[1:].mean(axis=0)
    return (found[0] - chance) / np.maximum(1.0 - chance, 1e-12)
