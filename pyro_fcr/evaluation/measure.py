"""One call that measures a fitted model, and its result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from pyro_fcr.api import FCR
from pyro_fcr.data import Split
from pyro_fcr.data.design import read_labels
from pyro_fcr.evaluation import blocks, judging
from pyro_fcr.evaluation.encoded import encode
from pyro_fcr.metrics.metrics import nan_to_null

TABLES = (
    "headline", "responses", "dimensions", "clustering", "independence", "prior_rank",
    "singular_values", "identifiability",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Assessment:
    """What was measured of a fitted model, as tables. One that could not be made has no rows.

    Parameters
    ----------
    facts
        Numbers of cells, genes, conditions and epochs, held-out ELBO (nats per cell), seed.
    headline
        FCR minus the best baseline, see :func:`pyro_fcr.metrics.headline`.
    responses
        Scores of predicted responses beside all baselines and the split-half ceiling, see
        :func:`pyro_fcr.metrics.response_table`. ``scenario`` says what was predicted: conditions
        that training lacked altogether (``"unseen pair"`` and the like) or, if there are none,
        ``"seen pairs"``: cells that training lacked of conditions that it had.
    dimensions
        How much of each latent dimension is known of the cells, and whether it is in use; see
        :func:`pyro_fcr.metrics.dimension_use`.
    clustering
        NMI and ARI of each block's clusters with the labels, see
        :func:`pyro_fcr.metrics.cluster_agreement`, by ``cells`` (``"training"``,
        ``"held out"``; equally many) and ``encoding`` (``"labelled"``, or ``"label-blind"``:
        :func:`label_blind_latents`).
    independence
        Every independence that the graph claims, tested within strata on the dimensions in use, by
        ``cells``; see
        :func:`pyro_fcr.metrics.independence_table`.
    prior_rank, singular_values
        What the fitted prior identifies, by block; see :class:`pyro_fcr.metrics.PriorRank`.
    identifiability
        Dimensions in use against the true latents, where ``adata.obsm`` holds these; see
        :func:`pyro_fcr.metrics.identifiability_table`.
    left_out
        What could not be judged, and why.
    seconds
        That each part took.
    """

    facts: Mapping[str, Any]
    headline: pd.DataFrame
    responses: pd.DataFrame
    dimensions: pd.DataFrame
    clustering: pd.DataFrame
    independence: pd.DataFrame
    prior_rank: pd.DataFrame
    singular_values: pd.DataFrame
    identifiability: pd.DataFrame
    left_out: Mapping[str, str]
    seconds: Mapping[str, float]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, by name."""
        found: dict[str, pd.DataFrame] = {name: getattr(self, name) for name in TABLES}
        return {name: table for name, table in found.items() if len(table)}

    def sentence(self, scenario: str, metric: str = "cosine_logfc") -> str:
        """Say in a line how FCR fares against the best baseline, on mean log1p expression.

        Parameters
        ----------
        scenario
            One of ``headline["scenario"]``.
        metric
            A name of :data:`pyro_fcr.metrics.scoring.SCORES`.

        Raises
        ------
        ValueError
            There is no such row.
        """
        rows = self.headline.query("scale == 'mean_log1p' and against == 'best on average'")
        rows = rows[(rows["scenario"] == scenario) & (rows["metric"] == metric)]
        if not len(rows):
            raise ValueError(f"the headline has no {metric!r} of {scenario!r}")
        row = rows.iloc[0]
        verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided"
        return (
            f"FCR minus best baseline ({row['baseline']}), {metric}, {scenario} "
            f"({row['n_pairs']}): {row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], "
            f"{verdict}"
        )

    @property
    def scenarios(self) -> list[str]:
        """What was predicted: the distinct ``scenario`` of the responses."""
        return list(dict.fromkeys(self.headline["scenario"])) if len(self.headline) else []

    def to_dict(self) -> dict[str, Any]:
        """Give facts and tables (lists of records) in what JSON can hold; nan is None."""
        tables = {name: getattr(self, name).to_dict("records") for name in TABLES}
        about = {name: dict(getattr(self, name)) for name in ("facts", "left_out", "seconds")}
        return nan_to_null({**about, **tables})


def assess(
    fcr: FCR,
    adata: AnnData | str | Path | None = None,
    *,
    split: Split | None = None,
    replicate_key: str | None = None,
    n_permutations: int = 200,
    n_draws: int = 200,
    max_cells: int = 10_000,
    seed: int = 0,
) -> Assessment:
    """Measure a fitted model: responses, clusters, independences, identifiability. No refit.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells of the fit, those left out by its ``split_key`` among them; None takes those that
        the model has. Where ``obsm`` holds the true latents under the blocks' names, as from
        :func:`pyro_fcr.simulate`, the model's are held against them.
    split
        Training and held-out cells as positions in ``adata``; None takes
        :meth:`pyro_fcr.FCR.split_of`.
    replicate_key
        Column of ``obs`` with the replicate (donor, library, plate), within or between which labels
        are permuted, see :func:`pyro_fcr.metrics.independence_test`.
    n_permutations
        Of every test of independence.
    n_draws
        Bootstrap draws of the cells that responses are held against.
    max_cells
        Cells that clusters, and the comparison with true latents, are made of; drawn at random
        where there are more.
    seed
        Of everything random.

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
    >>> found = assess(fcr, n_permutations=20, n_draws=20)
    >>> list(found.tables)
    ['headline', 'responses', 'dimensions', 'clustering', 'independence', 'prior_rank',
    'singular_values']
    """
    given = fcr.source(adata)
    split = split or fcr.split_of(given)
    plan = judging.plan_judgement(fcr, _own_genes(fcr, given), split)
    replicate = _replicate(given, replicate_key)
    sizes = _Sizes(n_permutations, n_draws, max_cells, seed)
    # Matrices are small: threads would wait for one another, and take minutes on a busy machine.
    with threadpool_limits(limits=1):
        return _measured(fcr, given, split, plan, replicate, sizes)


@dataclass(frozen=True)
class _Sizes:
    """How much is drawn, see :func:`assess`."""

    n_permutations: int
    n_draws: int
    max_cells: int
    seed: int


def _measured(
    fcr: FCR,
    adata: AnnData,
    split: Split,
    plan: judging.Judgement,
    replicate: np.ndarray | None,
    sizes: _Sizes,
) -> Assessment:
    clock, some = _Clock(), {"max_cells": sizes.max_cells, "seed": sizes.seed}
    cells, fitted = _encoded(fcr, adata, split, clock, seed=sizes.seed)
    with clock("clustering"):
        clusters = blocks.clustering(cells, **some)
    with clock("independence"):
        tests = blocks.independence(
            fcr,
            cells,
            replicate=None if replicate is None else replicate[fitted],
            n_permutations=sizes.n_permutations,
            seed=sizes.seed,
        )
    with clock("identifiability"):
        rank, singular = blocks.rank(fcr)
        truth = blocks.identifiability(adata[fitted], cells, **some)
    with clock("responses"):
        own = _own_genes(fcr, adata)
        scores, heads = judging.judge(fcr, own, plan, n_draws=sizes.n_draws, seed=sizes.seed)
    return Assessment(
        facts={**_facts(fcr, adata, split), "seed": sizes.seed},
        headline=heads,
        responses=scores,
        dimensions=cells.dimensions,
        clustering=clusters,
        independence=tests,
        prior_rank=rank,
        singular_values=singular,
        identifiability=truth,
        left_out={**plan.left_out, **cells.left_out},
        seconds=clock.seconds,
    )


class _Clock:
    """Seconds that named parts take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _own_genes(fcr: FCR, adata: AnnData) -> AnnData:
    """Give the cells with the model's genes in its order."""
    genes = list(fcr.registry.genes)
    return adata if list(adata.var_names) == genes else adata[:, genes]


def _replicate(adata: AnnData, key: str | None) -> np.ndarray | None:
    return None if key is None else read_labels(adata.obs, key, role="replicate_key").codes


def _encoded(
    fcr: FCR, adata: AnnData, split: Split, clock: _Clock, *, seed: int
) -> tuple[blocks.Cells, np.ndarray]:
    """Encode the cells of the fit; those left out may have labels that the model does not know."""
    fitted = np.sort(np.concatenate([split.train, split.heldout]))
    own = Split(*(np.searchsorted(fitted, rows) for rows in (split.train, split.heldout)))
    with clock("encoding"):
        everything = len(fitted) == adata.n_obs
        encoded = encode(fcr, adata if everything else adata[fitted], seed=seed)
    return blocks.Cells(encoded, own), fitted


def _facts(fcr: FCR, adata: AnnData, split: Split) -> dict[str, Any]:
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
