"""A target condition in the words of AnnData, how to answer for it, and what supports an answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_fcr.data import Registry, Schema
from pyro_fcr.data.errors import did_you_mean
from pyro_fcr.data.treatments import Dose, parse_agents
from pyro_fcr.draws import QueryError, check_held, held_by_default
from pyro_fcr.queries.answers import Output
from pyro_fcr.queries.fitted import Fitted

AVERAGE: Final = "<average over the levels of training>"
"""In place of a covariate's level: average it out."""


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
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise QueryError(
            f"Unknown gene {unknown[0]!r}{more}.{did_you_mean(unknown[0], known)} The model's "
            f"genes are {', '.join(registry.genes[:5])}, ... (fcr.registry.genes)."
        )
    return torch.tensor([known[gene] for gene in wanted], dtype=torch.long)


def check_draws(n_draws: int) -> None:
    """Raise QueryError if there are to be no draws."""
    if n_draws < 1:
        raise QueryError(f"n_draws is {n_draws}; expected 1 or more.")


def check_level(level: float) -> None:
    """Raise QueryError if the level of an interval or test is not between 0 and 1."""
    if not 0 < level < 1:
        raise QueryError(f"level is {level}; expected a number between 0 and 1, such as 0.9.")


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
        check_draws(self.n_draws)
        self.answer.check_free()

    @property
    def answer(self) -> Output:
        """What to answer with."""
        return self.output if isinstance(self.output, Output) else Output(self.output)

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

    def condition_obs(self, registry: Registry, n_cells: int) -> pd.DataFrame:
        """Return the annotation of ``n_cells`` new cells of the target condition."""
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
        """Return the annotation of source cells with the target set, the source's values beside."""
        schema = registry.schema
        columns = [schema.treatment_key, schema.dose_key, *schema.covariate_keys]
        kept = {f"source_{key}": obs[key] for key in columns if key is not None}
        return self._set(obs.copy().assign(**kept), registry)

    def _set(self, obs: pd.DataFrame, registry: Registry) -> pd.DataFrame:
        schema = registry.schema
        if unknown := set(self.covariates) - set(schema.covariate_keys):
            raise QueryError(
                f"Unknown covariates {sorted(unknown)}. The model's covariates are "
                f"{', '.join(schema.covariate_keys)}."
            )
        if self.dose is not None and schema.dose_key is None:
            raise QueryError(
                f"dose {self.dose!r}: the model does not know doses, its schema has no dose_key."
            )
        averaged = [key for key, level in self.covariates.items() if level == AVERAGE]
        target: dict[str, Any] = dict(self.covariates)
        target |= {key: self._levels(key, len(obs), registry) for key in averaged}
        if self.treatment is not None:
            target[schema.treatment_key] = self.treatment
        if self.dose is not None:
            target[str(schema.dose_key)] = self.dose
        elif self.treatment is not None and schema.dose_key is not None:
            target |= registry.only_dose(self.treatment)
        return obs.assign(**target)

    def _levels(self, key: str, n_cells: int, registry: Registry) -> np.ndarray:
        levels = [condition.covariates[key] for condition in registry.conditions]
        n = np.array([condition.n_cells for condition in registry.conditions])
        return np.random.default_rng(self.seed).choice(levels, size=n_cells, p=n / n.sum())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Cells and what is done to them: annotation, latents held, values that sites are set to."""

    obs: pd.DataFrame
    held: tuple[str, ...] = ()
    do: Mapping[str, Tensor] = field(default_factory=dict)


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
        Latents that cells keep; None holds every latent that the target does not cause.

    Raises
    ------
    pyro_fcr.SchemaError
        The target has a level that was never seen; lists the known ones.
    QueryError
        There is no target, or what is held would undo it.
    """
    sites = query.intervened(fcr.registry.schema)
    held = held_by_default(fcr.graph, sites) if hold is None else tuple(hold)
    check_held(fcr.graph, held, sites)
    target = query.target_obs(obs, fcr.registry)
    values = fcr.registry.encode_obs(target)
    return Asked(obs=target, held=held, do={site: values[site] for site in sites})


def support(
    registry: Registry, treatment: str, covariates: Mapping[str, str], *, dose: Dose = None
) -> float:
    """Score a treatment in a context: 1 if training had the pair, 0 if it had nothing like it.

    A pair that training had scores 1. Any other is the mean of three shares:

    - of the pair itself: 0;
    - of the treatment: in how many of the training contexts each of its agents was given, in
      combinations too, as a mean over agents;
    - of the context: how many of the training treatments each of its levels was seen under, as a
      mean over covariates.

    So an unseen pair scores 2/3 at most, and an agent known by its features only 1/3. A dose below
    or above the trained ones multiplies the score by its ratio to the nearest of them.

    Parameters
    ----------
    registry
        What was learnt from the training cells.
    treatment, dose
        The treatment or combination; its dose where the schema has doses.
    covariates
        A level for every covariate.

    Raises
    ------
    pyro_fcr.SchemaError
        The model cannot take an agent, level or dose; lists the known ones.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> unseen = (adata.obs["patient"] == "PW030") & (adata.obs["treatment"] != "control")
    >>> registry, _ = pyro_fcr.data.register(adata[~unseen], schema)
    >>> round(support(registry, "panobinostat", {"patient": "PW030"}), 2)  # 4 of 5, 1 of 2
    0.43
    """
    registry.is_extrapolated(treatment, covariates, dose=dose)  # the query is one that can be asked
    label = registry.canonical(treatment)
    context = {key: covariates[key] for key in registry.schema.covariate_keys}
    share = (_of_treatment(registry, label) + _of_context(registry, context)) / 3
    if any(each.treatment == label and each.covariates == context for each in registry.conditions):
        share = 1.0
    asked = registry.t.read(treatment, dose)
    ratios = [1.0]
    for agent, amount in zip(asked.agents, asked.doses, strict=False):  # without doses, no ratios
        if agent in registry.doses:  # one that was never trained has no scale of doses
            low, high = registry.doses[agent]
            ratios += [amount / low, high / amount]
    return share * min(ratios)


def _of_treatment(registry: Registry, label: str) -> float:
    n, shares = len({str(each.covariates) for each in registry.conditions}), []
    for agent in _agents(registry, label):
        given = (c for c in registry.conditions if agent in _agents(registry, c.treatment))
        shares.append(len({str(each.covariates) for each in given}) / n)
    return float(np.mean(shares))


def _of_context(registry: Registry, context: Mapping[str, str]) -> float:
    shares = []
    for key, level in context.items():
        seen = {each.treatment for each in registry.conditions if each.covariates[key] == level}
        shares.append(len(seen) / len(registry.treatments))
    return float(np.mean(shares))


def _agents(registry: Registry, label: str) -> tuple[str, ...]:
    return parse_agents(label, registry.schema) or (label,)


def mark(
    registry: Registry, treatment: str, covariates: Mapping[str, str], *, dose: Dose = None
) -> dict[str, bool | float]:
    """Return whether training lacked a condition, and what supports an answer.

    Returns
    -------
    ``extrapolated`` and ``support``; see :meth:`pyro_fcr.data.Registry.is_extrapolated` and
    :func:`support`.
    """
    return {
        "extrapolated": registry.is_extrapolated(treatment, covariates, dose=dose),
        "support": support(registry, treatment, covariates, dose=dose),
    }


def condition_marks(obs: pd.DataFrame, registry: Registry) -> dict[str, np.ndarray]:
    """Return what :func:`mark` says of each cell's condition, ``(n_cells,)`` each."""
    schema = registry.schema
    keys = [k for k in (schema.treatment_key, *schema.covariate_keys, schema.dose_key) if k]
    condition, _ = pd.factorize(pd.MultiIndex.from_frame(obs[keys].astype(str)))
    _, first = np.unique(condition, return_index=True)
    found = []
    for row in obs[keys].iloc[first].to_dict("records"):
        levels = {key: str(row[key]) for key in schema.covariate_keys}
        dose = row[schema.dose_key] if schema.dose_key else None
        found.append(mark(registry, str(row[schema.treatment_key]), levels, dose=dose))
    return {name: np.array([marks[name] for marks in found])[condition] for name in found[0]}
