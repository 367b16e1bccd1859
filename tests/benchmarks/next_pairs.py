"""Are the pairs that are said to tell most those that a model knows least of?

    OMP_NUM_THREADS=1 python tests/benchmarks/next_pairs.py real-programs real-controls --seeds 2

Of simulated cells two fifths of the pairs of treatment and context are left out (each treatment
keeps two contexts). Refits on the rest choose a third of them; printed is how large the mean
squared error of what they expect (log fold changes, noise of the cells taken out) is on those, over
that on all that were left out. One would be as good as chance; ``best`` is what knowing the errors
would give. ``after`` is the error on all of them once the chosen ones are measured and the model is
fitted again, over that of as many pairs at random (three times). The last line is JSON. About five
minutes of one core a set.
"""

import argparse
import json
import warnings

import numpy as np

import pyro_fcr
from pyro_fcr.discovery import next_pairs
from pyro_fcr.discovery.contrasts import ConditionCells
from pyro_fcr.discovery.effects import total_effects
from pyro_fcr.discovery.unused import Arm
from pyro_fcr.simulation import simulate_family

SCHEMA = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="context")


class Screen:
    """Simulated cells, and which pairs of them are left out."""

    def __init__(self, family, seed, n_cells):
        self.adata = simulate_family(family, seed=seed, n_cells=n_cells)
        obs = self.adata.obs.astype({"treatment": str, "context": str})
        self.names = (obs["treatment"] + "|" + obs["context"]).to_numpy()
        self.levels, codes = np.unique(self.names, return_inverse=True)
        library = np.asarray(self.adata.X.sum(axis=1)).ravel().astype(float)
        self.cells = ConditionCells(self.adata.X, library, codes, len(self.levels))
        pairs = [tuple(name.split("|")) for name in self.levels]
        pairs = [pair for pair in pairs if pair[0] != "control"]
        kept = {t: sum(pair[0] == t for pair in pairs) for t, _ in pairs}
        self.missing = []
        self.rng = np.random.default_rng(seed)
        for i in self.rng.permutation(len(pairs)):
            if kept[pairs[i][0]] > 2 and len(self.missing) < 0.4 * len(pairs):
                self.missing.append(pairs[i])
                kept[pairs[i][0]] -= 1

    def without(self, pairs):
        """The cells of all other pairs."""
        out = {"|".join(pair) for pair in pairs}
        return self.adata[[name not in out for name in self.names]].copy()

    def errors(self, fits):
        """Mean squared error over genes of what fits expect of each pair that was left out."""
        found = []
        for treatment, context in self.missing:
            own = [total_effects(fit, Arm(treatment), [{"context": context}], n_cells=200, seed=0)
                   for fit in fits]  # fmt: skip
            ends = np.searchsorted(self.levels, [f"{treatment}|{context}", f"control|{context}"])
            real = np.subtract(*self.cells.mean[ends])
            noise = self.cells.error.variance[ends].sum(axis=0)
            found.append(((np.mean(own, axis=0)[0] - real) ** 2 - noise).mean())
        return np.array(found)


def measure(family, seed, options):
    screen, fit = Screen(family, seed, options.cells), {"max_epochs": options.epochs}
    fcr = pyro_fcr.FCR(screen.without(screen.missing), SCHEMA)
    refits = pyro_fcr.bootstrap(fcr, options.refits, seed=seed, progress=False, **fit)
    errors, n = screen.errors(refits), len(screen.missing) // 3
    table = next_pairs(refits, n_pairs=n)
    pairs = table[["treatment", "context"]].itertuples(index=False, name=None)
    chosen = [screen.missing.index(pair) for pair in pairs]
    row = {"family": family, "seed": seed, "missing": len(errors), "chosen": n,
           "error": errors[chosen].mean() / errors.mean(),
           "best": np.sort(errors)[-n:].mean() / errors.mean()}  # fmt: skip
    if options.after:
        draws = [screen.rng.choice(len(errors), n, replace=False) for _ in range(3)]
        after = []
        for some in (chosen, *draws):
            rest = [pair for i, pair in enumerate(screen.missing) if i not in set(some)]
            again = pyro_fcr.FCR(screen.without(rest), SCHEMA)
            again.fit(seed=seed, progress=False, **fit)
            after.append(screen.errors([again]).mean())
        row["after"] = after[0] / np.mean(after[1:])
    return {k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="+")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=20)
    parser.add_argument("--cells", type=int, default=6_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--refits", type=int, default=4)
    parser.add_argument("--after", action="store_true", help="measure, fit again, compare")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for family in options.families:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            rows.append(measure(family, seed, options))
            print(rows[-1], flush=True)
    keys = [key for key in ("error", "best", "after") if key in rows[0]]
    print(json.dumps({key: round(float(np.mean([row[key] for row in rows])), 3) for key in keys}))


if __name__ == "__main__":
    main()
