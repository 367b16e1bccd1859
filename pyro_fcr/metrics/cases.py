"""One pair of treatment and context, and the scores of predictions of its response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pyro_fcr.data.pairs import Pair
from pyro_fcr.metrics.measured import Measured, half_changes
from pyro_fcr.metrics.metrics import FloatArray
from pyro_fcr.metrics.populations import e_distance
from pyro_fcr.metrics.predictions import Prediction
from pyro_fcr.metrics.profiles import Scale, Values
from pyro_fcr.metrics.scoring import change_scores, discrimination

Key = tuple[Scale, str]
_N_SPLITS: Final = 20
_MOST_CELLS: Final = 1_000  # of a group, for distances between all its cells


@dataclass(frozen=True, eq=False)
class Case:
    """A pair with its measured response.

    Parameters
    ----------
    real
        Responses of all pairs.
    pair
        The one that is predicted.
    shared
        By scale, mean change of the treated training conditions, ``(n_genes,)``.
    rng
        Of halves, and of the cells that distances are between where there are very many.
    """

    real: Measured
    pair: Pair
    shared: Mapping[Scale, FloatArray]
    rng: np.random.Generator

    @property
    def position(self) -> int:
        """Of the pair among all."""
        return self.real.pairs.index(self.pair)

    @property
    def control(self) -> Values:
        """Log1p expression of the context's control cells."""
        return self.real.control[self.pair.context]

    def scores(self, prediction: Prediction) -> dict[Key, FloatArray]:
        """Score a prediction against the cells as they are and all draws, ``(1 + n_draws,)``."""
        scores: dict[Key, FloatArray] = {}
        for scale, change in prediction.change.items():
            scores |= self._on(scale, change, self.real.change[scale][self.position])
        if prediction.cells is not None:
            scores["mean_log1p", "e_distance"] = self._distance(prediction.cells)
        return scores

    def ceiling(self) -> dict[Key, FloatArray]:
        """Score halves of the cells against the other halves: their mean, then each split."""
        treated = self.real.treated[self.position]
        changes, weights = half_changes(treated, self.control, n_splits=_N_SPLITS, rng=self.rng)
        scores: dict[Key, FloatArray] = {}
        for scale, (predicted, real) in changes.items():
            scores |= self._on(scale, predicted, real)
        if treated.shape[0] >= 4:
            halves = [self._halves(treated, each > 0) for each in weights[0]]
            scores["mean_log1p", "e_distance"] = np.array(halves)
        return {key: np.append(values.mean(), values) for key, values in scores.items()}

    def _on(self, scale: Scale, predicted: FloatArray, real: FloatArray) -> dict[Key, FloatArray]:
        scores = change_scores(
            predicted, real, reference=self.shared[scale], weights=self.real.genes[self.position]
        )
        others = np.delete(self.real.change[scale], self.position, axis=0)
        if predicted.ndim > 1:
            # A bootstrap draw is as far from the truth as half of the cells are: nothing else
            # would be a fair other for a half.
            others = others[:, 1 + np.arange(len(predicted)) % (others.shape[1] - 1)]
        scores["discrimination"] = discrimination(predicted, real, others)
        return {(scale, name): values for name, values in scores.items()}

    def _distance(self, cells: Values) -> FloatArray:
        treated, weights = self.real.treated[self.position], self.real.weights[self.position]
        at = self._some(treated.shape[0])
        taken = weights[:, at]
        taken = taken / taken.sum(axis=1, keepdims=True)
        predicted = cells[self._some(cells.shape[0])]
        return np.asarray(e_distance(predicted, treated[at], weights=taken))

    def _halves(self, treated: Values, first: npt.NDArray[np.bool_]) -> float:
        a, b = np.flatnonzero(first), np.flatnonzero(~first)
        parts = treated[a[:_MOST_CELLS]], treated[b[:_MOST_CELLS]]
        return float(e_distance(*parts))

    def _some(self, n_cells: int) -> npt.NDArray[np.intp]:
        if n_cells <= _MOST_CELLS:
            return np.arange(n_cells)
        return np.sort(self.rng.choice(n_cells, _MOST_CELLS, replace=False))
