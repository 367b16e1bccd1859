"""Questions to a fitted model in the words of AnnData, and their answers as AnnData."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry, Schema
from pyro_fcr.graph import Graph
from pyro_fcr.responses import (
    QueryError,
    Responses,
    check_held,
    held_by_default,
    sample_responses,
)

AVERAGE: Final = "<average over the levels of training>"
"""In place of a covariate's level: average it out."""


class Fitted(Protocol):
    """What a query asks: a fitted :class:`pyro_fcr.FCR`."""

    model: nn.Module
    guide: nn.Module
    registry: Registry

    @property
    def graph(self) -> Graph:
        """The causal graph."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""

    def chunks(self, adata: AnnData | None = None) -> Iterator[tuple[Batch, slice]]:
        """Give cells in order, with their positions."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A target condition and how to answer.

    Parameters
    ----------
    treatment, dose, covariates
        The target; None and missing keys stay as in the source. A covariate that is
        :data:`AVERAGE` gets for each cell a level drawn as often as in training.
    output
        ``"draws"`` or ``"mean"``.
    n_draws
        Draws per cell.
    seed
        Of the draws.

    Raises
    ------
    QueryError
        ``output`` or ``n_draws`` is none that there is.
    """

    treatment: str | None = None
    dose: Any = None
    covariates: Mapping[str, str] = field(default_factory=dict)
    output: Literal["draws", "mean"] = "draws"
    n_draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.output not in ("draws", "mean"):
            raise QueryError(f"output is {self.output!r}, wanted 'draws' or 'mean'.")
        if self.n_draws < 1:
            raise QueryError(f"n_draws is {self.n_draws}, wanted 1 or more.")

    def intervened(self, schema: Schema) -> tuple[str, ...]:
        """Give the exogenous sites that the query sets.

        Raises
        ------
        QueryError
            It sets none.
        """
        sites = ["t"] if self.treatment is not None or self.dose is not None else []
        sites += [s for s, keys in schema.sites.items() if set(self.covariates) & set(keys)]
        if not sites:
            raise QueryError("The query has no target: give treatment=, dose= or covariates=.")
        return tuple(sites)

    def condition_obs(self, registry: Registry, n_cells: int) -> pd.DataFrame:
        """Make the annotation of ``n_cells`` new cells of the target condition."""
        names = [f"predicted_{i}" for i in range(n_cells)]
        obs = self._set(pd.DataFrame(index=pd.Index(names, dtype=str)), registry)
        missing = [k for k in registry.schema.covariate_keys if k not in self.covariates]
        if missing:
            raise QueryError(
                f"covariates: new cells need a level of {', '.join(missing)}; the model knows "
                f"{', '.join(f'{k}: {list(registry.covariates[k])}' for k in missing)}."
            )
        return obs

    def target_obs(self, obs: pd.DataFrame, registry: Registry) -> pd.DataFrame:
        """Give the annotation of source cells with the target set, the source's values beside."""
        schema = registry.schema
        columns = [schema.treatment_key, schema.dose_key, *schema.covariate_keys]
        kept = {f"source_{key}": obs[key] for key in columns if key is not None}
        return self._set(obs.copy().assign(**kept), registry)

    def _set(self, obs: pd.DataFrame, registry: Registry) -> pd.DataFrame:
        schema = registry.schema
        if unknown := set(self.covariates) - set(schema.covariate_keys):
            raise QueryError(
                f"covariates: {sorted(unknown)} are no covariates of the model; these are: "
                f"{', '.join(schema.covariate_keys)}."
            )
        if self.dose is not None and schema.dose_key is None:
            raise QueryError(
                f"dose {self.dose!r}: the model knows no doses, its schema has no dose_key."
            )
        target: dict[str, Any] = dict(self.covariates)
        target |= {key: self._levels(key, len(obs), registry) for key in self._averaged()}
        if self.treatment is not None:
            target[schema.treatment_key] = self.treatment
        if self.dose is not None:
            target[str(schema.dose_key)] = self.dose
        elif self.treatment is not None and schema.dose_key is not None:
            target |= registry.only_dose(self.treatment)
        return obs.assign(**target)

    def _averaged(self) -> list[str]:
        return [key for key, level in self.covariates.items() if level == AVERAGE]

    def _levels(self, key: str, n_cells: int, registry: Registry) -> np.ndarray:
        levels = [condition.covariates[key] for condition in registry.conditions]
        n = np.array([condition.n_cells for condition in registry.conditions])
        return np.random.default_rng(self.seed).choice(levels, size=n_cells, p=n / n.sum())


def counterfactual(
    fcr: Fitted, query: Query, source: AnnData, *, hold: Iterable[str] | None
) -> AnnData:
    """Answer what given cells would express; see :meth:`pyro_fcr.FCR.counterfactual`."""
    intervened = query.intervened(fcr.registry.schema)
    held = held_by_default(fcr.graph, intervened) if hold is None else tuple(hold)
    check_held(fcr.graph, held, intervened)
    obs = query.target_obs(source.obs, fcr.registry)
    target, chunks = fcr.registry.encode_obs(obs), []
    for number, (batch, rows) in enumerate(fcr.chunks(source)):
        sites = {name: values[rows].to(fcr.device) for name, values in target.items()}
        do = {name: sites[name] for name in intervened}
        responses = _sample(fcr, query, batch, number, do=do, hold=held)
        chunks.append(_chunk(responses, obs.iloc[rows], fcr.registry))
    return _assemble(chunks, fcr, query, held)


def predict(
    fcr: Fitted, query: Query, *, n_cells: int, library: float | np.ndarray | None
) -> AnnData:
    """Draw new cells of a condition; see :meth:`pyro_fcr.FCR.predict`."""
    size = (fcr.registry.target_sum or 1.0) if library is None else library
    column = torch.from_numpy(np.broadcast_to(size, n_cells).astype(np.float32)).unsqueeze(1)
    obs = query.condition_obs(fcr.registry, n_cells)
    # Expression that only a guide of shared latents reads, to no effect.
    values = {"y": torch.ones(n_cells, len(fcr.registry.genes)), "library": column}
    values |= fcr.registry.encode_obs(obs)
    batch = Batch(values, codes={}, n_levels={}, n_total=n_cells).to(fcr.device)
    responses = _sample(fcr, query, batch, 0, do={}, hold=())
    return _assemble([_chunk(responses, obs, fcr.registry)], fcr, query, ())


def _sample(
    fcr: Fitted,
    query: Query,
    batch: Batch,
    number: int,
    *,
    do: Mapping[str, Tensor],
    hold: tuple[str, ...],
) -> Responses:
    return sample_responses(
        fcr.model,
        fcr.guide,
        batch,
        do=do,
        hold=(*hold, *fcr.graph.shared),
        n_draws=query.n_draws,
        keep_draws=query.output == "draws",
        seed=query.seed + number,
    )


def _chunk(responses: Responses, obs: pd.DataFrame, registry: Registry) -> AnnData:
    if responses.draws is None:
        return AnnData(responses.mean, obs=obs, layers={"sd": responses.sd})
    n_draws, n_cells, n_genes = responses.draws.shape
    # All draws of a cell stand together, so that chunks can be put one below the other.
    values = responses.draws.swapaxes(0, 1).reshape(n_draws * n_cells, n_genes)
    repeated = obs.iloc[np.repeat(np.arange(n_cells), n_draws)]
    if n_draws > 1:
        draw = np.tile(np.arange(n_draws), n_cells)
        names = [f"{cell}-draw{i}" for cell, i in zip(repeated.index, draw, strict=True)]
        repeated = repeated.assign(draw=draw).set_axis(pd.Index(names, dtype=str))
    are_counts = registry.schema.expression == "counts"
    return AnnData(sparse.csr_matrix(values) if are_counts else values, obs=repeated)


def _assemble(chunks: list[AnnData], fcr: Fitted, query: Query, hold: tuple[str, ...]) -> AnnData:
    result = ad.concat(chunks)
    result.var_names = list(fcr.registry.genes)
    result.obs["extrapolated"] = _extrapolated(result.obs, fcr.registry)
    result.uns["pyro_fcr"] = {
        "treatment": "" if query.treatment is None else query.treatment,
        "dose": "" if query.dose is None else str(query.dose),
        "covariates": {key: str(level) for key, level in query.covariates.items()},
        "held": list(hold),
        "output": query.output,
        "n_draws": query.n_draws,
        "seed": query.seed,
    }
    return result


def _extrapolated(obs: pd.DataFrame, registry: Registry) -> np.ndarray:
    schema = registry.schema
    keys = [schema.treatment_key, *schema.covariate_keys]
    keys += [] if schema.dose_key is None else [schema.dose_key]
    pairs = obs[keys].astype(str).agg("\x1f".join, axis=1)
    verdicts = {}
    for pair, row in zip(pairs, obs[keys].to_dict("records"), strict=True):
        if pair not in verdicts:
            levels = {key: str(row[key]) for key in schema.covariate_keys}
            dose = row.get(schema.dose_key) if schema.dose_key else None
            verdicts[pair] = registry.is_extrapolated(
                str(row[schema.treatment_key]), levels, dose=dose
            )
    return pairs.map(verdicts).to_numpy()
