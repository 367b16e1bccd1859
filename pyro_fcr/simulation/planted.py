"""Effects that simulations plant, and the names, columns and counts that all of them share."""

from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from pyro_fcr.simulation.fcr_design import Levels, PairEffects, RandomInteractions, names

Codes: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


def draw_pairs(
    planted: PairEffects | RandomInteractions, levels: Levels, rng: np.random.Generator
) -> PairEffects:
    """Return the interactions by name; draw them if they are random."""
    if not isinstance(planted, RandomInteractions):
        return planted
    pairs, genes = list(product(levels.treatments, levels.contexts)), list(levels.genes)
    found = {}
    for pair in rng.permutation(len(pairs))[: planted.n_pairs]:
        chosen = rng.choice(genes, planted.n_genes, replace=False).tolist()
        changes = planted.effect * rng.choice([-1.0, 1.0], planted.n_genes)
        found[pairs[pair]] = dict(zip(chosen, changes.tolist(), strict=True))
    return found


def log_fold_changes(interactions: PairEffects, levels: Levels) -> Floats:
    """Return the changes, ``(1 + n_treatments, n_contexts, n_genes)``; the control is first."""
    genes = pd.Index(levels.genes)
    changes = np.zeros((1 + len(levels.treatments), len(levels.contexts), len(genes)))
    for (treatment, context), own in interactions.items():
        t, x = levels.treatments.index(treatment) + 1, levels.contexts.index(context)
        changes[t, x, genes.get_indexer(list(own))] = list(own.values())
    return changes


def tidy(interactions: PairEffects) -> dict[str, npt.NDArray[np.object_] | Floats]:
    """Return columns with a row per pair and gene, in a form that ``uns`` can store."""
    rows = [(*pair, gene, c) for pair, genes in interactions.items() for gene, c in genes.items()]
    keys = ("treatment", "context", "gene")
    columns = {key: np.array([row[i] for row in rows], object) for i, key in enumerate(keys)}
    return {**columns, "log_fold_change": np.array([row[3] for row in rows], float)}


def observations(t: Codes, x: Codes) -> pd.DataFrame:
    """Return ``obs`` of cells: treatment 0 is control, others are drugs; contexts are lines."""
    return pd.DataFrame(
        {
            "treatment": np.array(["control", *names("drug", int(t.max()))])[t],
            "context": np.array(names("line", int(x.max()) + 1))[x],
        },
        index=pd.Index(names("cell", len(t))),
    )


def main_effects(
    shape: tuple[int, int], sd: float, affected: float, rng: np.random.Generator
) -> Floats:
    """Draw effects of treatments on a share of the genes, ``shape``; the first has none."""
    effects = rng.normal(0, sd, shape)
    effects *= rng.random(shape) < affected
    effects[0] = 0.0
    return effects


def draw_counts(
    mean: Floats, dispersion: float, rng: np.random.Generator, *, dropout: float = 0.0
) -> sparse.csr_matrix:
    """Draw negative binomial counts, of which some are lost; no cell is left without any."""
    counts = rng.poisson(mean * rng.gamma(dispersion, 1 / dispersion, mean.shape))
    counts *= rng.random(counts.shape) >= dropout
    counts[counts.sum(axis=1) == 0, 0] = 1
    return sparse.csr_matrix(counts.astype(np.float32))
