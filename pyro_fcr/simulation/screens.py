"""Cells in which chosen treatments act differently in chosen contexts, on chosen genes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.simulation import planted
from pyro_fcr.simulation.fcr_design import Levels, RandomInteractions, names
from pyro_fcr.simulation.planted import Floats
from pyro_fcr.values import checked


@dataclass(frozen=True, kw_only=True)
class InteractionDesign:
    """Cells in which some treatments act differently in some contexts.

    Parameters
    ----------
    n_cells, n_genes, n_contexts, n_treatments
        Sizes. Untreated cells come in addition to the treatments. Every cell has a context and a
        treatment at random.
    n_interacting
        Number of pairs of treatment and context that interact.
    n_drivers
        Number of genes that each pair affects.
    effect
        Size of the effect on these genes, up or down, as a natural log fold change in addition to
        the treatment's own.
    main_effect
        Standard deviation of a treatment's natural log fold changes, which are the same in all
        contexts and affect a third of the genes.
    depth
        Median counts of a cell.
    dispersion
        theta of the negative binomial: variance = mean + mean**2 / theta.
    responding
        Share of the treated cells that respond, to the treatment and its interactions.
    n_replicates, replicate_effect
        Number of replicates of every condition (none by default), and the standard deviation of the
        natural log fold change that each adds to each gene.
    """

    n_cells: int = 6_000
    n_genes: int = 200
    n_contexts: int = 6
    n_treatments: int = 5
    n_interacting: int = 6
    n_drivers: int = 20
    effect: float = 0.5
    main_effect: float = 0.4
    depth: float = 1_500.0
    dispersion: float = 5.0
    responding: float = 1.0
    n_replicates: int = 0
    replicate_effect: float = 0.0

    def __post_init__(self) -> None:
        self.levels.check(self.interactions)

    @property
    def levels(self) -> Levels:
        """Names of the treatments (without the control), contexts and genes."""
        return Levels.numbered(self.n_treatments, self.n_contexts, self.n_genes)

    @property
    def interactions(self) -> RandomInteractions:
        """The interactions to plant."""
        return RandomInteractions(
            n_pairs=self.n_interacting, n_genes=self.n_drivers, effect=self.effect
        )


@checked()
def simulate_interactions(design: InteractionDesign | None = None, *, seed: int = 0) -> AnnData:
    """Simulate counts with planted interactions.

    Mean expression has an effect of the context, one of the treatment and, where it was planted,
    one of both; they add up on the log scale. Cells also differ in three continuous states that
    have no cause and leave a condition's mean expression unchanged, so the only interactions are
    the planted ones. Counts are negative binomial.

    Parameters
    ----------
    design
        Sizes and effects. None takes the defaults.
    seed
        Seed of all draws: the same seed simulates the same cells.

    Returns
    -------
    Counts, CSR float32. ``obs``: ``treatment`` (``"control"`` for none), ``context`` and, with
    replicates, ``replicate``. ``uns["interactions"]``: the truth, a row per planted pair and gene
    with ``treatment``, ``context``, ``gene``, ``log_fold_change``. ``varm["treatment_effects"]``:
    the effect of each treatment in every context, ``(n_genes, n_treatments)``.

    Examples
    --------
    >>> adata = simulate_interactions(InteractionDesign(n_cells=300, n_genes=30, n_drivers=4))
    >>> adata.shape, len(adata.uns["interactions"])
    ((300, 30), 24)
    """
    d, rng = design or InteractionDesign(), np.random.default_rng(seed)
    x = rng.integers(d.n_contexts, size=d.n_cells)
    t = rng.integers(d.n_treatments + 1, size=d.n_cells)
    main = planted.main_effects((d.n_treatments + 1, d.n_genes), d.main_effect, 1 / 3, rng)
    interactions = planted.draw_pairs(d.interactions, d.levels, rng)
    log_rate = rng.normal(0, 1.2, d.n_genes) + rng.normal(0, 0.6, (d.n_contexts, d.n_genes))[x]
    acting = t * (rng.random(d.n_cells) < d.responding) if d.responding < 1 else t
    log_rate += main[acting] + planted.log_fold_changes(interactions, d.levels)[acting, x]
    obs = planted.observations(t, x)
    if d.n_replicates:
        replicate = rng.integers(d.n_replicates, size=d.n_cells)
        code = (t * d.n_contexts + x) * d.n_replicates + replicate
        log_rate += rng.normal(0, d.replicate_effect, (code.max() + 1, d.n_genes))[code]
        lines = zip(obs["context"], replicate, strict=True)
        obs["replicate"] = [f"{line}_{number}" for line, number in lines]
    adata = AnnData(_counts(log_rate, d, rng), obs=obs)
    adata.var_names = names("gene", d.n_genes)
    adata.varm["treatment_effects"] = main[1:].T
    adata.uns["interactions"] = pd.DataFrame(planted.tidy(interactions))
    return adata


def _counts(log_rate: Floats, d: InteractionDesign, rng: np.random.Generator) -> sparse.csr_matrix:
    rate = np.exp(log_rate)
    library = d.depth * rng.lognormal(0, 0.35, (len(rate), 1))
    loadings = rng.normal(0, 0.3, (3, d.n_genes))
    state = rng.normal(size=(len(rate), 3)) @ loadings - 0.5 * (loadings**2).sum(axis=0)
    mean = library * np.exp(state) * rate / rate.sum(axis=1, keepdims=True)
    return planted.draw_counts(mean, d.dispersion, rng)
