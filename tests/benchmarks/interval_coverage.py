"""Coverage of intervals on simulated cells of known truth, for every kind of interval there is.

    python tests/benchmarks/interval_coverage.py --seeds 3

Each seed is a data set of its own. Printed is a JSON line per seed, then one of the means over
seeds: the share of 50 and 90 % intervals that hold the truth, and how many there were.

``observation``: counts of held-out cells against new cells of their condition.
``effects``: ``fcr.effects()``, by the estimate and cells that the fit has not used.
``spread over refits``: ``effects(bootstrap(...))``; that of the part through z_tx is held against
the planted interaction, which it is not bound to be.
``rank_interactions``: ``rank_interactions(cross_fit(...))``, estimates of all pairs and genes.
``q <= 0.1``: what the q-values of total effects find, and how much of it is false.

Intervals are split into ``planted`` (pairs and genes that truly interact) and ``rest``. Effects
are of shares of a cell's counts, so the planted ones are renormalised by the mean expression of the
context, which the pooled untreated cells give far more exactly than any interval here is wide.
"""

import argparse
import json
import os
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from pyro_fcr import FCR, Schema, bootstrap, cross_fit, effects, rank_interactions
from pyro_fcr.simulation import InteractionDesign, simulate_interactions

SCHEMA = Schema(treatment_key="treatment", control="control", covariate_keys="context")
KEYS = ["treatment", "context", "gene"]


def true_effects(adata):
    """Log fold changes of shares of counts: total, and less the median over contexts."""
    planted = adata.uns["interactions"].set_index(KEYS)["log_fold_change"]
    main = pd.DataFrame(adata.varm["treatment_effects"], index=adata.var_names)
    tables = []
    for t in range(main.shape[1]):
        for context in sorted(set(adata.obs["context"])):
            change = main[t].copy()
            name = f"drug{t + 1}"
            if (name, context) in planted.index.droplevel("gene"):
                own = planted.loc[name, context]
                change[own.index] += own
            control = (adata.obs["context"] == context) & (adata.obs["treatment"] == "control")
            share = np.asarray(adata.X[control.to_numpy()].sum(axis=0)).ravel()
            total = change - np.log(np.average(np.exp(change), weights=share))
            tables.append(
                pd.DataFrame({"treatment": name, "context": context, "gene": main.index,
                              "total": total.to_numpy(), "own": change.to_numpy()})
            )  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    middle = table.groupby(["treatment", "gene"])["total"].transform("median")
    table["interaction"] = table["total"] - middle
    table["planted"] = pd.MultiIndex.from_frame(table[KEYS]).isin(planted.index)
    return table


def held(table, truth, column, ends=("lower", "upper")):
    """Share of intervals with the truth inside, and their mean width, by what is planted."""
    table = table.drop(columns=[column], errors="ignore").merge(truth, on=KEYS)
    lower, upper = (table[end] for end in ends)
    inside = (lower <= table[column]) & (table[column] <= upper)
    error = (table["estimate"] - table[column]).abs()
    return {
        name: {
            "coverage": round(float(inside[rows].mean()), 4),
            "n": int(rows.sum()),
            "mean_width": round(float((upper - lower)[rows].mean()), 4),
            "mean_error": round(float(error[rows].mean()), 4),
        }
        for name, rows in (("planted", table["planted"]), ("rest", ~table["planted"]))
    }


def found(totals, truth, level):
    """What q-values below a level find, and how much of it has no effect or the other direction."""
    table = totals[totals["qvalue"] <= level].merge(truth, on=KEYS)
    wrong = (table["own"] == 0) | (np.sign(table["own"]) != np.sign(table["estimate"]))
    n_true = int((truth["own"] != 0).sum())
    return {
        "found": len(table),
        "false": round(float(wrong.mean()), 4) if len(table) else 0.0,
        "power": round(float((~wrong).sum() / max(n_true, 1)), 4),
    }


def one(seed, options):
    warnings.simplefilter("ignore")
    design = InteractionDesign(
        n_cells=options.cells, n_genes=100, n_contexts=4, n_treatments=3, n_interacting=3,
        n_drivers=15,
    )  # fmt: skip
    adata = simulate_interactions(design, seed=seed)
    truth, fcr = true_effects(adata), FCR(adata, SCHEMA, seed=seed)
    plan = {"max_epochs": options.epochs, "heldout_fraction": options.heldout}
    fcr.fit(progress=False, seed=seed, **plan)
    refits = bootstrap(fcr, options.refits, max_epochs=options.epochs, seed=seed)
    cross = cross_fit(fcr, max_epochs=options.epochs, seed=seed)
    result = {"seed": seed}
    for level in (0.5, 0.9):
        own = fcr.effects(level=level, seed=seed).to_frame()
        over = effects(refits, level=level, seed=seed).to_frame()
        of = {kind: own[own["effect"] == kind] for kind in ("total", "interaction")}
        spread = {kind: over[over["effect"] == kind] for kind in ("total", "interaction", "z_tx")}
        ranked = rank_interactions(cross, level=1 - level, seed=seed).genes
        bounds = ("spread_lower", "spread_upper")
        result[f"{level:g}"] = {
            **{f"effects, {kind}": held(table, truth, kind) for kind, table in of.items()},
            **{
                f"spread over refits, {kind}": held(
                    table, truth, "total" if kind == "total" else "interaction", bounds
                )
                for kind, table in spread.items()
            },
            "rank_interactions": held(ranked, truth, "interaction"),
        }
    result["q <= 0.1"] = found(of["total"], truth, 0.1)
    cells = fcr.interval_coverage(levels=(0.5, 0.9), seed=seed)
    result["observation"] = {
        f"{row.nominal:g}": round(row.observed, 4) for row in cells.itertuples(index=False)
    }
    return result


def mean_of(rows):
    """Average numbers at the same place of nested mappings."""
    if isinstance(rows[0], dict):
        return {key: mean_of([row[key] for row in rows]) for key in rows[0]}
    return round(float(np.mean(rows)), 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--refits", type=int, default=5)
    parser.add_argument("--cells", type=int, default=3_000)
    parser.add_argument("--heldout", type=float, default=0.1, help="share of cells held out")
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        found.append(one(seed, options))
        print(json.dumps(found[-1]), flush=True)
    print(json.dumps({**mean_of(found), "seed": "mean"}))


if __name__ == "__main__":
    main()
