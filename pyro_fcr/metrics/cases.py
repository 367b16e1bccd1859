"""Real responses of pairs of treatment and context, and the scores of a change against them.

Bootstrap draws are of cells within each condition; the draws of a context's controls are shared
by its pairs. They say how far the measurement of the real response can be off with so many cells,
not how far another donor or library would be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from pyro_fcr.data.pairs import Layout, Mask, Pair
from pyro_fcr.metrics import profiles
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.baselines import ConditionMeans
from pyro_fcr.metrics.profiles import SCALES, Prediction, Scale, Values, profile
from pyro_fcr.metrics.scores import SCORES, change_scores, discrimination, gene_weights

Key: TypeAlias = tuple[Scale, str]
Scores: TypeAlias = dict[Key, FloatArray]

N_SPLITS: Final = 20


class Measured:
    """Real responses of all pairs with two cells and two control cells or more.

    Parameters
    ----------
    values
        Log1p expression, ``(n_cells, n_genes)``.
    layout
        Pair of each cell.
    cells
        Which cells to use, treated and control, ``(n_cells,)``.
    n_draws
        Number of bootstrap draws.
    rng
        Generator of the draws.

    Attributes
    ----------
    treated, control
        Log1p expression of each pair's cells, and of the control cells of each context.
    change
        By scale, change against control, ``(n_pairs, 1 + n_draws, n_genes)``; the first is of the
        cells as they are.
    genes
        Weights of the genes, ``(n_pairs, n_genes)``, see `pyro_fcr.metrics.scores`.
    """

    def __init__(
        self, values: Values, layout: Layout, cells: Mask, *, n_draws: int, rng: np.random.Generator
    ) -> None:
        size = layout.n_cells(cells)
        own = {i: values[cells & (layout.codes == i)] for i in np.flatnonzero(size > 1).tolist()}
        self.control = {layout.pairs[i].context: own[i] for i in own if layout.is_control[i]}
        self.treated = {p: own[i] for i, p in layout.treated().items() if not layout.lacks(i, size)}
        draw = partial(profiles.bootstrap_weights, n_draws=n_draws, rng=rng)
        weights = {pair: draw(v.shape[0]) for pair, v in self.treated.items()}
        untreated = {context: draw(v.shape[0]) for context, v in self.control.items()}
        self.change: dict[Scale, FloatArray] = {}
        for scale in SCALES:
            base = {c: profile(v, scale, weights=untreated[c]) for c, v in self.control.items()}
            self.change[scale] = np.array([
                profile(v, scale, weights=weights[pair]) - base[pair.context]
                for pair, v in self.treated.items()
            ])  # fmt: skip
        self.genes = np.array([
            gene_weights(profiles.t_statistics(v, self.control[pair.context]))
            for pair, v in self.treated.items()
        ])  # fmt: skip


class View(NamedTuple):
    """One way to keep apart the cells that measure responses and those that predict them.

    Attributes
    ----------
    real
        Measured responses.
    training
        By scale, means of the conditions that methods may see.
    """

    real: Measured
    training: Mapping[Scale, ConditionMeans]


@dataclass(frozen=True, eq=False)
class Case:
    """A pair with its measured response, in one view.

    Parameters
    ----------
    view
        Responses of all pairs, and what methods may see.
    pair
        The pair that is predicted.
    rng
        Generator of halves.
    """

    view: View
    pair: Pair
    rng: np.random.Generator

    @cached_property
    def _position(self) -> int:
        return list(self.view.real.treated).index(self.pair)

    @cached_property
    def _shared(self) -> dict[Scale, FloatArray]:
        """Mean change of the treated training conditions, by scale."""
        return {scale: means.mean_shift() for scale, means in self.view.training.items()}

    def real(self, scale: Scale) -> FloatArray:
        """Measured change and its draws, ``(1 + n_draws, n_genes)``."""
        return self.view.real.change[scale][self._position]

    def scores(self, prediction: Prediction) -> Scores:
        """Score a change against the cells as they are and all draws, ``(1 + n_draws,)``."""
        scores: Scores = {}
        for scale, change in prediction.change.items():
            scores |= self._on(scale, change, self.real(scale))
        return scores

    def ceiling(self) -> Scores:
        """Score what a perfect prediction would reach: its mean, then each split of the cells.

        Both halves of the cells are as noisy as half of them are. Without noise in the prediction,
        and with that of all cells in the measurement, a correlation r between halves becomes
        ``sqrt(2 r / (1 + r))`` (Spearman 1910 and Brown 1910, British Journal of Psychology 3) and
        a squared difference a quarter. For a discrimination there is no such rule: it is that of
        the halves, and so rather low.
        """
        real = self.view.real
        groups = treated, control = real.treated[self.pair], real.control[self.pair.context]
        halves, others = (profiles.half_weights(v.shape[0], N_SPLITS, rng=self.rng) for v in groups)
        scores: Scores = {}
        for scale in SCALES:
            first, second = (
                profile(treated, scale, weights=a) - profile(control, scale, weights=b)
                for a, b in zip(halves, others, strict=True)
            )
            scores |= self._on(scale, first, second)
        means = ((key, np.append(values.mean(), values)) for key, values in scores.items())
        return {key: SCORES[key[1]].of_halves(values) for key, values in means}

    def _on(self, scale: Scale, predicted: FloatArray, real: FloatArray) -> Scores:
        change, genes = self.view.real.change[scale], self.view.real.genes[self._position]
        scores = change_scores(predicted, real, reference=self._shared[scale], weights=genes)
        others = np.delete(change, self._position, axis=0)
        if predicted.ndim > 1:
            # A bootstrap draw is as far from the truth as half of the cells are: nothing else
            # would be a fair other for a half.
            draws = others[:, 1:] if others.shape[1] > 1 else others
            others = draws[:, np.arange(len(predicted)) % draws.shape[1]]
        scores["discrimination"] = discrimination(predicted, real, others)
        return {(scale, name): values for name, values in scores.items()}
