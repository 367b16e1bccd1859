"""One call that measures a fitted model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from pyro_fcr.data import Split
from pyro_fcr.data.design import read_labels
from pyro_fcr.data.scenarios import Scenarios
from pyro_fcr.evaluation import blocks, judging
from pyro_fcr.evaluation.calibration import measure_calibration
from pyro_fcr.evaluation.result import Evaluation
from pyro_fcr.metrics.arrays import draw_rows
from pyro_fcr.queries import Fitted, interval_coverage
from pyro_fcr.values import checked

_N_COVERED = 500  # cells of a kind whose values are held against intervals


@checked()
def evaluate(
    fcr: Fitted,
    adata: AnnData | str | Path | None = None,
    *,
    split: Split | None = None,
    replicate_key: str | None = None,
    n_permutations: int = 200,
    n_draws: int = 200,
    max_cells: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Measure a fitted model: responses, clusters, independences, identifiability. No refit.

    Parameters
    ----------
    fcr
        A fitted :class:`pyro_fcr.FCR`.
    adata
        The cells of the fit, those left out by its ``split_key`` among them; None takes those that
        the model has. Where ``obsm`` holds the true latents under the blocks' names, as from
        :func:`pyro_fcr.simulation.simulate`, the model's are held against them.
    split
        Training and held-out cells as positions in ``adata``; None takes
        :meth:`pyro_fcr.FCR.split_of`.
    replicate_key
        Column of ``obs`` with the replicate (donor, library, plate), within or between which labels
        are permuted, see :func:`pyro_fcr.metrics.independence_test`.
    n_permutations
        Permutations of every test of independence.
    n_draws
        Bootstrap draws of the cells that responses are held against.
    max_cells
        Cells that clusters, and the comparison with true latents, are made of; drawn at random
        where there are more.
    seed
        Seed of everything random.

    Raises
    ------
    ValueError
        It is not known which cells trained, or held-out cells are among the training cells.
    pyro_fcr.SchemaError
        The cells are not what the schema says.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :60].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1, progress=False)
    >>> found = evaluate(fcr, n_permutations=20, n_draws=20)
    >>> list(found.tables)
    ['headline', 'responses', 'methods', 'calibration', 'coverage', 'dimensions', 'clustering',
    'independence', 'prior_rank', 'singular_values']
    """
    given = fcr.source(adata)
    split = split or fcr.split_of(given)
    own = _own_genes(fcr, given)
    schema, unknown = fcr.registry.schema, partial(judging.not_asked, fcr)
    plan = judging.judged_scenarios(own, schema, split, unknown=unknown)
    fitted = np.sort(np.concatenate([split.train, split.heldout]))
    replicate = None
    if replicate_key is not None:
        replicate = read_labels(given.obs, replicate_key, role="replicate_key").codes[fitted]
    seconds: dict[str, float] = {}
    sizes = {"n_permutations": n_permutations, "max_cells": max_cells}
    # Matrices are small: threads would wait for one another, and take minutes on a busy machine.
    with threadpool_limits(limits=1):
        with _timed(seconds, "encoding"):
            cells = _encoded(fcr, given, split, fitted, seed=seed)
        found = _of_blocks(fcr, given[fitted], cells, replicate, seconds, seed=seed, **sizes)
        with _timed(seconds, "responses"):
            predict = judging.predict_pairs(fcr, own, seed=seed)
            found |= judging.judge(own, schema, plan.made, predict, n_draws=n_draws, seed=seed)
            found["chances"] = judging.chances(fcr, own, plan.made)
        with _timed(seconds, "calibration"):
            train = np.isin(np.arange(own.n_obs), split.train)
            found["calibration"] = measure_calibration(fcr, own, train, seed=seed).table
        with _timed(seconds, "coverage"):
            found["coverage"] = _coverage(fcr, given, split, plan, seed=seed)
        facts = {**_facts(fcr, given, split), "seed": seed}
    left_out = plan.left_out | cells.left_out
    return Evaluation(facts=facts, left_out=left_out, seconds=seconds, **found)


def _of_blocks(
    fcr: Fitted,
    adata: AnnData,
    cells: blocks.SplitCells,
    replicate: np.ndarray | None,
    seconds: dict[str, float],
    *,
    n_permutations: int,
    max_cells: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Measure what the latent blocks of the cells of the fit hold."""
    found, some = {"dimensions": cells.dimensions}, {"max_cells": max_cells, "seed": seed}
    with _timed(seconds, "clustering"):
        found["clustering"] = blocks.clustering(cells, **some)
    with _timed(seconds, "independence"):
        found["independence"] = blocks.independence(
            fcr, cells, replicate=replicate, n_permutations=n_permutations, seed=seed
        )
    with _timed(seconds, "identifiability"):
        found["prior_rank"], found["singular_values"] = blocks.rank(fcr)
        found["identifiability"] = blocks.identifiability(fcr, adata, cells, **some)
    return found


def _coverage(
    fcr: Fitted, adata: AnnData, split: Split, plan: Scenarios, *, seed: int
) -> pd.DataFrame:
    """Measure the coverage of intervals in held-out cells, and in those of unseen conditions."""
    unseen = [np.flatnonzero(s.test) for s in plan.made if not s.of_seen]
    kinds = [split.heldout, *([np.concatenate(unseen)] if unseen else [])]
    some = [rows[draw_rows(len(rows), _N_COVERED, seed)] for rows in kinds if len(rows)]
    return blocks.stacked([interval_coverage(fcr, adata[rows], seed=seed) for rows in some])


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note under a name how long what runs inside takes."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def _own_genes(fcr: Fitted, adata: AnnData) -> AnnData:
    """Return the cells with the model's genes in its order."""
    genes = list(fcr.registry.genes)
    return adata if list(adata.var_names) == genes else adata[:, genes]


def _encoded(
    fcr: Fitted, adata: AnnData, split: Split, fitted: np.ndarray, *, seed: int
) -> blocks.SplitCells:
    """Encode the cells of the fit; those left out may have labels that the model does not know."""
    own = Split(*(np.searchsorted(fitted, rows) for rows in (split.train, split.heldout)))
    some = adata if len(fitted) == adata.n_obs else adata[fitted]
    return blocks.SplitCells(blocks.encode(fcr, some, seed=seed), own)


def _facts(fcr: Fitted, adata: AnnData, split: Split) -> dict[str, Any]:
    n_train, n_heldout = len(split.train), len(split.heldout)
    return {
        "n_cells": adata.n_obs,
        "n_training": n_train,
        "n_heldout": n_heldout,
        "n_left_out": adata.n_obs - n_train - n_heldout,
        "n_genes": len(fcr.registry.genes),
        "n_conditions": len(fcr.registry.conditions),
        "epochs": None if fcr.history is None else len(fcr.history),
        "heldout_elbo_per_cell": fcr.elbo(adata[split.heldout]) if n_heldout else None,
    }
