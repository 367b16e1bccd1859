"""False positives and power of the independence tests on simulated latents of known dependence.

    python tests/benchmarks/independence.py --draws 200 --leaks 0 0.005 0.01 --out independence.json

Each draw is a data set of its own: 6 x 6 conditions of unequal size and skewed, correlated, partly
bimodal latents whose distribution differs between conditions. A leak is the share of the left
block's variance within strata, on average over its directions, that is replaced by a random
function of the right side: of the label, or linear in the other block. (The effect of two blocks is
per direction of the narrower one: z_tx, of 4 directions, shows a leak of z_t, of 2, at twice its
size.) ``rejected`` at leak 0 is the false positive rate, at other leaks the power; ``low`` and
``high`` are its 95 % interval (Wilson) for the number of draws. With causal-learn installed and
``--kci-draws``, its kernel test stands beside ours on few cells. Printed are a table and one JSON
line. 200 draws of 3 leaks take 25 minutes on a busy core; ``--first-draw 200`` adds others.
"""

import argparse
import importlib.util
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from pyro_fcr.metrics.hsic import kci
from pyro_fcr.metrics.independence import CLAIMS, independence_test

LEVEL = 0.05
DIMS = {"z_x": 2, "z_t": 2, "z_tx": 4}


def cells_of_known_latents(rng, n_cells, *, n_x=6, n_t=6):
    """Labels and independent blocks of cells in conditions of unequal size."""
    share = rng.dirichlet(np.full(n_x * n_t, 1.5)) + 0.002
    condition = rng.choice(n_x * n_t, n_cells, p=share / share.sum())
    labels = {"x": condition // n_t, "t": condition % n_t}
    parents = {"z_x": labels["x"], "z_t": labels["t"], "z_tx": condition}
    return labels, {name: skewed(rng, parents[name], dims) for name, dims in DIMS.items()}


def skewed(rng, code, n_dims):
    """Gamma variables of random sign, mixed, with every parameter different between codes."""
    size = (code.max() + 1, n_dims)
    shape, scale = 0.7 + 3 * rng.random(size), np.exp(rng.normal(0, 0.5, size))
    mix = np.eye(n_dims) + 0.4 * rng.normal(size=(*size, n_dims))
    sign = np.sign(rng.random((len(code), n_dims)) - 0.3)
    free = sign * rng.gamma(shape[code]) * scale[code]
    return rng.normal(0, 2, size)[code] + np.einsum("nij,nj->ni", mix[code], free)


def leaky(rng, block, right, stratum, share):
    """Replace a share of the block's variance within strata by a function of the right."""
    if right.ndim == 1:
        score = rng.normal(size=(right.max() + 1, block.shape[1]))[right]
    else:
        score = right @ rng.normal(size=(right.shape[1], block.shape[1]))
    mixed = block.copy()
    for rows in (stratum == level for level in np.unique(stratum)):
        unit = score[rows] - score[rows].mean(axis=0)
        unit /= np.maximum(unit.std(axis=0), 1e-12)
        centre = block[rows].mean(axis=0)
        root = np.linalg.cholesky(np.cov(block[rows].T))
        own = np.sqrt(1 - share) * (block[rows] - centre)
        mixed[rows] = centre + own + np.sqrt(share) * unit @ root.T
    return mixed


def one(job, *, n_cells, n_permutations, tests):
    seed, leak = job
    rng = np.random.default_rng([seed, 1])  # not the stream that the test draws from
    labels, latents = cells_of_known_latents(rng, n_cells)
    rows = []
    for claim in CLAIMS:
        right = {**labels, **latents}[claim.right]
        stratum = labels[claim.given[0]]
        z = leaky(rng, latents[claim.left], right, stratum, leak)
        for name in tests:
            start = time.perf_counter()
            if name == "kci":
                p_value, effect = kci(z, right, stratum, max_cells=n_cells), np.nan
            else:
                settings = {"n_permutations": n_permutations, "seed": seed}
                found = independence_test(z, right, stratum, **settings)
                p_value, effect = found.p_value, found.effect
            row = {"test": name, "statement": str(claim), "leak": leak, "effect": effect}
            row |= {"rejected": p_value <= LEVEL, "seconds": time.perf_counter() - start}
            rows.append(row)
    return rows


def summary(table):
    """Give the mean over draws, and how sure the rate of rejections is."""
    groups = table.groupby(["cells", "test", "statement", "leak"])
    found = groups[["effect", "rejected", "seconds"]].mean()
    n, rate, z = groups.size(), found["rejected"], 1.96
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return found.assign(low=centre - half, high=centre + half, draws=n).round(4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--first-draw", type=int, default=0, help="seed of the first of them")
    parser.add_argument("--cells", type=int, default=5_000)
    parser.add_argument("--leaks", type=float, nargs="+", default=[0.0, 0.005, 0.01])
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--kci-draws", type=int, default=0)
    parser.add_argument("--kci-cells", type=int, default=500)
    parser.add_argument("--kci-leaks", type=float, nargs="+", default=[0.0, 0.05, 0.1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=None, help="JSON file for every draw")
    options = parser.parse_args()
    few = {"n_cells": options.kci_cells, "tests": ("permutation", "kci")}
    many = {"n_cells": options.cells, "tests": ("permutation",)}
    runs = [(many, options.draws, options.leaks), (few, options.kci_draws, options.kci_leaks)]
    if options.kci_draws and importlib.util.find_spec("causallearn") is None:
        parser.error("--kci-draws needs causal-learn: pip install 'pyro-fcr[independence]'")
    tables = []
    with ProcessPoolExecutor(options.workers) as pool:
        for settings, n_draws, leaks in runs:
            work = partial(one, n_permutations=options.permutations, **settings)
            jobs = product(range(options.first_draw, options.first_draw + n_draws), leaks)
            rows = [row for found in pool.map(work, jobs) for row in found]
            tables += [pd.DataFrame(rows).assign(cells=settings["n_cells"])] if rows else []
    table = pd.concat(tables)
    if options.out:
        table.to_json(options.out, orient="records", indent=1)
    shown = summary(table)
    print(shown.to_string())
    print(shown.reset_index().to_json(orient="records", force_ascii=False))


if __name__ == "__main__":
    main()
