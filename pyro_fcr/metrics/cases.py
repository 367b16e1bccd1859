"""Real responses of pairs of treatment and context, and the scores of predictions of them.

Bootstrap draws are of cells within each condition; the draws of a context's controls are shared
by its pairs. They say how far the measurement of the real response can be off with so many cells,
not how far another donor or library would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pyro_fcr.data.pairs import Layout, Mask, Pair
from pyro_fcr.metrics.arrays import FloatArray, draw_rows
from pyro_fcr.metrics.predictions import Prediction
from pyro_fcr.metrics.profiles import (
    SCALES,
    Scale,
    Values,
    bootstrap_weights,
    half_weights,
    profile,
    t_statistics,
)
from pyro_fcr.metrics.scores import change_scores, discrimination, e_distance, gene_weights

Key = tuple[Scale, str]
_N_SPLITS: Final = 20
_MOST_CELLS: Final = 1_000  # of a group, for distances between all its cells


@dataclass(frozen=True, eq=False)
class Measured:
    """Real responses of some pairs.

    Parameters
    ----------
    pairs
        Treated pairs with two cells and two control cells or more, sorted.
    treated, control
        Log1p expression of each pair's cells, and of the control cells of each context.
    weights
        Of each pair's treated cells, ``(1 + n_draws, n_cells)``; the first row is even.
    change
        By scale, change against control, ``(n_pairs, 1 + n_draws, n_genes)``; the first is of the
        cells as they are.
    genes
        Weights of the genes, ``(n_pairs, n_genes)``, see `pyro_fcr.metrics.scores`.
    """

    pairs: tuple[Pair, ...]
    treated: tuple[Values, ...]
    control: Mapping[tuple[str, ...], Values]
    weights: tuple[FloatArray, ...]
    change: Mapping[Scale, FloatArray]
    genes: FloatArray


def measure(
    values: Values, layout: Layout, cells: Mask, *, n_draws: int, rng: np.random.Generator
) -> Measured:
    """Measure the response of every treated pair in the chosen cells.

    Parameters
    ----------
    values
        Log1p expression, ``(n_cells, n_genes)``.
    layout
        Pair of each cell.
    cells
        Which cells to use, treated and control, ``(n_cells,)``.
    n_draws
        Bootstrap draws.
    rng
        Of the draws.
    """
    size = layout.n_cells(cells)
    controls = {
        layout.pairs[i].context: values[cells & (layout.codes == i)]
        for i in np.flatnonzero(layout.is_control & (size > 1)).tolist()
    }
    found = {
        pair: values[cells & (layout.codes == i)]
        for i, pair in layout.treated().items()
        if not layout.lacks(i, size)
    }
    weights = [bootstrap_weights(v.shape[0], n_draws, rng=rng) for v in found.values()]
    untreated = {
        context: bootstrap_weights(v.shape[0], n_draws, rng=rng) for context, v in controls.items()
    }
    change = {}
    for scale in SCALES:
        base = {c: profile(v, scale, weights=untreated[c]) for c, v in controls.items()}
        change[scale] = np.array(
            [
                profile(v, scale, weights=w) - base[pair.context]
                for (pair, v), w in zip(found.items(), weights, strict=True)
            ]
        )
    genes = [gene_weights(t_statistics(v, controls[pair.context])) for pair, v in found.items()]
    return Measured(
        pairs=tuple(found),
        treated=tuple(found.values()),
        control=controls,
        weights=tuple(weights),
        change=change,
        genes=np.array(genes),
    )


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
        changes, weights = _half_changes(treated, self.control, n_splits=_N_SPLITS, rng=self.rng)
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
        at = draw_rows(treated.shape[0], _MOST_CELLS, self.rng)
        taken = weights[:, at]
        taken = taken / taken.sum(axis=1, keepdims=True)
        predicted = cells[draw_rows(cells.shape[0], _MOST_CELLS, self.rng)]
        return np.asarray(e_distance(predicted, treated[at], weights=taken))

    def _halves(self, treated: Values, first: npt.NDArray[np.bool_]) -> float:
        a, b = np.flatnonzero(first), np.flatnonzero(~first)
        parts = treated[a[:_MOST_CELLS]], treated[b[:_MOST_CELLS]]
        return float(e_distance(*parts))


def _half_changes(
    treated: Values, control: Values, *, n_splits: int, rng: np.random.Generator
) -> tuple[dict[Scale, tuple[FloatArray, FloatArray]], FloatArray]:
    """Return the change in random halves of the cells, and in the other halves.

    Returns
    -------
    By scale, both changes, ``(n_splits, n_genes)`` each; and the weights of the treated cells,
    ``(2, n_splits, n_cells)``.
    """
    treated_weights = half_weights(treated.shape[0], n_splits, rng=rng)
    control_weights = half_weights(control.shape[0], n_splits, rng=rng)
    changes = {}
    for scale in SCALES:
        first, second = (
            profile(treated, scale, weights=a) - profile(control, scale, weights=b)
            for a, b in zip(treated_weights, control_weights, strict=True)
        )
        changes[scale] = (first, second)
    return changes, treated_weights
