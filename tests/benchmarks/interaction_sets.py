"""Cells in which it is known which pairs interact: three kinds of none, three of planted ones.

Real cells come from a file of counts with the columns ``treatment`` and ``cell_type`` or
``patient``; the glioblastoma cells that ship with the package are ``BUNDLED``.
"""

import anndata as ad
import numpy as np
import pandas as pd

from pyro_fcr import datasets
from pyro_fcr.simulation import InteractionDesign, simulate_interactions

SIZES = {"n_cells": 6_000}
N_OUTLIERS = 5  # genes of which one cell holds most counts, in two contexts
HELD = 0.97  # share of a condition's counts in that cell
FEWEST = 8  # cells of a condition; smaller groups are dropped


BUNDLED = "gbm_panobinostat"


def read_real(path):
    """Return real cells with the columns ``treatment`` and ``context``."""
    if path is None:
        return None
    adata = datasets.gbm_panobinostat() if path == BUNDLED else ad.read_h5ad(path)
    context = "cell_type" if "cell_type" in adata.obs else "patient"
    columns = adata.obs[["treatment", context]].astype(str)
    adata.obs = columns.rename(columns={context: "context"})
    return adata


def permuted(real, rng):
    """Real cells of all arms, their labels permuted within contexts: no treatment does anything."""
    adata = real.copy()
    for rows in adata.obs.groupby("context", observed=True).indices.values():
        labels = adata.obs["treatment"].to_numpy()[rows]
        adata.obs.iloc[rows, adata.obs.columns.get_loc("treatment")] = rng.permutation(labels)
    return adata


def fake_arms(real, rng, *, n_arms=2):
    """Real control cells of which some are called treated."""
    adata = real[(real.obs["treatment"] == "control").to_numpy()].copy()
    names = np.array(["control", *(f"drug{k + 1}" for k in range(n_arms))])
    adata.obs["treatment"] = names[rng.integers(n_arms + 1, size=adata.n_obs)]
    return adata


def outlier(_, rng):
    """Simulated cells without interactions; single cells hold most of the counts of weak genes."""
    adata = _simulate(rng, n_interacting=0)
    condition = adata.obs["treatment"].str.cat(adata.obs["context"], sep=" ")
    drug = f"drug{rng.integers(1, 6)}"
    counts = adata.X.toarray()
    weak = np.argsort(counts.mean(axis=0))[: 4 * N_OUTLIERS]
    for gene in rng.choice(weak, N_OUTLIERS, replace=False):
        arm = rng.choice([drug, "control"])
        for context in rng.choice(sorted(set(adata.obs["context"])), 2, replace=False):
            rows = np.flatnonzero(condition == f"{arm} {context}")
            others = counts[rows, gene].sum()
            counts[rng.choice(rows), gene] += np.ceil(others * HELD / (1 - HELD))
    adata.X = counts
    return adata


def clean(_, rng):
    """Every pair has about as many cells, and all of them respond."""
    return _simulate(rng, effect=0.4)


def half_respond(_, rng):
    """As clean, but only half of the treated cells respond, to more."""
    return _simulate(rng, effect=0.8, responding=0.5)


def uneven(_, rng):
    """As clean, but 30 % of the pairs have no cells and groups differ much in size."""
    adata = _simulate(rng, effect=0.5, n_cells=20_000)
    pair = adata.obs["treatment"].str.cat(adata.obs["context"], sep=" ")
    wanted = {}
    for name, n in pair.value_counts().sort_index().items():
        absent = not name.startswith("control") and rng.random() < 0.3
        wanted[name] = 0 if absent else min(n, round(170 * rng.gamma(1.0)))
    order = rng.permutation(adata.n_obs)
    rank = pair.iloc[order].groupby(pair.iloc[order]).cumcount().reindex(pair.index)
    size = pair.map(wanted)
    adata = adata[((rank < size) & (size >= FEWEST)).to_numpy()].copy()
    truth, keys = adata.uns["interactions"], ["treatment", "context"]
    seen = pd.MultiIndex.from_frame(adata.obs[keys].drop_duplicates())
    adata.uns["interactions"] = truth[pd.MultiIndex.from_frame(truth[keys]).isin(seen)]
    return adata


NULL = (permuted, fake_arms, outlier)
PLANTED = (clean, half_respond, uneven)
KINDS = {kind.__name__: kind for kind in (*NULL, *PLANTED)}


def _simulate(rng, **changes):
    design = InteractionDesign(**{**SIZES, **changes})
    return simulate_interactions(design, seed=int(rng.integers(2**31)))


def make(kind, seed, real):
    """Return the cells of a kind; ``uns["interactions"]`` is empty where there are none."""
    number = list(KINDS).index(kind)
    adata = KINDS[kind](real, np.random.default_rng([seed, number]))
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    if KINDS[kind] in NULL:
        columns = ["treatment", "context", "gene", "log_fold_change"]
        adata.uns["interactions"] = pd.DataFrame(columns=columns)
    return adata
