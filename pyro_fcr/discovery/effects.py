"""What treatments do to genes: whole effects, their parts by latent block, and interactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from anndata import AnnData
from scipy import stats
from torch import Tensor

from pyro_fcr.data import Registry
from pyro_fcr.discovery.contrasts import deviation
from pyro_fcr.draws import QueryError, new_cells
from pyro_fcr.draws.responder import REFERENCE, TOTAL, path_responses
from pyro_fcr.queries import Fitted

INTERACTION = "interaction"


@dataclass(frozen=True)
class Arm:
    """A treatment at a dose.

    Parameters
    ----------
    treatment
        Canonical label.
    dose
        One amount per agent; empty without doses.
    """

    treatment: str
    dose: tuple[float, ...] = ()

    @property
    def columns(self) -> dict[str, Any]:
        """The arm as columns of a table; the dose is one where there are doses."""
        amount = "+".join(f"{dose:g}" for dose in self.dose)
        return {"treatment": self.treatment, **({"dose": amount} if self.dose else {})}


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of treatments on genes, one row per treatment, context and kind of effect.

    Parameters
    ----------
    rows
        ``treatment``, ``dose`` where there are doses, the covariates, ``context`` (their levels
        joined), ``effect``, ``extrapolated`` (no training cell had the pair).
    genes
        Names of the columns.
    estimate, sd, lower, upper
        Natural log fold changes of mean expression against untreated cells of the same context
        (differences of means for log1p data), ``(n_rows, n_genes)``; the interval and its standard
        deviation.
    uncertainty
        What the interval is of: ``"parameters"`` (spread over refits: how far the data determine
        the fit, without what all fits get wrong alike) or ``"cells"`` (spread over cells of the
        fitted model: how much cells differ).
    """

    rows: pd.DataFrame
    genes: tuple[str, ...]
    estimate: npt.NDArray[np.float64]
    sd: npt.NDArray[np.float64]
    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    uncertainty: str

    def to_frame(self, genes: Sequence[str] | None = None) -> pd.DataFrame:
        """Give a tidy table, one row per row and gene.

        Parameters
        ----------
        genes
            The genes to list; None takes all.
        """
        names = list(self.genes if genes is None else genes)
        columns = self.columns(names)
        index = np.repeat(np.arange(len(self.rows)), len(names))
        values = {k: getattr(self, k)[:, columns].ravel() for k in _VALUES}
        table = self.rows.iloc[index].assign(gene=np.tile(names, len(self.rows)), **values)
        return table.assign(uncertainty=self.uncertainty).reset_index(drop=True)

    def columns(self, genes: Sequence[str]) -> npt.NDArray[np.int64]:
        """Give the columns of some genes.

        Raises
        ------
        KeyError
            Names the gene that there is not.
        """
        columns = pd.Index(self.genes).get_indexer(list(genes))
        if (columns < 0).any():
            raise KeyError(f"{genes[int(np.argmin(columns))]!r} is no gene of the model.")
        return columns

    def to_adata(self) -> AnnData:
        """Give an AnnData: estimates in X, the others in layers, what a row is in obs."""
        obs = self.rows.set_axis(pd.Index(np.arange(len(self.rows)).astype(str)), axis=0)
        layers = {k: getattr(self, k) for k in _VALUES[1:]}
        adata = AnnData(
            self.estimate, obs=obs, layers=layers, uns={"uncertainty": self.uncertainty}
        )
        adata.var_names = list(self.genes)
        return adata

    def enrichment(self, context: str, *, genes: Sequence[str] | None = None) -> pd.DataFrame:
        """Find the treatments that hit one context and spare the others.

        Parameters
        ----------
        context
            Name of the context, as in the column ``context``.
        genes
            The genes that the size of an effect is taken over, for instance a pathway; None takes
            all.

        Returns
        -------
        A row per treatment, the most selective first: ``here`` (root mean square of the total
        effect over the genes in this context, log fold change), ``elsewhere`` (the largest in any
        other context), ``selectivity`` (their difference), ``nearest`` (that other context).

        Raises
        ------
        pyro_fcr.QueryError
            There is no such context, or no other one.
        """
        known = list(dict.fromkeys(self.rows["context"]))
        if context not in known or len(known) < 2:
            raise QueryError(f"context {context!r}: the effects are of {', '.join(known)}.")
        columns = self.columns(self.genes if genes is None else genes)
        size = np.sqrt((self.estimate[:, columns] ** 2).mean(axis=1))
        table = self.rows.assign(size=size)[self.rows["effect"] == TOTAL]
        keys = [key for key in ("treatment", "dose") if key in table]
        wide = table.pivot(index=keys, columns="context", values="size")
        others = wide.drop(columns=context)
        result = pd.DataFrame({"here": wide[context], "elsewhere": others.max(axis=1)})
        result = result.assign(
            selectivity=result["here"] - result["elsewhere"], nearest=others.idxmax(axis=1)
        )
        return result.sort_values("selectivity", ascending=False).reset_index()


_VALUES = ("estimate", "sd", "lower", "upper")


def effects(
    fits: Fitted | Sequence[Fitted],
    *,
    treatments: Iterable[str] | None = None,
    n_cells: int = 500,
    level: float = 0.9,
    seed: int = 0,
) -> Effects:
    """Give the effect of every treatment in every context, whole and by latent block.

    Cells of a context are drawn from the model untreated and treated, from the same noise. The
    whole effect is ``"total"``; the part through a block, named like it (``"z_t"``, ``"z_tx"``), is
    what remains if this block alone is switched to its treated value; ``"interaction"`` is the
    whole effect less its median over contexts. Parts need not add up to the whole.

    Parameters
    ----------
    fits
        A fitted model, or refits of one (:func:`pyro_fcr.bootstrap`): then intervals say how far
        fits differ. With a single model they say how much cells differ.
    treatments
        Labels; None takes all of training, each at its doses. Others are asked for at their only
        trained dose.
    n_cells
        Cells drawn for each context.
    level
        Of the intervals.
    seed
        Of the draws.

    Raises
    ------
    pyro_fcr.QueryError
        The data have no untreated cells, or the level is not between 0 and 1.
    pyro_fcr.SchemaError
        A treatment was never seen; lists the known ones.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1, progress=False)
    >>> table = effects(fcr, n_cells=50).to_frame(["MT1X"])
    >>> len(table), sorted(set(table["effect"]))
    (20, ['interaction', 'total', 'z_t', 'z_tx'])
    """
    members = tuple(fits) if isinstance(fits, Sequence) else (fits,)
    registry = members[0].registry
    if registry.schema.control is None:
        raise QueryError("Effects are against untreated cells, but the schema names no control.")
    if not 0 < level < 1:
        raise QueryError(f"level is {level}, wanted a number between 0 and 1, such as 0.9.")
    arms = arms_of(registry, treatments)
    rows, found = _rows(registry, arms, members[0]), []
    for member in members:
        found.append(_of_member(member, arms, n_cells=n_cells, level=level, seed=seed))
    values = found[0] if len(members) == 1 else _over_refits(np.stack([f[0] for f in found]), level)
    kind = "cells" if len(members) == 1 else "parameters"
    return Effects(
        rows, registry.genes, **dict(zip(_VALUES, values, strict=True)), uncertainty=kind
    )


def arms_of(registry: Registry, treatments: Iterable[str] | None = None) -> list[Arm]:
    """Give the treatments with their doses: all of training, or those of some labels."""
    control = registry.schema.control
    trained = [Arm(c.treatment, c.dose) for c in registry.conditions if c.treatment != control]
    trained = list(dict.fromkeys(trained))
    if treatments is None:
        return trained
    labels = [registry.canonical(label) for label in treatments]
    known = {label: [arm for arm in trained if arm.treatment == label] for label in labels}
    return [arm for label in labels for arm in known[label] or [Arm(label)]]


def contexts_of(registry: Registry) -> list[dict[str, str]]:
    """Give the contexts of training: a level for every covariate."""
    found = {tuple(c.covariates.items()) for c in registry.conditions}
    return [dict(context) for context in sorted(found)]


def context_name(context: Mapping[str, str]) -> str:
    """Join the levels of a context."""
    return ", ".join(context.values())


def total_effects(
    fcr: Fitted, arm: Arm, contexts: Sequence[Mapping[str, str]], *, n_cells: int, seed: int
) -> npt.NDArray[np.float64]:
    """Give the whole effect of an arm in some contexts, ``(n_contexts, n_genes)``."""
    worlds = (_paths(fcr, arm, context, n_cells=n_cells, seed=seed) for context in contexts)
    return np.stack([_log_means(fcr, w[TOTAL]) - _log_means(fcr, w[REFERENCE]) for w in worlds])


def _paths(
    fcr: Fitted, arm: Arm, context: Mapping[str, str], *, n_cells: int, seed: int
) -> dict[str, Tensor]:
    treated = torch.from_numpy(fcr.registry.encode_treatment(arm.treatment, arm.dose or None))
    t = treated.to(fcr.device).expand(n_cells, -1)
    library = torch.full((n_cells, 1), fcr.registry.target_sum or 1.0, device=fcr.device)
    levels = fcr.registry.encode_covariates(context)
    sites = {k: torch.from_numpy(v).to(fcr.device).expand(n_cells, -1) for k, v in levels.items()}
    cells = new_cells({**sites, "t": t}, library, n_genes=len(fcr.registry.genes))
    return path_responses(
        fcr.model,
        fcr.guide,
        cells,
        fcr.graph,
        reference={"t": torch.zeros_like(t)},
        target={"t": t},
        seed=seed,
    )


def _log_means(fcr: Fitted, expected: Tensor) -> npt.NDArray[np.float64]:
    mean = expected.double().mean(dim=0)
    return (mean.log() if fcr.registry.schema.expression == "counts" else mean).cpu().numpy()


def _of_member(
    fcr: Fitted, arms: Sequence[Arm], *, n_cells: int, level: float, seed: int
) -> list[npt.NDArray[np.float64]]:
    """Estimate, sd, lower and upper over the cells of one model, ``(n_rows, n_genes)`` each."""
    parts = [_of_arm(fcr, arm, n_cells=n_cells, level=level, seed=seed) for arm in arms]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _of_arm(
    fcr: Fitted, arm: Arm, *, n_cells: int, level: float, seed: int
) -> list[npt.NDArray[np.float64]]:
    tail = (1 - level) / 2
    points, spreads = [], []
    for context in contexts_of(fcr.registry):
        paths = _paths(fcr, arm, context, n_cells=n_cells, seed=seed)
        before = paths.pop(REFERENCE)
        points.append([_log_means(fcr, p) - _log_means(fcr, before) for p in paths.values()])
        spreads.append([_over_cells(fcr, p, before, tail) for p in paths.values()])
    point, spread = np.array(points), np.array(spreads)  # contexts, paths, (sd lower upper), genes
    interaction = deviation(point[:, :1])
    shift = (point[:, 0] - interaction[:, 0])[:, None]
    moved = spread[:, :1] - np.stack([np.zeros_like(shift), shift, shift], axis=2)
    point = np.concatenate([point, interaction], axis=1)
    spread = np.concatenate([spread, moved], axis=1)
    n_genes = point.shape[-1]
    return [v.reshape(-1, n_genes) for v in (point, *np.moveaxis(spread, 2, 0))]


def _over_cells(
    fcr: Fitted, expected: Tensor, before: Tensor, tail: float
) -> npt.NDArray[np.float64]:
    counts = fcr.registry.schema.expression == "counts"
    change = expected.log() - before.log() if counts else expected - before
    ends = torch.quantile(change, change.new_tensor([tail, 1 - tail]), dim=0)
    return torch.cat([change.std(dim=0)[None], ends]).double().cpu().numpy()


def _over_refits(estimates: npt.NDArray[np.float64], level: float) -> list[npt.NDArray[np.float64]]:
    mean, sd = estimates.mean(axis=0), estimates.std(axis=0, ddof=1)
    width = stats.t.ppf((1 + level) / 2, len(estimates) - 1) * sd
    return [mean, sd, mean - width, mean + width]


def _rows(registry: Registry, arms: Sequence[Arm], fcr: Fitted) -> pd.DataFrame:
    paths = _paths(fcr, arms[0], contexts_of(registry)[0], n_cells=2, seed=0)
    kinds = [name for name in paths if name != REFERENCE] + [INTERACTION]
    rows = []
    for arm in arms:
        for context in contexts_of(registry):
            seen = not registry.is_extrapolated(arm.treatment, context, dose=arm.dose or None)
            named = {**arm.columns, **context, "context": context_name(context)}
            rows += [{**named, "effect": kind, "extrapolated": not seen} for kind in kinds]
    return pd.DataFrame(rows)
