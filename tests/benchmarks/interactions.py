"""Power and false discoveries of interactions on simulated cells, against tests gene by gene.

    python tests/benchmarks/interactions.py --seeds 10 --effects 0 0.3 0.5 --out interactions.json
    python tests/benchmarks/interactions.py --seeds 20 --kinds all --real kang_ifnb_small.h5ad

The first fits models; each seed and effect size is a data set of its own (effect 0: nothing
interacts). The second is the error control of ``rank_interactions`` alone, on six kinds of cells
(``interaction_sets.py``), directions from the other half's cells and no model. Printed are means
over seeds of power and of the false discovery proportion at a nominal level, for pairs of treatment
and context and for the genes within them, as a table and as one JSON line.

``fdp`` counts what was not planted; ``fdp_any_context`` only what was planted in no context of the
treatment. Where one context differs, the others differ from the mean over contexts, too: for the
methods that contrast with the mean the second is the fair count.
"""

import argparse
import json
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from interaction_sets import BUNDLED, KINDS, make, read_real
from scipy import stats

from pyro_fcr import FCR, Schema, cross_fit, rank_interactions
from pyro_fcr.discovery import interactions as module
from pyro_fcr.discovery.refits import CrossFit, deal_halves
from pyro_fcr.simulation import InteractionDesign, simulate_interactions

SCHEMA = Schema(treatment_key="treatment", control="control", covariate_keys="context")
LEVEL = 0.1
KEYS = ["treatment", "context"]


def condition_table(adata):
    """Sums per condition: cells, counts, library sizes, log1p values; control first."""
    y = adata.X.toarray().astype(float)
    library = y.sum(axis=1)
    logged = np.log1p(np.median(library) * y / library[:, None])
    codes, conditions = pd.factorize(
        pd.MultiIndex.from_frame(adata.obs[KEYS].astype(str)), sort=True
    )
    return y, library, logged, codes, list(conditions)


def contrasts(means, variances, conditions):
    """Effect in each context less the mean over contexts, with its variance, for every pair."""
    at = {c: i for i, c in enumerate(conditions)}
    contexts = sorted({x for _, x in conditions})
    for t in sorted({t for t, _ in conditions} - {"control"}):
        effect = np.array([means[at[t, x]] - means[at["control", x]] for x in contexts])
        error = np.array([variances[at[t, x]] + variances[at["control", x]] for x in contexts])
        for j, x in enumerate(contexts):
            weight = np.full((len(contexts), 1), -1 / len(contexts))
            weight[j] += 1
            yield t, x, (weight * effect).sum(axis=0), (weight**2 * error).sum(axis=0)


def ols(adata):
    """Least squares on log1p values with all interactions, residual variance per gene."""
    _, _, logged, codes, conditions = condition_table(adata)
    n = np.bincount(codes)
    means = np.array([logged[codes == c].mean(axis=0) for c in range(len(n))])
    residual = ((logged - means[codes]) ** 2).sum(axis=0) / (len(codes) - len(n))
    return gene_tests(adata, contrasts(means, residual / n[:, None], conditions))


def glm(adata):
    """Quasi-Poisson with log link, library offset and all interactions; dispersion per gene.

    With as many coefficients as conditions the fit has a closed form: the pooled rates.
    """
    y, library, _, codes, conditions = condition_table(adata)
    n = len(conditions)
    counts = np.array([y[codes == c].sum(axis=0) for c in range(n)])
    size = np.array([library[codes == c].sum() for c in range(n)])[:, None]
    rate = np.maximum(counts, 0.5) / size
    expected = rate[codes] * library[:, None]
    dispersion = ((y - expected) ** 2 / expected).sum(axis=0) / (len(y) - n)
    return gene_tests(adata, contrasts(np.log(rate), dispersion / (rate * size), conditions))


def gene_tests(adata, found):
    """Wald tests; genes by Benjamini-Hochberg over all, pairs by Simes and Benjamini-Hochberg."""
    genes, pairs = [], []
    for t, x, contrast, variance in found:
        p = 2 * stats.norm.sf(np.abs(contrast) / np.sqrt(variance))
        genes.append(
            pd.DataFrame({"treatment": t, "context": x, "gene": adata.var_names, "pvalue": p})
        )
        simes = (np.sort(p) * len(p) / np.arange(1, len(p) + 1)).min()
        pairs.append({"treatment": t, "context": x, "pvalue": simes})
    genes, pairs = pd.concat(genes, ignore_index=True), pd.DataFrame(pairs)
    for table in (genes, pairs):
        table["qvalue"] = stats.false_discovery_control(table["pvalue"])
    return pairs, genes


def fcr(adata, *, epochs, seed):
    model = FCR(adata, SCHEMA, seed=seed)
    cross = cross_fit(model, max_epochs=epochs, seed=seed)
    with_model = rank_interactions(cross, level=LEVEL)
    return {
        "FCR": (with_model.pairs, with_model.genes),
        "the same without the model": rank_without_model(cross),
    }


def rank_without_model(cross):
    total_effects, module.total_effects = module.total_effects, _no_effects
    try:
        found = rank_interactions(cross, level=LEVEL)
    finally:
        module.total_effects = total_effects
    return found.pairs, found.genes


def _no_effects(member, arm, contexts, **_):
    return np.zeros((len(contexts), len(member.registry.genes)))


def judge(pairs, genes, truth):
    """Power and false discovery proportion of pairs and genes at the level."""
    planted = set(zip(truth["treatment"], truth["context"], strict=True))
    treatments = set(truth["treatment"])
    drivers = set(truth[[*KEYS, "gene"]].itertuples(index=False, name=None))
    found = list(pairs.loc[pairs["qvalue"] <= LEVEL, KEYS].itertuples(index=False, name=None))
    hits = genes.loc[genes["qvalue"] <= LEVEL, [*KEYS, "gene"]].itertuples(index=False, name=None)
    hits = list(hits)
    anywhere = {(t, g) for t, _, g in drivers}
    false_pairs = sum(pair not in planted for pair in found)
    return {
        "pairs_found": len(found),
        "pair_power": sum(p in planted for p in found) / len(planted) if planted else np.nan,
        "pair_fdp": false_pairs / max(len(found), 1),
        "pair_fdp_any_context": sum(t not in treatments for t, _ in found) / max(len(found), 1),
        "gene_power": sum(g in drivers for g in hits) / len(drivers) if drivers else np.nan,
        "gene_fdp": sum(g not in drivers for g in hits) / max(len(hits), 1),
        "gene_fdp_any_context": sum((t, g) not in anywhere for t, _, g in hits) / max(len(hits), 1),
    }


def one(job):
    seed, effect, epochs, sizes = job
    warnings.simplefilter("ignore")
    planted = {"n_interacting": 0} if effect == 0 else {"effect": effect}
    adata = simulate_interactions(InteractionDesign(**{**sizes, **planted}), seed=seed)
    methods = {**fcr(adata, epochs=epochs, seed=seed), "GLM": glm(adata), "OLS": ols(adata)}
    rows = []
    for name, (pairs, genes) in methods.items():
        scores = judge(pairs, genes, adata.uns["interactions"])
        rows.append({"method": name, "effect": effect, "seed": seed, **scores})
    print(json.dumps(rows), flush=True)
    return rows


def one_kind(job):
    kind, seed, path = job
    warnings.simplefilter("ignore")
    adata = make(kind, seed, read_real(path))
    model = FCR(adata, SCHEMA)
    cross = CrossFit((model, model), *deal_halves(model, None, seed))
    scores = judge(*rank_without_model(cross), adata.uns["interactions"])
    cells = path.rsplit("/")[-1] if path else "simulated"
    row = {"kind": kind, "cells": cells, "seed": seed, **scores}
    print(json.dumps(row), flush=True)
    return [row]


def jobs_of(options, seeds):
    """Return the function to run and its arguments, a tuple for each data set."""
    if not options.kinds:
        sizes = {"n_cells": options.cells}
        return one, [(s, e, options.epochs, sizes) for s, e in product(seeds, options.effects)]
    kinds = list(KINDS) if options.kinds == ["all"] else options.kinds
    real = {"permuted", "fake_arms"}
    return one_kind, [
        (kind, seed, path)
        for kind, seed in product(kinds, seeds)
        for path in (options.real if kind in real else [None])
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--effects", type=float, nargs="+", default=[0.0, 0.3, 0.5])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--cells", type=int, default=6_000)
    parser.add_argument("--kinds", nargs="+", choices=["all", *KINDS], help="instead of fits")
    parser.add_argument("--real", nargs="+", default=[BUNDLED], help="h5ad of real cells")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=None, help="JSON file for the scores of every seed")
    options = parser.parse_args()
    run, jobs = jobs_of(options, range(options.first_seed, options.first_seed + options.seeds))
    with ProcessPoolExecutor(options.workers) as pool:
        rows = [row for found in pool.map(run, jobs) for row in found]
    table = pd.DataFrame(rows)
    if options.out:
        table.to_json(options.out, orient="records", indent=1)
    by = ["kind", "cells"] if options.kinds else ["effect", "method"]
    summary = table.drop(columns="seed").groupby(by, sort=not options.kinds).mean().round(3)
    print(summary.to_string())
    print(json.dumps(json.loads(summary.reset_index().to_json(orient="records"))))


if __name__ == "__main__":
    main()
