"""Doses and combinations against simulated truth: bias, coverage, error control and power.

    python tests/benchmarks/doses.py [--seeds 5]

No model is trained: cells are drawn from known curves (negative binomial counts), and
`measured_doses`, `hill_curves`, `compare_ec50`, `synergy` and `genetic_interactions` are held
against what they were drawn from.
"""

import argparse
import itertools
import json

import anndata as ad
import numpy as np
import pandas as pd

import pyro_fcr
from pyro_fcr.discovery import (
    compare_ec50,
    genetic_interactions,
    hill_curves,
    measured_doses,
    synergy,
)

DOSES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LEVEL = 0.1
SCHEMA = pyro_fcr.Schema(
    treatment_key="drug", control="control", covariate_keys="line", dose_key="dose"
)
KINDS = ("additive", "synergistic", "suppressive", "redundant", "epistatic", "neomorphic")


def counts(log_change, rng, *, n_cells, base, dispersion=5.0):
    """Draw cells of a condition, ``(n_cells, n_genes + 1)``; the last takes the rest of counts.

    Expression is measured as a share of all counts: without a rest, what some genes gain others
    lose, and no gene would follow the curve that it was given.
    """
    library = np.exp(rng.normal(np.log(15_000), 0.4, size=(n_cells, 1)))
    share = np.exp(base + log_change) / (10 * np.exp(base).sum())
    noise = rng.gamma(dispersion, 1 / dispersion, size=(n_cells, len(share)))
    rest = np.full((n_cells, 1), 1 - share.sum())
    return rng.poisson(library * np.hstack([share * noise, rest]))


def screen(conditions, rng, *, n_cells, base):
    """Stack conditions (labels and log change) to an AnnData."""
    parts, obs = [], []
    for labels, change in conditions:
        parts.append(counts(change, rng, n_cells=n_cells, base=base[labels["line"]]))
        obs.append(pd.DataFrame([labels] * n_cells))
    obs = pd.concat(obs, ignore_index=True)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    genes = pd.DataFrame(index=[*(f"g{i}" for i in range(parts[0].shape[1] - 1)), "rest"])
    return ad.AnnData(np.vstack(parts).astype(np.float32), obs=obs, var=genes)


def names(n_genes):
    return [f"g{i}" for i in range(n_genes)]


def hill(dose, ec50, slope, top):
    return top * dose**slope / (dose**slope + ec50**slope) if dose else 0.0 * top


def curves(seed, *, n_cells=150, n_genes=200):
    """Two lines; EC50 of half of the genes differs five-fold; a fifth do not respond."""
    rng = np.random.default_rng(seed)
    top = rng.choice([-1, 1], n_genes) * rng.uniform(0.7, 2.0, n_genes)
    top[::5] = 0.0
    slope, log_ec50 = rng.uniform(0.8, 2.0, n_genes), rng.uniform(-1.2, 0.2, n_genes)
    shift = np.where(np.arange(n_genes) % 2, np.log10(5.0) * rng.choice([-1, 1], n_genes), 0.0)
    ec50 = {"u": 10**log_ec50, "v": 10 ** (log_ec50 + shift)}
    base = {line: rng.normal(0, 0.7, n_genes) for line in ec50}
    conditions = [
        ({"drug": "A" if dose else "control", "line": line, "dose": dose},
         hill(dose, ec50[line], slope, top))
        for line in ec50 for dose in (0.0, *DOSES)
    ]  # fmt: skip
    adata = screen(conditions, rng, n_cells=n_cells, base=base)
    table = measured_doses(adata, SCHEMA, "A", genes=names(n_genes))
    found = hill_curves(table)
    real = (top != 0)[found["gene"].str[1:].astype(int)]
    number = found["gene"].str[1:].astype(int).to_numpy()
    truth = pd.DataFrame({
        "ec50": np.where(found["line"] == "u", ec50["u"][number], ec50["v"][number]),
        "slope": slope[number], "top": top[number],
    })  # fmt: skip
    row = {}
    for name in truth:
        low, high = found[f"{name}_lower"].to_numpy(), found[f"{name}_upper"].to_numpy()
        inside = (low <= truth[name]) & (truth[name] <= high)
        row[f"{name} coverage"] = inside[real].mean()
    row["log10 ec50 bias"] = np.median((found["log10_ec50"] - np.log10(truth["ec50"]))[real])
    row["log10 ec50 error"] = np.median((found["log10_ec50"] - np.log10(truth["ec50"]))[real].abs())
    row["top bias"] = np.median((found["top"] - truth["top"])[real] * np.sign(truth["top"][real]))
    row["closed"] = np.isfinite(found["se_log10_ec50"][real]).mean()
    row["flat called"] = (found["pvalue"][~real] <= 0.05).mean()
    compared = compare_ec50(found)
    number = compared["gene"].str[1:].astype(int).to_numpy()
    called, differs = (
        compared["qvalue"].to_numpy() <= LEVEL,
        (shift != 0)[number] & (top != 0)[number],
    )
    row["ec50 FDR"] = (called & ~differs).sum() / max(called.sum(), 1)
    row["ec50 power"] = (called & differs).sum() / differs.sum()
    return row


def combinations(seed, *, n_cells=150, n_genes=120):
    """A drug combined with itself (Loewe holds), and two that are independent (Bliss holds)."""
    rng = np.random.default_rng(seed)
    top = rng.choice([-1, 1], n_genes) * rng.uniform(0.7, 1.5, n_genes)
    shape = {"slope": rng.uniform(0.8, 2.0, n_genes), "top": top}
    ec50 = {"A": 10 ** rng.uniform(-1, 0, n_genes), "B": 10 ** rng.uniform(-1, 0, n_genes)}
    base = {"u": rng.normal(0, 0.7, n_genes)}

    def change(drug, dose):
        if drug == "A+A2":
            return hill(2 * dose, ec50["A"], **shape)
        if drug == "A+B":
            return hill(dose, ec50["A"], **shape) + hill(dose, ec50["B"], **shape)
        return hill(dose, ec50[drug.removesuffix("2")], **shape)

    asked = itertools.product(("A", "A2", "B", "A+A2", "A+B"), DOSES)
    conditions = [({"drug": "control", "line": "u", "dose": 0.0}, np.zeros(n_genes))] + [
        ({"drug": drug, "line": "u", "dose": dose}, change(drug, dose)) for drug, dose in asked
    ]
    adata = screen(conditions, rng, n_cells=n_cells, base=base)
    table = {
        drug: measured_doses(adata, SCHEMA, drug, genes=names(n_genes))
        for drug in ("A", "A2", "B", "A+A2", "A+B")
    }
    sham = synergy(table["A+A2"], [table["A"], table["A2"]])
    both = synergy(table["A+B"], [table["A"], table["B"]])
    sham, both = (table[table["bliss"].abs() > 0.3] for table in (sham, both))
    return {
        "sham, excess over Loewe": sham["excess_loewe"].median(),
        "sham, excess over Bliss": sham["excess_bliss"].median(),
        "independent, excess over Bliss": both["excess_bliss"].median(),
    }


def doubles(seed, *, n_cells, size=0.5, n_genes=200, n_each=8):
    """Combinations of every kind, drawn from one screen."""
    rng = np.random.default_rng(seed)
    base, zero = {"u": rng.normal(0, 0.7, n_genes)}, np.zeros(n_genes)
    schema = pyro_fcr.Schema(treatment_key="drug", control="control", covariate_keys="line")
    conditions, truth = [({"drug": "control", "line": "u"}, zero)], {}
    for number, kind in enumerate(np.repeat(KINDS, n_each)):
        a, b, new = rng.normal(0, size, (3, n_genes))
        if kind == "redundant":
            b = 0.95 * a + 0.15 * b
        both = {
            "additive": a + b, "synergistic": 1.6 * (a + b), "suppressive": 0.5 * (a + b),
            "redundant": 0.5 * (a + b), "epistatic": 1.0 * a, "neomorphic": 0.5 * (a + b) + new,
        }[kind]  # fmt: skip
        one, other = f"a{number}", f"b{number}"
        truth[f"{one}+{other}"] = kind
        arms = {one: a, other: b, f"{one}+{other}": both}
        conditions += [({"drug": drug, "line": "u"}, change) for drug, change in arms.items()]
    adata = screen(conditions, rng, n_cells=n_cells, base=base)
    found = genetic_interactions(adata, schema, genes=names(n_genes))
    real = found["treatment"].map(truth)
    null = real == "additive"
    called = ~found["kind"].isin(["additive", "unclear"])
    expected = {"additive": 1, "synergistic": 1.6, "suppressive": 0.5}
    row = {f"strength, {k}": found["strength"][real == k].mean() for k in expected}
    inside = (found["strength"] - real.map(expected)).abs() <= 1.833 * found["strength_se"]
    return row | {
        "strength coverage": inside[real.isin(list(expected))].mean(),
        "FDR": (called & null).sum() / max(called.sum(), 1),
        "power": called[~null].mean(),
        "unclear": (found["kind"] == "unclear").mean(),
        **{f"right, {kind}": (found["kind"] == kind)[real == kind].mean() for kind in KINDS},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    found = {
        "hill, 150 cells a dose": [curves(seed) for seed in seeds],
        "hill, 50 cells a dose": [curves(seed, n_cells=50) for seed in seeds],
        "combinations": [combinations(seed) for seed in seeds],
        **{
            f"doubles, {n} cells, changes of {size}": [
                doubles(seed, n_cells=n, size=size) for seed in seeds
            ]
            for n, size in ((50, 0.5), (200, 0.5), (50, 0.15), (200, 0.15))
        },
    }
    means = {name: pd.DataFrame(rows).mean() for name, rows in found.items()}
    for name, row in means.items():
        print(f"\n{name}\n{row.round(3).to_string()}")
    print(json.dumps({name: row.round(4).to_dict() for name, row in means.items()}))


if __name__ == "__main__":
    main()
