"""What contexts, and genes, tell one another: the effect that most share, and shrinkage."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pyro_fcr.metrics.arrays import FloatArray


def deviation(effects: FloatArray) -> FloatArray:
    """Return each context's effect less the median over contexts, ``(n_contexts, ...)``.

    The median, not the mean: where a treatment acts differently in one context only, the mean moves
    as well and every other context would seem to differ too.
    """
    return effects - np.median(effects, axis=0)


def consensus(
    effects: FloatArray, variance: FloatArray, *, most: float = 6.0
) -> tuple[FloatArray, FloatArray]:
    """Return the effect that most contexts share, gene by gene, and its variance, ``(n_genes,)``.

    Of the contexts' effects, it is the one that the fewest others contradict (the sum of their
    squared z-values, each counted as ``most`` at most, is the smallest), averaged with those that
    do not contradict it. A context counts once, however exactly it is known.

    Parameters
    ----------
    effects, variance
        Effects by context and their sampling variance, ``(n_contexts, n_genes)``.
    most
        Squared z-value from which on an effect contradicts.
    """
    best, lowest = effects[0], np.full(effects.shape[1], np.inf)
    for candidate in effects:
        loss = np.minimum((effects - candidate) ** 2 / variance, most).sum(axis=0)
        best, lowest = np.where(loss < lowest, candidate, best), np.minimum(loss, lowest)
    weight = ((effects - best) ** 2 / variance <= most) / variance
    total = weight.sum(axis=0)
    return (weight * effects).sum(axis=0) / total, 1 / total


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is believed of genes: for each a mixture of normals, ``(n_genes, n_parts)``.

    Parameters
    ----------
    share, centre, spread
        Weight, mean and standard deviation of the parts.
    """

    share: FloatArray
    centre: FloatArray
    spread: FloatArray

    @property
    def mean(self) -> FloatArray:
        """Posterior mean, ``(n_genes,)``."""
        return (self.share * self.centre).sum(axis=1)

    @property
    def sd(self) -> FloatArray:
        """Posterior standard deviation, ``(n_genes,)``."""
        second = (self.share * (self.spread**2 + self.centre**2)).sum(axis=1)
        return np.sqrt(np.maximum(second - self.mean**2, 0.0))

    def interval(self, level: float) -> FloatArray:
        """Return the ends of the central interval, ``(2, n_genes)``."""
        return np.array([self._quantile((1 + side * level) / 2) for side in (-1, 1)])

    def draw(self, n_draws: int, rng: np.random.Generator) -> FloatArray:
        """Draw effects, ``(n_draws, n_genes)``."""
        upto = np.cumsum(self.share, axis=1)[:, :-1]
        draws = np.empty((n_draws, len(upto)))
        genes = np.arange(len(upto))
        for row in draws:
            part = (rng.random((len(upto), 1)) > upto).sum(axis=1)
            row[:] = rng.normal(self.centre[genes, part], self.spread[genes, part])
        return draws

    def _quantile(self, p: float) -> FloatArray:
        reach = 8 * self.spread.max(axis=1, initial=0.0)
        low, high = self.centre.min(axis=1) - reach, self.centre.max(axis=1) + reach
        for _ in range(40):
            middle = (low + high) / 2
            below = stats.norm.cdf(middle[:, None], self.centre, self.spread)
            is_low = (self.share * below).sum(axis=1) < p
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        return middle


def shrink(observed: FloatArray, variance: FloatArray, expected: FloatArray) -> Posterior:
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

    Examples
    --------
    >>> truth = np.random.default_rng(0).normal(size=500)
    >>> noisy = truth + np.random.default_rng(1).normal(size=500)
    >>> found = shrink(noisy, np.ones(500), truth)
    >>> bool(np.abs(found.mean - truth).mean() < 0.1 * np.abs(noisy - truth).mean())
    True
    """
    power = (expected**2 / variance).sum()
    slope = np.clip((expected * observed / variance).sum() / power, 0.0, 1.0) if power > 0 else 0.0
    prior = slope * expected
    rest = observed - prior
    size = np.sqrt(np.quantile(variance, 0.1)) if len(variance) else 1.0
    spread = size * 2.0 ** np.arange(-3, 6)
    total = spread**2 + variance[:, None]
    likelihood = stats.norm.pdf(rest[:, None], scale=np.sqrt(total)) + 1e-300
    share = np.full(len(spread), 1.0 / len(spread))
    for _ in range(300 if len(observed) else 0):
        member = likelihood * share
        member /= member.sum(axis=1, keepdims=True)
        share = member.mean(axis=0)
    factor = spread**2 / total
    member = likelihood * share
    member /= member.sum(axis=1, keepdims=True)
    centre = prior[:, None] + factor * rest[:, None]
    return Posterior(member, centre, np.sqrt(factor * variance[:, None]))
