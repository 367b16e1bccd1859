"""Cells from disk beside cells in memory: memory and speed of opening, training and questions.

    python tests/benchmarks/scale.py 100000 2000            # cells, genes
    python tests/benchmarks/scale.py 1000000 2000 --places disk --hidden 32 --epochs 2
    python tests/benchmarks/scale.py --grow 12500 25000 50000 100000 --genes 2000

Each measurement has a process of its own, of one thread. ``peak`` is its resident memory and
``above`` that above its imports, in GB; speeds are cells per CPU second, of ``batches`` with the
sums that training has, of ``fit`` over all epochs. A counterfactual of every cell is written to a
zarr store. ``--grow`` measures CPU seconds at several sizes and prints their exponents.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

import pyro_fcr
from pyro_fcr.training import Batches

_DENSITY, _BLOCK = 0.1, 10_000
_PLACES = {"memory": "1TB", "disk": "1kB"}
_MEASUREMENTS = ("open", "batches", "fit", "latents", "counterfactual")


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


def measure(what: str, place: str, path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return CPU seconds and peak memory of one measurement, in a process of its own."""

    torch.set_num_threads(1)
    schema = pyro_fcr.Schema(treatment_key="drug", control="control", covariate_keys="line")
    sizes = pyro_fcr.Architecture(n_hidden=options.hidden)
    with tempfile.TemporaryDirectory() as folder:  # imports are no part of it
        make(Path(folder, "few.h5ad"), 1_000, 20)
        pyro_fcr.FCR(Path(folder, "few.h5ad"), schema)
    before, start = _peak(), time.process_time()
    fcr = pyro_fcr.FCR(path, schema, architecture=sizes, memory=_PLACES[place])
    opened, cells = time.process_time() - start, fcr._own().cells
    found: dict[str, float] = {}
    if what == "open":
        found["seconds"] = opened
        if place == "memory":
            y = cells.expression
            held = y.data.nbytes + y.indices.nbytes + y.indptr.nbytes
            found["peak / matrix"] = (_peak() - before) / held
    else:
        start = time.process_time()
        n = _WORK[what](fcr, path, options)
        found["seconds"] = time.process_time() - start
        found["cells / s"] = n / found["seconds"]
    return {**found, "peak": _peak() / 1e9, "above": (_peak() - before) / 1e9}


def _batches(fcr: pyro_fcr.FCR, path: Path, options: argparse.Namespace) -> int:
    """Make the batches of an epoch."""
    cells = fcr._own().cells
    place = {"batch_size": options.batch_size, "device": torch.device("cpu")}
    made = Batches.for_training(cells, np.arange(len(cells)), **place)
    return sum(len(batch) for batch in made.shuffled(0, 0))


def _fit(fcr: pyro_fcr.FCR, path: Path, options: argparse.Namespace) -> int:
    plan = {"max_epochs": options.epochs, "batch_size": options.batch_size, "progress": False}
    fcr.fit(**plan, align_at=None)
    return len(fcr.split.train) * options.epochs


def _latents(fcr: pyro_fcr.FCR, path: Path, options: argparse.Namespace) -> int:
    return len(fcr.get_latent_representation("z_x"))


def _counterfactual(fcr: pyro_fcr.FCR, path: Path, options: argparse.Namespace) -> int:
    store = path.with_name("answer.zarr")
    shutil.rmtree(store, ignore_errors=True)
    answer = fcr.counterfactual(treatment="drug1", output=pyro_fcr.Output(store=store))
    shutil.rmtree(store)
    return answer.n_obs


_WORK: dict[str, Callable[..., int]] = {
    "batches": _batches,
    "fit": _fit,
    "latents": _latents,
    "counterfactual": _counterfactual,
}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n_cells", type=int, nargs="?", default=0)
    parser.add_argument("genes", type=int, nargs="?", default=2_000)
    parser.add_argument("--grow", type=int, nargs="+", default=[], help="sizes to compare")
    parser.add_argument("--places", nargs="+", choices=[*_PLACES], default=[*_PLACES])
    parser.add_argument("--what", nargs="+", choices=_MEASUREMENTS, default=[*_MEASUREMENTS])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=2_048)
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of files; temporary if none"
    )
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    return parser.parse_args()


def main() -> None:
    """Make the files, measure each, print tables."""
    options = parse()
    if options.alone:
        path = _file(options.work, options.n_cells, options.genes)
        print(json.dumps(measure(options.what[0], options.places[0], path, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        sizes = options.grow or [options.n_cells]
        tables = {n: _table(n, work, options) for n in sizes}
    if options.grow:
        seconds = pd.DataFrame({n: table["seconds"] for n, table in tables.items()})
        slopes = [np.polyfit(np.log(sizes), np.log(row), 1)[0] for row in seconds.to_numpy()]
        print(seconds.assign(exponent=slopes).round(2).to_string())


def _file(work: Path, n_cells: int, n_genes: int) -> Path:
    path = work / f"cells-{n_cells}-{n_genes}.h5ad"
    if not path.exists():
        make(path, n_cells, n_genes)
    return path


def _table(n_cells: int, work: Path, options: argparse.Namespace) -> pd.DataFrame:
    """Measure everything at one size."""
    path, rows = _file(work, n_cells, options.genes), {}
    print(
        f"{n_cells} cells x {options.genes} genes, {path.stat().st_size / 1e9:.2f} GB", flush=True
    )
    settings = {
        "hidden": options.hidden,
        "epochs": options.epochs,
        "batch-size": options.batch_size,
    }
    for what in options.what:
        for place in options.places:
            again = [sys.executable, __file__, n_cells, options.genes, "--alone", "--what", what]
            again += ["--places", place, "--work", path.parent]
            again += [word for name, value in settings.items() for word in (f"--{name}", value)]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([*map(str, again)], check=True, env=env, stdout=subprocess.PIPE)
            rows[what, place] = json.loads(done.stdout.decode().splitlines()[-1])
            print(what, place, json.dumps(rows[what, place]), flush=True)
    table = pd.DataFrame(rows).T
    if len(options.places) == len(_PLACES) and "cells / s" in table:
        speed = table["cells / s"].unstack()
        table["disk / memory"] = (speed["disk"] / speed["memory"]).reindex(table.index, level=0)
    print(table.round(3).to_string(na_rep=""), flush=True)
    return table


if __name__ == "__main__":
    main()
