"""Which latent dimensions tell cells apart, and how many of them the conditions can identify.

The rank condition of the theorem, measured: z_tx is identifiable component by component if the
first and second derivatives of its prior's log density give 2 n linearly independent difference
vectors between conditions (Mao et al. 2024; Khemakhem et al. 2020, AISTATS, Theorem 1). For a
Normal prior these are differences of the natural parameters ``mean / var`` and ``-1 / (2 var)``:
there have to be 2 n + 1 conditions at least, and variances that differ, not means only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_fcr.metrics.arrays import FloatArray, matrix

Latents: TypeAlias = Mapping[str, NDArray[np.floating]]

IN_USE = 0.01


def dimension_use(means: Latents, variances: Latents) -> pd.DataFrame:
    """Measure how much of each dimension's variance over cells is known of the cells.

    A dimension that a model has no use for stays at its prior for every cell. Its posterior means
    are next to nothing, but a correlation or a regression knows no scale, and may read other blocks
    off them: look at latents of dimensions in use only.

    Parameters
    ----------
    means, variances
        Moments of each cell's posterior, block name to ``(n_cells, n_latent)``.

    Returns
    -------
    Columns ``block, dimension`` (from 0), ``share`` (variance of the means over that of the latent,
    0 to 1) and ``in_use`` (a share of 0.01 or more, the bound of Burda et al. 2016 for active
    units, arXiv 1509.00519).

    Examples
    --------
    >>> means = {"z_x": np.array([[-3.0, 0.01], [3.0, 0.0]])}
    >>> dimension_use(means, {"z_x": np.ones((2, 2))})[["share", "in_use"]].round(2).values.tolist()
    [[0.9, True], [0.0, False]]
    """
    rows = []
    for block, mean in means.items():
        known, unknown = mean.var(axis=0), variances[block].mean(axis=0)
        share = known / np.maximum(known + unknown, np.finfo(np.float32).tiny)
        rows += [(block, i, float(each), bool(each >= IN_USE)) for i, each in enumerate(share)]
    return pd.DataFrame(rows, columns=["block", "dimension", "share", "in_use"])


def only_in_use(latents: Latents, use: pd.DataFrame) -> dict[str, NDArray[np.floating]]:
    """Pick the dimensions in use; of each block at least the most used one.

    Parameters
    ----------
    latents
        Block name to ``(n_cells, n_latent)``.
    use
        The table of :func:`dimension_use`.
    """
    most = use.groupby("block")["share"].transform("max")
    wanted = (use["in_use"] | (use["share"] == most)).to_numpy()
    return {block: z[:, wanted[use["block"] == block]] for block, z in latents.items()}


@dataclass(frozen=True, kw_only=True)
class PriorRank:
    """Singular values of the prior's natural parameters over conditions, and what they say.

    Parameters
    ----------
    singular_values
        ``(2 * n_latent,)``, largest first, in nats, see :func:`prior_rank`.
    n_latent, n_conditions, n_distinct
        Latent dimensions, conditions given, and conditions whose prior differs.
    tolerance
        Bound in nats up to which singular values count as 0.
    """

    singular_values: FloatArray
    n_latent: int
    n_conditions: int
    n_distinct: int
    tolerance: float

    @property
    def rank_needed(self) -> int:
        """Rank that the theorem asks for: 2 n."""
        return 2 * self.n_latent

    @property
    def n_needed(self) -> int:
        """Distinct conditions that the theorem asks for: 2 n + 1."""
        return 2 * self.n_latent + 1

    @property
    def rank(self) -> int:
        """Singular values above the tolerance."""
        return int((self.singular_values > self.tolerance).sum())

    @property
    def smallest(self) -> float:
        """Smallest singular value."""
        return float(self.singular_values[-1])

    @property
    def condition_number(self) -> float:
        """Largest by smallest singular value; inf where the smallest is 0."""
        largest, smallest = self.singular_values[[0, -1]]
        return float(largest / smallest) if smallest > 1e-12 * largest else float("inf")

    @property
    def sufficient(self) -> bool:
        """Whether the prior has the full rank."""
        return self.rank == self.rank_needed

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        found = (
            f"The prior's natural parameters over {self.n_distinct} distinct conditions "
            f"({self.n_needed} needed) have rank {self.rank} of {self.rank_needed} at "
            f"{self.tolerance:g} nats (smallest singular value {self.smallest:.2g})"
        )
        enough = "enough" if self.sufficient else "not enough"
        return f"{found}: {enough} to identify {self.n_latent} latent dimensions one by one."


def prior_rank(mean: ArrayLike, scale: ArrayLike, *, tolerance: float = 0.05) -> PriorRank:
    """Measure the rank of a Normal prior's natural-parameter differences between conditions.

    Each latent is first standardised by its mean and variance over all conditions (equal weights),
    so that neither shift nor scale of the latents matters. The natural parameters, those of z**2
    times sqrt(2), are taken as differences from their mean over conditions: the same span as the
    differences from a first condition, without a choice of it. The ``(2 * n_latent, n_conditions)``
    matrix is divided by the root of the number of conditions. A singular value is then the root
    mean square, over conditions, of the standard deviation in nats of the log density ratio along
    one direction of the statistics (z, z**2).

    Parameters
    ----------
    mean, scale
        Mean and standard deviation of the prior p(z_tx | t, x) in each condition,
        ``(n_conditions, n_latent)``.
    tolerance
        Bound in nats. Below 0.05 the densities differ too little for finite data to tell them
        apart; a learned prior is never exactly of lower rank.

    Returns
    -------
    Singular values and what follows from them.

    Raises
    ------
    ValueError
        The shapes differ, an entry is not finite, a scale is not positive, or there is one
        condition only.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mean, scale = rng.normal(size=(12, 2)), np.exp(rng.uniform(-1, 1, size=(12, 2)))
    >>> prior_rank(mean, scale).sufficient
    True
    >>> prior_rank(mean, np.ones_like(scale)).rank
    2
    """
    means, scales = _checked(mean, scale)
    n_conditions, n_latent = means.shape
    spread = np.sqrt(means.var(axis=0) + (scales**2).mean(axis=0))
    standard, variance = (means - means.mean(axis=0)) / spread, (scales / spread) ** 2
    natural = np.concatenate([standard / variance, -np.sqrt(0.5) / variance], axis=1)
    values = np.zeros(2 * n_latent)
    found = np.linalg.svd(natural - natural.mean(axis=0), compute_uv=False)
    values[: len(found)] = found / np.sqrt(n_conditions)
    return PriorRank(
        singular_values=values,
        n_latent=n_latent,
        n_conditions=n_conditions,
        n_distinct=len(np.unique(natural.round(6), axis=0)),
        tolerance=tolerance,
    )


def _checked(mean: ArrayLike, scale: ArrayLike) -> tuple[FloatArray, FloatArray]:
    means, scales = matrix(mean, "mean"), matrix(scale, "scale")
    if means.shape != scales.shape:
        raise ValueError(f"mean is {means.shape} and scale {scales.shape}; expected one shape.")
    if (scales <= 0).any():
        raise ValueError(f"scale must be positive everywhere; the smallest is {scales.min()}.")
    if len(means) < 2:
        raise ValueError("got one condition; expected two or more to compare.")
    return means, scales
