"""Learn a Registry from a data set, after checking all that could make training fail."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from pyro_fcr.data import checks
from pyro_fcr.data.conditions import Condition
from pyro_fcr.data.design import Design, read_design
from pyro_fcr.data.expression import library_sizes
from pyro_fcr.data.io import Matrix, read_cells, read_matrix
from pyro_fcr.data.registry import Registry
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.splits import training_cells
from pyro_fcr.data.treatments import canonical_label


def register(source: AnnData | str | Path, schema: Schema) -> Registry:
    """Check `source` and learn its registry; see `Schema.register`."""
    adata = read_cells(source)
    checks.check_shape(adata)
    design = read_design(adata.obs, schema)
    train = training_cells(adata.obs, schema)
    _check_treatments(design, train, schema)
    _check_covariates(design, train, schema)
    matrix = read_matrix(adata, schema)
    checks.check_values(matrix, schema, adata=adata, genes=np.asarray(adata.var_names))
    checks.warn_whole_numbers(matrix, schema)
    checks.check_cells_expressed(matrix, schema, adata=adata)
    checks.check_expressed(matrix, schema, adata=adata)
    return Registry(
        schema=schema,
        genes=tuple(map(str, adata.var_names)),
        agents=tuple(sorted(_trained_agents(design, train))),
        doses=_dose_ranges(design, train),
        covariates=_covariate_levels(design, schema),
        conditions=_conditions(design, train, schema),
        target_sum=_target_sum(matrix, train, schema),
    )


def _check_treatments(design: Design, train: npt.NDArray[np.bool_], schema: Schema) -> None:
    labels = [canonical_label(each.agents, schema) for each in design.treatments]
    counts = checks.counts_of(labels, design.t[train])
    checks.check_control(counts, schema)
    agents = {agent for each in design.treatments for agent in each.agents}
    checks.check_features(agents, schema)
    # What an agent is known by: its cells, or its features, but these have no dose scale.
    if schema.treatment_features is None or schema.dose_key is not None:
        lesson = "nothing" if schema.treatment_features is None else "no scale of doses"
        trained = _trained_agents(design, train)
        checks.check_learnable(agents, trained, key=schema.treatment_key, lesson=lesson)
    checks.check_enough(counts, schema, key=schema.treatment_key)


def _trained_agents(design: Design, train: npt.NDArray[np.bool_]) -> set[str]:
    found = [design.treatments[code] for code in np.unique(design.t[train])]
    return {agent for each in found for agent in each.agents}


def _check_covariates(design: Design, train: npt.NDArray[np.bool_], schema: Schema) -> None:
    untreated = np.array([not each.agents for each in design.treatments])[design.t] & train
    for position, key in enumerate(schema.covariate_keys):
        levels = [context[position] for context in design.contexts]
        counts = checks.counts_of(levels, design.x[train])
        checks.check_learnable(set(levels), set(counts), key=key)
        checks.check_enough(counts, schema, key=key)
        if schema.control is not None:
            controlled = set(checks.counts_of(levels, design.x[untreated]))
            checks.warn_uncontrolled(set(levels), controlled, key=key)


def _dose_ranges(design: Design, train: npt.NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    for code in np.unique(design.t[train]):
        treatment = design.treatments[code]
        # Without a dose column the doses are empty, and so is the zip.
        for agent, dose in zip(treatment.agents, treatment.doses, strict=False):
            low, high = ranges.get(agent, (dose, dose))
            ranges[agent] = (min(low, dose), max(high, dose))
    return dict(sorted(ranges.items()))


def _covariate_levels(design: Design, schema: Schema) -> dict[str, tuple[str, ...]]:
    return {
        key: tuple(sorted({context[position] for context in design.contexts}))
        for position, key in enumerate(schema.covariate_keys)
    }


def _conditions(
    design: Design, train: npt.NDArray[np.bool_], schema: Schema
) -> tuple[Condition, ...]:
    pairs, counts = np.unique(design.conditions[train], return_counts=True)
    found = []
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        t, x = divmod(pair, len(design.contexts))
        agents, doses = design.treatments[t]
        levels = dict(zip(schema.covariate_keys, design.contexts[x], strict=True))
        found.append(Condition(canonical_label(agents, schema), doses, levels, count))
    return tuple(found)


def _target_sum(matrix: Matrix, train: npt.NDArray[np.bool_], schema: Schema) -> float | None:
    if schema.expression != "counts":
        return None
    return float(np.median(library_sizes(matrix)[train]))
