"""Intervals of changes that were predicted blindly, from the errors of other predictions like them.

Split conformal prediction over pairs of treatment and context (Lei et al. 2018, JASA 113:1094; for
groups, Dunn et al. 2023, JASA 118:2491): an interval is as wide as the errors on pairs that no fit
had were, in units of an expected error that grows with the predicted change and with the errors of
the gene in other pairs. Measured changes have the noise of their cells, which is no error of a
prediction: it is added where errors are compared with what was measured, and left out of the
interval of the true change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from sklearn.preprocessing import StandardScaler

from pyro_fcr.metrics.arrays import Codes, FloatArray
from pyro_fcr.metrics.profiles import Scale, Values


def noise_variance(values: Values, scale: Scale) -> FloatArray:
    """Return the sampling variance of a profile of cells, ``(n_genes,)``.

    Examples
    --------
    >>> noise_variance(np.array([[1.0], [3.0]]), "mean_log1p")
    array([1.])
    """
    linear: Any = np.expm1(values) if scale == "log1p_mean" else values
    spread = StandardScaler(with_mean=False).fit(linear)
    slope = 1 / (1 + spread.mean_) if scale == "log1p_mean" else 1.0
    return spread.var_ / max(linear.shape[0] - 1, 1) * slope**2


@dataclass(frozen=True, eq=False)
class ConformalIntervals:
    """Intervals of changes of pairs like those that were left out.

    Parameters
    ----------
    predicted, real
        Predicted and measured changes of pairs that were left out, ``(n_pairs, n_genes)``.
    noise
        Sampling variance of the measured ones.
    scale
        On which scale they are.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real = rng.normal(size=(12, 300))
    >>> found = ConformalIntervals(
    ...     real + 0.3 * rng.normal(size=real.shape), real, np.zeros_like(real), "mean_log1p"
    ... )
    >>> lower, upper = found.of(real[0], 0.9)
    >>> float(np.mean(upper - lower).round(1))  # 2 x 1.64 x 0.3
    1.0
    >>> found.coverage([0.9])["observed"].round(1).tolist()
    [0.9]
    """

    predicted: FloatArray
    real: FloatArray
    noise: FloatArray
    scale: Scale

    def of(self, predicted: FloatArray, level: float) -> FloatArray:
        """Return both ends of the interval of a true change, ``(2, n_genes)``."""
        rule = self._rule(np.arange(len(self.real)))
        half = rule.quantile(level) * np.sqrt(rule.expected(predicted))
        return np.array([predicted - half, predicted + half])

    def coverage(self, levels: Sequence[float] = (0.5, 0.9)) -> pd.DataFrame:
        """Return how often intervals from other pairs hold what was measured of a pair.

        Returns
        -------
        A row per level: ``scale``, ``nominal``, ``observed`` (share over pairs and genes),
        ``lowest`` (of a pair), ``n_pairs``. Empty with fewer than two pairs.
        """
        shares = []
        for own in range(len(self.real)):
            others = np.delete(np.arange(len(self.real)), own)
            if len(others):
                rule = self._rule(others)
                size = np.sqrt(rule.expected(self.predicted[own]) + self.noise[own])
                score = np.abs(self.real[own] - self.predicted[own]) / size
                shares.append([(score <= rule.quantile(level)).mean() for level in levels])
        found = np.array(shares).reshape(-1, len(levels))
        return pd.DataFrame(
            {
                "scale": self.scale,
                "nominal": list(levels) if len(found) else [],
                "observed": found.mean(axis=0) if len(found) else [],
                "lowest": found.min(axis=0) if len(found) else [],
                "n_pairs": len(found),
            }
        )

    def _rule(self, pairs: Codes) -> "_Errors":
        predicted, noise = self.predicted[pairs], self.noise[pairs]
        residual = self.real[pairs] - predicted
        excess = residual**2 - noise
        of_gene = np.maximum(excess, 0.0)
        # The errors of a gene in other pairs: its own would foretell itself.
        n_others = max(len(pairs) - 1, 1)
        others = (of_gene.sum(axis=0) - of_gene) / n_others if len(pairs) > 1 else of_gene
        terms = np.stack([np.ones_like(excess), predicted**2, others], axis=-1)
        weight = 1 / (np.median(residual**2) + predicted**2 + noise + 1e-12)
        share, _ = nnls(
            (terms * weight[..., None]).reshape(-1, terms.shape[-1]), (excess * weight).ravel()
        )
        floor = max(1e-3 * float(np.mean(residual**2)), 1e-12)
        expected = terms @ share + floor
        score = np.abs(residual) / np.sqrt(expected + noise)
        return _Errors(share, floor, of_gene.mean(axis=0), np.sort(score.ravel()))


@dataclass(frozen=True, eq=False)
class _Errors:
    """Expected squared error by terms, and errors in its units, ascending."""

    share: FloatArray
    floor: float
    of_gene: FloatArray
    scores: FloatArray

    def expected(self, predicted: FloatArray) -> FloatArray:
        """Return the expected squared error of a predicted change, ``(n_genes,)``."""
        constant, by_size, by_gene = self.share
        return constant + by_size * predicted**2 + by_gene * self.of_gene + self.floor

    def quantile(self, level: float) -> float:
        """Return the error, in units of the expected one, that a share of genes does not exceed."""
        return float(np.quantile(self.scores, level, method="higher"))
