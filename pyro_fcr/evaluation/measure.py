"""One call that measures a fitted model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from pyro_fcr.evaluation.encoded import encode
from pyro_fcr.evaluation.result import Evaluation
from pyro_fcr.metrics.arrays import draw_rows
from pyro_fcr.queries import Fitted, interval_coverage

_N_COVERED = 500  # cells of a kind whose values are held against intervals


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
    ['headline', 'responses', 'methods', 'coverage', 'dimensions', 'clustering', 'independence',
    'prior_rank', 'singular_values']
    """
    given = fcr.source(adata)
    split = split or fcr.split_of(given)
    plan = judging.judged_scenarios(fcr, _own_genes(fcr, given), split)
    replicate = None
    if replicate_key is not None:
        replicate = read_labels(given.obs, replicate_key, role="replicate_key").codes
    measuring = _Measuring(fcr, given, split, plan, seed)
    # Matrices are small: threads would wait for one another, and take minutes on a busy machine.
    with threadpool_limits(limits=1):
        latents = measuring.latents(replicate, n_permutations=n_permutations, max_cells=max_cells)
        return Evaluation(
            facts=measuring.facts(),
            **latents,
            **measuring.responses(n_draws),
            coverage=measuring.coverage(),
            left_out={**plan.left_out, **measuring.left_out},
            seconds=measuring.seconds,
        )


@dataclass(eq=False)
class _Measuring:
    """A model and its cells while they are measured, with the seconds that named parts take."""

    fcr: Fitted
    adata: AnnData
    split: Split
    plan: Scenarios
    seed: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)

    def latents(
        self, replicate: np.ndarray | None, *, n_permutations: int, max_cells: int
    ) -> dict[str, pd.DataFrame]:
        """Measure the blocks; cells left out of the fit may have labels that it does not know."""
        rows = np.sort(np.concatenate([self.split.train, self.split.heldout]))
        own = Split(
            *(np.searchsorted(rows, each) for each in (self.split.train, self.split.heldout))
        )
        fitted = self.adata if len(rows) == self.adata.n_obs else self.adata[rows]
        seed, found = self.seed, {}
        with self.clock("encoding"):
            cells = blocks.SplitCells(encode(self.fcr, fitted, seed=seed), own)
            found["dimensions"] = cells.dimensions
        with self.clock("clustering"):
            found["clustering"] = blocks.clustering(cells, max_cells=max_cells, seed=seed)
        with self.clock("independence"):
            found["independence"] = blocks.independence(
                self.fcr,
                cells,
                replicate=None if replicate is None else replicate[rows],
                n_permutations=n_permutations,
                seed=seed,
            )
        with self.clock("identifiability"):
            found["prior_rank"], found["singular_values"] = blocks.rank(self.fcr)
            truth = blocks.identifiability(fitted, cells, max_cells=max_cells, seed=seed)
        self.left_out = cells.left_out
        return {**found, "identifiability": truth}

    def responses(self, n_draws: int) -> dict[str, pd.DataFrame]:
        """Judge predicted responses."""
        names = ("responses", "methods", "changes", "headline")
        with self.clock("responses"):
            if not self.plan.made:
                return {name: pd.DataFrame() for name in names}
            own = _own_genes(self.fcr, self.adata)
            table, heads = judging.judge(
                self.fcr, own, self.plan.made, n_draws=n_draws, seed=self.seed
            )
        return dict(zip(names, (table.frame, table.methods, table.changes, heads), strict=True))

    def coverage(self) -> pd.DataFrame:
        """Measure intervals of held-out cells, and of those of unseen conditions."""
        unseen = [np.flatnonzero(s.test) for s in self.plan.made if not s.of_seen]
        kinds = self.split.heldout, np.concatenate([*unseen, []]).astype(int)
        with self.clock("coverage"):
            tables = [
                interval_coverage(
                    self.fcr,
                    self.adata[rows[draw_rows(len(rows), _N_COVERED, self.seed)]],
                    seed=self.seed,
                )
                for rows in kinds
                if len(rows)
            ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def facts(self) -> dict[str, Any]:
        """Count cells, genes, conditions and epochs."""
        fcr, heldout = self.fcr, self.split.heldout
        n_train, n_heldout = len(self.split.train), len(heldout)
        return {
            "n_cells": self.adata.n_obs,
            "n_training": n_train,
            "n_heldout": n_heldout,
            "n_left_out": self.adata.n_obs - n_train - n_heldout,
            "n_genes": len(fcr.registry.genes),
            "n_conditions": len(fcr.registry.conditions),
            "epochs": None if fcr.history is None else len(fcr.history),
            "heldout_elbo_per_cell": fcr.elbo(self.adata[heldout]) if n_heldout else None,
            "seed": self.seed,
        }


def _own_genes(fcr: Fitted, adata: AnnData) -> AnnData:
    """Return the cells with the model's genes in its order."""
    genes = list(fcr.registry.genes)
    return adata if list(adata.var_names) == genes else adata[:, genes]
