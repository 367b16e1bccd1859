"""Responses of unseen pairs on real cells: models against every baseline, each pair held out once.

    OMP_NUM_THREADS=1 python tests/benchmarks/unseen_pairs.py gbm --seeds 5
    python tests/benchmarks/unseen_pairs.py kang_ifnb_small.h5ad --context cell_type

For each pair of treatment and context (Norman: each combination, there is one context) every model
is fitted on the other cells, without half of the context's control cells, and predicts the pair
from the other half; the response is measured against the half that nobody saw. A model's change
is that between its two counterfactuals of the same control cells, under the treatment and under
none, so that what it fails to reconstruct of a cell cancels. Prints one JSON line: ``headline``,
model minus best baseline by metric and scale, with intervals over pairs, cells and fits; ``table``,
means over pairs; ``pairs``, the whole table with intervals.
"""

import argparse
import itertools
import json
import sys
import time
from dataclasses import replace

import anndata as ad
import pandas as pd
import scanpy as sc

import pyro_fcr
from pyro_fcr.comparison import COMPARISONS, fit_comparison
from pyro_fcr.data.scenarios import unseen_contexts, unseen_pairs, unseen_treatments
from pyro_fcr.metrics.profiles import predicted_cells
from pyro_fcr.metrics.response_table import headline, response_table
from pyro_fcr.metrics.scores import SCORES

_N_DRAWS = 20
SCENARIOS = {"pair": unseen_pairs, "treatment": unseen_treatments, "context": unseen_contexts}


def real_cells(name, context):
    """Cells of a bundled set or a file, with genes that occur, and the covariate column."""
    if name == "norman":
        adata, context = pyro_fcr.datasets.norman_k562_combinations(), "cell_line"
    elif name == "gbm":
        adata, context = pyro_fcr.datasets.gbm_panobinostat(), "patient"
    else:
        adata = ad.read_h5ad(name)
    sc.pp.filter_genes(adata, min_cells=10)
    return adata, context


def load(options):
    """Cells with genes that occur, schema, and scenarios."""
    adata, context = real_cells(options.cells, options.context)
    schema = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys=context)
    kind = options.scenario or ("treatment" if options.cells == "norman" else "pair")
    return adata, schema, SCENARIOS[kind](adata.obs, schema, controls=0.5)


def predict(fcr, adata, schema, pair, *, seed):
    """Counterfactuals of the context's control cells that trained, 20 draws of each."""
    control = (adata.obs[schema.treatment_key] == schema.control).to_numpy()
    control &= (adata.obs[schema.split_key] == "train").to_numpy()
    for key, level in zip(schema.covariate_keys, pair.context, strict=True):
        control &= (adata.obs[key].astype(str) == level).to_numpy()
    arms = (
        fcr.counterfactual(adata[control], treatment=t, n_draws=_N_DRAWS, seed=seed)
        for t in (pair.treatment, schema.control)
    )
    return predicted_cells(*arms, expression=schema.expression, n_draws=_N_DRAWS)


def judged(adata, schema, scenarios, models, *, seeds, plan):
    """Fit every model, once per seed, for one scenario after the other."""
    for scenario in scenarios:
        scenario.check(adata, schema)
        cells = adata.copy()
        cells.obs["split"] = scenario.labels
        split = replace(schema, split_key="split")
        predictions = {name: {pair: [] for pair in scenario.pairs} for name in models}
        for name, seed in itertools.product(models, range(seeds)):
            start = time.perf_counter()
            fcr = fit_comparison(name, cells, split, seed=seed, progress=False, **plan)
            for pair, fits in predictions[name].items():
                fits.append(predict(fcr, cells, split, pair, seed=seed))
            seconds = time.perf_counter() - start
            print(f"seed {seed}, {name}, {scenario.name}: {seconds:.0f} s", file=sys.stderr)
        yield scenario, predictions


def run(options):
    adata, schema, found = load(options)
    scenarios = [s for s in found.made if not options.only or options.only in s.name]
    plan = {} if options.epochs is None else {"max_epochs": options.epochs}
    given = judged(adata, schema, scenarios, options.models, seeds=options.seeds, plan=plan)
    table = response_table(adata, schema, given)
    measured = table.frame[["metric", "scale"]].drop_duplicates()
    heads = [
        headline(table, metric, model=name, scale=scale)
        for metric, scale in measured.itertuples(index=False)
        for name in options.models
    ]
    return table.frame, pd.concat(heads), found.left_out


def summary(pairs):
    """Mean over pairs, one row per method and scale."""
    keys = ["scenario", "scale", "role", "method"]
    wide = pairs.pivot_table(index=keys, columns="metric", values="value", sort=False)
    return wide[[name for name in SCORES if name in wide]].reset_index()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", help="gbm, norman, or an h5ad file with obs['treatment']")
    parser.add_argument("--context", default="cell_type", help="covariate column of a file")
    parser.add_argument("--scenario", choices=SCENARIOS, help="pair; for norman treatment")
    parser.add_argument("--models", nargs="+", choices=COMPARISONS, default=["fcr"])
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--epochs", type=int, help="at most; else as the training plan says")
    parser.add_argument("--only", help="scenarios whose name contains this")
    options = parser.parse_args()
    start = time.perf_counter()
    pairs, heads, left_out = run(options)
    print(summary(pairs).round(3).to_string(), file=sys.stderr)
    print(heads.round(4).to_string(), file=sys.stderr)
    report = {"headline": heads, "table": summary(pairs), "pairs": pairs}
    report = {k: json.loads(v.round(5).to_json(orient="records")) for k, v in report.items()}
    seconds = round(time.perf_counter() - start)
    print(json.dumps({"cells": options.cells, "seconds": seconds, "left_out": left_out, **report}))


if __name__ == "__main__":
    main()
