"""How likely a model's answer is nearer to the truth than a simple one, by pairs left out of both.

A model beats a regression on some pairs of treatment and context and not on others. What can be
known of a pair before it is measured (how much supports it, how far its context is, whether both
answers agree) tells which, as far as the pairs that were left out tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd

from pyro_fcr.metrics.arrays import Codes, FloatArray

FEATURES: Final = {
    "support": "share of the pair's treatment and context that training had",
    "distance": "distance of the context's control cells from the nearest context that had it",
    "spread": "how much the treatment's changes differ between contexts, relative to their mean",
    "agreement": "cosine between the model's answer and the simple one",
    "ratio": "logarithm of the size of the model's answer over that of the simple one",
    "size": "logarithm of the size of the simple answer over that of the training pairs",
}
_PENALTIES: Final = (0.0, 0.01, 0.03, 0.1, 0.3)  # inverse strengths; 0 leaves the base rate alone
_FEWEST: Final = 10  # pairs, below which nothing but the base rate is learnt
_N_FOLDS: Final = 5


@dataclass(frozen=True, eq=False)
class Chances:
    """The chance that a model beats a simple method on a pair that was not measured.

    Parameters
    ----------
    table
        A row per pair that was left out: ``treatment``, ``context``, the :data:`FEATURES`,
        ``gain`` of the model over the simple method, and ``share`` of the bootstrap draws of the
        measured cells in which it is positive.
    simple
        The simple method: the baseline of best mean over the pairs.
    metric, scale
        Of what the gain is.
    """

    table: pd.DataFrame
    simple: str
    metric: str
    scale: str

    @property
    def pairs(self) -> pd.DataFrame:
        """The table with the ``chance`` of each pair, learnt from others, and ``against`` what."""
        return self.table.assign(chance=self._left_out, against=self.simple)

    @property
    def auroc(self) -> float:
        """Area under the curve of ``chance`` for a positive gain; nan where all gains agree.

        Pairs are compared with those that were left out together. Between parts there is a spurious
        order: what is left out with few wins is told by many.
        """
        won, compared, right = self.table["gain"].to_numpy() > 0, 0, 0.0
        for k in np.unique(fold := _folds(self._share)):
            above = self._left_out[won & (fold == k)][:, None]
            below = self._left_out[~won & (fold == k)]
            right += (above > below).sum() + (above == below).sum() / 2
            compared += above.size * below.size
        return float(right / compared) if compared else np.nan

    @property
    def line(self) -> str:
        """What was found, in a line."""
        pairs, accepted = self.pairs, self.pairs["chance"] > 0.5
        gain = f"{pairs.loc[accepted, 'gain'].mean():+.3f}" if accepted.any() else "none accepted"
        return (
            f"FCR beats {self.simple} on {(pairs['gain'] > 0).sum()} of {len(pairs)} pairs left "
            f"out ({self.metric}); chance tells which with an AUROC of {self.auroc:.2f}, mean gain "
            f"where it is above half ({accepted.sum()}): {gain}"
        )

    def of(self, features: Mapping[str, float]) -> float:
        """Return the chance of a pair by its :data:`FEATURES`; missing ones count as average."""
        given = np.array([[features.get(name, np.nan) for name in FEATURES]], dtype=np.float64)
        return float(self._rule.of(given)[0])

    @cached_property
    def _rule(self) -> "_Rule":
        return _Rule.learnt(self._features, self._share)

    @cached_property
    def _left_out(self) -> FloatArray:
        fold, found = _folds(self._share), np.empty(len(self.table))
        for k in np.unique(fold):
            rest = fold != k
            rule = _Rule.learnt(self._features[rest], self._share[rest])
            found[~rest] = rule.of(self._features[~rest])
        return found

    @property
    def _features(self) -> FloatArray:
        return self.table[list(FEATURES)].to_numpy(dtype=np.float64)

    @property
    def _share(self) -> FloatArray:
        return self.table["share"].to_numpy(dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads, in what JSON can hold."""
        about = {name: getattr(self, name) for name in ("simple", "metric", "scale")}
        return {**about, "table": self.table.to_dict("list")}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Chances":
        """Read what :meth:`to_dict` returned."""
        return cls(**{**saved, "table": pd.DataFrame(saved["table"])})


@dataclass(frozen=True, eq=False)
class _Rule:
    """A logistic regression, or the base rate where nothing tells more."""

    rate: float
    average: FloatArray
    fitted: Any = None

    @classmethod
    def learnt(cls, features: FloatArray, share: FloatArray) -> "_Rule":
        """Learn from pairs; the penalty has the least loss on parts of them left out."""
        known = np.isfinite(features)
        average = np.where(known, features, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        features = np.where(known, features, average)
        rate = (share.sum() + 1) / (len(share) + 2)  # as after one win and one loss
        if len(share) < _FEWEST:
            return cls(rate, average)
        fold = _folds(share)
        losses = [_loss(features, share, fold, strength) for strength in _PENALTIES]
        best = _PENALTIES[int(np.argmin(losses))]
        return cls(rate, average, _logistic(features, share, best) if best else None)

    def of(self, features: FloatArray) -> FloatArray:
        """Return the chance of each row."""
        if self.fitted is None:
            return np.full(len(features), self.rate)
        given = np.where(np.isfinite(features), features, self.average)
        return self.fitted.predict_proba(given)[:, 1]


def _folds(share: FloatArray) -> Codes:
    """Deal pairs to folds alike in how many are won, ``(n_pairs,)``."""
    fold = np.empty(len(share), dtype=np.intp)
    fold[np.argsort(share, kind="stable")] = np.arange(len(share)) % min(_N_FOLDS, len(share))
    return fold


def _loss(features: FloatArray, share: FloatArray, fold: Codes, strength: float) -> float:
    """Return the cross-entropy of pairs left out in turn."""
    loss = 0.0
    for k in np.unique(fold):
        rest = fold != k
        chance = np.full((~rest).sum(), (share[rest].sum() + 1) / (rest.sum() + 2))
        if strength:
            found = _logistic(features[rest], share[rest], strength)
            chance = found.predict_proba(features[~rest])[:, 1]
        own = share[~rest]
        loss -= (own * np.log(chance) + (1 - own) * np.log1p(-chance)).sum()
    return loss


def _logistic(features: FloatArray, share: FloatArray, strength: float) -> Any:
    """Fit a penalised regression; a pair counts as won and as lost, by its share."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (see above)
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    rule = make_pipeline(StandardScaler(), LogisticRegression(C=strength))
    twice, won = np.vstack([features, features]), np.repeat([1, 0], len(share))
    weight = np.concatenate([share, 1 - share]) + 1e-6
    return rule.fit(twice, won, logisticregression__sample_weight=weight)
