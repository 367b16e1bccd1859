"""The loader alone against a training step, and the memory of resident counts.

    python tests/benchmarks/loader.py

``share`` is the CPU time of making a batch over that of a step on a batch that is there already
(penalties off, which makes steps short and shares large), at each batch size; ``rows_share`` is
that part of it that gathers cells, without the sums over their counts. Memory is that of 100,000
cells x 2,000 genes of which 12 % are not zero: what ``Cells.nbytes`` says, and by how much a fresh
process grew. The last line is JSON. Wanted: shares up to 0.05, up to 150 MB. Takes about a minute.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

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
import gc

import numpy as np
import pandas as pd


def main():
    options = parse()
    if options.memory_only:
        print(json.dumps(memory(options.memory_cells, options.genes)))
        return
    data = encode(make_cells(n_cells=options.cells, n_genes=options.genes))
    rows = {
        f"batch_{size}": shares(data, size, engine=options.engine, repeats=options.repeats)
        for size in options.batch_sizes
    }
    numbers = {"engine": options.engine, "genes": options.genes, **rows}
    if options.memory_cells:
        numbers["memory"] = memory_in_fresh_process(options)
        print("Memory:", ", ".join(f"{k} {v}" for k, v in numbers["memory"].items()))
    report(pd.DataFrame(rows).T, numbers)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512, 2_048])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--engine", choices=("eager", "trace"), default="trace")
    parser.add_argument("--memory-cells", type=int, default=100_000, help="0 leaves memory out")
    parser.add_argument("--memory-only", action="store_true", help="print the memory alone")
    return parser.parse_args()


def shares(data, batch_size, *, engine, repeats):
    """Time loader, gathering and step in turns."""
    trainer = make_trainer(data, batch_size=batch_size, engine=engine, weights=NO_PENALTIES)
    batches, batch = batches_for_ever(trainer), trainer.train.batch(trainer.train.rows[:batch_size])
    cells = trainer.train.shuffled_rows(seed=0, epoch=0)[0]
    times = interleaved(
        {
            "loader": lambda: next(batches),
            "rows": lambda: data.cells.batch(cells),
            "step": lambda: train_step(trainer, batch),
        },
        repeats,
        warmup=5,
    )
    share, wall = times["loader"].over(times["step"])
    loader, step = times["loader"].median[0], times["step"].median[0]
    return {
        "share": round(share, 4),
        "share_wall": round(wall, 4),
        "rows_share": round(times["rows"].over(times["step"])[0], 4),
        "loader_ms": round(1e3 * loader, 3),
        "step_ms": round(1e3 * step, 2),
        "loader_cells_per_s": round(batch_size / loader),
    }


def memory_in_fresh_process(options):
    arguments = ["--memory-only", "--memory-cells", options.memory_cells, "--genes", options.genes]
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def memory(n_cells, n_genes):
    """Encode cells, forget their AnnData, and see by how much the process grew, in MB."""
    encode(make_cells(n_cells=1_000, n_genes=n_genes))  # so that libraries have what they keep
    before = resident()
    data = encode(make_cells(n_cells=n_cells, n_genes=n_genes, zeros=0.88))
    after = resident()
    expression = data.cells.expression
    return {
        "cells": n_cells,
        "not_zero": round(expression.nnz / np.prod(expression.shape), 4),
        "cells_nbytes_mb": round(data.cells.nbytes / 1e6, 1),
        "resident_mb": round((after - before) / 1e6, 1),
    }


def resident():
    """Give the resident memory of this process in bytes, freed memory given back; Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
