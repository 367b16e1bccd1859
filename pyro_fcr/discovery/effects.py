"""What treatments do to genes: whole effects, their parts by latent block, and interactions."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import stats
from torch import Tensor

from pyro_fcr.data import Registry
from pyro_fcr.discovery.pooling import deviation
from pyro_fcr.discovery.unused import Arm, UnusedCells
from pyro_fcr.draws import QueryError
from pyro_fcr.draws.paths import REFERENCE, TOTAL, path_responses
from pyro_fcr.metrics.arrays import Codes, FloatArray
from pyro_fcr.queries import Fitted
from pyro_fcr.queries.columns import named_levels
from pyro_fcr.queries.marks import mark
from pyro_fcr.queries.targets import context_cells, contexts_of
from pyro_fcr.values import checked, several

logger = logging.getLogger(__name__)

INTERACTION = "interaction"


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
    estimate
        Natural log fold changes of mean expression against untreated cells of the same context
        (differences of means for log1p data), ``(n_rows, n_genes)``.
    lower, upper
        Interval of the true effect, by the estimate and the cells that no fit has trained on; of
        the rows ``"total"`` and ``"interaction"``, nan elsewhere.
    pvalue, qvalue
        Of no change, or one in the other direction than the estimate, by the same cells, beside
        the median change over genes; of the rows ``"total"``. ``qvalue`` by Benjamini and Hochberg
        over all of them. Cells count as independent: of several donors or libraries see
        :func:`pyro_fcr.rank_interactions`, of interactions too.
    sd, spread_lower, spread_upper
        Spread of the estimates, as a standard deviation and as the bounds of its middle. It is no
        test: it may lie on one side of zero for a gene to which nothing happens.
    uncertainty
        What the spread is over: ``"parameters"`` (refits: how far the data determine the fit,
        without what all fits get wrong alike) or ``"cells"`` (cells of the fitted model: how much
        cells differ).
    """

    rows: pd.DataFrame
    genes: tuple[str, ...]
    estimate: FloatArray
    sd: FloatArray
    spread_lower: FloatArray
    spread_upper: FloatArray
    lower: FloatArray
    upper: FloatArray
    pvalue: FloatArray
    qvalue: FloatArray
    uncertainty: str

    def to_frame(self, genes: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a tidy table, one row per row and gene.

        Parameters
        ----------
        genes
            The genes to list; None takes all.
        """
        names = list(self.genes if genes is None else genes)
        columns = self.columns(names)
        values = {k: getattr(self, k)[:, columns].ravel() for k in _VALUES}
        table = self.rows.loc[self.rows.index.repeat(len(names))]
        table = table.assign(gene=np.tile(names, len(self.rows)), **values)
        return table.assign(uncertainty=self.uncertainty).reset_index(drop=True)

    def columns(self, genes: Sequence[str]) -> Codes:
        """Return the columns of some genes.

        Raises
        ------
        KeyError
            A gene is unknown; names it.
        """
        columns = pd.Index(self.genes).get_indexer(list(genes))
        if (columns < 0).any():
            raise KeyError(f"{genes[int(np.argmin(columns))]!r} is not a gene of the model.")
        return columns

    def to_adata(self) -> AnnData:
        """Return an AnnData: estimates in X, the others in layers, what a row is in obs."""
        obs = self.rows.set_axis(pd.Index(np.arange(len(self.rows)).astype(str)), axis=0)
        layers = {k: getattr(self, k) for k in _VALUES[1:]}
        uns = {"uncertainty": self.uncertainty}
        var = pd.DataFrame(index=list(self.genes))
        return AnnData(self.estimate, obs=obs, var=var, layers=layers, uns=uns)

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
            The context is unknown, or there is no other one.
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


_SPREAD = ("estimate", "sd", "spread_lower", "spread_upper")
_VALUES = (*_SPREAD, "lower", "upper", "pvalue", "qvalue")
_COLUMNS = (
    "treatment", "dose", "context", "effect", "extrapolated", "gene", "uncertainty", *_VALUES
)  # fmt: skip


@checked(error=QueryError)
def effects(
    fits: Fitted | Sequence[Fitted],
    *,
    treatments: Iterable[str] | None = None,
    n_cells: int = 500,
    level: float = 0.9,
    seed: int = 0,
) -> Effects:
    """Return the effect of every treatment in every context, whole and by latent block.

    Cells of a context are drawn from the model untreated and treated, from the same noise. The
    whole effect is ``"total"``; the part through a block, named like it (``"z_t"``, ``"z_tx"``), is
    what remains if this block alone is switched to its treated value; ``"interaction"`` is the
    whole effect less its median over contexts. Parts need not add up to the whole.

    Parameters
    ----------
    fits
        A fitted model, or refits of one (:func:`pyro_fcr.bootstrap`): then the spread is how
        far fits differ. With a single model it is how much cells differ.
    treatments
        Labels; None takes all of training, each at its doses. Others are asked for at their only
        trained dose.
    n_cells
        Cells drawn for each context.
    level
        Probability of the intervals; share of cells, or of refits, within the bounds of the spread.
    seed
        Seed of the draws.

    Raises
    ------
    pyro_fcr.QueryError
        The data have no untreated cells, the level is not between 0 and 1, or the fits are not
        refits of one model.
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
    check_alike(members)
    registry = members[0].registry
    arms = arms_of(registry, treatments)
    found = [
        np.concatenate([_of_arm(fcr, arm, n_cells, level=level, seed=seed) for arm in arms], axis=1)
        for fcr in members
    ]
    kind = "cells" if len(members) == 1 else "parameters"
    values = found[0] if kind == "cells" else _over_refits(np.stack([f[0] for f in found]), level)
    held = _held(members, arms, values[0], level)
    named = dict(zip(_VALUES, [*values, *held], strict=True))
    return Effects(_rows(members[0], arms), registry.genes, **named, uncertainty=kind)


def check_alike(members: Sequence[Fitted]) -> None:
    """Refuse fits without untreated cells, or not of one model: of other genes or conditions."""
    if members[0].registry.schema.control is None:
        raise QueryError("Effects are against untreated cells, but the schema names no control.")

    def asked(fcr: Fitted) -> tuple[object, ...]:
        conditions = fcr.registry.conditions
        return fcr.registry.genes, {(c.treatment, c.dose, str(c.covariates)) for c in conditions}

    for number, fcr in enumerate(members):
        if asked(fcr) != asked(members[0]):
            raise QueryError(
                f"Fit {number + 1} of {len(members)} has other genes or conditions than the first. "
                "Give refits of one model."
            )


def arms_of(registry: Registry, treatments: Iterable[str] | None = None) -> list[Arm]:
    """Return the treatments with their doses: all of training, or those of some labels."""
    treated = (c for c in registry.conditions if c.treatment != registry.schema.control)
    trained = list(dict.fromkeys(Arm(c.treatment, c.dose) for c in treated))
    if treatments is None:
        return trained
    labels = [registry.canonical(label) for label in several(treatments)]
    if not labels:
        raise QueryError("treatments is empty; leave it out to take all of training.")
    known = {label: [arm for arm in trained if arm.treatment == label] for label in labels}
    return [arm for label in labels for arm in known[label] or [Arm(label)]]


def total_effects(
    fcr: Fitted, arm: Arm, contexts: Sequence[Mapping[str, str]], *, n_cells: int, seed: int
) -> FloatArray:
    """Return the whole effect of an arm in some contexts, ``(n_contexts, n_genes)``."""
    worlds = (_paths(fcr, arm, context, n_cells, seed=seed) for context in contexts)
    return np.stack([_log_means(fcr, w[TOTAL]) - _log_means(fcr, w[REFERENCE]) for w in worlds])


def _paths(
    fcr: Fitted, arm: Arm, context: Mapping[str, str], n_cells: int, *, seed: int
) -> dict[str, Tensor]:
    t = fcr.registry.encode_treatment(arm.treatment, arm.dose or None)
    cells = context_cells(fcr, context, n_cells, t=t)
    untreated, treated = {"t": torch.zeros_like(cells["t"])}, {"t": cells["t"]}
    return path_responses(
        fcr.model, fcr.guide, cells, fcr.graph, reference=untreated, target=treated, seed=seed
    )


def _log_means(fcr: Fitted, expected: Tensor) -> FloatArray:
    mean = expected.double().mean(dim=0)
    return (mean.log() if fcr.registry.schema.expression == "counts" else mean).cpu().numpy()


def _of_arm(fcr: Fitted, arm: Arm, n_cells: int, *, level: float, seed: int) -> FloatArray:
    """Return estimate, sd, lower and upper over cells, ``(4, n_rows, n_genes)``."""
    found = []
    for context in contexts_of(fcr):
        paths = _paths(fcr, arm, context, n_cells, seed=seed)
        before = paths.pop(REFERENCE)
        found.append([_over_cells(fcr, after, before, level) for after in paths.values()])
    values = np.array(found)  # contexts, paths, values, genes
    whole = values[:, :1]
    median = whole[:, :, :1] - deviation(whole[:, :, :1])
    interaction = whole - median * np.array([1, 0, 1, 1])[:, None]  # the sd stays
    values = np.concatenate([values, interaction], axis=1)
    return np.moveaxis(values, 2, 0).reshape(len(_SPREAD), -1, values.shape[-1])


def _over_cells(fcr: Fitted, after: Tensor, before: Tensor, level: float) -> FloatArray:
    counts, tail = fcr.registry.schema.expression == "counts", (1 - level) / 2
    change = after.log() - before.log() if counts else after - before
    ends = torch.quantile(change, change.new_tensor([tail, 1 - tail]), dim=0)
    spread = torch.cat([change.std(dim=0)[None], ends]).double().cpu().numpy()
    return np.vstack([_log_means(fcr, after) - _log_means(fcr, before), spread])


def _over_refits(estimates: FloatArray, level: float) -> FloatArray:
    mean, sd = estimates.mean(axis=0), estimates.std(axis=0, ddof=1)
    width = stats.t.ppf((1 + level) / 2, len(estimates) - 1) * sd
    return np.stack([mean, sd, mean - width, mean + width])


def _held(
    members: Sequence[Fitted], arms: Sequence[Arm], estimate: FloatArray, level: float
) -> FloatArray:
    """Return interval, p-value and q-value by cells that no fit has used, as rows of `estimate`."""
    contexts = contexts_of(members[0])
    cells, n_genes = UnusedCells(members, contexts), estimate.shape[-1]
    if not len(cells.rows):
        logger.info(
            "No cells at hand that the fit has not trained on: effects have no q-values and no "
            "intervals. Fit with heldout_fraction= above 0, or load the model with its cells."
        )
    by_kind = estimate.reshape(len(arms), len(contexts), -1, n_genes)
    found = np.full((4, *by_kind.shape), np.nan)
    for arm, own, into in zip(arms, by_kind, np.moveaxis(found, 1, 0), strict=True):
        whole, apart = cells.hold(own[:, 0], arm, level=level)
        into[:3, :, 0], into[:2, :, -1] = whole, apart[:2]
    known = np.isfinite(found[2])
    if known.any():
        found[3][known] = stats.false_discovery_control(found[2][known])
    return found.reshape(4, -1, n_genes)


def _rows(fcr: Fitted, arms: Sequence[Arm]) -> pd.DataFrame:
    contexts = contexts_of(fcr)
    paths = _paths(fcr, arms[0], contexts[0], 2, seed=0)
    kinds = [name for name in paths if name != REFERENCE] + [INTERACTION]
    rows = []
    for arm in arms:
        for context in contexts:
            marks = mark(fcr.registry, arm.treatment, context, dose=arm.dose or None)
            levels = named_levels(context, _COLUMNS)
            named = {**arm.columns, **levels, "context": ", ".join(context.values())}
            extrapolated = {"extrapolated": marks["extrapolated"]}
            rows += [{**named, "effect": kind, **extrapolated} for kind in kinds]
    return pd.DataFrame(rows)
