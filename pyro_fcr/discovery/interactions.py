"""Which treatment acts differently in which context, and on which genes.

Two fits, each on one half of the cells (:func:`pyro_fcr.cross_fit`), say for every pair of
treatment and context in which direction of gene space it should differ from other contexts. The
cells of the other half are then read along that direction. It knows nothing of them, so the error
of the reading is that of the cells, whatever the model is: a bad model costs power, not control.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from pyro_fcr.data.design import read_design
from pyro_fcr.data.treatments import canonical_label
from pyro_fcr.discovery.contrasts import ConditionCells, Error
from pyro_fcr.discovery.effects import total_effects
from pyro_fcr.discovery.pooling import consensus, deviation, shrink
from pyro_fcr.discovery.refits import CrossFit
from pyro_fcr.discovery.unused import Arm
from pyro_fcr.draws import QueryError
from pyro_fcr.metrics.arrays import Codes, FloatArray
from pyro_fcr.queries.columns import named_levels
from pyro_fcr.values import checked

_COLUMNS = (
    "treatment", "dose", "context", "strength", "z", "pvalue_direction", "pvalue_genes", "pvalue",
    "qvalue", "reference", "n_cells", "n_genes", "gene", "estimate", "sd", "lower", "upper",
    "observed", "model",
)  # fmt: skip
_MIN_CELLS = 4  # of a condition in each half, below which its error cannot be told
_HALVED = 2.0  # the level of genes within pairs that were found, see the notes


@dataclass(frozen=True, eq=False)
class Interactions:
    """Pairs of treatment and context ranked by the evidence that they interact, and their genes.

    Parameters
    ----------
    pairs
        A row per pair, the strongest evidence first: ``treatment``, ``dose`` where there are doses,
        the covariates, ``context``; ``strength`` (root mean square over genes of the estimates
        below), ``z`` (of many genes together, along the direction that the other half gives),
        ``pvalue_direction`` (its), ``pvalue_genes`` (of the strongest genes), ``pvalue`` (of both),
        ``reference`` (contexts that it was compared with), ``qvalue`` (Benjamini and Hochberg over
        all pairs), ``n_cells``, ``n_genes``. Of a treatment in two contexts only, both pairs say
        that its effects differ; which of them is the odd one, nobody can tell.
    genes
        A row per pair and gene: ``estimate``, ``sd`` (the effect in this context less that in the
        contexts of reference, natural log fold change, shrunk towards what the model expects);
        ``observed`` (of the cells alone), ``lower``, ``upper`` (its interval, by the error that the
        p-value rests on: it also holds the rare interaction that shrinkage takes for noise);
        ``model`` (of the fits alone), ``pvalue``, ``qvalue``.
    level
        The false discovery rate that the genes' ``qvalue`` are meant for.
    """

    pairs: pd.DataFrame
    genes: pd.DataFrame
    level: float

    def drivers(self, treatment: str, context: str) -> pd.DataFrame:
        """Return the genes of one pair, the smallest ``qvalue`` and largest estimate first."""
        table = self.genes
        rows = table[(table["treatment"] == treatment) & (table["context"] == context)]
        order = np.lexsort((-rows["estimate"].abs(), rows["pvalue"], rows["qvalue"]))
        return rows.iloc[order].reset_index(drop=True)


@checked(error=QueryError)
def rank_interactions(
    cross: CrossFit,
    *,
    level: float = 0.1,
    min_expressing: int = 10,
    n_cells: int = 500,
    seed: int = 0,
) -> Interactions:
    """Rank pairs of treatment and context by interaction, with error control.

    Parameters
    ----------
    cross
        Two fits on either half of the cells, from :func:`pyro_fcr.cross_fit`.
    level
        Interval level is ``1 - level``; false discovery rate that the genes' q-values are for.
    min_expressing
        Cells (treated and untreated together, in one half) that must express a gene in the context
        for it to be looked at.
    n_cells
        Cells drawn from the fits for each condition.
    seed
        Seed of these draws.

    Returns
    -------
    See :class:`Interactions`. Pairs that lack treated or untreated cells are left out.

    Raises
    ------
    pyro_fcr.QueryError
        The level is not between 0 and 1, there are no untreated cells, or no treatment was seen in
        two contexts beside them.

    Notes
    -----
    A pair's contrast is the effect in its context less that in the contexts of reference: the other
    contexts where the treatment acts as in most, at least the nearer half of them, weighted gene by
    gene by their precision. Which these are, one half of the cells tells the other
    (:func:`pyro_fcr.discovery.pooling.consensus`). (Against the mean of all contexts, one that
    differs makes all others seem to differ.) Errors and their degrees of freedom are those of
    :class:`pyro_fcr.discovery.contrasts.ConditionCells`, so neither one cell that holds the counts
    of a gene nor a handful of cells in a group pass for evidence.

    The direction of a pair is the contrast in one half, shrunk towards the model's
    (:func:`pyro_fcr.discovery.pooling.shrink`), divided by its variance and orthogonal to a change
    of all genes alike; the other half is read along it. The two z-values are averaged and taken as
    one standard normal: they can be fully dependent where there is nothing to find, so the average
    is not credited with the evidence of two. Few strong genes are found better one by one: the
    p-value of a pair combines that of the direction with that of its genes (Cauchy combination, Liu
    and Xie 2020, JASA 115:393). Genes are tested within the pairs found, with the level corrected
    for the choice (Benjamini and Bogomolov 2014, JRSS B 76:297) or halved (Yekutieli 2008, JASA
    103:309), whichever takes less away.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :40].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> found = rank_interactions(pyro_fcr.cross_fit(fcr, max_epochs=1), n_cells=50)
    >>> found.pairs.shape[0], {"z", "pvalue", "qvalue"} <= set(found.pairs)
    (5, True)
    """
    halves = _Halves(cross)
    found = [
        _examine(effect, row, level=level, min_expressing=min_expressing)
        for effect in halves.treatments(n_cells=n_cells, seed=seed)
        for row in range(len(effect.contexts))
    ]
    pairs = pd.DataFrame([pair for pair, _ in found])
    pairs["qvalue"] = stats.false_discovery_control(pairs["pvalue"])
    chosen = pairs["qvalue"] <= level
    penalty = min(len(pairs) / max(chosen.sum(), 1), _HALVED)
    tables = [
        _judge(table, penalty if is_chosen else np.inf)
        for (_, table), is_chosen in zip(found, chosen, strict=True)
    ]
    pairs = pairs.sort_values(["pvalue", "z"], ascending=[True, False], ignore_index=True)
    return Interactions(pairs, pd.concat(tables, ignore_index=True), level)


def _judge(genes: pd.DataFrame, penalty: float) -> pd.DataFrame:
    adjusted = stats.false_discovery_control(genes["pvalue"]) if len(genes) else np.empty(0)
    return genes.assign(qvalue=np.minimum(adjusted * penalty, 1.0))


class _Halves:
    """The cells of either half by condition, the untreated ones of each context first."""

    def __init__(self, cross: CrossFit) -> None:
        self.members, self.schema = cross.members, cross.members[0].registry.schema
        adata = cross.members[0].source(None)
        self.design = read_design(adata.obs, self.schema)
        keys = self.schema.covariate_keys
        self.names = [dict(zip(keys, levels, strict=True)) for levels in self.design.contexts]
        cells = cross.members[0].registry.encode(adata)
        library = cells.library.numpy().astype(np.float64).ravel()
        self.cells = []
        for rows in (np.flatnonzero(cross.half == k) for k in (0, 1)):
            given = None if cross.replicate is None else cross.replicate[rows]
            half = ConditionCells(
                cells.expression[rows],
                library[rows],
                self.design.conditions[rows],
                len(self.design.treatments) * len(self.names),
                None if given is None else np.unique(given, return_inverse=True)[1],
                log=self.schema.expression == "counts",
            )
            self.cells.append(half)

    def treatments(self, *, n_cells: int, seed: int) -> "list[_Treatment]":
        """Return the treatments that can be compared between contexts.

        Raises
        ------
        QueryError
            No treatment can.
        """
        n = (len(self.design.treatments), len(self.names))
        sizes = [np.bincount(c.condition, minlength=n[0] * n[1]).reshape(n) for c in self.cells]
        enough = np.minimum(*sizes) >= _MIN_CELLS
        both = enough[1:] & enough[0]
        if not (both.sum(axis=1) > 1).any():
            raise QueryError(
                "No treatment has two contexts with untreated cells as well, and "
                f"{_MIN_CELLS} cells of each in either half: nothing can be compared."
            )
        return [
            _Treatment(self, t + 1, np.flatnonzero(row), n_cells, seed)
            for t, row in enumerate(both)
            if row.sum() > 1
        ]


@dataclass(frozen=True, eq=False)
class _Treatment:
    """One treatment in all its contexts: what cells show and fits expect, for each half.

    Arrays are ``(n_contexts, n_genes)`` or, for a pair, ``(n_genes,)``.
    """

    halves: _Halves
    t: int
    contexts: Codes
    n_cells: int
    seed: int

    @property
    def arm(self) -> Arm:
        treatment = self.halves.design.treatments[self.t]
        return Arm(canonical_label(treatment.agents, self.halves.schema), treatment.doses)

    @property
    def ends(self) -> Codes:
        """Conditions with and without the treatment, ``(2, n_contexts)``."""
        n = len(self.halves.names)
        return np.array([self.t * n + self.contexts, self.contexts])

    @cached_property
    def observed(self) -> list[FloatArray]:
        """Effects that the cells of each half show."""
        return [np.subtract(*cells.mean[self.ends]) for cells in self.halves.cells]

    @cached_property
    def error(self) -> list[Error]:
        """Error of these."""
        ends = self.ends.T
        found = [[cells.effect_error(*each) for each in ends] for cells in self.halves.cells]
        return [Error(*map(np.array, zip(*errors, strict=True))) for errors in found]

    @cached_property
    def expected(self) -> list[FloatArray]:
        """Effects that the fit on each half expects."""
        levels = [self.halves.names[x] for x in self.contexts]
        return [
            total_effects(fcr, self.arm, levels, n_cells=self.n_cells, seed=self.seed)
            for fcr in self.halves.members
        ]

    @cached_property
    def _oddity(self) -> list[FloatArray]:
        """How far each context's effect is from what most share, as each half tells."""
        found = []
        for k in (0, 1):
            variance = self.error[k].variance
            common, uncertain = consensus(self.observed[k], variance)
            observed, variance = self.observed[k] - common, variance + uncertain
            observed -= np.median(observed, axis=1, keepdims=True)
            expected = deviation(self.expected[k])
            rows = zip(observed, variance, expected, strict=True)
            found.append(np.array([(shrink(*row).mean ** 2 / row[1]).sum() for row in rows]))
        return found

    def contrast(self, row: int, half: int) -> FloatArray:
        """Weights of contexts and genes in a pair's contrast for one half, chosen on the other."""
        oddity, error = self._oddity[1 - half], self.error[1 - half]
        others = np.delete(np.arange(len(oddity)), row)
        others = others[np.argsort(oddity[others], kind="stable")]
        n_alike = (oddity[others] < np.sqrt(2 * error.variance.shape[1])).sum()
        chosen = others[: max(n_alike, len(others) // 2, 1)]
        precision = 1 / (error.variance + np.sqrt(error.doubt))[chosen]
        weights = np.zeros_like(error.variance)
        weights[row], weights[chosen] = 1.0, -precision / precision.sum(0)
        return weights

    def seen(
        self, weights: FloatArray, half: int, *, fit: int
    ) -> tuple[FloatArray, Error, FloatArray]:
        """Return a contrast as a half's cells show it, its error, and as a fit expects it."""
        error = self.error[half].of_sum(weights)
        observed, expected = self.observed[half], self.expected[fit]
        return (weights * observed).sum(0), error, (weights * expected).sum(0)


def _examine(
    effect: _Treatment, row: int, *, level: float, min_expressing: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    halves, x = effect.halves, effect.contexts[row]
    shown = [cells.expressing[effect.ends[:, row]].sum(axis=0) for cells in halves.cells]
    genes = np.minimum(*shown) >= min_expressing
    table = _test_genes(effect, row, genes, level)
    z = float(np.mean([_read_half(effect, row, half, genes) for half in (0, 1)]))
    context = halves.names[x]
    compared = sum((effect.contrast(row, half) < 0).any(axis=1) for half in (0, 1))
    others = [halves.names[other] for other in effect.contexts[compared > 0]]
    levels = named_levels(context, _COLUMNS)
    names = {**effect.arm.columns, **levels, "context": ", ".join(context.values())}
    parts = {"pvalue_direction": float(stats.norm.sf(z)), "pvalue_genes": _simes(table["pvalue"])}
    pair = {
        **names,
        "strength": float(np.sqrt((table["estimate"] ** 2).mean())) if len(table) else 0.0,
        "z": z,
        **parts,
        "pvalue": float(stats.cauchy.sf(np.mean(stats.cauchy.isf(list(parts.values()))))),
        "reference": "; ".join(", ".join(other.values()) for other in others),
        "n_cells": int(sum((c.condition == effect.ends[0, row]).sum() for c in halves.cells)),
        "n_genes": int(genes.sum()),
    }
    return pair, table.assign(**names)[[*names, *table.columns]]


def _simes(pvalues: pd.Series) -> float:
    """Test whether any gene differs (Simes 1986, Biometrika 73:751); 1 without genes."""
    ordered = np.sort(pvalues.to_numpy())
    return float(np.min(ordered * len(ordered) / np.arange(1, len(ordered) + 1), initial=1.0))


def _read_half(effect: _Treatment, row: int, half: int, genes: npt.NDArray[np.bool_]) -> float:
    """Read one half's cells along the direction that the other half gives; a z-value."""
    weights = effect.contrast(row, half)
    observed, error, expected = effect.seen(weights, 1 - half, fit=1 - half)
    direction, precision = np.zeros(len(genes)), np.where(genes, 1.0 / error.variance, 0.0)
    if genes.any():
        direction[genes] = shrink(observed[genes], error.variance[genes], expected[genes]).mean
    if np.abs(direction).max() < 1e-9:
        return 0.0  # nothing to look for
    loading = weights * direction * precision
    # A change of all genes alike is one of the library sizes.
    loading -= loading.sum(1, keepdims=True) * precision / precision.sum()
    level, error = effect.halves.cells[half].read(
        np.concatenate([loading, -loading]), effect.ends.ravel()
    )
    return float(error.z_value(level))


def _test_genes(
    effect: _Treatment, row: int, genes: npt.NDArray[np.bool_], level: float
) -> pd.DataFrame:
    parts = []
    for half in (0, 1):
        observed, error, expected = effect.seen(effect.contrast(row, half), half, fit=1 - half)
        values = (observed[genes], error.variance[genes], expected[genes])
        found = shrink(*values)
        parts.append((found.mean, found.sd, *values, error.doubt[genes]))
    mean, sd, observed, variance, expected, doubt = (np.array(v) for v in zip(*parts, strict=True))
    contrast, error = observed.mean(axis=0), Error(variance, doubt).of_sum(np.full((2, 1), 0.5))
    lower, upper = error.interval(contrast, 1 - level)
    # A change of all genes alike is one of the library sizes.
    centred = contrast - (np.median(contrast) if genes.any() else 0.0)
    return pd.DataFrame(
        {
            "gene": np.array(effect.halves.members[0].registry.genes)[genes],
            # The halves' errors are taken as dependent: the fit of each saw the other's cells.
            "estimate": mean.mean(axis=0),
            "sd": np.sqrt((sd**2).mean(axis=0)),
            "observed": contrast,
            "lower": lower,
            "upper": upper,
            "model": expected.mean(axis=0),
            "pvalue": 2.0 * stats.norm.sf(np.abs(error.z_value(centred))),
        }
    )
