"""Columns of obs that follow from the condition, such as ``is_control``: they go where it goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.data.design import Codes, Mask
from pyro_fcr.data.treatments import canonical_label

if TYPE_CHECKING:
    from pyro_fcr.data.registry import Registry

Fact: TypeAlias = str | bool | int | float | None
_GLANCE: Final = 2_000  # cells by which most columns are seen to vary within conditions
_PER_CONDITION: Final = 2  # cells on average, fewer of which agree by accident


def condition_facts(
    obs: pd.DataFrame, condition: Codes, train: Mask, *, known: Sequence[str]
) -> list[dict[str, Fact]]:
    """Find the columns that have one value in all training cells of each condition, but not in all.

    Parameters
    ----------
    obs
        Annotation of the cells.
    condition
        Number of each cell's condition, ``(n_cells,)``.
    train
        Which cells train, ``(n_cells,)``.
    known
        Columns that make up the condition, which are no news.

    Returns
    -------
    The values of these columns for each condition that training cells have, in the order of its
    number; None where a value is missing, or no text, number or truth value.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": list("aabb"), "plate": [1, 1, 2, 2], "depth": [3, 4, 5, 6]})
    >>> condition_facts(obs, np.array([0, 0, 1, 1]), np.ones(4, dtype=bool), known=["drug"])
    [{'plate': 1}, {'plate': 2}]
    """
    rows = np.flatnonzero(train)
    present, codes = np.unique(condition[rows], return_inverse=True)
    codes = codes.reshape(-1)
    facts: list[dict[str, Fact]] = [{} for _ in present]
    if len(rows) < _PER_CONDITION * len(present):
        return facts
    _, first = np.unique(codes, return_index=True)
    glance = np.random.default_rng(0).permutation(len(rows))[:_GLANCE]
    for name in obs.columns[~obs.columns.isin(known) & ~obs.columns.duplicated()]:
        column = obs[name].iloc[rows]
        if not (_follows(column.iloc[glance], codes[glance]) and _follows(column, codes)):
            continue
        values = [_fact(value) for value in column.iloc[first]]
        if len(set(values)) > 1:
            for fact, value in zip(facts, values, strict=True):
                fact[str(name)] = value
    return facts


def _follows(column: pd.Series, codes: Codes) -> bool:
    try:
        values = pd.factorize(column)[0]
    except TypeError:  # lists and the like
        return False
    one = np.full(codes.max() + 1, -2)
    one[codes] = values
    return bool((one[codes] == values).all())


def _fact(value: Any) -> Fact:
    value = value.item() if isinstance(value, np.generic) else value
    return (
        None
        if np.ndim(value) or pd.isna(value) or not isinstance(value, str | bool | int | float)
        else value
    )


def follow(source: pd.DataFrame, target: pd.DataFrame, registry: Registry) -> pd.DataFrame:
    """Give cells whose condition was changed what follows from the new one.

    Parameters
    ----------
    source, target
        Annotation before and after the change.
    registry
        Conditions of training, with their facts.

    Returns
    -------
    The target with the values of the new condition; of one that training lacked, where the value
    follows from its treatment, from its being a control or not, or from its context, that, and
    elsewhere none.
    """
    names = [name for name in registry.conditions[0].facts if name in source]
    if not names:
        return target
    before, after = (_keys(obs, registry) for obs in (source, target))
    moved = np.flatnonzero(before != after)
    asked, codes = np.unique(after[moved], return_inverse=True)
    found = target.copy(deep=False)
    for name in names:
        derived = [_derived(name, json.loads(key), registry) for key in asked]
        values = source[name].astype(object).to_numpy(copy=True)
        for number, value in enumerate(derived):
            values[moved[codes == number]] = value
        found[name] = _as_before(values, source[name])
    return found


def _keys(obs: pd.DataFrame, registry: Registry) -> npt.NDArray[np.str_]:
    """Return the condition of each cell as JSON, ``(n_cells,)``."""
    design, schema = registry.read_design(obs), registry.schema
    present, codes = np.unique(design.conditions, return_inverse=True)
    texts = []
    for t, x in zip(*np.divmod(present, len(design.contexts)), strict=True):
        agents, doses = design.treatments[t]
        texts.append(json.dumps([canonical_label(agents, schema), doses, design.contexts[x]]))
    return np.array(texts)[codes.reshape(-1)]


def _derived(name: str, asked: list[Any], registry: Registry) -> Fact:
    """Return what a column has in a condition, by the narrowest part of it that settles it."""
    control = str(registry.schema.control)

    def parts(treatment: str, dose: Sequence[float], context: Sequence[str]) -> list[Any]:
        return [
            (treatment, *dose, *context), (treatment, *context), (treatment, *dose), treatment,
            treatment == control, tuple(context),
        ]  # fmt: skip

    known = [
        (parts(c.treatment, c.dose, tuple(c.covariates.values())), c.facts.get(name))
        for c in registry.conditions
    ]
    for number, key in enumerate(parts(*asked)):
        values: dict[Any, set[Fact]] = {}
        for each, value in known:
            values.setdefault(each[number], set()).add(value)
        settled = number == 0 or all(len(found) == 1 for found in values.values())
        if settled and key in values:
            return next(iter(values[key]))
    return None


def _as_before(values: np.ndarray, column: pd.Series) -> pd.Series:
    """Return values of a column under its own type, if that can hold them."""
    made = pd.Series(values, index=column.index, name=column.name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = column.cat.categories
        new = [v for v in dict.fromkeys(made.dropna()) if v not in levels]
        return made.astype(pd.CategoricalDtype([*levels, *new], ordered=column.cat.ordered))
    if made.isna().any():
        if column.dtype == bool:
            return made.astype("boolean")
        if pd.api.types.is_integer_dtype(column.dtype):
            return made.astype("Int64")
        if not pd.api.types.is_numeric_dtype(column.dtype):
            return made.astype("category")  # h5ad has no empty text
    return made.astype(column.dtype)
