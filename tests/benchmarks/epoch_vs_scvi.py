"""Cells per second of a training epoch: FCR against scVI on the same simulated counts.

    python tests/benchmarks/epoch_vs_scvi.py

Same counts, batch size, hidden layers (2 of 128) and dimensions of a latent (16), negative binomial
with one dispersion per gene in all; no held-out cells, early stopping, progress, checkpoints or
loggers. ``fcr`` has three encoders and three latents; ``one_encoder`` is a conditional VAE in Pyro
whose encoder and decoder have the layers of scVI. Penalties and alignment are off. scVI reads no
labels, and of several ways to feed it the one is kept that is fastest here.

In turns, each is timed for an epoch after a first one that is not. The last line is JSON: by batch
size the ratio of cells per second to those of scVI, in CPU time (``fcr``, ``one_encoder``) and in
wall time (``..._wall``), the cells per second themselves, and the ways to feed scVI with their CPU
time over that of the fastest (``scvi_ways``). Takes about 5 minutes.

scVI is no dependency of this package: see ``INSTALL`` below.
"""

import argparse
import sys
import warnings
from dataclasses import replace

from speed_cells import (
    NO_PENALTIES,
    SIZES,
    Times,
    encode,
    make_cells,
    make_trainer,
    report,
    stopwatch,
    train_epoch,
)

# isort: split
import logging
import time

import numpy as np
import pandas as pd
import torch

from pyro_fcr.comparison import build_comparison
from pyro_fcr.nn import NegativeBinomialDecoder

INSTALL = """scvi-tools is not installed. Give it an environment of its own; in a checkout:

    python3.11 -m venv venv_scvi
    venv_scvi/bin/pip install scvi-tools -c constraints.txt -e .
    venv_scvi/bin/python tests/benchmarks/epoch_vs_scvi.py
"""
LAYERS = {"n_hidden": 128, "n_layers": 2, "n_latent": 16}
RACE_CELLS = 4_000


def main():
    options = parse()
    scvi = import_scvi()
    adata = make_cells(n_cells=options.cells, n_genes=options.genes)
    data = encode(adata)
    numbers = {"scvi_version": scvi.__version__, "engine": options.engine, "cells": options.cells}
    for batch_size in options.batch_sizes:
        numbers[f"batch_{batch_size}"] = compare(scvi, adata, data, batch_size, options)
    table = pd.DataFrame({k: v for k, v in numbers.items() if k.startswith("batch_")})
    print(
        "Ratios of cells per second to scVI's (CPU time unless said otherwise), cells per second:"
    )
    report(table.drop("scvi_ways"), numbers)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 2_048])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--decoder", choices=("additive", "joint"), default="additive")
    parser.add_argument("--engine", choices=("eager", "trace"), default="trace")
    parser.add_argument("--scvi", choices=tuple(WAYS), help="how to feed scVI; default: race")
    return parser.parse_args()


def import_scvi():
    try:
        import scvi  # noqa: PLC0415
    except ImportError:
        sys.exit(INSTALL)
    warnings.filterwarnings("ignore", module="lightning|scvi")
    warnings.filterwarnings("ignore", message=".*(num_workers|tensorboard|sparse).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("scvi").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # scVI's compiled form needs more than the default 8
    return scvi


def compare(scvi, adata, data, batch_size, options):
    """Time epochs of the three in turns."""
    raced = {options.scvi: 1.0}
    if options.scvi is None:
        raced = race(scvi, adata[:RACE_CELLS].copy(), batch_size)
    way = min(raced, key=raced.get)
    scvi_epoch = ScviEpoch(scvi, adata, batch_size, way)
    settings = {"batch_size": batch_size, "engine": options.engine, "weights": NO_PENALTIES}
    sizes = replace(SIZES, decoder=options.decoder)
    trainers = {
        "fcr": make_trainer(data, architecture=sizes, **settings),
        "one_encoder": make_trainer(data, programs=one_encoder(data.registry), **settings),
    }
    seconds = {"scvi": [], "fcr": [], "one_encoder": []}
    for trainer in trainers.values():
        train_epoch(trainer)  # a traced engine compiles here
    for _ in range(options.turns):
        seconds["scvi"].append(scvi_epoch.time())
        for name, trainer in trainers.items():
            seconds[name].append(stopwatch(lambda trainer=trainer: train_epoch(trainer)))
    times = {name: Times(*np.array(rows).T) for name, rows in seconds.items()}
    return summary(times, scvi_epoch.n_cells, trainers["fcr"]) | {"scvi_ways": raced}


def summary(times, n_scvi, trainer):
    """Give ratios of cells per second, and these."""
    n_fcr = len(trainer.train) * trainer.plan.batch_size
    numbers = {}
    for name in ("fcr", "one_encoder"):
        cpu, wall = times["scvi"].over(times[name])
        numbers |= {name: cpu * n_fcr / n_scvi, f"{name}_wall": wall * n_fcr / n_scvi}
    for name, each in times.items():
        numbers[f"{name}_cells_per_s"] = (n_scvi if name == "scvi" else n_fcr) / each.median[0]
    return {name: round(value, 3) for name, value in numbers.items()}


def one_encoder(registry):
    """Make a conditional VAE with one latent, and a decoder of as many layers as scVI's."""
    sizes = replace(SIZES, n_x=6, n_t=5, n_tx=5)
    model, guide = build_comparison("cvae", registry, architecture=sizes)
    widths = registry.widths
    n_in = LAYERS["n_latent"] + widths["x"] + widths["t"]
    layers = {"n_hidden": LAYERS["n_hidden"], "n_layers": LAYERS["n_layers"]}
    model.y = NegativeBinomialDecoder([n_in], widths["y"], **layers)
    return model, guide


WAYS = {
    "csr": {},
    "dense": {},
    "sparse_tensor": {"load_sparse_tensor": True},
    "dense_compiled": {"plan_kwargs": {"compile": True}},
}
"""Ways to train scVI: counts as CSR or dense, sparse tensors to the end, compiled."""


def race(scvi, adata, batch_size):
    """Time each way on some of the cells; give CPU times relative to the fastest."""
    found = {}
    for way in WAYS:
        try:
            epoch = ScviEpoch(scvi, adata, batch_size, way)
            found[way] = min(epoch.time()[0] for _ in range(2))
        except Exception as error:  # an experimental way may not work everywhere
            print(f"scVI cannot be trained as {way}: {error!r:.200}", file=sys.stderr)
    fastest = min(found.values())
    return {way: round(seconds / fastest, 3) for way, seconds in found.items()}


class ScviEpoch:
    """Trains a ``scvi.model.SCVI``."""

    def __init__(self, scvi, adata, batch_size, way):
        torch.compiler.reset()  # what other models left would make this one fall back to eager
        cells = adata.copy()
        if way.startswith("dense"):
            cells.X = cells.X.toarray()
        scvi.model.SCVI.setup_anndata(cells)
        sizes = {**LAYERS, "dropout_rate": 0.0, "gene_likelihood": "nb"}
        self.model = scvi.model.SCVI(cells, **sizes)
        self.settings = {"batch_size": batch_size, **WAYS[way]}
        self.n_cells = len(cells)

    def time(self):
        """Train for two epochs; give CPU and wall seconds of the second."""
        clock = epoch_clock()
        self.model.train(
            max_epochs=2,
            train_size=1.0,
            accelerator="cpu",
            devices=1,
            callbacks=[clock],
            logger=False,
            enable_progress_bar=False,
            **self.settings,
        )
        return clock.seconds[-1]


def epoch_clock():
    """Make a callback that notes CPU and wall seconds of every epoch."""
    from lightning.pytorch import Callback  # noqa: PLC0415

    class Clock(Callback):
        def __init__(self):
            self.seconds = []

        def on_train_epoch_start(self, *_):
            self.start = time.process_time(), time.perf_counter()

        def on_train_epoch_end(self, *_):
            now = time.process_time(), time.perf_counter()
            self.seconds.append((now[0] - self.start[0], now[1] - self.start[1]))

    return Clock()


if __name__ == "__main__":
    main()
