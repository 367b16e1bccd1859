"""Real responses of pairs of treatment and context, and the scores of predictions of them.

Bootstrap draws are of cells within each condition; the draws of a context's controls are shared
by its pairs. They say how far the measurement of the real response can be off with so many cells,
not how far another donor or library would be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, TypeAlias

import numpy as np
from anndata import AnnData

from pyro_fcr.data.errors import listed
from pyro_fcr.data.pairs import Layout, Mask, Pair, read_layout
from pyro_fcr.data.scenarios import Scenario
from pyro_fcr.data.schema import Schema
from pyro_fcr.metrics import profiles
from pyro_fcr.metrics.arrays import FloatArray, draw_rows
from pyro_fcr.metrics.baselines import BASELINES, baseline_predictions, training_means
from pyro_fcr.metrics.profiles import SCALES, Prediction, Scale, Values, profile
from pyro_fcr.metrics.scores import change_scores, discrimination, e_distance, gene_weights

CEILING: Final = "split_half"
Key: TypeAlias = tuple[Scale, str]
Predictions: TypeAlias = Mapping[str, Mapping[Pair, Prediction]]
_N_SPLITS: Final = 20
_MOST_CELLS: Final = 1_000  # of a group, for distances between all its cells


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
    weights
        Weights of each pair's treated cells, ``(1 + n_draws, n_cells)``; the first row is even.
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
        self.weights = {pair: draw(v.shape[0]) for pair, v in self.treated.items()}
        untreated = {context: draw(v.shape[0]) for context, v in self.control.items()}
        self.change: dict[Scale, FloatArray] = {}
        for scale in SCALES:
            base = {c: profile(v, scale, weights=untreated[c]) for c, v in self.control.items()}
            self.change[scale] = np.array([
                profile(v, scale, weights=self.weights[pair]) - base[pair.context]
                for pair, v in self.treated.items()
            ])  # fmt: skip
        self.genes = np.array([
            gene_weights(profiles.t_statistics(v, self.control[pair.context]))
            for pair, v in self.treated.items()
        ])  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A pair with its measured response.

    Parameters
    ----------
    real
        Responses of all pairs.
    pair
        The pair that is predicted.
    shared
        By scale, mean change of the treated training conditions, ``(n_genes,)``.
    rng
        Generator of halves, and of the cells that distances are between where there are many.
    """

    real: Measured
    pair: Pair
    shared: Mapping[Scale, FloatArray]
    rng: np.random.Generator

    @property
    def position(self) -> int:
        """Position of the pair among all."""
        return list(self.real.treated).index(self.pair)

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
        groups = treated, control = self.real.treated[self.pair], self.control
        halves, others = (
            profiles.half_weights(v.shape[0], _N_SPLITS, rng=self.rng) for v in groups
        )
        scores: dict[Key, FloatArray] = {}
        for scale in SCALES:
            first, second = (
                profile(treated, scale, weights=a) - profile(control, scale, weights=b)
                for a, b in zip(halves, others, strict=True)
            )
            scores |= self._on(scale, first, second)
        if treated.shape[0] >= 4:
            scores["mean_log1p", "e_distance"] = np.array([
                e_distance(*(treated[np.flatnonzero(side)[:_MOST_CELLS]] for side in (mask, ~mask)))
                for mask in halves[0] > 0
            ])  # fmt: skip
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
        treated = self.real.treated[self.pair]
        at = draw_rows(treated.shape[0], _MOST_CELLS, self.rng)
        taken = self.real.weights[self.pair][:, at]
        taken = taken / taken.sum(axis=1, keepdims=True)
        predicted = cells[draw_rows(cells.shape[0], _MOST_CELLS, self.rng)]
        return np.asarray(e_distance(predicted, treated[at], weights=taken))


class Judge:
    """Real responses, measured once, against which scenarios are scored one by one."""

    def __init__(self, adata: AnnData, schema: Schema, *, n_draws: int, seed: int) -> None:
        matrix = adata.X if schema.layer is None else adata.layers[schema.layer]
        self.values = profiles.log_values(matrix, expression=schema.expression)
        self.layout = read_layout(adata.obs, schema)
        self.rng = np.random.default_rng(seed)
        self._measured = partial(Measured, self.values, self.layout, n_draws=n_draws, rng=self.rng)

    @cached_property
    def _all(self) -> Measured:
        return self._measured(np.ones(len(self.layout.codes), dtype=bool))

    def cases(
        self, scenario: Scenario, predictions: Predictions
    ) -> Iterator[tuple[Case, dict[str, Prediction]]]:
        """Yield every pair with its measured response, and the predictions of every method."""
        self._check(scenario, predictions)
        real = self._measured(scenario.test) if scenario.of_seen else self._all
        training = {
            scale: training_means(self.values, self.layout, scenario.train, scale=scale)
            for scale in SCALES
        }
        shared = {scale: means.mean_shift() for scale, means in training.items()}
        agents = dict(zip(self.layout.pairs, self.layout.agents, strict=True))
        for pair in scenario.pairs:
            case = Case(real, pair, shared, self.rng)
            given = {name: found[pair] for name, found in predictions.items()}
            asked = agents[pair], pair.context
            yield case, given | baseline_predictions(training, *asked, control=case.control)

    def _check(self, scenario: Scenario, predictions: Predictions) -> None:
        if taken := sorted(predictions.keys() & {*BASELINES, CEILING}):
            raise ValueError(f"Method {taken[0]!r} has the name of a baseline; rename it.")
        n_genes = self.values.shape[1]
        for name, given in predictions.items():
            if missing := [pair for pair in scenario.pairs if pair not in given]:
                some = listed(missing, 3, quoted=False)
                raise ValueError(f"{scenario.name}: {name!r} has no prediction of {some}.")
            for pair in scenario.pairs:
                if (sizes := {len(change) for change in given[pair].change.values()}) != {n_genes}:
                    raise ValueError(
                        f"{name!r} predicts {sorted(sizes)} genes of {pair}, but adata has "
                        f"{n_genes}; pass all genes in their order."
                    )
