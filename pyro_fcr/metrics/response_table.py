"""One table of how well responses are predicted: models, all baselines, ceiling, with intervals."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data.scenarios import Scenario
from pyro_fcr.data.schema import Schema
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.baselines import BASELINES
from pyro_fcr.metrics.intervals import check_levels, shifted
from pyro_fcr.metrics.judge import CEILING, Changes, Judge, Judged, Predictions
from pyro_fcr.metrics.profiles import SCALES, Scale
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.values import checked

REAL: Final = "real"
MODEL: Final = "fcr"  # the method's name of a fitted model of ours
WORDS: Final = {
    "model": "the fitted model",
    "ceiling": "a perfect prediction, measured on so many cells",
}
PLACE: Final = ["scenario", "treatment", "context"]


def model_title(method: str) -> str:
    """Return the name of a model in text."""
    return "FCR" if method == MODEL else method


@dataclass(frozen=True, eq=False)
class ResponseTable:
    """Scores of predicted responses.

    Parameters
    ----------
    frame
        One row per pair, method, scale and metric: ``scenario`` (its kind), ``treatment``,
        ``context``, ``method``, ``role`` (``"model"``, ``"baseline"``, ``"ceiling"``), ``scale``,
        ``metric`` (see :data:`pyro_fcr.metrics.SCORES`), ``monte_carlo`` (standard error of the
        score from the number of drawn cells, nan where none are drawn or it is not known),
        ``value``, ``low``, ``high``.
    draws
        Each row's score in the bootstrap draws, ``(n_rows, n_draws)``; draws of one number are of
        the same cells in all rows. nan in rows of the ceiling.
    level
        Probability of the intervals.
    changes
        By scale, changes with a column per gene; a row per scenario, treatment, context and method,
        the measured change as method ``"real"``.
    """

    frame: pd.DataFrame
    draws: FloatArray
    level: float
    changes: Mapping[Scale, pd.DataFrame] = field(default_factory=dict)

    @property
    def methods(self) -> pd.DataFrame:
        """Every method with its ``role`` and ``words``: models, all baselines, the ceiling."""
        table = self.frame[["method", "role"]].drop_duplicates(ignore_index=True)
        order = {name: number for number, name in enumerate((*BASELINES, CEILING))}
        table = table.sort_values("method", key=lambda names: names.map(order).fillna(-1))
        words = table["method"].map({name: each.words for name, each in BASELINES.items()})
        words = words.fillna(table["role"].map(WORDS))
        return table.assign(words=words).reset_index(drop=True)


@checked()
def response_table(
    adata: AnnData,
    schema: Schema,
    judged: Iterable[tuple[Scenario, Predictions]],
    *,
    n_draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> ResponseTable:
    """Score models beside all baselines and the ceiling that noise of the cells sets.

    Real responses come from all cells of a pair, in random scenarios from the test cells only,
    against control cells that no baseline sees, so that noise of the controls is no agreement: the
    test cells among them, or one half of them in turn where there are none, while baselines see the
    other half. Baselines see the training cells. Intervals say how far a score moves if other
    cells of the same number had been measured: quantiles of bootstrap draws of the real treated and
    control cells, shifted so that their mean is the score (a draw has the noise of the cells twice,
    and would by itself lie below). Where that noise is most of an error they are too wide rather
    than too narrow. A prediction is held fixed; where there are several of a pair, of repeated
    fits, the score is their mean and draws are of fits, too. The ceiling is what a perfect
    prediction would score on so many cells; its interval is of random halves.

    Parameters
    ----------
    adata
        All cells; not changed.
    schema
        Names the columns, layer and kind of expression.
    judged
        Each scenario with predictions by method and pair; baselines alone where there are none. May
        be a generator that fits a model for each scenario, after :meth:`Scenario.check`: one is
        taken at a time.
    n_draws
        Bootstrap draws.
    level
        Probability of the intervals.
    seed
        Seed of everything random.

    Returns
    -------
    Both scales and all metrics; a baseline that a pair does not define has no rows there.

    Raises
    ------
    ValueError
        A scenario leaks (:meth:`Scenario.check`), a method has the name of a baseline, lacks a
        pair, or has another number of genes; the level or number of draws makes no interval.

    Examples
    --------
    >>> import pyro_fcr
    >>> from pyro_fcr.data.scenarios import unseen_pairs
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[:, :50]
    >>> schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    >>> scenario = unseen_pairs(adata.obs, schema).made[0]
    >>> table = response_table(adata, schema, [(scenario, {})], n_draws=20)
    >>> table.frame.query("metric == 'cosine_logfc' and scale == 'mean_log1p'")["method"].tolist()
    ['control_mean', 'treatment_mean_shift', 'additive', 'ridge', 'noise_ceiling']
    """
    check_levels([level])
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}; expected 1 or more: intervals come from draws.")
    judge = Judge(adata, schema, n_draws=n_draws, seed=seed)
    rows, draws, changes = [], [], []
    for scenario, predictions in judged:
        scenario.check(adata, schema)
        for each in judge.judge(scenario, predictions):
            pair = each.changes.pair
            place = (scenario.kind, pair.treatment, pair.place)
            changes.append((scenario.kind, each.changes))
            for about, scores in _scored(each):
                ends = interval(scores, level, metric=about["metric"])
                rows.append(dict(zip(PLACE, place, strict=True)) | about | ends)
                draws.append(scores[1:] if about["role"] != "ceiling" else np.full(n_draws, np.nan))
    frames = _by_gene(changes, adata.var_names)
    return ResponseTable(pd.DataFrame(rows), np.array(draws), level, frames)


def predicted_changes(
    adata: AnnData,
    schema: Schema,
    judged: Iterable[tuple[Scenario, Predictions]],
    *,
    seed: int = 0,
) -> dict[Scale, pd.DataFrame]:
    """Return what :attr:`ResponseTable.changes` would be, without scores and their draws.

    Parameters
    ----------
    adata, schema, judged, seed
        As in :func:`response_table`.
    """
    judge = Judge(adata, schema, n_draws=0, seed=seed)
    changes = [(s.kind, each) for s, given in judged for each in judge.changes(s, given)]
    return _by_gene(changes, adata.var_names)


def _by_gene(changes: Iterable[tuple[str, Changes]], genes: pd.Index) -> dict[Scale, pd.DataFrame]:
    rows: dict[Scale, dict[tuple[str, ...], FloatArray]] = {scale: {} for scale in SCALES}
    for kind, each in changes:
        for scale, own in rows.items():
            found = {REAL: each.real[scale], **each.predicted[scale]}
            place = (kind, each.pair.treatment, each.pair.place)
            own |= {(*place, name): change for name, change in found.items()}
    frames = {
        s: pd.DataFrame.from_dict(own, orient="index", columns=genes) for s, own in rows.items()
    }
    names = [*PLACE, "method"]
    return {
        scale: frame.set_axis(pd.MultiIndex.from_tuples(frame.index, names=names))
        for scale, frame in frames.items()
    }


def interval(scores: FloatArray, level: float, *, metric: str) -> dict[str, float]:
    """Return the first score and quantiles of the others, shifted to have it as their mean."""
    value = float(scores[0])
    if not np.isfinite(scores).all():
        return {"value": value, "low": np.nan, "high": np.nan}
    ends = shifted(value, scores[1:], level).clip(SCORES[metric].lowest, SCORES[metric].highest)
    return {"value": value, "low": float(ends[0]), "high": float(ends[1])}


def _scored(judged: Judged) -> Iterator[tuple[dict[str, Any], FloatArray]]:
    """Yield method, role, scale and metric with the score as it is and in draws; ceiling last."""
    for name, scores in judged.scores.items():
        role = "baseline" if name in BASELINES else "ceiling" if name == CEILING else "model"
        error = judged.monte_carlo.get(name, {})
        for (scale, metric), values in scores.items():
            about = {"method": name, "role": role, "scale": scale, "metric": metric}
            yield about | {"monte_carlo": error.get((scale, metric), np.nan)}, values


@checked()
def headline(
    table: ResponseTable, metric: str, *, model: str, scale: Scale = "mean_log1p", seed: int = 0
) -> pd.DataFrame:
    """Compare a model with the best baseline: the one line that counts.

    Parameters
    ----------
    table
        From :func:`response_table`.
    metric
        A name of :data:`pyro_fcr.metrics.SCORES`.
    model
        Name of the model among the methods.
    scale
        See `pyro_fcr.metrics.profiles`.
    seed
        Seed of the draws of pairs.

    Returns
    -------
    Two rows for each kind of scenario. ``against`` is ``"best on average"``, the baseline of best
    mean over the pairs, among those that all pairs define; and ``"best per pair"``, the best of
    each pair, chosen with hindsight and thereby harder than any prediction made beforehand.
    ``gain`` is the model's mean advantage, positive where the model is better whatever the
    direction of the metric; ``low`` and ``high`` from draws of the pairs and of their cells at
    once, model and baselines on the same ones. ``model_score`` and ``baseline_score`` are the
    means; a correlation that a constant prediction leaves undefined counts as 0.

    Raises
    ------
    ValueError
        The table has no such model, metric or scale.

    Examples
    --------
    >>> import pyro_fcr
    >>> from pyro_fcr.data.scenarios import unseen_pairs
    >>> from pyro_fcr.metrics import Prediction
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[:, :50]
    >>> schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    >>> judged = [
    ...     (s, {"nothing": {pair: Prediction({"mean_log1p": np.zeros(50)}) for pair in s.pairs}})
    ...     for s in unseen_pairs(adata.obs, schema).made
    ... ]
    >>> table = response_table(adata, schema, judged, n_draws=20)
    >>> headline(table, "mse_delta", model="nothing")["gain"].lt(0).all()
    np.True_
    """
    asked = table.frame[(table.frame["metric"] == metric) & (table.frame["scale"] == scale)]
    if model not in set(asked.loc[asked["role"] == "model", "method"]):
        known = sorted(set(table.frame.loc[table.frame["role"] == "model", "method"]))
        raise ValueError(
            f"The table has no model {model!r} with {metric!r} on {scale!r}; models: {known}, "
            f"metrics: {sorted(set(table.frame['metric']))}."
        )
    rows = []
    for kind, part in asked.groupby("scenario", sort=False):
        about = {"scenario": kind, "scale": scale, "metric": metric, "method": model}
        methods = scores_by_method(part, table.draws, metric)
        rows += [about | row for row in _against_best(methods, model, metric, table.level, seed)]
    return pd.DataFrame(rows)


def scores_by_method(part: pd.DataFrame, draws: FloatArray, metric: str) -> dict[str, FloatArray]:
    """Return scores by method, ``(n_pairs, 1 + n_draws)``, higher is better; nan where none is."""
    part = part[part["role"] != "ceiling"]
    scores = SCORES[metric].sign * np.column_stack([part["value"], draws[part.index]])
    if (undefined := SCORES[metric].undefined) is not None:
        scores[np.isnan(scores)] = undefined
    pair = part.groupby(["treatment", "context"], sort=False).ngroup().to_numpy()
    found = {}
    for name, rows in part.groupby("method").indices.items():
        found[str(name)] = np.full((pair.max() + 1, scores.shape[1]), np.nan)
        found[str(name)][pair[rows]] = scores[rows]
    return found


def _against_best(
    methods: Mapping[str, FloatArray], model: str, metric: str, level: float, seed: int
) -> Iterator[dict[str, Any]]:
    names = [name for name in BASELINES if name in methods]
    stacked = np.stack([methods[name] for name in names])
    average = stacked[..., 0].mean(axis=1)  # nan where a pair lacks the baseline
    best = int(np.nanargmax(average))
    each = np.nanargmax(stacked[..., 0], axis=0)
    on_average, per_pair = stacked[best], stacked[each, np.arange(len(each))]
    for against, baseline, other in (
        ("best on average", names[best], on_average),
        ("best per pair", ", ".join(dict.fromkeys(names[i] for i in each)), per_pair),
    ):
        yield {
            "against": against,
            "baseline": baseline,
            "n_pairs": len(other),
            **_gain(methods[model] - other, level, seed),
            "model_score": SCORES[metric].sign * methods[model][:, 0].mean(),
            "baseline_score": SCORES[metric].sign * other[:, 0].mean(),
        }


def _gain(difference: FloatArray, level: float, seed: int) -> dict[str, float]:
    """Average over pairs, with quantiles of draws of the pairs and of their cells."""
    n_pairs, n_draws = difference.shape[0], difference.shape[1] - 1
    picks = np.random.default_rng(seed).integers(n_pairs, size=(n_draws, n_pairs))
    means = difference[picks, 1 + np.arange(n_draws)[:, None]].mean(axis=1)
    gain = float(difference[:, 0].mean())
    return dict(zip(("gain", "low", "high"), (gain, *shifted(gain, means, level)), strict=True))
