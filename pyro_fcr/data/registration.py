"""A data set -> what was learnt from it and its cells, after checks of all that could fail."""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import checks
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import Condition, Design, Mask, read_design
from pyro_fcr.data.encoding import (
    library_sizes,
    make_cells,
    read_expression,
    read_outcomes,
    site_rows,
)
from pyro_fcr.data.errors import SchemaError
from pyro_fcr.data.facts import condition_facts
from pyro_fcr.data.io import open_cells
from pyro_fcr.data.registry import Registry
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.splits import training_cells
from pyro_fcr.data.treatments import canonical_label
from pyro_fcr.values import Size


def register(
    adata: AnnData | str | Path, schema: Schema, *, memory: str | int | None = None
) -> tuple[Registry, Cells]:
    """Check a data set, learn its levels, dose ranges and conditions, and encode its cells.

    The matrix is read once and checked once.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed, or the path of an `.h5ad` or `.zarr`. Not changed.
    schema
        Meaning of its columns and its matrix.
    memory
        How much memory a matrix on disk may take, as ``"2GB"`` or bytes; if it takes more it stays
        there. None stands for half of what is free.

    Returns
    -------
    tuple
        The registry, which turns this or other data into tensors, and the cells so encoded.

    Raises
    ------
    SchemaError
        If anything in the data would make training fail or mean something else.

    Warns
    -----
    UserWarning
        If a covariate level has no control cells, counts are given as log1p, or the schema names
        no control though a treatment label looks like one.

    Examples
    --------
    >>> import pyro_fcr
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> registry, cells = register(pyro_fcr.datasets.gbm_panobinostat(), schema)
    >>> registry.treatments, len(cells)
    (('control', 'panobinostat'), 5000)
    """
    if not isinstance(schema, Schema):
        raise SchemaError(f"schema is {type(schema).__name__}; expected a pyro_fcr.Schema")
    adata = open_cells(adata)
    checks.check_shape(adata)
    design = read_design(adata.obs, schema)
    train = training_cells(adata.obs, schema)
    _check_treatments(design, train, schema)
    _check_covariates(design, train, schema)
    genes = tuple(map(str, adata.var_names))
    columns, outcomes = read_outcomes(adata, schema)
    bound = None if memory is None else Size().read("memory", memory, error=SchemaError)
    matrix = read_expression(adata, genes, schema, memory=bound)
    checks.warn_other_scale(matrix, schema)
    checks.check_expressed(matrix, schema, adata=adata)
    sizes = library_sizes(matrix)[train]
    levels = [tuple(sorted(set(column))) for column in zip(*design.contexts, strict=True)]
    registry = Registry(
        schema=schema,
        genes=genes,
        agents=tuple(sorted(_trained_agents(design, train))),
        doses=_dose_ranges(design, train, schema),
        covariates=dict(zip(schema.covariate_keys, levels, strict=True)),
        conditions=_conditions(design, train, schema, sizes=sizes, obs=adata.obs),
        target_sum=float(np.median(sizes)) if schema.expression == "counts" else None,
        outcomes=columns,
    )
    sites = site_rows(design, schema, covariates=registry.covariates, treatments=registry.t)
    return registry, make_cells(
        matrix, sites, schema=schema, genes=genes, obs_names=adata.obs_names, outcomes=outcomes
    )


def _check_treatments(design: Design, train: Mask, schema: Schema) -> None:
    labels = [canonical_label(each.agents, schema) for each in design.treatments]
    counts = checks.counts_of(labels, design.t[train])
    checks.check_control(counts, schema)
    checks.warn_no_control(counts, schema)
    checks.check_combinations([each.agents for each in design.treatments], schema)
    agents = {agent for each in design.treatments for agent in each.agents}
    checks.warn_look_alikes([*schema.controls, *sorted(agents)], key=schema.treatment_key)
    checks.check_features(agents, schema)
    # What an agent is known by: its cells, or its features, but these have no dose scale.
    if schema.treatment_features is None or schema.dose_key is not None:
        lesson = "nothing" if schema.treatment_features is None else "no scale of doses"
        trained = _trained_agents(design, train)
        checks.check_learnable(agents, trained, key=schema.treatment_key, lesson=lesson)
    checks.check_enough(counts, schema, key=schema.treatment_key)


def _trained_agents(design: Design, train: Mask) -> set[str]:
    found = [design.treatments[code] for code in np.unique(design.t[train])]
    return {agent for each in found for agent in each.agents}


def _check_covariates(design: Design, train: Mask, schema: Schema) -> None:
    untreated = np.array([not each.agents for each in design.treatments])[design.t] & train
    for position, key in enumerate(schema.covariate_keys):
        levels = [context[position] for context in design.contexts]
        checks.warn_look_alikes(sorted(set(levels)), key=key)
        counts = checks.counts_of(levels, design.x[train])
        checks.check_learnable(set(levels), set(counts), key=key)
        checks.check_enough(counts, schema, key=key)
        if schema.control is not None:
            controlled = set(checks.counts_of(levels, design.x[untreated]))
            checks.warn_uncontrolled(set(levels), controlled, key=key)


def _dose_ranges(design: Design, train: Mask, schema: Schema) -> dict[str, tuple[float, float]]:
    found: dict[str, list[float]] = {}
    if design.control_dose:
        found[str(schema.control)] = [design.control_dose]
    for code in np.unique(design.t[train]):
        # Without a dose column the doses are empty, and so is the zip.
        for agent, dose in zip(*design.treatments[code], strict=False):
            found.setdefault(agent, []).append(dose)
    return {agent: (min(doses), max(doses)) for agent, doses in sorted(found.items())}


def _conditions(
    design: Design, train: Mask, schema: Schema, *, sizes: np.ndarray, obs: pd.DataFrame
) -> tuple[Condition, ...]:
    """Count the training cells of each condition, and find what they share."""
    facts = condition_facts(obs, design.conditions, train, known=schema.columns)
    pairs, at, counts = np.unique(design.conditions[train], return_inverse=True, return_counts=True)
    medians = pd.Series(sizes).groupby(at.reshape(-1)).median().tolist()
    found = []
    rows = zip(pairs.tolist(), counts.tolist(), medians, facts, strict=True)
    for pair, count, median, shared in rows:
        t, x = divmod(pair, len(design.contexts))
        agents, doses = design.treatments[t]
        levels = dict(zip(schema.covariate_keys, design.contexts[x], strict=True))
        depth = float(median) if schema.expression == "counts" else None
        label = canonical_label(agents, schema)
        found.append(Condition(label, doses, levels, count, depth, shared))
    return tuple(found)
