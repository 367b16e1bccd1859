"""The same model fitted again: on halves of the cells, or on cells drawn with replacement.

Draws of the latents of one fitted model say nothing of how far its parameters are determined. The
spread between refits does, but not of a bias that all fits share; cells that a fit has not seen
can test what it claims.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pyro_fcr.data import Registry, SchemaError, Split, split_cells
from pyro_fcr.data.design import Codes, read_design, read_labels
from pyro_fcr.data.splits import training_cells
from pyro_fcr.draws import QueryError
from pyro_fcr.queries.refitting import Programs, Refittable, refit
from pyro_fcr.values import checked


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Two fits, each on one half of the cells, and which half each cell is in.

    Parameters
    ----------
    members
        Fitted models; ``members[k]`` was trained on the cells of ``half == k``.
    half
        0 or 1 for each cell, -1 for cells that the schema's split leaves out, ``(n_cells,)``.
    replicate
        Number of each cell's replicate, ``(n_cells,)``, where halves keep replicates whole.
    """

    members: tuple[Refittable, Refittable]
    half: Codes
    replicate: Codes | None = None


@checked(error=QueryError)
def cross_fit(
    fcr: Refittable,
    *,
    replicate_key: str | None = None,
    programs: Programs | None = None,
    seed: int = 0,
    **settings: Any,
) -> CrossFit:
    """Fit the model twice, on either half of the cells, for :func:`pyro_fcr.rank_interactions`.

    Parameters
    ----------
    fcr
        The model, with its data; it need not be fitted and is not changed.
    replicate_key
        Column of obs with the replicate (donor, library, plate) of each cell. Replicates then stay
        whole, half of them in each half, and claims are judged by the spread between them. Give it
        where there are any: cells of one replicate are not independent evidence. Without it each
        condition's cells are halved at random. Every condition needs four replicates; of two or
        three, no test says what holds beyond them.
    programs
        Function that makes a fresh model and guide, for programs of your own.
    seed
        Seed of the halves and the fits.
    **settings
        As in :meth:`pyro_fcr.FCR.fit`, e.g. ``max_epochs=150``.

    Raises
    ------
    pyro_fcr.QueryError
        There are no untreated cells, or no treatment was seen in two contexts beside them.
    pyro_fcr.SchemaError
        A condition has fewer than two cells, or replicates, in a half.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :40].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> cross = cross_fit(fcr, max_epochs=1)
    >>> [int((cross.half == k).sum()) for k in (0, 1)]
    [500, 500]
    """
    adata = fcr.source(None)
    _check_comparable(fcr.registry)
    half, replicate = deal_halves(fcr, replicate_key, seed)
    members = []
    for k in (0, 1):
        rows = np.flatnonzero(half == k)
        split = split_cells(adata.obs.iloc[rows], fcr.registry.schema, seed=seed)
        split = Split(rows[split.train], rows[split.heldout])
        members.append(refit(fcr, split, seed=seed + k, programs=programs, settings=settings))
    return CrossFit((members[0], members[1]), half, replicate)


@checked(error=QueryError)
def bootstrap(
    fcr: Refittable,
    n_refits: int = 5,
    *,
    programs: Programs | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[Refittable, ...]:
    """Fit the model again on cells drawn with replacement, condition by condition.

    The spread between the fits is that of the parameters: what other cells of the same conditions,
    other initial values and other batches would have given. It is not a confidence interval: it
    does not show what all fits get wrong alike, and all of them shrink a weak interaction
    (measured in ``tests/benchmarks/interval_coverage.py``: of planted interactions, intervals of
    the total effect at 90 % held 61 %, of other effects 82 %). For claims see
    :func:`pyro_fcr.rank_interactions`.

    Parameters
    ----------
    fcr
        The model, with its data; it need not be fitted and is not changed.
    n_refits
        Number of fits, at least 2.
    programs, seed, **settings
        As in :func:`cross_fit`.

    Raises
    ------
    ValueError
        ``n_refits`` is below 2.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :40].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> refits = bootstrap(fcr, 2, max_epochs=1)
    >>> pyro_fcr.effects(refits, n_cells=20).uncertainty
    'parameters'
    """
    schema, obs = fcr.registry.schema, fcr.source(None).obs
    condition = read_design(obs, schema).conditions
    # The same cells are held out of all fits, for what is tested on them.
    whole, refits = split_cells(obs, schema, seed=seed), []
    for k in range(n_refits):
        train = _with_replacement(whole.train, condition[whole.train], seed + k)
        split = replace(whole, train=train)
        refits.append(refit(fcr, split, seed=seed + k, programs=programs, settings=settings))
    return tuple(refits)


def deal_halves(
    fcr: Refittable, replicate_key: str | None, seed: int
) -> tuple[Codes, Codes | None]:
    """Deal cells to two halves, replicates whole; return halves and replicates of all cells."""
    schema, obs = fcr.registry.schema, fcr.source(None).obs
    condition = read_design(obs, schema).conditions
    rng = np.random.default_rng(seed)
    replicate = None
    if replicate_key is None:
        half = _deal(condition, rng)
    else:
        replicate = read_labels(obs, replicate_key, role="replicate_key").codes
        seen = np.zeros((replicate.max() + 1, condition.max() + 1), dtype=bool)
        seen[replicate, condition] = True
        # Replicates of the same conditions are dealt among one another.
        half = _deal(np.unique(seen, axis=0, return_inverse=True)[1].reshape(-1), rng)[replicate]
    half[~training_cells(obs, schema)] = -1
    if replicate is None:
        _check_halves(half, condition, np.arange(len(obs)), obs.index, _OF_CELLS)
    else:
        _check_halves(half, condition, replicate, obs.index, _OF_REPLICATES % replicate_key)
    return half, replicate


def _deal(kind: Codes, rng: np.random.Generator) -> Codes:
    """Deal to two halves, alternately within each kind."""
    half = np.empty(len(kind), dtype=np.int64)
    half[np.lexsort((rng.random(len(kind)), kind))] = np.arange(len(kind)) % 2
    return half


def _check_comparable(registry: Registry) -> None:
    """Refuse, before fits, data in which no effect can be compared between contexts."""
    control = registry.schema.control
    if control is None:
        raise QueryError("Interactions need untreated cells, but the schema names no control.")
    seen: dict[str, set[tuple[str, ...]]] = {}
    for condition in registry.conditions:
        seen.setdefault(condition.treatment, set()).add(tuple(condition.covariates.values()))
    untreated = seen.pop(control, set())
    if _comparable(seen, untreated):
        return
    others = sorted(seen, key=lambda label: (-len(seen[label]), label))
    instead = [label for label in others if _comparable(seen, seen[label], but=label)]
    found = "; ".join(sorted(", ".join(context) for context in untreated)) or "none"
    raise QueryError(
        "No treatment was seen in two contexts that have untreated cells as well: there is nothing "
        f"to compare its effect with. Contexts with {control!r} are {found}."
        + "".join(
            f" {label!r} can be what others are compared with: Schema(control={label!r})."
            for label in instead[:1]
        )
    )


def _comparable(
    seen: dict[str, set[tuple[str, ...]]], reference: set[tuple[str, ...]], *, but: str = ""
) -> bool:
    return any(len(where & reference) > 1 for label, where in seen.items() if label != but)


_OF_CELLS = "cells in the two halves; expected two in each. Drop the condition."
_OF_REPLICATES = (
    "replicates (%r) in the two halves; expected two in each: fewer do not show how much "
    "replicates differ, and cells of one replicate cannot stand in for that. Drop the condition. "
    "With fewer replicates in all there are estimates (fcr.effects()), or rankings within each "
    "replicate: what all of them find holds for these replicates, not for others."
)


def _check_halves(
    half: Codes, condition: Codes, unit: Codes, names: pd.Index, expected: str
) -> None:
    for code in np.unique(condition[half >= 0]):
        cells = condition == code
        n = [len(np.unique(unit[cells & (half == k)])) for k in (0, 1)]
        if min(n) < 2:
            cell = names[np.flatnonzero(cells)[0]]
            raise SchemaError(f"The condition of cell {cell!r} has {n[0]} and {n[1]} {expected}")


def _with_replacement(rows: Codes, condition: Codes, seed: int) -> Codes:
    rng = np.random.default_rng(seed)
    parts = [rows[condition == code] for code in np.unique(condition)]
    return np.concatenate([rng.choice(part, len(part)) for part in parts])
