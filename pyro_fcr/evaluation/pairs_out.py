"""Every pair of treatment and context predicted by fits that lacked it: whom to trust, and how far.

A model that was fitted once is judged on the few pairs that were kept from it. Fits that leave out
each pair in turn, some at a time, judge it on all of them, and tell how much it should weigh beside
a regression on condition means where a pair was never measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import Schema, Split, split_cells
from pyro_fcr.data.folds import deal_pairs
from pyro_fcr.data.pairs import Layout, Pair, read_layout
from pyro_fcr.data.scenarios import Scenario
from pyro_fcr.data.splits import training_cells
from pyro_fcr.draws import QueryError
from pyro_fcr.evaluation.arms import Arms
from pyro_fcr.evaluation.judging import N_DRAWS, N_SOURCE, dose_of
from pyro_fcr.metrics.chances import Chances
from pyro_fcr.metrics.conformal import ConformalIntervals, noise_variance
from pyro_fcr.metrics.judge import Fits
from pyro_fcr.metrics.profiles import SCALES, Mixture, Prediction, Scale, values_of
from pyro_fcr.metrics.response_table import (
    MODEL,
    REAL,
    ResponseTable,
    headline,
    predicted_changes,
    response_table,
    scores_by_method,
)
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.metrics.stacking import Stack, stack
from pyro_fcr.queries import Fitted
from pyro_fcr.queries.refitting import Programs, Refittable, refit
from pyro_fcr.queries.simple import SimpleAnswers
from pyro_fcr.values import check_choice

STACKED, SIMPLE = "stacked", "ridge"


@dataclass(frozen=True, eq=False)
class PairsOut:
    """Every pair as predicted by fits that lacked it.

    Parameters
    ----------
    table
        Scores of the model (``"fcr"``), of its mean with ridge regression (``"stacked"``, each pair
        by the weight that the other pairs give), all baselines and the ceiling.
    stack
        The model's weight beside ridge regression.
    chances
        How likely the model beats the best baseline on a pair that was not measured.
    intervals
        By scale, of the stacked prediction, from its errors on the pairs.
    left_out
        Pairs that could not be left out, and why.
    """

    table: ResponseTable
    stack: Stack
    chances: Chances
    intervals: Mapping[Scale, ConformalIntervals]
    left_out: Mapping[str, str]

    @property
    def coverage(self) -> pd.DataFrame:
        """How often intervals learnt from other pairs hold what was measured of a pair."""
        return pd.concat([own.coverage() for own in self.intervals.values()], ignore_index=True)

    def headline(self, metric: str = "cosine_logfc", *, model: str = STACKED) -> pd.DataFrame:
        """Compare a method with the best baseline on both scales; `pyro_fcr.metrics.headline`."""
        scales = set(self.table.frame.query("metric == @metric")["scale"])
        tables = [
            headline(self.table, metric, model=model, scale=scale)
            for scale in SCALES
            if scale in scales
        ]
        return pd.concat(tables, ignore_index=True)

    def respond(
        self,
        fcr: Fitted,
        treatment: str,
        covariates: Mapping[str, str],
        *,
        level: float = 0.9,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Predict the response of a pair that was never measured.

        Parameters
        ----------
        fcr
            The model, fitted to all pairs.
        treatment, covariates
            The pair; control cells of its context are needed.
        level
            Probability of the intervals.
        seed
            Seed of the draws.

        Returns
        -------
        A row per gene; columns ``(scale, method)`` with the predicted change of the model, of ridge
        regression and of both weighed (``"stacked"``), and the interval of the latter, ``"lower"``
        and ``"upper"``, see `pyro_fcr.metrics.conformal`. ``attrs["chance"]`` is that of the model
        alone against the best baseline.

        Raises
        ------
        pyro_fcr.QueryError
            The model has no control cells of the context.
        pyro_fcr.SchemaError
            Treatment or context were never seen.
        """
        registry, adata = fcr.registry, fcr.source(None)
        registry.encode_covariates(covariates)
        label = registry.canonical(treatment)
        context = tuple(str(covariates[key]) for key in registry.schema.covariate_keys)
        layout = read_layout(adata.obs, registry.schema)
        control = layout.control_of(Pair(label, context))
        train = np.isin(np.arange(adata.n_obs), fcr.split_of().train)
        if control is None or not (train & (layout.codes == control)).any():
            raise QueryError(f"There are no control cells of {' / '.join(context)} in training.")
        arms = Arms(fcr, adata, n_source=N_SOURCE, n_draws=N_DRAWS, seed=seed)
        given = arms.predict(Pair(label, context), source=train, dosed=train).change
        answers = SimpleAnswers(fcr, SIMPLE)
        simple = {scale: answers.change(Pair(label, context), scale) for scale in SCALES}
        mixed = self.stack.mix(given, simple)
        columns = {
            (scale, name): found[scale]
            for scale in SCALES
            for name, found in ((MODEL, given), (SIMPLE, simple), (STACKED, mixed))
        }
        for scale, own in self.intervals.items():
            ends = zip(("lower", "upper"), own.of(mixed[scale], level), strict=True)
            columns |= {(scale, name): values for name, values in ends}
        found = pd.DataFrame(columns, index=pd.Index(registry.genes, name="gene"))
        found.attrs["chance"] = self.chances.of(answers.features(Pair(label, context)))
        return found


def leave_pairs_out(
    fcr: Refittable,
    *,
    n_folds: int = 4,
    n_fits: int = 1,
    programs: Programs | None = None,
    metric: str = "cosine_logfc",
    n_draws: int = 200,
    seed: int = 0,
    **settings: Any,
) -> PairsOut:
    """Fit the model to all pairs but some, in turn, and predict those.

    Parameters
    ----------
    fcr
        The model, with its data; it need not be fitted and is not changed.
    n_folds
        How many parts the pairs are dealt to; each part is left out of a fit. As many as there are
        pairs leaves out one at a time.
    n_fits
        How often each fit is repeated, from other initial parameters.
    programs
        Function that makes a fresh model and guide, for programs of your own.
    metric
        What says which prediction is the better one, for the chances: a name of
        :data:`pyro_fcr.metrics.SCORES`, on mean log1p expression.
    n_draws
        Bootstrap draws of the measured cells.
    seed
        Seed of the parts and of the fits.
    **settings
        As in :meth:`pyro_fcr.FCR.fit`, e.g. ``max_epochs=150``.

    Raises
    ------
    pyro_fcr.QueryError
        No treatment was seen in two contexts with control cells, and of no combination each agent
        in another treatment.
    ValueError
        There are fewer than two folds, or no fits.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :40].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> found = leave_pairs_out(fcr, n_folds=2, n_draws=20, max_epochs=1)
    >>> len(found.stack.left_out), 0 <= found.stack.weight["log1p_mean"] <= 1
    (5, True)
    """
    if n_folds < 2 or n_fits < 1:
        raise ValueError(f"n_folds is {n_folds} and n_fits {n_fits}; expected 2 and 1 or more.")
    check_choice("metric", metric, SCORES)
    adata, schema = fcr.source(None), fcr.registry.schema
    if schema.control is None:
        raise QueryError("A response needs untreated cells, but the schema names no control.")
    layout = read_layout(adata.obs, schema)
    scenarios, reasons = deal_pairs(layout, training_cells(adata.obs, schema), n_folds, seed)
    if not scenarios:
        raise QueryError(
            f"No pair can be left out: {next(iter(reasons.values()), 'there is none')}."
        )
    first, known = {}, {}
    for scenario in scenarios:
        fits = [
            _without(fcr, layout, scenario, programs, {**settings, "seed": seed + number})
            for number in range(n_fits)
        ]
        first[scenario], known[scenario] = fits[0], _predictions(fits, adata, scenario, seed)
    changes = predicted_changes(adata, schema, _given(known), seed=seed)
    found = stack(changes, model=MODEL, simple=SIMPLE)
    both = _given(known, found)
    table = response_table(adata, schema, both, n_draws=n_draws, seed=seed)
    chances = _chances(first, table, metric)
    return PairsOut(table, found, chances, _intervals(adata, schema, table), reasons)


def _chances(first: Mapping[Scenario, Refittable], table: ResponseTable, metric: str) -> Chances:
    """Learn where the model beats the best baseline from what was known of each pair before."""
    scale = SCALES[0]
    best = headline(table, metric, model=MODEL, scale=scale)
    simple = str(best.loc[best["against"] == "best on average", "baseline"].iloc[0])
    part = table.frame.query("metric == @metric and scale == @scale")
    scores = scores_by_method(part, table.draws, metric)
    some = next(iter(first.values()))
    schema, obs = some.registry.schema, some.source(None).obs
    gains = scores[MODEL] - scores[simple]
    known = {
        (pair.treatment, pair.place): answers.features(pair, dose_of(obs, schema, pair))
        for scenario, fit in first.items()
        for answers in [SimpleAnswers(fit, simple)]
        for pair in scenario.pairs
    }
    places = part[["treatment", "context"]].drop_duplicates()
    rows = [
        {"treatment": t, "context": x, **known[t, x], "gain": own[0], "share": (own[1:] > 0).mean()}
        for (t, x), own in zip(places.itertuples(index=False, name=None), gains, strict=True)
    ]
    return Chances(pd.DataFrame(rows), simple, metric, scale)


def _intervals(
    adata: AnnData, schema: Schema, table: ResponseTable
) -> dict[Scale, ConformalIntervals]:
    """Learn intervals of the stacked prediction from its errors."""
    values, layout = values_of(adata, schema), read_layout(adata.obs, schema)
    position = {(pair.treatment, pair.place): i for i, pair in layout.treated().items()}
    found = {}
    for scale, changes in table.changes.items():
        rows = {name: own.droplevel("method") for name, own in changes.groupby(level="method")}
        noise = {
            i: noise_variance(values[layout.codes == i], scale)
            for i in layout.with_controls(list(position.values()))
        }
        pairs = [position[t, x] for _, t, x in rows[REAL].index]
        of_pairs = [noise[i] + noise[layout.with_controls([i])[1]] for i in pairs]
        stacked = rows[STACKED].loc[rows[REAL].index].to_numpy()
        real = rows[REAL].to_numpy()
        found[scale] = ConformalIntervals(stacked, real, np.array(of_pairs), scale)
    return found


def _without(
    fcr: Refittable,
    layout: Layout,
    scenario: Scenario,
    programs: Programs | None,
    settings: dict[str, Any],
) -> Refittable:
    """Fit the model without the pairs of a scenario; nothing of them is known to it."""
    schema, obs = fcr.registry.schema, fcr.source(None).obs
    rows = np.flatnonzero(scenario.train)
    split = split_cells(obs.iloc[rows], schema, seed=settings["seed"])
    split = Split(rows[split.train], rows[split.heldout])
    return refit(fcr, split, seed=settings["seed"], programs=programs, settings=settings)


def _predictions(
    fits: list[Refittable], adata: Any, scenario: Scenario, seed: int
) -> dict[Pair, list[Prediction]]:
    found: dict[Pair, list[Prediction]] = {pair: [] for pair in scenario.pairs}
    for fit in fits:
        arms = Arms(fit, adata, n_source=N_SOURCE, n_draws=N_DRAWS, seed=seed)
        for pair, given in found.items():
            given.append(arms.predict(pair, source=scenario.train, dosed=scenario.test))
    return found


def _given(
    known: Mapping[Scenario, Mapping[Pair, list[Prediction]]], found: Stack | None = None
) -> Iterator[tuple[Scenario, dict[str, Mapping[Pair, Fits]]]]:
    """Yield scenarios with the model's predictions, and with the stacked ones if known.

    A pair is stacked by the weight that the other pairs give.
    """
    for scenario, predictions in known.items():
        methods: dict[str, Mapping[Pair, Fits]] = {MODEL: predictions}
        if found is not None:
            weights = found.left_out.loc[scenario.kind].to_dict("index")
            methods[STACKED] = {
                pair: [Mixture(fit, SIMPLE, weights[pair.treatment, pair.place]) for fit in fits]
                for pair, fits in predictions.items()
            }
        yield scenario, methods
