"""What contexts, and genes, tell one another: the effect that most share, and shrinkage."""

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
