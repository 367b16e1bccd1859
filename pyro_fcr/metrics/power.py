"""How large a leak must be for the independence tests to find it in cells like these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.metrics import permutation
from pyro_fcr.metrics.metrics import FloatArray
from pyro_fcr.metrics.sides import LEVEL, Sides, beyond_chance, both_sides


def power_against_leak(
    z: npt.ArrayLike,
    other: npt.ArrayLike,
    stratum: npt.ArrayLike,
    *,
    leak: Sequence[float] = (0.0, 0.01),
    replicate: npt.ArrayLike | None = None,
    n_draws: int = 200,
    n_permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How often the test finds a leak of known size in cells like these, and none where none is.

    In each draw the label (or the other block) is permuted as in the test, which makes it
    independent, and a random function of it, linear for a block, is mixed into every direction of
    `z` (whitened within strata) at the same share of its variance. The measured effect is that
    share, or more where the other block is narrower than `z`.

    Parameters
    ----------
    z, other, stratum, replicate, n_permutations
        As in `independence_test`.
    leak
        Shares of the variance within strata, between 0 and 1.
    n_draws
        Tests per leak.
    seed
        Of everything.

    Returns
    -------
    One row per leak: ``leak``, ``rejected`` (share of draws with p-value at most 0.05: false
    positives at leak 0, power elsewhere), ``effect`` (mean of the measured effects), ``n_draws``.

    Raises
    ------
    ValueError
        As `independence_test`, or a leak outside of 0 to 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z, (x, t) = rng.normal(size=(600, 2)), rng.integers(3, size=(2, 600))
    >>> power_against_leak(z, t, x, leak=[0.1], n_draws=10, n_permutations=50)["rejected"].tolist()
    [1.0]
    """
    if wrong := [share for share in leak if not 0 <= share <= 1]:
        raise ValueError(f"leak: {wrong[0]} is no share of variance, such as 0.01.")
    sides = both_sides(z, other, stratum, replicate, "power_against_leak")
    sides.check_reach(n_permutations)
    rng, rows = np.random.default_rng(seed), []
    for share in leak:
        p_values, effects = [], []
        for _ in range(n_draws):
            drawn = sides.second[sides.design.shuffle(rng)]
            leaky = _plant(sides, drawn, share, rng)
            found = sides.shares(leaky, drawn, n_permutations, rng)
            p_values.append(permutation.p_value(found))
            effects.append(beyond_chance(found)[0])
        rows.append((share, np.mean(np.array(p_values) <= LEVEL), np.mean(effects), n_draws))
    return pd.DataFrame(rows, columns=["leak", "rejected", "effect", "n_draws"])


def _plant(
    sides: Sides, drawn: npt.NDArray[Any], share: float, rng: np.random.Generator
) -> FloatArray:
    """Mix a random function of the permuted other side into every direction of the block."""
    if sides.of_label:
        score = rng.normal(size=(drawn.max() + 1, sides.block.shape[1]))[drawn][sides.design.unit]
    else:
        score = drawn @ rng.normal(size=(drawn.shape[1], sides.block.shape[1]))
    score = sides.design.centre(score)
    mixed, _ = permutation.whiten(sides.block, sides.design)
    for rows in sides.design.slices:
        spread = score[rows].std(axis=0)
        unit = score[rows] / np.where(spread > 0, spread, np.inf)
        mixed[rows] = np.sqrt(1 - share) * mixed[rows] + np.sqrt(share) * unit
    return mixed
