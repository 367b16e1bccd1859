"""Do predictive distributions hold what they promise? Coverage of their central intervals.

An interval of counts cannot have any probability: the quantiles 5 and 95 % of a rare gene are 0
and 1 and hold nearly all cells, however wrong the distribution. So values are not compared with
intervals but brought to the unit interval, ties broken at random, where they are uniform if the
predictive distribution is right (randomised probability integral transform: Dunn and Smyth 1996,
JCGS 5:236; Czado, Gneiting and Held 2009, Biometrics 65:1254).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pyro_fcr.metrics.arrays import FloatArray


def pit_of_draws(
    below: ArrayLike, equal: ArrayLike, n_draws: int, *, rng: np.random.Generator
) -> FloatArray:
    """Place observed values among draws of their predictive distribution, between 0 and 1.

    The value takes a random place among its ties, and its rank is spread evenly over its step:
    ``(below + v * (equal + 1)) / (n_draws + 1)`` with v uniform. If value and draws come from one
    distribution, the result is uniform exactly, for any number of draws and any distribution.

    Parameters
    ----------
    below, equal
        How many draws are smaller than the value, and how many equal it, any shape.
    n_draws
        How many draws there are of each value.
    rng
        Generator that breaks the ties.

    Returns
    -------
    Numbers from 0 to 1, of the same shape.

    Raises
    ------
    ValueError
        There are more draws below and equal than draws.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> observed, draws = rng.poisson(0.3, 10_000), rng.poisson(0.3, (99, 10_000))
    >>> below, equal = (draws < observed).sum(axis=0), (draws == observed).sum(axis=0)
    >>> pit = pit_of_draws(below, equal, 99, rng=rng)
    >>> np.quantile(pit, [0.05, 0.5, 0.95]).round(1).tolist()
    [0.1, 0.5, 0.9]
    """
    low, ties = np.asarray(below, dtype=np.float64), np.asarray(equal, dtype=np.float64)
    if np.size(low) and (low + ties).max() > n_draws:
        raise ValueError(f"below + equal is {(low + ties).max():g}, more than {n_draws} draws.")
    return (low + rng.random(low.shape) * (ties + 1.0)) / (n_draws + 1)


def central_shares(pit: ArrayLike, levels: Sequence[float]) -> FloatArray:
    """Return the share of each row's values inside central intervals.

    Parameters
    ----------
    pit
        Values between 0 and 1, ``(n_cells, n_genes)``, see :func:`pit_of_draws`.
    levels
        Probabilities of the intervals, between 0 and 1.

    Returns
    -------
    ``(n_cells, n_levels)``.

    Raises
    ------
    ValueError
        A level is not between 0 and 1.

    Examples
    --------
    >>> central_shares([[0.01, 0.3, 0.5, 0.9]], levels=(0.5, 0.9))
    array([[0.5 , 0.75]])
    """
    check_levels(levels)
    distance = np.abs(np.asarray(pit, dtype=np.float64) - 0.5)
    return np.stack([(distance <= level / 2).mean(axis=-1) for level in levels], axis=-1)


def check_levels(levels: Sequence[float]) -> None:
    """Raise ValueError if a level is not between 0 and 1."""
    if wrong := [level for level in levels if not 0 < level < 1]:
        raise ValueError(f"levels: {wrong[0]!r} is not between 0 and 1, such as 0.9.")


def shifted(value: float, draws: FloatArray, level: float) -> FloatArray:
    """Return the central quantiles of draws, shifted so that `value` is their mean, ``(2,)``."""
    return value + np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) - draws.mean()
