"""A target condition in the words of AnnData, and how to answer for it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry, Schema
from pyro_fcr.data.encoding import Site
from pyro_fcr.data.facts import follow
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.data.stored import free_memory
from pyro_fcr.data.treatments import dose_text
from pyro_fcr.draws import QueryError, new_cells, reach
from pyro_fcr.queries.answers import Output
from pyro_fcr.queries.columns import put_beside
from pyro_fcr.queries.fitted import Fitted
from pyro_fcr.values import check_settings

AVERAGE: Final = "<average over the levels of training>"
"""In place of a covariate's level: average it out."""

_NAME: Final = 64  # bytes of the name of a row


def find_genes(registry: Registry, genes: str | Iterable[str] | None) -> Tensor:
    """Return where genes stand in the model, each once; None takes all.

    Raises
    ------
    QueryError
        The model does not know a gene; names the first one, the nearest, and some that it knows.
    """
    known = {gene: number for number, gene in enumerate(registry.genes)}
    wanted = known if genes is None else dict.fromkeys([genes] if isinstance(genes, str) else genes)
    if unknown := [gene for gene in wanted if gene not in known]:
        for site, columns in registry.outcomes.items():
            if unknown[0] in columns:
                raise QueryError(
                    f"{unknown[0]!r} is a column of the outcome {site}; this question is about the "
                    f"expression y alone. Run the program: pyro.poutine.do(fcr.model, ...)(batch)."
                )
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise QueryError(
            f"Unknown gene {unknown[0]!r}{more}.{did_you_mean(unknown[0], known)} The model's "
            f"genes are {', '.join(registry.genes[:5])}, ... (fcr.registry.genes)."
        )
    return torch.tensor([known[gene] for gene in wanted], dtype=torch.long)


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
        Seed of the draws.

    Raises
    ------
    QueryError
        ``output`` or ``n_draws`` is not among the possible ones.
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
        check_settings(self, error=QueryError)
        if not isinstance(self.covariates, Mapping):
            raise QueryError(
                f"covariates is {self.covariates!r}; expected a level by column, as in "
                "{'cell_line': 'A375'}."
            )
        self.answer.check_free()

    @property
    def answer(self) -> Output:
        """What to answer with."""
        return self.output if isinstance(self.output, Output) else Output(self.output)

    def check_room(self, n_cells: int, n_genes: int) -> None:
        """Refuse what memory cannot hold, by what it takes at the least.

        Raises
        ------
        QueryError
            The names of the rows, or the values where all are kept, take more than is free.
        """
        output, draws = self.answer, self.n_draws if self.answer.form == "draws" else 1
        n_rows = n_cells * (draws if output.shard is None else 1)
        kept = 1 if output.store is not None else draws if output.form == "draws" else n_rows
        needed, free = _NAME * n_rows + 4 * n_genes * kept, free_memory()
        if needed > free:
            raise QueryError(
                f"{n_cells} cells with {self.n_draws} draws each take more than "
                f"{needed / 1e9:.2g} GB of memory, of which {free / 1e9:.2g} GB are free: ask for "
                "fewer, or for some at a time."
            )

    def intervened(self, schema: Schema) -> tuple[str, ...]:
        """Return the exogenous sites that the query sets.

        Raises
        ------
        QueryError
            There are none.
        """
        sites = ["t"] if self.treatment is not None or self.dose is not None else []
        sites += [s for s, keys in schema.sites.items() if set(self.covariates) & set(keys)]
        if not sites:
            raise QueryError("The query has no target: give treatment=, dose= or covariates=.")
        return tuple(sites)

    def condition_obs(
        self, registry: Registry, n_cells: int, *, open_keys: Collection[str] = ()
    ) -> pd.DataFrame:
        """Return the annotation of ``n_cells`` new cells of the target condition.

        Columns that are left open hold some level, to be encoded.
        """
        names = [f"predicted_{i}" for i in range(n_cells)]
        obs = self._set(pd.DataFrame(index=pd.Index(names, dtype=str)), registry)
        obs = obs.assign(**{key: registry.covariates[key][0] for key in open_keys})
        missing = [k for k in registry.schema.covariate_keys if k not in obs]
        if missing:
            raise QueryError(
                f"covariates: new cells need a level of {', '.join(missing)}; the model knows "
                f"{', '.join(f'{k}: {list(registry.covariates[k])}' for k in missing)}."
            )
        return obs

    def target_obs(self, obs: pd.DataFrame, registry: Registry) -> pd.DataFrame:
        """Return the annotation of source cells with the target set, the source's values beside."""
        schema = registry.schema
        columns = [schema.treatment_key, schema.dose_key, *schema.covariate_keys]
        kept = {f"source_{key}": obs[key] for key in columns if key is not None}
        target = self._set(put_beside(obs.copy(), kept), registry)
        return follow(obs, target, registry)

    def _set(self, obs: pd.DataFrame, registry: Registry) -> pd.DataFrame:
        schema = registry.schema
        if unknown := set(self.covariates) - set(schema.covariate_keys):
            raise QueryError(
                f"Unknown covariates {sorted(map(str, unknown))}. The model's covariates are "
                f"{', '.join(schema.covariate_keys)}."
            )
        if self.dose is not None and schema.dose_key is None:
            raise QueryError(
                f"dose {self.dose!r}: the model does not know doses, its schema has no dose_key."
            )
        target: dict[str, Any] = {
            key: self._levels(key, len(obs), registry)
            if isinstance(level, str) and level == AVERAGE
            else registry.level(key, level)
            for key, level in self.covariates.items()
        }
        if self.treatment is not None:
            target |= registry.columns_of(self.treatment, self.dose)
        elif self.dose is not None:
            target[str(schema.dose_key)] = dose_text(self.dose, schema)
        return obs.assign(**target)

    def _levels(self, key: str, n_cells: int, registry: Registry) -> np.ndarray:
        levels = [condition.covariates[key] for condition in registry.conditions]
        n = np.array([condition.n_cells for condition in registry.conditions])
        return np.random.default_rng(self.seed).choice(levels, size=n_cells, p=n / n.sum())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Cells and what is done to them.

    Parameters
    ----------
    obs
        Annotation.
    held
        Latents that are held.
    released, open_keys
        Observed sites that are drawn, and their columns, which are empty in ``obs``.
    do
        What sites are set to in each cell.
    """

    obs: pd.DataFrame
    held: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    open_keys: tuple[str, ...] = ()
    do: Mapping[str, Site] = field(default_factory=dict)


def intervene(
    fcr: Fitted, query: Query, obs: pd.DataFrame, *, hold: Iterable[str] | None = None
) -> Asked:
    """Set source cells to the target of a query.

    Parameters
    ----------
    fcr
        A fitted model.
    query
        The target.
    obs
        Annotation of the source cells.
    hold
        Latents and labels that cells keep, see :func:`pyro_fcr.draws.reach`.

    Raises
    ------
    pyro_fcr.SchemaError
        The target has a level that was never seen; lists the known ones.
    QueryError
        There is no target, or what is held would undo it.
    """
    registry = fcr.registry
    sites = query.intervened(registry.schema)
    found = reach(fcr.graph, sites, hold)
    target = query.target_obs(obs, registry)
    values = registry.encode_sites(target)
    do = {site: values[site] for site in sites}
    return _opened(Asked(obs=target, held=found.held, released=found.released, do=do), registry)


def new_condition(fcr: Fitted, query: Query, n_cells: int) -> Asked:
    """Return new cells of the target of a query, whose values are all in ``do``.

    Labels that have causes in the model are drawn where the query leaves them out.
    """
    registry, schema = fcr.registry, fcr.registry.schema
    query.check_room(n_cells, len(registry.genes))
    released = tuple(
        site
        for site, keys in schema.sites.items()
        if fcr.graph.parents.get(site) and not set(keys) & set(query.covariates)
    )
    keys = [key for site in released for key in schema.sites[site]]
    obs = query.condition_obs(registry, n_cells, open_keys=keys)
    return _opened(Asked(obs=obs, released=released, do=registry.encode_sites(obs)), registry)


def open_keys(fcr: Fitted, sites: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that are drawn where some sites are set, because these cause them."""
    return _columns(fcr.registry.schema, reach(fcr.graph, sites).released)


def contexts_of(fcr: Fitted) -> list[dict[str, str]]:
    """Return the contexts of training: a level for every covariate that no treatment changes."""
    changed = open_keys(fcr, ("t",))
    found = {
        tuple((key, level) for key, level in each.covariates.items() if key not in changed)
        for each in fcr.registry.conditions
    }
    return [dict(context) for context in sorted(found)]


def context_cells(
    fcr: Fitted, levels: Mapping[str, str], n_cells: int, *, t: np.ndarray | None = None
) -> Batch:
    """Return new cells of a context, of median library size and without expression.

    Parameters
    ----------
    fcr
        A fitted model.
    levels
        A level for every covariate; those that treatments change may be left out.
    n_cells
        Number of cells.
    t
        The row of the treatment, ``(n_agents or n_features,)``; None leaves the cells untreated.
    """
    registry = fcr.registry
    untreated = np.zeros(registry.widths["t"], dtype=np.float32)
    drawn = {key: registry.covariates[key][0] for key in open_keys(fcr, ("t",))}
    rows = registry.encode_covariates({**drawn, **levels})
    rows = {**rows, "t": untreated if t is None else t}
    sites = {name: torch.from_numpy(row).repeat(n_cells, 1) for name, row in rows.items()}
    library = torch.full((n_cells, 1), registry.target_sum or 1.0)
    return new_cells(sites, library, n_genes=len(registry.genes)).to(fcr.device, fcr.dtype)


def _opened(asked: Asked, registry: Registry) -> Asked:
    """Empty the columns of sites that are drawn."""
    keys = _columns(registry.schema, asked.released)
    empty = {key: pd.Categorical([None] * len(asked.obs)) for key in keys}
    return replace(asked, obs=asked.obs.assign(**empty), open_keys=keys)


def _columns(schema: Schema, sites: Iterable[str]) -> tuple[str, ...]:
    own = {**schema.sites, "t": [k for k in (schema.treatment_key, schema.dose_key) if k]}
    return tuple(key for site in sites for key in own.get(site, ()))
