"""Predicted responses against real ones, for cells that a fit has not seen. Nothing is refitted."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import Schema, SchemaError, Split
from pyro_fcr.data.pairs import FEWEST_CONTROLS, Layout, Mask, Pair, read_layout
from pyro_fcr.data.scenarios import Kind, Scenario, Scenarios, predicted
from pyro_fcr.evaluation.arms import Arms
from pyro_fcr.metrics.arrays import draw_rows
from pyro_fcr.metrics.judge import Predictions
from pyro_fcr.metrics.profiles import Prediction
from pyro_fcr.metrics.response_table import MODEL, headline, response_table
from pyro_fcr.queries import Fitted
from pyro_fcr.queries.simple import SimpleAnswers

N_SOURCE = 500  # control cells of a context whose responses are predicted
N_DRAWS = 20  # draws of each
_MOST_PAIRS = 50  # pairs that the fit had: each is ranked against every other one


def judged_scenarios(
    adata: AnnData, schema: Schema, split: Split, *, unknown: Callable[[Pair], str]
) -> Scenarios:
    """Find what was held out of a fit, and check that it does not leak.

    Parameters
    ----------
    adata, schema
        All cells, and what their columns mean.
    split
        Cells that the fit had; all others were left out.
    unknown
        Says why a pair is not predicted; nothing if it is.

    Returns
    -------
    Whole conditions that training lacked, by kind; if there are none, the pairs that it had, judged
    on cells that gave no gradient; and the reason for each pair that cannot be judged.

    Raises
    ------
    ValueError
        Held-out cells are among the training cells under another name.
    """
    if schema.control is None:
        return Scenarios((), {"responses": "the schema has no control to respond against"})
    layout = read_layout(adata.obs, schema)
    train = np.isin(np.arange(adata.n_obs), split.train)
    found = _unseen(layout, train | np.isin(np.arange(adata.n_obs), split.heldout), unknown)
    if not found.made:
        found = _seen(layout, train, found.left_out, unknown)
    for scenario in found.made:
        scenario.check(adata, schema)
    return found


def _unseen(layout: Layout, fitted: Mask, unknown: Callable[[Pair], str]) -> Scenarios:
    """Find the pairs without a cell in the fit, grouped by what else of them it lacked."""
    n_fitted, size = layout.n_cells(fitted), layout.n_cells()
    groups: dict[Kind, list[int]] = {}
    left_out = {}
    for i, pair in layout.treated().items():
        if n_fitted[i]:
            continue
        reason = layout.lacks(i, size, controls=FEWEST_CONTROLS) or unknown(pair)
        if not reason and not n_fitted[layout.with_controls([i])].any():
            reason = "no control cells of its context in the fit"
        if reason:
            left_out[str(pair)] = reason
        else:
            groups.setdefault(_kind(layout, pair, n_fitted), []).append(i)
    made = [predicted(kind, layout, rows, train=fitted) for kind, rows in groups.items()]
    return Scenarios(tuple(made), left_out)


def _kind(layout: Layout, pair: Pair, n_fitted: np.ndarray) -> Kind:
    """Say what else of a pair the fit lacked: the treatment anywhere, or more of the context."""
    treated = layout.treated()
    seen = [each for i, each in treated.items() if n_fitted[i]]
    if pair.treatment not in {each.treatment for each in seen}:
        return "unseen treatment"
    alone = sum(each.context == pair.context for each in treated.values()) == 1
    if alone or pair.context in {each.context for each in seen}:
        return "unseen pair"
    return "unseen context"


def not_asked(fcr: Fitted, pair: Pair) -> str:
    """Say what of a pair the model cannot be asked; nothing if it can."""
    registry = fcr.registry
    try:
        registry.canonical(pair.treatment)
        registry.encode_covariates(
            dict(zip(registry.schema.covariate_keys, pair.context, strict=True))
        )
    except SchemaError as error:
        return str(error)
    return ""


def _seen(
    layout: Layout, train: Mask, left_out: dict[str, str], unknown: Callable[[Pair], str]
) -> Scenarios:
    """Take the pairs of the fit, with their cells, and their controls', that gave no gradient."""
    n_train, n_test = layout.n_cells(train), layout.n_cells(~train)
    rows = [
        i
        for i, pair in layout.treated().items()
        if not (layout.lacks(i, n_test) or unknown(pair))
        and n_train[layout.with_controls([i])].all()
    ]
    if not rows:
        reason = "no pair and its control have two held-out cells and a training cell each"
        return Scenarios((), {**left_out, "responses": reason})
    if len(rows) > _MOST_PAIRS:
        left_out = {**left_out, "seen pairs": f"{_MOST_PAIRS} of {len(rows)}, drawn at random"}
        rows = [rows[i] for i in draw_rows(len(rows), _MOST_PAIRS, 0)]
    test = ~train & np.isin(layout.codes, layout.with_controls(rows))
    pairs = tuple(layout.pairs[i] for i in rows)
    return Scenarios((Scenario("seen pairs", pairs, train, test),), left_out)


def predict_pairs(
    fcr: Fitted, adata: AnnData, *, seed: int
) -> Callable[[Scenario], Mapping[str, Mapping[Pair, Prediction]]]:
    """Return what predicts the pairs of a scenario with a fitted model."""

    def predict(scenario: Scenario) -> dict[str, dict[Pair, Prediction]]:
        cells = {"source": ~scenario.test, "dosed": scenario.test}
        return {MODEL: {pair: arms().predict(pair, **cells) for pair in scenario.pairs}}

    # Untreated cells are drawn once for all scenarios.
    arms = cache(lambda: Arms(fcr, adata, n_source=N_SOURCE, n_draws=N_DRAWS, seed=seed))
    return predict


def judge(
    adata: AnnData,
    schema: Schema,
    scenarios: tuple[Scenario, ...],
    predict: Callable[[Scenario], Predictions],
    *,
    n_draws: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Predict every pair of the scenarios and score it beside all baselines and the ceiling.

    Returns
    -------
    ``responses``, ``methods`` and ``changes`` of :func:`pyro_fcr.metrics.response_table`; and as
    ``headline`` each method minus the best baseline on every scale and metric that it has a value
    of, see :func:`pyro_fcr.metrics.headline`. All are empty without scenarios.
    """
    if not scenarios:
        return dict.fromkeys(("responses", "methods", "changes", "headline"), pd.DataFrame())
    judged = ((scenario, predict(scenario)) for scenario in scenarios)
    table = response_table(adata, schema, judged, n_draws=n_draws, seed=seed)
    known = table.frame[(table.frame["role"] == "model") & table.frame["value"].notna()]
    asked = known[["method", "metric", "scale"]].drop_duplicates()
    heads = [
        headline(table, metric, model=method, scale=scale, seed=seed)
        for method, metric, scale in asked.itertuples(index=False)
    ]
    found = {
        "responses": table.frame,
        "methods": table.methods,
        "changes": table.changes["mean_log1p"],
    }
    return {**found, "headline": pd.concat(heads, ignore_index=True)}


def chances(fcr: Fitted, adata: AnnData, scenarios: tuple[Scenario, ...]) -> pd.DataFrame:
    """Say how likely the model beats the best simple method, pair by pair.

    Returns
    -------
    A row per unseen pair of the scenarios, and per pair that was left out in turn (``left_out``),
    see :class:`pyro_fcr.metrics.chances.Chances`; empty if none were.
    """
    if fcr.chances is None:
        return pd.DataFrame()
    answers, rows = SimpleAnswers(fcr, fcr.chances.simple, adata), []
    for pair in (pair for s in scenarios if not s.of_seen for pair in s.pairs):
        features = answers.features(pair, dose_of(adata.obs, fcr.registry.schema, pair))
        about = {"treatment": pair.treatment, "context": pair.place, "left_out": False}
        found = {"chance": fcr.chances.of(features), "against": fcr.chances.simple}
        rows.append(about | features | found)
    known = fcr.chances.pairs.assign(left_out=True)
    return pd.concat([pd.DataFrame(rows), known]) if rows else known


def dose_of(obs: pd.DataFrame, schema: Schema, pair: Pair) -> Any:
    """Return the dose of a pair's first cell; None without doses."""
    if schema.dose_key is None:
        return None
    layout = read_layout(obs, schema)
    rows = np.flatnonzero(layout.codes == layout.pairs.index(pair))
    return obs[schema.dose_key].iloc[rows[0]]
