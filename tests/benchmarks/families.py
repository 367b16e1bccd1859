"""Are the latents found on simulators of other kinds, by defaults, and does a fit know when not?

    python tests/benchmarks/families.py --out families
    python tests/benchmarks/families.py --out families --families tanh,sine --fits default,true,ivae

Fits every family of ``families-1`` (`pyro_fcr.simulation.FAMILIES`) over seeds, writes a line of
JSON per fit (``families.jsonl``; what is there already is not done again), a table and a figure.
Fits: ``default`` (sizes unknown), ``true`` (true sizes), ``additive`` (the additive decoder), and
the comparison models by name. All scores are within conditions, by one map for all of them. About
4 minutes of CPU per fit.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from families_suite import draw_families, judge, table_of, warning_scores

import pyro_fcr
from pyro_fcr.comparison import COMPARISONS, fit_comparison
from pyro_fcr.files import atomic_write
from pyro_fcr.simulation import FAMILIES, simulate_family

SCHEMA = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="context")
FITS = ("default", "true", "additive", *(name for name in COMPARISONS if name != "fcr"))


def architecture_of(fit, family):
    """The sizes that a fit is told."""
    design = FAMILIES[family].design
    sizes = {"n_x": design.n_x, "n_tx": design.n_tx, "n_t": design.n_t}
    chosen = {"true": sizes, "additive": {"decoder": "additive"}}.get(fit)
    if chosen is None:
        return None if fit == "default" else pyro_fcr.Architecture(**sizes)
    return pyro_fcr.Architecture(**chosen)


def run(family, seed, fit, *, n_cells=None, **plan):
    """Simulate, fit and judge."""
    adata = simulate_family(family, seed=seed, n_cells=n_cells)
    name = fit if fit in COMPARISONS else "fcr"
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fcr = fit_comparison(
            name, adata, SCHEMA, architecture=architecture_of(fit, family), seed=seed, **plan
        )
    seconds = time.process_time() - start
    warned = any("not separated" in str(each.message) for each in caught)
    found = judge(fcr, COMPARISONS[name].latents(fcr), adata, seed=seed)
    about = {"family": family, "seed": seed, "fit": fit, "cpu_seconds": round(seconds, 1)}
    return {**about, "epochs": len(fcr.history), "warned": warned, **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all files")
    parser.add_argument("--families", type=lambda text: text.split(","), default=list(FAMILIES))
    parser.add_argument("--fits", type=lambda text: text.split(","), default=["default"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--cells", type=int, default=None)
    parser.add_argument("--max-epochs", type=int, default=None)
    options = parser.parse_args()
    for name, given, known in [("family", options.families, FAMILIES), ("fit", options.fits, FITS)]:
        if wrong := set(given) - set(known):
            parser.error(f"unknown {name} {sorted(wrong)[0]!r}; expected {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "families.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["family"], row["seed"], row["fit"]) for row in rows}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for family in options.families:
            for fit in options.fits:
                if (family, seed, fit) not in done:
                    plan = {"max_epochs": options.max_epochs, "progress": False}
                    rows.append(run(family, seed, fit, n_cells=options.cells, **plan))
                    with path.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(json.dumps(rows[-1]), flush=True)
    report(pd.DataFrame(rows), options.out)


def report(rows, folder):
    """Print the table and how good the warning is; write both and the figure."""
    table = table_of(rows)
    with atomic_write(folder / "families.csv") as draft:
        table.to_csv(draft, index=False)
    print(table.to_string(index=False))
    print(json.dumps(warning_scores(rows[rows["separated"].notna()])))
    with atomic_write(folder / "families.png") as draft:
        draw_families(rows).savefig(draft, dpi=200)


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
