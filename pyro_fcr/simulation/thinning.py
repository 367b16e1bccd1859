"""Real control cells made into treated ones by binomial thinning of their counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.data.checks import check_shape
from pyro_fcr.data.design import read_labels
from pyro_fcr.data.encoding import read_expression
from pyro_fcr.data.schema import Schema
from pyro_fcr.simulation import planted
from pyro_fcr.simulation.fcr_design import Levels, PairEffects, RandomInteractions, names
from pyro_fcr.simulation.planted import Codes, Floats
from pyro_fcr.values import check_settings, checked


@dataclass(frozen=True, kw_only=True)
class EffectDesign:
    """What simulated treatments do to real control cells.

    Parameters
    ----------
    n_treatments
        Number of levels of the treatment: ``"control"``, ``"drug1"``, ``"drug2"``, ... Cells are
        assigned to all of them with equal probability.
    effects
        Effects of treatments in every context, as natural log fold changes by treatment and gene:
        ``{"drug1": {"ISG15": 1.2}}``. None draws them.
    affected, main_effect
        Probability that a treatment affects a gene, and standard deviation of the log fold changes,
        if effects are drawn.
    interactions
        Effects in single contexts in addition to these, by pair and gene, or the number and size of
        those to draw.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> EffectDesign(n_treatments=3, interactions={}).affected
    0.2
    """

    n_treatments: int = 6
    effects: Mapping[str, Mapping[str, float]] | None = None
    affected: float = 0.2
    main_effect: float = 0.5
    interactions: PairEffects | RandomInteractions = field(default_factory=RandomInteractions)

    def __post_init__(self) -> None:
        check_settings(self)


@checked()
def simulate_from_controls(
    adata: AnnData,
    design: EffectDesign | None = None,
    *,
    context_key: str,
    layer: str | None = None,
    seed: int = 0,
) -> AnnData:
    """Treat real control cells with known effects, by binomial thinning of their counts.

    Each cell is assigned a treatment at random. A count of gene g in condition (t, x) is then kept
    with probability ``exp(l[t, x, g] - max(l[:, :, g]))``, where l are the planted log fold changes
    (Gerard 2020, BMC Bioinformatics 21:206). Counts stay whole numbers and never exceed those of
    the real cell, and genes keep their correlations. Between two conditions of one context the
    expected log fold change is the planted one. All conditions of a gene lose counts, the control
    included, until the largest fold change is realised. Fold changes are those of counts, so a
    cell's total changes with them.

    Parameters
    ----------
    adata
        Control cells only, with raw counts. They are not changed.
    design
        Effects of the treatments. None takes the defaults.
    context_key
        Column of ``obs`` with the context of each cell.
    layer
        Layer with the counts. None takes ``X``.
    seed
        Seed of all draws: the same seed simulates the same cells.

    Returns
    -------
    Counts, CSR float32, of the same cells and genes. ``obs``: ``treatment`` and the context.
    ``layers["original"]``: the real counts. ``uns["truth"]``: ``log_fold_change``, natural log
    against the control of the context, ``(n_treatments, n_contexts, n_genes)``;
    ``treatment_effects``, the part of it that is the same in every context,
    ``(n_treatments, n_genes)``; ``interactions``, the rest as columns of a table; the names
    ``treatments`` and ``contexts``; ``kept``, the share of the counts that is left; the design.

    Raises
    ------
    SchemaError
        If values are not whole numbers of 0 or more, a cell has none, or the column is missing.
    ValueError
        If the design names a treatment, context or gene that does not exist.

    Examples
    --------
    >>> import pyro_fcr
    >>> cells = pyro_fcr.datasets.gbm_panobinostat()
    >>> cells = cells[cells.obs["treatment"] == "control"]
    >>> design = EffectDesign(n_treatments=2, effects={"drug1": {"FOS": -1.0}}, interactions={})
    >>> thinned = simulate_from_controls(cells, design, context_key="patient")
    >>> fos = thinned[:, "FOS"].to_df()["FOS"].groupby(thinned.obs["treatment"]).mean()
    >>> bool(-1.3 < np.log(fos["drug1"] / fos["control"]) < -0.7)
    True
    """
    d = design or EffectDesign()
    rng = np.random.default_rng([seed, 2])  # not the stream that drew labels of the same seed
    counts = read_counts(adata, context_key, layer)
    contexts = read_labels(adata.obs, context_key, role="context_key")
    levels = _levels(d, contexts.levels, adata)
    main, interactions = (
        _main_effects(d, levels, rng),
        planted.draw_pairs(d.interactions, levels, rng),
    )
    changes = main[:, None] + planted.log_fold_changes(interactions, levels)
    treatments = np.array(["control", *levels.treatments], object)
    t = rng.integers(d.n_treatments, size=adata.n_obs)
    thinned = _thin(counts, changes, (t, contexts.codes), rng)
    texts = np.array(contexts.levels, object)[contexts.codes]
    obs = pd.DataFrame({"treatment": treatments[t], context_key: texts}, index=adata.obs_names)
    result = AnnData(thinned, obs=obs, var=pd.DataFrame(index=adata.var_names))
    result.layers["original"] = counts
    numbers = {name: getattr(d, name) for name in ("n_treatments", "affected", "main_effect")}
    result.uns["truth"] = {
        "log_fold_change": changes,
        "treatment_effects": main,
        "interactions": planted.tidy(interactions),
        "treatments": treatments,
        "contexts": np.array(contexts.levels, object),
        "kept": float(thinned.sum() / counts.sum()),
        "design": {**numbers, "effects_drawn": d.effects is None, "seed": seed},
    }
    return result


def read_counts(adata: AnnData, context_key: str, layer: str | None) -> sparse.csr_matrix:
    """Return the counts of control cells, which are checked."""
    if context_key == "treatment":
        raise ValueError(
            "context_key is 'treatment', the column of the result's treatments. Rename the column."
        )
    check_shape(adata)
    schema = Schema(
        treatment_key="treatment", control=None, covariate_keys=(context_key,), layer=layer
    )
    return sparse.csr_matrix(read_expression(adata, list(adata.var_names), schema))


def _levels(d: EffectDesign, contexts: tuple[str, ...], adata: AnnData) -> Levels:
    levels = Levels(names("drug", d.n_treatments - 1), contexts, list(adata.var_names))
    levels.check(d.interactions)
    for treatment, changes in (d.effects or {}).items():
        levels.check_name("treatment", treatment)
        levels.check_changes(changes, place=f"effects of {treatment!r}")
    return levels


def _main_effects(d: EffectDesign, levels: Levels, rng: np.random.Generator) -> Floats:
    """Return log fold changes of all contexts, ``(n_treatments, n_genes)``, the control first."""
    if d.effects is None:
        return planted.main_effects(
            (d.n_treatments, len(levels.genes)), d.main_effect, d.affected, rng
        )
    everywhere = {(t, x): genes for t, genes in d.effects.items() for x in levels.contexts[:1]}
    return planted.log_fold_changes(everywhere, levels)[:, 0]


def _thin(
    counts: sparse.csr_matrix, changes: Floats, codes: tuple[Codes, Codes], rng: np.random.Generator
) -> sparse.csr_matrix:
    """Keep each count with a probability that depends on the condition and the gene."""
    t, x = codes
    keep = np.exp(changes - changes.max(axis=(0, 1)))
    cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    left = rng.binomial(counts.data.astype(np.int64), keep[t[cell], x[cell], counts.indices])
    first = counts.indptr[:-1]
    left[first[np.add.reduceat(left, first) == 0]] = 1  # no cell without counts
    thinned = counts.copy()
    thinned.data = left.astype(np.float32)
    thinned.eliminate_zeros()
    return thinned
