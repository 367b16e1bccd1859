"""The answer of a simple method beside the model's: when it is likely to be the nearer one."""

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from pyro_fcr.data.pairs import Mask, Pair, read_layout
from pyro_fcr.draws import QueryError
from pyro_fcr.draws.sinks import Moments
from pyro_fcr.metrics import profiles
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.baselines import BASELINES, Components, ConditionMeans, training_means
from pyro_fcr.metrics.profiles import Scale, Values
from pyro_fcr.queries.fitted import Fitted, Source, make_responder
from pyro_fcr.queries.marks import support
from pyro_fcr.queries.targets import context_cells

logger = logging.getLogger(__name__)

_N_CELLS: Final = 100  # cells of an arm, of which the model's expected change is the mean
_LIBRARY: Final = 1e4


class SimpleAnswers:
    """What a simple method answers from the cells of a fit, and what is known of a pair beforehand.

    Parameters
    ----------
    fcr
        A fitted model.
    method
        A name of :data:`pyro_fcr.metrics.baselines.BASELINES`.
    adata
        The cells of the fit; None takes the model's own.

    Raises
    ------
    ValueError
        There are no cells, or it is not known which of them trained.
    """

    def __init__(self, fcr: Fitted, method: str, adata: Source = None) -> None:
        self._fcr, self.method = fcr, method
        self._schema, self._adata = fcr.registry.schema, fcr.source(adata)
        self._layout = read_layout(self._adata.obs, self._schema)
        split = fcr.split_of(adata)
        self._train: Mask = np.zeros(self._adata.n_obs, dtype=bool)
        self._train[np.concatenate([split.train, split.heldout])] = True

    @cached_property
    def _values(self) -> Values:
        return profiles.values_of(self._adata, self._schema)

    @cached_property
    def _means(self) -> dict[Scale, ConditionMeans]:
        of = self._values, self._layout, self._train
        return {scale: training_means(*of, scale=scale) for scale in profiles.SCALES}

    def change(self, pair: Pair, scale: Scale) -> FloatArray:
        """Predict the change of a pair on a scale, ``(n_genes,)``; nan where it is undefined."""
        means = self._means[scale]
        return BASELINES[self.method].predict(means, self._agents(pair), pair.context)

    def cells(
        self, pair: Pair, library: FloatArray, *, seed: int
    ) -> sparse.csr_matrix | FloatArray:
        """Draw cells of a pair: control cells of its context, each shifted by the change.

        Parameters
        ----------
        pair
            The pair.
        library
            Counts of each cell, ``(n_cells,)``.
        seed
            Seed of the draw.

        Returns
        -------
        Counts, or log1p values, as in the model's data, ``(n_cells, n_genes)``.

        Raises
        ------
        QueryError
            Training has no control cells of the context.
        """
        rows = np.flatnonzero(self._train & (self._layout.codes == self._layout.control_of(pair)))
        if not len(rows):
            raise QueryError(f"There are no control cells of {pair.place} in training.")
        rng = np.random.default_rng(seed)
        cells: Any = self._values[rng.choice(rows, len(library))]
        dense = cells.toarray() if sparse.issparse(cells) else cells
        shifted = dense + self.change(pair, "mean_log1p")
        if self._schema.expression == "log1p":
            return shifted
        rate = np.expm1(shifted.clip(min=0.0))
        rate *= library[:, None] / np.maximum(rate.sum(axis=1, keepdims=True), 1e-12)
        whole = np.floor(rate + rng.random(rate.shape))  # the cells have their noise already
        return sparse.csr_matrix(whole, dtype=np.float32)

    def features(self, pair: Pair, dose: Any = None) -> dict[str, float]:
        """Return what is known of a pair, see :data:`pyro_fcr.metrics.chances.FEATURES`.

        Parameters
        ----------
        pair
            The pair.
        dose
            Its dose, where the schema has doses.
        """
        covariates = dict(zip(self._schema.covariate_keys, pair.context, strict=True))
        means = self._means["log1p_mean"]
        own = means.shifts(self._agents(pair))
        simple, model = self.change(pair, "log1p_mean"), self._expected(pair, covariates, dose)
        size = np.linalg.norm(simple)
        others = [np.linalg.norm(each) for each in means.shifts().values()]
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "support": support(self._fcr.registry, pair.treatment, covariates, dose=dose),
                "distance": _distance(means, pair.context, [context for _, context in own]),
                "spread": _spread(list(own.values())),
                "agreement": float(simple @ model / (size * np.linalg.norm(model))),
                "ratio": float(np.log(np.linalg.norm(model) / size)),
                "size": float(np.log(size / np.median(others))) if others else np.nan,
            }

    def _expected(self, pair: Pair, covariates: Mapping[str, str], dose: Any) -> FloatArray:
        """Return the model's change of expected expression, on the scale of log1p of the mean."""
        fcr, arms = self._fcr, []
        for t in (fcr.registry.encode_treatment(pair.treatment, dose), None):
            sink = Moments()
            cells = context_cells(fcr, covariates, _N_CELLS, t=t)
            make_responder(fcr).feed(cells, expected=[sink])
            mean = sink.result()["mean"].double().mean(dim=0).cpu().numpy()
            counts = self._schema.expression == "counts"
            arms.append(np.log1p(_LIBRARY * mean / mean.sum()) if counts else mean)
        return arms[0] - arms[1]

    def _agents(self, pair: Pair) -> Components:
        return tuple(self._fcr.registry.t.read_agents(pair.treatment).agents)


def _distance(means: ConditionMeans, context: tuple[str, ...], seen: list[Any]) -> float:
    """Return the distance of a context's control to the nearest of some, by the usual one."""
    rows = {each: means.find((), each) for each in {context, *means.contexts}}
    states = {each: means.means[row] for each, row in rows.items() if row is not None}
    near = [each for each in seen if each in states and each != context]
    if context not in states or not near:
        return np.nan
    away = {c: np.linalg.norm(states[context] - v) for c, v in states.items() if c != context}
    return float(min(away[each] for each in near) / max(np.median(list(away.values())), 1e-12))


def _spread(changes: list[FloatArray]) -> float:
    """Return how far changes are from their mean, relative to it; nan of fewer than two."""
    if len(changes) < 2:
        return np.nan
    mean = np.mean(changes, axis=0)
    apart = np.sqrt(np.mean([((each - mean) ** 2).sum() for each in changes]))
    return float(apart / max(np.linalg.norm(mean), 1e-12))


def chance_marks(fcr: Fitted, obs: pd.DataFrame, extrapolated: np.ndarray) -> dict[str, np.ndarray]:
    """Return the chance that the model's answer beats the simple one, ``(n_cells,)``.

    nan of pairs that training had, and of a model that was loaded without its cells. Nothing where
    pairs were never left out of a fit.
    """
    if fcr.chances is None:
        return {}
    found, schema = np.full(len(obs), np.nan), fcr.registry.schema
    try:
        answers = SimpleAnswers(fcr, fcr.chances.simple) if extrapolated.any() else None
    except ValueError as error:
        logger.info("The chance that the model is right is not known: %s", error)
        answers = None
    layout = read_layout(obs, schema)
    for i, pair in layout.treated().items():
        rows = np.flatnonzero((layout.codes == i) & extrapolated)
        if len(rows) and answers is not None:
            dose = None if schema.dose_key is None else obs[schema.dose_key].iloc[rows[0]]
            found[rows] = fcr.chances.of(answers.features(pair, dose))
    return {"chance": found}
