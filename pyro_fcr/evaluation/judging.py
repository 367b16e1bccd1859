"""Predicted responses against real ones, for cells that a fit has not seen. Nothing is refitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat

from pyro_fcr.api import FCR
from pyro_fcr.data import SchemaError, Split
from pyro_fcr.data.pairs import Layout, Mask, Pair, listed, read_layout
from pyro_fcr.data.scenarios import Kind, Scenario
from pyro_fcr.metrics.predictions import Prediction, predicted_cells
from pyro_fcr.metrics.responses_table import ResponseTable, headline, response_table

MODEL = "fcr"
SEEN_PAIRS = "seen pairs"
_FEWEST = 2  # cells of a group whose spread is to be judged
_N_SOURCE = 250  # control cells whose responses are predicted, of a context
_N_DRAWS = 2  # of each
_MOST_PAIRS = 50  # that the fit had: every pair is ranked against every other one
_N_TARGETS = 20  # doses that these are spread over, at most


@dataclass(frozen=True, eq=False)
class Judgement:
    """What can be judged of responses.

    Parameters
    ----------
    scenarios
        Whole conditions that training lacked, by kind; if there are none, the pairs that it had,
        judged on cells that gave no gradient.
    left_out
        Reason for each pair that cannot be judged.
    """

    scenarios: tuple[Scenario, ...]
    left_out: dict[str, str]


def plan_judgement(fcr: FCR, adata: AnnData, split: Split) -> Judgement:
    """Find what was held out of a fit, and check that it does not leak.

    Raises
    ------
    ValueError
        Held-out cells are among the training cells under another name.
    """
    if fcr.registry.schema.control is None:
        return Judgement((), {"responses": "the schema has no control: nothing to respond against"})
    layout = read_layout(adata.obs, fcr.registry.schema)
    train, fitted = _mask(split.train, adata.n_obs), _mask(split.train, adata.n_obs)
    fitted[split.heldout] = True
    found = _unseen(fcr, layout, fitted)
    if not found.scenarios:
        found = Judgement(*_seen(layout, train, found.left_out))
    for scenario in found.scenarios:
        scenario.check(adata, fcr.registry.schema)
    return found


def _mask(rows: np.ndarray, n_cells: int) -> Mask:
    mask = np.zeros(n_cells, dtype=bool)
    mask[rows] = True
    return mask


def _unseen(fcr: FCR, layout: Layout, fitted: Mask) -> Judgement:
    """Pairs without a cell in the fit, grouped by what else of them it lacked."""
    n_fitted, size = layout.n_cells(fitted), layout.n_cells()
    groups: dict[Kind, list[int]] = {}
    left_out = {}
    for i, pair in layout.treated().items():
        if n_fitted[i]:
            continue
        control = layout.control_of(pair)
        if size[i] < _FEWEST:
            left_out[listed([pair])] = f"{size[i]} cell, wanted {_FEWEST}"
        elif control is None or size[control] < _FEWEST or not n_fitted[control]:
            left_out[listed([pair])] = "no control cells of its context in the fit"
        elif reason := _unknown(fcr, pair):
            left_out[listed([pair])] = reason
        else:
            groups.setdefault(_kind(layout, pair, n_fitted), []).append(i)
    made = [
        Scenario(
            kind,
            tuple(layout.pairs[i] for i in rows),
            fitted,
            np.isin(layout.codes, rows),
        )
        for kind, rows in groups.items()
    ]
    return Judgement(tuple(made), left_out)


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


def _unknown(fcr: FCR, pair: Pair) -> str:
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
    layout: Layout, train: Mask, left_out: dict[str, str]
) -> tuple[tuple[Scenario, ...], dict[str, str]]:
    """Pairs of the fit, with their cells, and their controls', that gave no gradient."""
    n_train, n_test = layout.n_cells(train), layout.n_cells(~train)
    enough = (n_train > 0) & (n_test >= _FEWEST)
    rows = [
        i
        for i, pair in layout.treated().items()
        if enough[i] and (control := layout.control_of(pair)) is not None and enough[control]
    ]
    if len(rows) > _MOST_PAIRS:
        left_out = {**left_out, SEEN_PAIRS: f"{_MOST_PAIRS} of {len(rows)}, drawn at random"}
        rows = sorted(np.random.default_rng(0).choice(rows, _MOST_PAIRS, replace=False).tolist())
    if not rows:
        reason = "no pair and its control have two held-out cells and a training cell each"
        return (), {**left_out, "responses": reason}
    controls = {layout.control_of(layout.pairs[i]) for i in rows}
    test = ~train & np.isin(layout.codes, [*rows, *(i for i in controls if i is not None)])
    pairs = tuple(layout.pairs[i] for i in rows)
    return (Scenario("random", pairs, train, test),), left_out


def judge(
    fcr: FCR, adata: AnnData, found: Judgement, *, n_draws: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict every pair and score it beside all baselines and the ceiling.

    Returns
    -------
    The frame of :func:`pyro_fcr.metrics.responses_table.response_table`, in which pairs that the
    fit had are of the scenario ``"seen pairs"``; and FCR minus the best baseline on every scale and
    metric, see :func:`pyro_fcr.metrics.responses_table.headline`. Both empty where there is
    nothing to judge.
    """
    if not found.scenarios:
        return pd.DataFrame(), pd.DataFrame()
    predictor = _Predictor(fcr, adata, seed)
    judged = ((s, {MODEL: {p: predictor(p, s) for p in s.pairs}}) for s in found.scenarios)
    table = response_table(adata, fcr.registry.schema, judged, n_draws=n_draws, seed=seed)
    frame = table.frame.replace({"scenario": {"random": SEEN_PAIRS}})
    return frame, _headlines(replace(table, frame=frame), seed=seed)


def _headlines(table: ResponseTable, *, seed: int) -> pd.DataFrame:
    """One table of all metrics that the model has a value of in every scenario."""
    model = table.frame[table.frame["method"] == MODEL]
    known = model.groupby(["metric", "scale"], sort=False)["value"].apply(lambda v: v.notna().any())
    rows = [
        headline(table, metric, model=MODEL, scale=scale, seed=seed)
        for metric, scale in known.index[known]
    ]
    return pd.concat(rows, ignore_index=True)


class _Predictor:
    """Counterfactuals of a context's control cells under a treatment, and under none."""

    def __init__(self, fcr: FCR, adata: AnnData, seed: int) -> None:
        self.fcr, self.adata, self.seed = fcr, adata, seed
        self.schema = fcr.registry.schema
        self.layout = read_layout(adata.obs, self.schema)
        self._untreated: dict[tuple[str, ...], Any] = {}

    def __call__(self, pair: Pair, scenario: Scenario) -> Prediction:
        """Predict a pair; of its judged cells the doses alone are looked at."""
        source = self._source(pair)
        if pair.context not in self._untreated:
            self._untreated[pair.context] = self._draw(source, treatment=self.schema.control)
        own = self.layout.codes == self.layout.pairs.index(pair)
        targets = self._targets(self.adata.obs[own & scenario.test], pair, source.n_obs)
        treated = concat([self._draw(source[rows], **target) for rows, target in targets])
        expression = self.schema.expression
        return predicted_cells(treated.X, self._untreated[pair.context].X, expression=expression)

    def _source(self, pair: Pair) -> AnnData:
        """Control cells of a context, some of many."""
        rows = np.flatnonzero(self.layout.codes == self.layout.control_of(pair))
        if len(rows) > _N_SOURCE:
            rows = np.random.default_rng(self.seed).choice(rows, _N_SOURCE, replace=False)
        return self.adata[np.sort(rows)]

    def _targets(
        self, cells: pd.DataFrame, pair: Pair, n_source: int
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Spread source cells over the doses that a pair's cells were given."""
        every = np.arange(n_source)
        if self.schema.dose_key is None:
            return [(every, {"treatment": pair.treatment})]
        given = cells[[self.schema.treatment_key, self.schema.dose_key]].sample(
            min(len(cells), n_source, _N_TARGETS), random_state=np.random.default_rng(self.seed)
        )
        groups = [tuple(row) for row in given.itertuples(index=False)]
        return [
            (
                np.flatnonzero([groups[i % len(groups)] == each for i in every]),
                {"treatment": str(each[0]), "dose": each[1]},
            )
            for each in dict.fromkeys(groups)
        ]

    def _draw(self, source: AnnData, **target: Any) -> AnnData:
        return self.fcr.counterfactual(source, **target, n_draws=_N_DRAWS, seed=self.seed)
