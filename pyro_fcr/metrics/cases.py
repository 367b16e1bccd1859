"""Real responses of pairs of treatment and context, and the scores of predictions of them.

No control cell both measures a response and predicts it: noise of shared controls would count as
agreement, and control cells posing as treated ones would seem predictable. Where a scenario holds
out control cells, these measure; otherwise the controls of its contexts are halved at random, five
times over, and each half measures while the other one predicts.

Bootstrap draws are of cells within each condition; the draws of a context's controls are shared
by its pairs. They say how far the measurement of the real response can be off with so many cells,
not how far another donor or library would be.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from anndata import AnnData

from pyro_fcr.data.design import random_rank
from pyro_fcr.data.errors import listed
from pyro_fcr.data.pairs import FEWEST, Layout, Mask, Pair, read_layout
from pyro_fcr.data.scenarios import Scenario
from pyro_fcr.data.schema import Schema
from pyro_fcr.metrics import profiles
from pyro_fcr.metrics.arrays import FloatArray, draw_rows
from pyro_fcr.metrics.baselines import (
    BASELINES,
    ConditionMeans,
    baseline_predictions,
    training_means,
)
from pyro_fcr.metrics.profiles import SCALES, Prediction, Scale, Values, profile
from pyro_fcr.metrics.scores import (
    SCORES,
    change_scores,
    discrimination,
    e_distance,
    gene_weights,
)

CEILING: Final = "noise_ceiling"
Key: TypeAlias = tuple[Scale, str]
Scores: TypeAlias = dict[Key, FloatArray]
Fits: TypeAlias = Prediction | Sequence[Prediction]
Predictions: TypeAlias = Mapping[str, Mapping[Pair, Fits]]
"""By method and pair; several predictions of a pair are of fits that were repeated."""

_Methods: TypeAlias = Mapping[str, Sequence[Prediction]]

_DISTANCE: Final[Key] = ("mean_log1p", "e_distance")
_N_SPLITS: Final = 20
_N_HALVINGS: Final = 10
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
        halves, others = (
            profiles.half_weights(v.shape[0], _N_SPLITS, rng=self.rng) for v in groups
        )
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


class Changes(NamedTuple):
    """A pair as measured and as predicted.

    Attributes
    ----------
    pair
        The pair.
    real
        Measured change by scale, ``(n_genes,)``.
    predicted
        The same by scale and method.
    """

    pair: Pair
    real: dict[Scale, FloatArray]
    predicted: dict[Scale, dict[str, FloatArray]]


class Judged(NamedTuple):
    """How well a pair is predicted.

    Attributes
    ----------
    changes
        The pair as measured and as predicted.
    scores
        By method, scale and metric, ``(1 + n_draws,)``; the ceiling's draws are of halves.
    monte_carlo
        By method, scale and metric, standard error of the score from the number of cells that were
        drawn, where a prediction has parts.
    """

    changes: Changes
    scores: dict[str, Scores]
    monte_carlo: dict[str, dict[Key, float]]


class Judge:
    """Real responses, measured once, against which scenarios are scored one by one."""

    def __init__(self, adata: AnnData, schema: Schema, *, n_draws: int, seed: int) -> None:
        self.values = profiles.values_of(adata, schema)
        self.layout = read_layout(adata.obs, schema)
        self.rng = np.random.default_rng(seed)
        self.n_draws = n_draws
        self._seed = seed

    def judge(self, scenario: Scenario, predictions: Predictions) -> Iterator[Judged]:
        """Yield every pair of a scenario with the scores of all methods, baselines and ceiling."""
        for changes, cases, given, found in self._prepared(scenario, predictions):
            distance = self._distance(scenario, changes.pair)
            scores = {
                name: _over_fits([_joined(cases, [fit] * len(cases), distance) for fit in fits],
                                 self.rng)
                for name, fits in given.items()
            }  # fmt: skip
            scores |= {name: _joined(cases, each, distance) for name, each in found.items()}
            scores[CEILING] = _mean_first([case.ceiling() for case in cases]) | distance.ceiling()
            error = {name: _monte_carlo(cases, fits) for name, fits in given.items()}
            yield Judged(changes, scores, error)

    def changes(self, scenario: Scenario, predictions: Predictions) -> Iterator[Changes]:
        """Yield every pair of a scenario as measured and predicted, without scores."""
        for changes, *_ in self._prepared(scenario, predictions):
            yield changes

    def _prepared(
        self, scenario: Scenario, predictions: Predictions
    ) -> Iterator[tuple[Changes, list[Case], _Methods, _Methods]]:
        """Yield changes of every pair, its cases, and what models and baselines predict."""
        self._check(scenario, predictions)
        views = self._views(scenario)
        for pair in scenario.pairs:
            cases = [Case(view, pair, self.rng) for view in views]
            given = {name: _fits(each[pair]) for name, each in predictions.items()}
            found = self._baselines(scenario, pair, views)
            real = {s: np.mean([case.real(s)[0] for case in cases], axis=0) for s in SCALES}
            predicted = {scale: _mean_changes(given | found, scale) for scale in SCALES}
            yield Changes(pair, real, predicted), cases, given, found

    def _views(self, scenario: Scenario) -> list[View]:
        """Keep cells that measure apart from those that predict, in one way or in several."""
        measured = partial(Measured, self.values, self.layout, rng=self.rng)
        if scenario.of_seen:
            return [self._view(measured(scenario.test, n_draws=self.n_draws), scenario.train)]
        pairs = [self.layout.pairs.index(pair) for pair in scenario.pairs]
        controls = [i for i in self.layout.with_controls(pairs) if self.layout.is_control[i]]
        own = np.isin(self.layout.codes, controls)
        if (self.layout.n_cells(own & scenario.test)[controls] >= FEWEST).all():
            cells = ~own | scenario.test
            return [self._view(measured(cells, n_draws=self.n_draws), scenario.train)]
        return [
            self._view(real, scenario.train & ~(own & measuring))
            for real, measuring in self._halves
        ]

    def _view(self, real: Measured, train: Mask) -> View:
        means = {s: training_means(self.values, self.layout, train, scale=s) for s in SCALES}
        return View(real, means)

    @cached_property
    def _halves(self) -> list[tuple[Measured, Mask]]:
        """Responses against one half of each context's controls, and which cells that half is."""
        codes, size = self.layout.codes, self.layout.n_cells()
        control = self.layout.is_control[codes]
        found = []
        for number in range(_N_HALVINGS):
            half = random_rank(codes, self._seed + number // 2) < size[codes] // 2
            measuring = control & (half if number % 2 else ~half)
            n_draws = len(range(number, self.n_draws, _N_HALVINGS))
            real = Measured(
                self.values, self.layout, ~control | measuring, n_draws=n_draws, rng=self.rng
            )
            found.append((real, measuring))
        return found

    def _baselines(
        self, scenario: Scenario, pair: Pair, views: Sequence[View]
    ) -> dict[str, list[Prediction]]:
        """Predict a pair by every baseline that all views define."""
        asked = self.layout.agents[self.layout.pairs.index(pair)], pair.context
        own = self.layout.codes == self.layout.control_of(pair)
        control = self.values[own & scenario.train]
        found = [baseline_predictions(v.training, *asked, control=control) for v in views]
        return {
            name: [each[name] for each in found]
            for name in found[0]
            if all(name in each for each in found)
        }

    def _distance(self, scenario: Scenario, pair: Pair) -> "_Distance":
        rows = self.layout.codes == self.layout.pairs.index(pair)
        return _Distance(self.values[rows & scenario.test], self.n_draws, self.rng)

    def _check(self, scenario: Scenario, predictions: Predictions) -> None:
        if taken := sorted(predictions.keys() & {*BASELINES, CEILING}):
            raise ValueError(f"Method {taken[0]!r} has the name of a baseline; rename it.")
        n_genes = self.values.shape[1]
        for name, given in predictions.items():
            if missing := [pair for pair in scenario.pairs if pair not in given]:
                some = listed(missing, 3, quoted=False)
                raise ValueError(f"{scenario.name}: {name!r} has no prediction of {some}.")
            for pair in scenario.pairs:
                changes = [change for fit in _fits(given[pair]) for change in fit.change.values()]
                if (sizes := {len(change) for change in changes}) != {n_genes}:
                    raise ValueError(
                        f"{name!r} predicts {sorted(sizes)} genes of {pair}, but adata has "
                        f"{n_genes}; pass all genes in their order."
                    )


class _Distance:
    """Distance of predicted cells to the real ones of a pair; control cells have no part in it."""

    def __init__(self, treated: Values, n_draws: int, rng: np.random.Generator) -> None:
        self.rng = rng
        at = draw_rows(treated.shape[0], _MOST_CELLS, rng)
        self.treated = treated[at]
        self.weights = profiles.bootstrap_weights(len(at), n_draws, rng=rng)

    def __call__(self, cells: Values) -> FloatArray:
        """Return the distance to the cells as they are and in draws, ``(1 + n_draws,)``."""
        predicted = cells[draw_rows(cells.shape[0], _MOST_CELLS, self.rng)]
        return np.asarray(e_distance(predicted, self.treated, weights=self.weights))

    def ceiling(self) -> Scores:
        """Return the distance of halves, 0 on average: its mean, then each split."""
        if (n_cells := self.treated.shape[0]) < 2 * FEWEST:
            return {}
        first = profiles.half_weights(n_cells, _N_SPLITS, rng=self.rng)[0] > 0
        values = [float(e_distance(self.treated[half], self.treated[~half])) for half in first]
        return {_DISTANCE: np.array([np.mean(values), *values])}


def _fits(given: Fits) -> Sequence[Prediction]:
    return [given] if isinstance(given, Prediction) else given


def _mean_changes(methods: _Methods, scale: Scale) -> dict[str, FloatArray]:
    return {
        name: np.mean([each.change[scale] for each in fits], axis=0)
        for name, fits in methods.items()
        if all(scale in each.change for each in fits)
    }


def _joined(
    cases: Sequence[Case], predictions: Sequence[Prediction], distance: _Distance
) -> Scores:
    """Score a method over all views, each with its own prediction."""
    pairs = zip(cases, predictions, strict=True)
    scores = _mean_first([case.scores(prediction) for case, prediction in pairs])
    if (cells := predictions[0].cells) is not None:
        scores[_DISTANCE] = distance(cells)
    return scores


def _mean_first(views: Sequence[Scores]) -> Scores:
    """Average the scores of several views, and take together their draws."""
    return {
        key: np.concatenate([
            [np.mean([view[key][0] for view in views])],
            *(view[key][1:] for view in views),
        ])
        for key in views[0]
    }  # fmt: skip


def _over_fits(fits: Sequence[Scores], rng: np.random.Generator) -> Scores:
    """Average the scores of repeated fits; a draw takes as many of them, with replacement."""
    found = {}
    for key in fits[0]:
        scores = np.array([fit[key] for fit in fits])
        picks = rng.integers(len(fits), size=scores.shape)
        picks[:, 0] = np.arange(len(fits))
        found[key] = np.take_along_axis(scores, picks, axis=0).mean(axis=0)
    return found


def _monte_carlo(cases: Iterable[Case], fits: Sequence[Prediction]) -> dict[Key, float]:
    """Return the standard error of scores from the number of cells that each fit has drawn."""
    first = next(iter(cases))
    squares: dict[Key, list[float]] = {}
    for fit in fits:
        parts = [first.scores(part) for part in fit.parts]
        for key in parts[0] if len(parts) > 1 else ():
            values = np.array([part[key][0] for part in parts])
            squares.setdefault(key, []).append(values.var(ddof=1) / len(values))
    return {key: float(np.sqrt(np.sum(each)) / len(fits)) for key, each in squares.items()}
