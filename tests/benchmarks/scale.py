"""Cells from disk: memory of opening a file, speed of training beside memory, queries.

    python tests/benchmarks/scale.py 100000 2000            # cells, genes
    python tests/benchmarks/scale.py 1000000 2000 --work /tmp/scale

Each measurement has a process of its own. Memory is the peak above that of the imports; speeds are
cells per CPU second on one thread, as ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

import pyro_fcr
from pyro_fcr.training import Batches

_DENSITY, _BLOCK = 0.1, 10_000
_MEASUREMENTS = ("open", "memory", "disk", "latents", "counterfactual")


def make(path: Path, n_cells: int, n_genes: int) -> None:
    """Write sparse counts of 4 contexts x 6 treatments, a block of rows at a time."""

    rng = np.random.default_rng(0)
    names = pd.Index([f"cell{i}" for i in range(n_cells)])
    x, t = rng.integers(4, size=n_cells), rng.integers(6, size=n_cells)
    obs = pd.DataFrame(
        {"line": pd.Categorical([f"line{i}" for i in x]),
         "drug": pd.Categorical(["control" if i == 0 else f"drug{i}" for i in t])},
        index=names,
    )  # fmt: skip
    with h5py.File(path, "w") as root:
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(root, "obs", obs)
        write_elem(root, "var", pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
        for first in range(0, n_cells, _BLOCK):
            n = min(_BLOCK, n_cells - first)
            n_shown = int(_DENSITY * n_genes)
            block = sparse.csr_matrix(
                (1 + rng.poisson(1.0, n * n_shown).astype(np.float32),
                 rng.integers(n_genes, size=n * n_shown, dtype=np.int32),
                 np.arange(n + 1, dtype=np.int64) * n_shown),
                shape=(n, n_genes),
            )  # fmt: skip
            block.sum_duplicates()
            if first == 0:
                write_elem(root, "X", block)
            else:
                sparse_dataset(root["X"]).append(block)


def measure(what: str, path: Path) -> dict[str, float]:
    """Return CPU seconds and peak memory of one measurement, in a process of its own."""

    torch.set_num_threads(1)
    schema = pyro_fcr.Schema(treatment_key="drug", control="control", covariate_keys="line")
    with tempfile.TemporaryDirectory() as folder:  # imports are no part of it
        make(Path(folder, "few.h5ad"), 1_000, 20)
        pyro_fcr.FCR(Path(folder, "few.h5ad"), schema)
    before, start = _peak(), time.process_time()
    fcr = pyro_fcr.FCR(path, schema, memory="1TB" if what in ("open", "memory") else "1kB")
    cells = fcr._own().cells
    found = {"open_s": time.process_time() - start, "open_peak": _peak() - before}
    if what == "open":
        y = cells.expression
        held = y.data.nbytes + y.indices.nbytes + y.indptr.nbytes
        return {**found, "peak / matrix": found["open_peak"] / held}
    start = time.process_time()
    if what in ("memory", "disk"):
        n = _epoch(cells)
    elif what == "latents":
        n = len(fcr.get_latent_representation("z_x"))
    else:
        fcr.counterfactual(
            treatment="drug1", output=pyro_fcr.Output(store=path.with_name("answer.zarr"))
        )
        n = len(cells)
    found["cells / s"] = n / (time.process_time() - start)
    return {**found, "peak": _peak() - before}


def _epoch(cells: Any) -> int:
    """Make the batches of an epoch, with the sums that training has."""

    place = {"batch_size": 2_048, "device": torch.device("cpu")}
    made = Batches.for_training(cells, np.arange(len(cells)), **place)
    start = time.process_time()
    n = sum(len(batch) for batch in made.shuffled(0, 0))
    print(json.dumps({"batches, cells / s": round(n / (time.process_time() - start))}))
    return n


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Make the file, measure each, print a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n_cells", type=int)
    parser.add_argument("n_genes", type=int)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--only", choices=_MEASUREMENTS, default=None)
    asked = parser.parse_args()
    work = asked.work or Path(tempfile.mkdtemp())
    path = work / f"cells-{asked.n_cells}-{asked.n_genes}.h5ad"
    if asked.only:
        print(json.dumps({"what": asked.only, **measure(asked.only, path)}))
        return
    if not path.exists():
        make(path, asked.n_cells, asked.n_genes)
    for what in _MEASUREMENTS:
        again = [sys.executable, __file__, str(asked.n_cells), str(asked.n_genes)]
        again += ["--work", str(work), "--only", what]
        subprocess.run(again, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
