"""Every method scored on every pair: models, all baselines, and the ceiling.

No control cell both measures a response and predicts it: noise of shared controls would count as
agreement, and control cells posing as treated ones would seem predictable. Where a scenario holds
out control cells, these measure; otherwise the controls of its contexts are halved at random, five
times over, and each half measures while the other one predicts.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from anndata import AnnData

from pyro_fcr.data.design import random_parts
from pyro_fcr.data.errors import listed
from pyro_fcr.data.pairs import FEWEST, Mask, Pair, read_layout
from pyro_fcr.data.scenarios import Scenario
from pyro_fcr.data.schema import Schema
from pyro_fcr.metrics import profiles
from pyro_fcr.metrics.arrays import FloatArray, draw_rows
from pyro_fcr.metrics.baselines import BASELINES, baseline_predictions, training_means
from pyro_fcr.metrics.cases import N_SPLITS, Case, Key, Measured, Scores, View
from pyro_fcr.metrics.profiles import SCALES, Mixture, Prediction, Scale, TreatedOnly, Values
from pyro_fcr.metrics.scores import e_distance

CEILING: Final = "noise_ceiling"
Fit: TypeAlias = Prediction | TreatedOnly | Mixture
Fits: TypeAlias = Fit | Sequence[Fit]
Predictions: TypeAlias = Mapping[str, Mapping[Pair, Fits]]
"""By method and pair; several predictions of a pair are of fits that were repeated."""

_Fits: TypeAlias = Mapping[str, Sequence[Sequence[Prediction]]]  # by method, fit and view

_DISTANCE: Final[Key] = ("mean_log1p", "e_distance")
_N_HALVINGS: Final = 10
_MOST_CELLS: Final = 1_000  # of a group, for distances between all its cells


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
                name: _over_fits([_joined(cases, fit, distance) for fit in fits], self.rng)
                for name, fits in {**given, **found}.items()
            }
            scores[CEILING] = _mean_first([case.ceiling() for case in cases]) | distance.ceiling()
            error = {
                name: _monte_carlo(cases[0], [views[0] for views in fits])
                for name, fits in given.items()
            }
            yield Judged(changes, scores, error)

    def changes(self, scenario: Scenario, predictions: Predictions) -> Iterator[Changes]:
        """Yield every pair of a scenario as measured and predicted, without scores."""
        for changes, *_ in self._prepared(scenario, predictions):
            yield changes

    def _prepared(
        self, scenario: Scenario, predictions: Predictions
    ) -> Iterator[tuple[Changes, list[Case], _Fits, _Fits]]:
        """Yield changes of every pair, its cases, and what models and baselines predict."""
        self._check(scenario, predictions)
        views = self._views(scenario)
        for pair in scenario.pairs:
            cases = [Case(view, pair, self.rng) for view in views]
            simple = self._baselines(scenario, pair, views)
            found = {name: [each] for name, each in simple.items()}
            given = {
                name: [
                    [_change(fit, pair, view, simple, i) for i, view in enumerate(views)]
                    for fit in _fits(each[pair])
                ]
                for name, each in predictions.items()
            }
            real = {s: np.mean([case.real(s)[0] for case in cases], axis=0) for s in SCALES}
            predicted = {scale: _mean_changes({**given, **found}, scale) for scale in SCALES}
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
        codes = self.layout.codes
        control = self.layout.is_control[codes]
        found = []
        for number in range(_N_HALVINGS):
            half = random_parts(codes, (0.5, 0.5), self._seed + number // 2)
            measuring = control & (half != number % 2)
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
                if (sizes := {fit.n_genes for fit in _fits(given[pair])}) != {n_genes}:
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
        first = profiles.half_weights(n_cells, N_SPLITS, rng=self.rng)[0] > 0
        values = [float(e_distance(self.treated[half], self.treated[~half])) for half in first]
        return {_DISTANCE: np.array([np.mean(values), *values])}


def _fits(given: Fits) -> Sequence[Fit]:
    return [given] if isinstance(given, Fit) else given


def _change(
    fit: Fit, pair: Pair, view: View, simple: Mapping[str, Sequence[Prediction]], number: int
) -> Prediction:
    """Return a predicted change; without a predicted control, that against cells that train."""
    if isinstance(fit, Prediction):
        return fit
    if isinstance(fit, Mixture):
        return fit.with_simple(simple[fit.simple][number])
    rows = ((s, means, means.find((), pair.context)) for s, means in view.training.items())
    return fit.against({s: means.means[row] for s, means, row in rows if row is not None})


def _mean_changes(methods: _Fits, scale: Scale) -> dict[str, FloatArray]:
    every = {name: [each for views in fits for each in views] for name, fits in methods.items()}
    return {
        name: np.mean([each.change[scale] for each in predictions], axis=0)
        for name, predictions in every.items()
        if all(scale in each.change for each in predictions)
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


def _monte_carlo(first: Case, fits: Sequence[Prediction]) -> dict[Key, float]:
    """Return the standard error of scores from the number of cells that each fit has drawn."""
    squares: dict[Key, list[float]] = {}
    for fit in fits:
        parts = [first.scores(part) for part in fit.parts]
        for key in parts[0] if len(parts) > 1 else ():
            values = np.array([part[key][0] for part in parts])
            squares.setdefault(key, []).append(values.var(ddof=1) / len(values))
    return {key: float(np.sqrt(np.sum(each)) / len(fits)) for key, each in squares.items()}
