"""Power to find interactions: predicted from a pilot, against what simulated screens find.

    python tests/benchmarks/power.py [--screens 20]

A pilot of 120 cells a condition (2 contexts, 2 drugs) and screens of other sizes are drawn from one
simulator (negative binomial counts; effects differ between replicates). In each screen a twentieth
of the genes and pairs interact; contrasts of measured cells are tested gene by gene, Benjamini and
Hochberg over all. No model is trained.
"""

import argparse
import json

import anndata as ad
import numpy as np
import pandas as pd
from scipy import stats

import pyro_fcr
from pyro_fcr.discovery import PlannedScreen, interaction_power
from pyro_fcr.discovery.contrasts import ConditionCells, Error

LEVEL, SHARE, N_GENES = 0.1, 0.05, 300
SCHEMA = pyro_fcr.Schema(treatment_key="drug", control="control", covariate_keys="line")
DESIGNS = [
    {"n_cells": 60, "n_replicates": 1, "n_contexts": 3, "size": 1.0},
    {"n_cells": 100, "n_replicates": 1, "n_contexts": 4, "size": 0.7},
    {"n_cells": 200, "n_replicates": 1, "n_contexts": 4, "size": 0.5},
    {"n_cells": 400, "n_replicates": 1, "n_contexts": 6, "size": 0.3},
    {"n_cells": 120, "n_replicates": 4, "n_contexts": 4, "size": 1.0},
    {"n_cells": 300, "n_replicates": 6, "n_contexts": 4, "size": 0.6},
]


def draw(rng, world, *, n_cells, n_replicates, n_contexts, n_drugs, size, tau):
    """Draw a screen; return it and which interactions it has, ``(drugs, contexts, genes)``."""
    planted = rng.random((n_drugs, n_contexts, N_GENES)) < SHARE
    change = world["effect"][:n_drugs, None] + size * planted * rng.choice([-1, 1], planted.shape)
    parts, obs = [], []
    for x in range(n_contexts):
        for t in range(n_drugs + 1):
            for r in range(n_replicates):
                log = world["base"] + (change[t - 1, x] if t else 0.0)
                log = log + rng.normal(0, tau / np.sqrt(2), N_GENES)  # control and treated: tau
                n = n_cells // n_replicates
                depth = np.exp(rng.normal(np.log(4_000), 0.3, (n, 1)))
                rate = np.exp(log) / (4 * np.exp(world["base"]).sum())
                noise = rng.gamma(world["shape"], 1 / world["shape"], (n, N_GENES))
                rest = np.full((n, 1), max(1 - rate.sum(), 0.1))
                parts.append(rng.poisson(depth * np.hstack([rate * noise, rest])))
                drug = f"drug{t}" if t else "control"
                obs.append(pd.DataFrame({"drug": [drug] * n, "line": f"line{x}", "lane": f"r{r}"}))
    obs = pd.concat(obs, ignore_index=True)
    obs.index = obs.index.astype(str)
    genes = pd.DataFrame(index=[*(f"g{i}" for i in range(N_GENES)), "rest"])
    return ad.AnnData(np.vstack(parts).astype(np.float32), obs=obs, var=genes), planted


def realised(adata, planted, *, n_replicates, min_counts=10):
    """Return which share of the planted interactions tests of contrasts find, and their FDR."""
    n_drugs, n_contexts, _ = planted.shape
    line = adata.obs["line"].str[4:].astype(int).to_numpy()
    drug = adata.obs["drug"].replace("control", "drug0").str[4:].astype(int).to_numpy()
    lane = adata.obs["lane"].str[1:].astype(int).to_numpy() if n_replicates > 1 else None
    cells = ConditionCells(
        adata.X[:, :N_GENES], adata.X.sum(axis=1).astype(float), drug * n_contexts + line,
        (n_drugs + 1) * n_contexts, lane,
    )  # fmt: skip
    p_values, truth, null = [], [], []
    for t in range(n_drugs):
        rows = [((t + 1) * n_contexts + x, x) for x in range(n_contexts)]
        errors = [cells.effect_error(*ends) for ends in rows]
        effects = np.array([cells.mean[a] - cells.mean[b] for a, b in rows])
        error = Error(*map(np.array, zip(*errors, strict=True)))
        shown = np.array([np.minimum(cells.totals[a], cells.totals[b]) for a, b in rows]).mean(0)
        for x in range(n_contexts):
            weights = np.full((n_contexts, 1), -1 / (n_contexts - 1))
            weights[x] = 1.0
            z = error.of_sum(weights).z_value((weights * effects).sum(0))
            tested = shown >= min_counts * n_replicates
            p_values.append(2 * stats.norm.sf(np.abs(z[tested])))
            truth.append(planted[t, x][tested])
            # An interaction in one context is part of the contrasts of all others.
            null.append(~planted[t][:, tested].any(axis=0))
    q_values = stats.false_discovery_control(np.concatenate(p_values))
    truth, null, called = np.concatenate(truth), np.concatenate(null), q_values <= LEVEL
    return (called & truth).sum() / truth.sum(), (called & null).sum() / max(called.sum(), 1)


def compare(design, *, n_screens, seed, tau=0.15):
    rng = np.random.default_rng(seed)
    world = {
        "base": rng.normal(0, 1.0, N_GENES),
        "effect": rng.normal(0, 0.5, (4, N_GENES)),
        "shape": rng.gamma(4.0, 1.0, N_GENES) + 0.5,
    }
    sizes = {key: value for key, value in design.items() if key != "size"}
    tau = tau if design["n_replicates"] > 1 else 0.0
    pilot, _ = draw(rng, world, n_cells=120, n_replicates=3, n_contexts=2, n_drugs=2, size=0.0,
                    tau=tau)  # fmt: skip
    predicted = interaction_power(
        pilot, SCHEMA, [PlannedScreen(**sizes)], sizes=[design["size"]], share=SHARE, level=LEVEL,
        replicate_key="lane" if design["n_replicates"] > 1 else None,
    )["power"].item()  # fmt: skip
    screens = [
        realised(*draw(rng, world, n_drugs=2, size=design["size"], tau=tau, **sizes),
                 n_replicates=design["n_replicates"])
        for _ in range(n_screens)
    ]  # fmt: skip
    power, rate = np.mean(screens, axis=0)
    return design | {"predicted": predicted, "realised": power, "FDR": rate}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", type=int, default=20)
    n_screens = parser.parse_args().screens
    rows = [compare(design, n_screens=n_screens, seed=i) for i, design in enumerate(DESIGNS)]
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print(json.dumps(table.round(4).to_dict("records")))


if __name__ == "__main__":
    main()
