"""The columns of `.obs` -> the distinct treatments and contexts, and which cell has which."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.labels import label_text
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.data.treatments import Treatment, control_doses, dose_strata, parse_treatment

Codes: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]


class Labels(NamedTuple):
    """A column of labels: its distinct values, sorted, and the index of each cell's own.

    Attributes
    ----------
    levels
        Distinct labels as strings.
    codes
        Shape (n_cells,).
    """

    levels: tuple[str, ...]
    codes: Codes


class Design(NamedTuple):
    """Who got what where.

    Attributes
    ----------
    treatments
        Distinct treatments with their doses, sorted; the control, if any, comes first.
    t
        Index of each cell's treatment, shape (n_cells,).
    contexts
        Distinct tuples of covariate levels, in the order of `schema.covariate_keys`, sorted.
    x
        Index of each cell's context, shape (n_cells,).
    control_dose
        The number that stands for the dose of control, 0 if there is none.
    """

    treatments: list[Treatment]
    t: Codes
    contexts: list[tuple[str, ...]]
    x: Codes
    control_dose: float = 0.0

    @property
    def conditions(self) -> Codes:
        """One number per pair of treatment with dose and context, shape (n_cells,)."""
        return self.t * len(self.contexts) + self.x

    @property
    def strata(self) -> Codes:
        """As `conditions`, with close doses of an agent of many doses taken as one."""
        return dose_strata(self.treatments)[self.t] * len(self.contexts) + self.x


@dataclass(frozen=True)
class Condition:
    """A treatment with its dose in a context, as found among the training cells.

    Parameters
    ----------
    treatment
        Canonical label: sorted agents, or the control.
    dose
        One amount per agent of the label, in its order; empty without doses and for the control.
    covariates
        Level of each covariate key.
    n_cells
        Number of training cells.
    depth
        Median of their total counts; None for log1p.
    facts
        Values of other columns that all of them share, see `pyro_fcr.data.facts`.

    Examples
    --------
    >>> from pyro_fcr.data import Condition
    >>> Condition("A+B", (0.1, 2.0), {"line": "u"}, 50).n_cells
    50
    """

    treatment: str
    dose: tuple[float, ...]
    covariates: Mapping[str, str]
    n_cells: int
    depth: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the condition in lists, dicts, strings and numbers only."""
        return {**asdict(self), "dose": list(self.dose)}

    @classmethod
    def from_json_dict(cls, saved: Mapping[str, Any]) -> "Condition":
        """Rebuild a condition from `to_json_dict`."""
        return cls(**{**saved, "dose": tuple(saved["dose"])})


def read_design(
    obs: pd.DataFrame,
    schema: Schema,
    *,
    untrained: Container[str] = (),
    control_dose: float | None = None,
) -> Design:
    """Read treatments, doses and covariates.

    Loops run over distinct values, never over cells.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.
    untrained
        Agents that must have no dose, because nothing is known of its scale.
    control_dose
        The number that stands for the dose of control, beside 0 and nothing; None takes that of
        the data, if they have one and the same everywhere.

    Raises
    ------
    SchemaError
        If a column is missing, a label is empty, or a dose cannot be read.
    """
    given = _given(obs, schema)
    if control_dose is None:
        control_dose = _control_dose(given, schema, obs.index)
    treatments = _treatments(
        given, schema, untrained=untrained, control_dose=control_dose, names=obs.index
    )
    return Design(*treatments, *_contexts(obs, schema), control_dose)


def random_rank(codes: Codes, seed: int) -> Codes:
    """Put the cells of each code in random order; return each cell's place, from 0."""
    order = np.lexsort((np.random.default_rng(seed).random(len(codes)), codes))
    _, start, size = np.unique(codes[order], return_index=True, return_counts=True)
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - np.repeat(start, size)
    return rank


def random_parts(codes: Codes, shares: Sequence[float], seed: int) -> Codes:
    """Part the cells of each code at random; return each cell's part, from 0.

    Parameters
    ----------
    codes
        Group of each cell, ``(n_cells,)``.
    shares
        Share of every part in each group, adding up to 1; what is left over falls to the last.
    seed
        Seed of the order.

    Examples
    --------
    >>> np.bincount(random_parts(np.zeros(9, dtype=int), [0.5, 0.25, 0.25], 0)).tolist()
    [4, 2, 3]
    """
    place = (random_rank(codes, seed) + 1) / np.bincount(codes)[codes]
    return np.digitize(place, np.cumsum(shares)[:-1] + 1e-9, right=True)


def find_column(obs: pd.DataFrame, key: str, *, role: str) -> pd.Series:
    """Return one column of `obs`, or say which columns there are."""
    if key not in obs.columns:
        raise SchemaError(
            f"{role} {key!r} is not a column of adata.obs; columns: {listed(obs.columns, 30)}."
            f"{did_you_mean(key, map(str, obs.columns))}"
        )
    column = obs[key]
    if isinstance(column, pd.DataFrame):
        raise SchemaError(
            f"{role} {key!r}: adata.obs has {column.shape[1]} columns of this name; "
            "rename or drop all but one"
        )
    return column


def read_labels(obs: pd.DataFrame, key: str, *, role: str) -> Labels:
    """Return the labels of one column as strings.

    Raises
    ------
    SchemaError
        If there are no cells, the column is missing, or a cell has no label there.
    """
    if not len(obs):
        raise SchemaError("adata has no cells; look at the filter that came before")
    levels, codes = label_codes(find_column(obs, key, role=role), where=f"{role} {key!r}")
    missing = codes < 0
    if missing.any():
        raise SchemaError(
            f"{role} {key!r}: {missing.sum()} of {len(obs)} cells have no label (NaN or empty), "
            f"first {listed(obs.index[missing][:3])}; "
            f"label them, or drop them: adata = adata[adata.obs[{key!r}].notna()].copy()"
        )
    return Labels(levels, codes)


def label_codes(column: pd.Series, *, where: str) -> tuple[tuple[str, ...], Codes]:
    """Return the sorted distinct labels of a column, and that of each cell, -1 where missing.

    Raises
    ------
    SchemaError
        If a cell has something else than a label.
    """
    codes, values = _factorize(column, where=where)
    texts = [label_text(value, where=where) for value in values]
    levels = sorted({*texts} - {""})
    place = {"": -1, **{level: code for code, level in enumerate(levels)}}
    return tuple(levels), np.array([*(place[text] for text in texts), -1])[codes]


def _factorize(column: pd.Series, *, where: str) -> tuple[Codes, list[Any]]:
    """Return codes, -1 where missing, and the distinct values, each in its own type."""
    try:
        categories = column.astype("category").cat.remove_unused_categories().cat
    except TypeError:  # a value that cannot be compared, such as a list
        for value in column:
            label_text(value, where=where)
        raise
    # Array elements keep float32, which `tolist` would widen to a longer decimal.
    return np.asarray(categories.codes, dtype=np.int64), list(np.asarray(categories.categories))


class _Given(NamedTuple):
    """Distinct labels with their doses, the first cell of each, and that of each cell."""

    pairs: list[tuple[str, Any]]
    first: Codes
    codes: Codes


def _given(obs: pd.DataFrame, schema: Schema) -> _Given:
    labels = read_labels(obs, schema.treatment_key, role="treatment_key")
    amounts: list[Any] = []
    dose_codes = np.full(len(obs), -1, dtype=np.int64)
    if schema.dose_key is not None:
        column = find_column(obs, schema.dose_key, role="dose_key")
        dose_codes, amounts = _factorize(column, where=f"dose_key {schema.dose_key!r}")
    amounts.append(None)
    numbers = labels.codes * len(amounts) + dose_codes
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    pairs = [(labels.levels[labels.codes[cell]], amounts[dose_codes[cell]]) for cell in first]
    return _Given(pairs, first, inverse)


def _control_dose(given: _Given, schema: Schema, names: pd.Index) -> float:
    """Return the one number that is everywhere given as the dose of control, else 0."""
    if schema.dose_key is None:
        return 0.0
    cells = zip(given.pairs, given.first, strict=True)
    found = [
        control_doses(label, dose, schema, where=f"cell {names[cell]!r}")
        for (label, dose), cell in cells
    ]
    amounts = set().union(*found)
    return next((a for a in amounts if len(amounts) == 1 and 0 < a < math.inf), 0.0)


def _treatments(
    given: _Given,
    schema: Schema,
    *,
    untrained: Container[str],
    control_dose: float,
    names: pd.Index,
) -> tuple[list[Treatment], Codes]:
    parsed = [
        parse_treatment(
            label,
            schema,
            dose=dose,
            where=f"cell {names[cell]!r}",
            untrained=untrained,
            control_dose=control_dose,
        )
        for (label, dose), cell in zip(given.pairs, given.first, strict=True)
    ]
    distinct = sorted(set(parsed))
    position = {treatment: code for code, treatment in enumerate(distinct)}
    codes = np.array([position[each] for each in parsed], dtype=np.int64)
    return distinct, codes[given.codes]


def _contexts(obs: pd.DataFrame, schema: Schema) -> tuple[list[tuple[str, ...]], Codes]:
    columns = [read_labels(obs, key, role="covariate_keys") for key in schema.covariate_keys]
    joint = np.ravel_multi_index(
        tuple(column.codes for column in columns), tuple(len(column.levels) for column in columns)
    )
    _, first, inverse = np.unique(joint, return_index=True, return_inverse=True)
    contexts = [tuple(column.levels[column.codes[cell]] for column in columns) for cell in first]
    return contexts, inverse.reshape(-1).astype(np.int64)
