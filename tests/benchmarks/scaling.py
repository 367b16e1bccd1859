"""What a training step costs as conditions, genes, cells and the batch grow.

    python tests/benchmarks/scaling.py --engine eager

A step is one of training with all terms of FCR on, discriminators and loader included. Within a
sweep the sizes are timed in turns, and the ratio is that of CPU time to the first size: of a step,
and for batches of a step per cell. ``terms`` is a step with all terms over one without penalties,
at 100 conditions. The last line is JSON; ``..._wall`` are the same ratios in wall time. Wanted:
conditions within 15 % of 1, terms up to 1.35. Takes about two minutes; with ``--engine trace``
each size is compiled first, which takes ten: choose ``--sweeps``.
"""

import argparse

from speed_cells import (
    NO_PENALTIES,
    batches_for_ever,
    encode,
    interleaved,
    make_cells,
    make_trainer,
    report,
    train_step,
)

# isort: split
import pandas as pd

CONDITIONS = {10: (2, 5), 100: (10, 10), 1_000: (25, 40)}
"""Contexts and treatments that make so many conditions."""


def main():
    options = parse()
    found = {}
    for sweep in options.sweeps:
        for size in options.batch_sizes if sweep in ("conditions", "terms") else [512]:
            name = "batch_per_cell" if sweep == "batch" else f"{sweep}_batch_{size}"
            found[name] = SWEEPS[sweep](size, options)
    table = pd.concat({name: pd.DataFrame(rows).T for name, rows in found.items()})
    report(table, {"engine": options.engine, **found})


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2_048])
    parser.add_argument("--sweeps", nargs="+", choices=tuple(SWEEPS), default=[*SWEEPS])
    parser.add_argument("--seconds", type=float, default=6.0, help="to time each sweep for")
    parser.add_argument("--engine", choices=("eager", "trace"), default="eager")
    return parser.parse_args()


def of_conditions(batch_size, options):
    trainers = {
        n: trainer(options, batch_size, n_x=n_x, n_t=n_t) for n, (n_x, n_t) in CONDITIONS.items()
    }
    return ratios(trainers, options)


def of_terms(batch_size, options):
    """All terms on over penalties off."""
    data = encode(make_cells(n_cells=4 * batch_size, n_genes=options.genes))
    settings = {"batch_size": batch_size, "engine": options.engine}
    off = make_trainer(data, weights=NO_PENALTIES, **settings)
    return ratios({"off": off, "on": make_trainer(data, **settings)}, options)


def of_genes(batch_size, options):
    sizes = (500, 1_000, 2_000, 4_000)
    return ratios({n: trainer(options, batch_size, n_genes=n) for n in sizes}, options)


def of_cells(batch_size, options):
    sizes = (2_500, 10_000, 40_000)
    return ratios({n: trainer(options, batch_size, n_cells=n) for n in sizes}, options)


def of_batches(batch_size, options):
    """Batches from a quarter of the size to four times it, per cell."""
    sizes = (batch_size // 4, batch_size, 4 * batch_size)
    return ratios({n: trainer(options, n) for n in sizes}, options, per_unit=True)


SWEEPS = {
    "conditions": of_conditions,
    "terms": of_terms,
    "genes": of_genes,
    "cells": of_cells,
    "batch": of_batches,
}


def trainer(options, batch_size, *, n_cells=None, n_genes=None, **conditions):
    """Set up a training with all terms on; 4 batches of cells unless said otherwise."""
    n_cells, n_genes = n_cells or 4 * batch_size, n_genes or options.genes
    data = encode(make_cells(n_cells=n_cells, n_genes=n_genes, **conditions))
    return make_trainer(data, batch_size=batch_size, engine=options.engine)


def ratios(trainers, options, *, per_unit=False):
    """Time steps in turns; give their cost, divided by their names or not, over the first's."""
    steps = {name: stepper(each) for name, each in trainers.items()}
    warm = interleaved(steps, 2, warmup=4)
    turn = sum(times.median[1] for times in warm.values())
    times = interleaved(steps, max(5, round(options.seconds / turn)), warmup=0)
    first = next(iter(trainers))
    found = {}
    for name, each in times.items():
        unit = name / first if per_unit else 1.0
        cpu, wall = (ratio / unit for ratio in each.over(times[first]))
        milliseconds = 1e3 * each.median[0]
        found[name] = {"ratio": cpu, "ratio_wall": wall, "cpu_ms": milliseconds}
    return {n: {k: round(v, 3) for k, v in row.items()} for n, row in found.items()}


def stepper(trainer):
    """Make a function that takes the next batch and a step on it."""
    batches = batches_for_ever(trainer)
    return lambda: train_step(trainer, next(batches))


if __name__ == "__main__":
    main()
