"""Every pair of treatment and context left out in turn: FCR, ridge regression, and both together.

    OMP_NUM_THREADS=1 python tests/benchmarks/pairs_out.py real-controls --seed 7
    python tests/benchmarks/pairs_out.py kang_ifnb_small.h5ad --context cell_type --folds 7

Cells are those of a named family of simulators, ``gbm``, ``norman`` (combinations), or a file. FCR
is fitted without a part of the pairs, as often as there are folds, by its default training unless
told otherwise. Appends one JSON line to ``--out``: gains over the baseline that is best on average,
by metric and scale, with intervals over pairs, cells and fits; means over pairs of all scores; how
well the chance tells where FCR wins; how often intervals hold. ``--table`` prints what was found so
far as Markdown.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd
from unseen_pairs import real_cells

import pyro_fcr
from pyro_fcr.simulation import FAMILIES, simulate_family

METRICS = {
    "cosine_logfc": "cosine",
    "wmse_delta": "weighted error",
    "e_distance": "E-distance",
    "discrimination": "discrimination",
}


def gains(found):
    """Gain over the best baseline by metric, scale and method, with a 90 % interval."""
    tables = []
    for metric in METRICS:
        for method in ("fcr", "stacked"):
            try:
                part = found.headline(metric, model=method)
            except ValueError:  # of a stacked prediction there are no cells
                continue
            part = part[part["against"] == "best on average"]
            tables.append(part.assign(method=method))
    return pd.concat(tables, ignore_index=True)


def measure(options):
    """Leave all pairs out in turn; return what goes into the record."""
    if options.cells in FAMILIES:
        adata, context = simulate_family(options.cells, seed=options.seed), "context"
    else:
        adata, context = real_cells(options.cells, options.context)
    schema = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys=context)
    plan = {} if options.max_epochs is None else {"max_epochs": options.max_epochs}
    start = time.process_time()
    found = pyro_fcr.FCR(adata, schema).leave_pairs_out(
        n_folds=options.folds, n_fits=options.fits, progress=False, **plan
    )
    pairs = found.chances.pairs
    means = found.table.frame.groupby(["scale", "metric", "method"])["value"].mean().reset_index()
    return {
        "cells": Path(options.cells).stem,
        "seed": options.seed,
        "folds": options.folds,
        "fits": options.fits,
        "max_epochs": options.max_epochs,
        "cpu_seconds": round(time.process_time() - start),
        "n_pairs": len(pairs),
        "gains": records(gains(found)),
        "means": records(means),
        "weight": found.stack.weight,
        "against": found.chances.simple,
        "won": int((pairs["gain"] > 0).sum()),
        "auroc": found.chances.auroc,
        "pairs": records(pairs),
        "coverage": records(found.coverage),
        "left_out": dict(found.left_out),
    }


def records(table):
    return json.loads(table.round(5).to_json(orient="records"))


def markdown(rows):
    """A table row per set: gains of both methods on every metric and scale."""
    lines = []
    for row in rows:
        for scale in ("mean_log1p", "log1p_mean"):
            for method in ("fcr", "stacked"):
                own = {
                    g["metric"]: f"{g['gain']:+.3f} [{g['low']:.3f}, {g['high']:.3f}]"
                    for g in row["gains"]
                    if (g["scale"], g["method"]) == (scale, method)
                }
                cells = " | ".join(own.get(metric, "-") for metric in METRICS)
                name = f"{row['cells']}, {row['seed']} ({row['n_pairs']} pairs)"
                lines.append(f"| {name} | {scale} | {method} | {cells} |")
    head = f"| cells, seed | scale | method | {' | '.join(METRICS.values())} |"
    return "\n".join([head, "|---" * (3 + len(METRICS)) + "|", *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", help="a family of simulated cells, gbm, norman, or an h5ad file")
    parser.add_argument("--context", default="cell_type", help="covariate column of a file")
    parser.add_argument("--seed", type=int, default=7, help="of simulated cells")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--fits", type=int, default=1, help="repeats of each fit")
    parser.add_argument("--max-epochs", type=int, help="else as the training plan says")
    parser.add_argument("--out", type=Path, default=Path("pairs_out.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    if not options.table:
        found = measure(options)
        with options.out.open("a") as record:
            record.write(json.dumps(found) + "\n")
    print(markdown([json.loads(line) for line in options.out.read_text().splitlines()]))


if __name__ == "__main__":
    main()
