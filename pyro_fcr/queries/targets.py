"""A target condition in the words of AnnData, and how to answer for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_fcr.data import Registry, Schema
from pyro_fcr.draws import QueryError
from pyro_fcr.queries.answers import Output

AVERAGE: Final = "<average over the levels of training>"
"""In place of a covariate's level: average it out."""


def gene_positions(registry: Registry, genes: str | Iterable[str] | None) -> Tensor:
    """Return where genes stand in the model, each once; None takes all.

    Raises
    ------
    QueryError
        Names the first gene that the model does not know, and some that it knows.
    """
    known = {gene: number for number, gene in enumerate(registry.genes)}
    wanted = known if genes is None else dict.fromkeys([genes] if isinstance(genes, str) else genes)
    if unknown := [gene for gene in wanted if gene not in known]:
        raise QueryError(
            f"genes: {len(unknown)} of {len(wanted)} are not in the model, first {unknown[0]!r}; "
            f"it knows {', '.join(registry.genes[:5])}, ... (fcr.registry.genes)."
        )
    return torch.tensor([known[gene] for gene in wanted], dtype=torch.long)


def check_draws(n_draws: int) -> None:
    """Raise QueryError if there are to be no draws."""
    if n_draws < 1:
        raise QueryError(f"n_draws is {n_draws}, wanted 1 or more.")


Form: TypeAlias = Literal["draws", "mean", "summary"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """A target condition and how to answer.

    Parameters
    ----------
    treatment, dose, covariates
        The target; None and missing keys stay as in the source. A covariate that is
        :data:`AVERAGE` gets for each cell a level drawn as often as in training.
    output
        An :class:`pyro_fcr.queries.answers.Output`, or its form alone: ``"draws"``, ``"mean"`` or
        ``"summary"``.
    n_draws
        Draws per cell.
    seed
        Of the draws.

    Raises
    ------
    QueryError
        ``output`` or ``n_draws`` is none that there is.
    FileExistsError
        Something stands where the answer is to be written.
    """

    treatment: str | None = None
    dose: Any = None
    covariates: Mapping[str, str] = field(default_factory=dict)
    output: Form | Output = "draws"
    n_draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_draws(self.n_draws)
        self.answer.check_free()

    @property
    def answer(self) -> Output:
        """What to answer with."""
        return self.output if isinstance(self.output, Output) else Output(self.output)

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
