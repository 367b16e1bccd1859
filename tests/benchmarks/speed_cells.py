"""What the speed benchmarks share: simulated cells, a training on them, and a fair stopwatch.

Import this before torch, because it keeps the mathematics libraries to one thread. A machine shared
with other work is noisy: alternatives are timed in turns within one run, and it is the ratio of
their CPU times that is reported.
"""

import gc
import itertools
import json
import os
import time
from typing import NamedTuple

from pyro_fcr.data import register

for _library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from scipy import sparse
from scipy.optimize import brentq

import pyro_fcr
from pyro_fcr.comparison import COMPARISONS, build_comparison
from pyro_fcr.data import Cells, Registry, Schema, Split
from pyro_fcr.modes import seeded
from pyro_fcr.objective import Objective
from pyro_fcr.programs import example_batch
from pyro_fcr.training import TrainingPlan
from pyro_fcr.training.trainer import Trainer

torch.set_num_threads(1)

SCHEMA = Schema(treatment_key="drug", control="control", covariate_keys="line", min_cells=1)
SIZES = pyro_fcr.Architecture(n_x=16, n_t=16, n_tx=16)
"""Three encoders of two hidden layers of 128, as in the measurements of scVI's size."""
NO_PENALTIES = {"structure": 0.0, "permutation": 0.0}

_CELLS_AT_ONCE = 2_000
_DISPERSION = 1.0


def make_cells(*, n_cells=20_000, n_genes=2_000, zeros=0.885, n_x=10, n_t=10, seed=0):
    """Draw negative binomial counts of cells in unbalanced conditions.

    Parameters
    ----------
    n_cells, n_genes
        Size of the matrix.
    zeros
        Expected share of zeros.
    n_x, n_t
        Contexts and treatments, the control among these; all ``n_x * n_t`` conditions have cells.
    seed
        Of all draws.

    Returns
    -------
    ``X`` CSR float32 of whole numbers, ``obs["line"]``, ``obs["drug"]``, fit for :data:`SCHEMA`.
    """
    rng = np.random.default_rng(seed)
    x, t = np.divmod(_conditions(rng, n_cells, n_x * n_t), n_t)
    library = rng.lognormal(0.0, 0.4, n_cells)
    profile = np.exp(1.8 * rng.standard_normal(n_genes).clip(-1.5, 3.0))
    of_x, of_t = (np.exp(0.2 * rng.standard_normal((n, n_genes))) for n in (n_x, n_t))
    some = rng.integers(n_genes, size=n_cells)  # effects of a gene in each cell stand for all
    profile *= _scale(library * of_x[x, some] * of_t[t, some], profile, zeros)
    blocks = [
        _draw(rng, library[rows, None] * profile * of_x[x[rows]] * of_t[t[rows]])
        for rows in np.split(np.arange(n_cells), range(_CELLS_AT_ONCE, n_cells, _CELLS_AT_ONCE))
    ]
    names = np.char.add("cell", np.arange(n_cells).astype(str))
    drug = np.where(t == 0, "control", np.char.add("drug", t.astype(str)))
    obs = pd.DataFrame({"line": np.char.add("line", x.astype(str)), "drug": drug}, index=names)
    return AnnData(_with_all_genes(sparse.vstack(blocks, format="csr")), obs=obs)


def _conditions(rng, n_cells, n_conditions):
    """Every condition has a cell; the largest has some ten times those of the smallest."""
    share = rng.uniform(0.1, 1.0, n_conditions)
    drawn = rng.choice(n_conditions, n_cells - n_conditions, p=share / share.sum())
    return rng.permutation(np.concatenate([np.arange(n_conditions), drawn]))


def _scale(size, profile, zeros):
    """Find by what to multiply means so that the expected share of zeros is as wanted."""
    means = np.outer(np.quantile(size, np.linspace(0.01, 0.99, 50)), profile)

    def excess(log_scale):
        return ((1 + np.exp(log_scale) * means / _DISPERSION) ** -_DISPERSION).mean() - zeros

    return np.exp(brentq(excess, -20.0, 20.0))


def _draw(rng, mean):
    counts = rng.poisson(rng.gamma(_DISPERSION, mean / _DISPERSION)).astype(np.float32)
    return sparse.csr_matrix(counts)


def _with_all_genes(counts):
    """Give genes without a count one; registering asks for one."""
    unseen = np.flatnonzero(counts.getnnz(axis=0) == 0)
    ones = (np.ones(len(unseen), np.float32), (unseen % counts.shape[0], unseen))
    return counts + sparse.csr_matrix(ones, shape=counts.shape)


class Data(NamedTuple):
    """Cells as training reads them."""

    registry: Registry
    cells: Cells


def encode(adata):
    """Register and encode cells of :func:`make_cells`."""
    registry = register(adata, SCHEMA)[0]
    return Data(registry, registry.encode(adata))


def make_objective(data, *, name="fcr", architecture=SIZES, programs=None, weights=None):
    """Build the loss of FCR, of another of :data:`pyro_fcr.comparison.COMPARISONS`, or of programs.

    ``weights=NO_PENALTIES`` leaves the ELBO alone; None takes the model's own terms.
    """
    weights = COMPARISONS[name].weights if weights is None else weights
    model, guide = programs or build_comparison(name, data.registry, architecture=architecture)
    batch = example_batch(data.registry, n_levels=data.cells.n_levels)
    with seeded(0):
        return Objective.from_programs(model, guide, batch, weights=weights)


def make_trainer(data, *, batch_size, max_epochs=100, engine="eager", device="cpu", **objective):
    """Set up a training on all cells: no held-out cells, no alignment, a constant learning rate.

    Parameters
    ----------
    data
        Of :func:`encode`.
    batch_size, max_epochs
        Of the plan.
    engine, device
        The plan's; a traced step is compiled at its fourth call.
    **objective
        As in :func:`make_objective`.
    """
    plan = TrainingPlan(
        batch_size=batch_size,
        max_epochs=max_epochs,
        align_at=None,
        lr_schedule="constant",
        device=device,
        progress=False,
        engine=engine,
    )
    rows = np.arange(len(data.cells))
    loss = make_objective(data, **objective)
    return Trainer(loss, data.cells, split=Split(rows, rows[:0]), plan=plan)


def train_step(trainer, batch):
    """Take one whole training step, discriminators included, as within an epoch."""
    with pyro.validation_enabled(is_validate=False):
        trainer._step(batch)


def train_epoch(trainer):
    """Train for an epoch, loader included; give the number of cells that were seen."""
    with seeded(trainer.epoch):
        trainer._run_epoch()
    return len(trainer.train) * trainer.plan.batch_size


def batches_for_ever(trainer):
    """Yield the shuffled batches of one epoch after another."""
    for epoch in itertools.count():
        yield from trainer.train.shuffled(trainer.plan.seed, epoch)


class Times(NamedTuple):
    """Seconds of every call of one alternative, in order."""

    cpu: np.ndarray
    wall: np.ndarray

    @property
    def median(self):
        """Median CPU and wall seconds."""
        return float(np.median(self.cpu)), float(np.median(self.wall))

    def over(self, other):
        """Median ratios of CPU and of wall time to those of the other alternative's same turn."""
        pairs = zip(self, other, strict=True)
        return tuple(float(np.median(mine / theirs)) for mine, theirs in pairs)


def stopwatch(function):
    """Call a function; give its CPU and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def interleaved(functions, repeats, *, warmup=2):
    """Time alternatives in turns: A B A B ...

    Parameters
    ----------
    functions
        Name of each alternative -> a function without arguments.
    repeats
        How often each is timed.
    warmup
        How often each is called before.

    Returns
    -------
    ``{name: Times}``.

    Examples
    --------
    >>> times = interleaved({"a": work, "b": other_work}, 20)
    >>> times["a"].median, times["a"].over(times["b"])
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    gc.collect()
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(stopwatch(function))
    return {name: Times(*np.array(rows).T) for name, rows in seconds.items()}


def report(table, numbers):
    """Print a table for people, then all numbers as the last line, in JSON."""
    print(table.to_string(float_format=lambda value: f"{value:.3g}"), end="\n\n")
    print(json.dumps(numbers))
