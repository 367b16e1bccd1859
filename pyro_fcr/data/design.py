"""The columns of `.obs` -> the distinct treatments and contexts, and which cell has which."""

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.data.errors import SchemaError, did_you_mean, listed
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import Treatment, dose_strata, parse_treatment

Codes: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

# What missing values become after `.astype(str)`.
_BLANK = ("", "nan", "NaN", "<NA>", "NaT")


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
    """

    treatments: list[Treatment]
    t: Codes
    contexts: list[tuple[str, ...]]
    x: Codes

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

    def to_json_dict(self) -> dict[str, Any]:
        """Return the condition in lists, dicts, strings and numbers only."""
        return {**asdict(self), "dose": list(self.dose)}

    @classmethod
    def from_json_dict(cls, saved: Mapping[str, Any]) -> "Condition":
        """Rebuild a condition from `to_json_dict`."""
        return cls(**{**saved, "dose": tuple(saved["dose"])})


def read_design(obs: pd.DataFrame, schema: Schema, *, untrained: Container[str] = ()) -> Design:
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

    Raises
    ------
    SchemaError
        If a column is missing, a label is empty, or a dose cannot be read.
    """
    return Design(*_treatments(obs, schema, untrained), *_contexts(obs, schema))


def random_rank(codes: Codes, seed: int) -> Codes:
    """Put the cells of each code in random order; return each cell's place, from 0."""
    order = np.lexsort((np.random.default_rng(seed).random(len(codes)), codes))
    _, start, size = np.unique(codes[order], return_index=True, return_counts=True)
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - np.repeat(start, size)
    return rank


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
    codes, values = _factorize(find_column(obs, key, role=role))
    texts = np.array([str(value) for value in values], dtype=str)
    blank = np.isin(np.char.strip(texts), _BLANK) if len(texts) else np.zeros(0, dtype=bool)
    missing = np.append(blank, [True])[codes]
    if missing.any():
        raise SchemaError(
            f"{role} {key!r}: {missing.sum()} of {len(obs)} cells have no label (NaN or empty), "
            f"first {listed(obs.index[missing][:3])}; "
            f"label them, or drop them: adata = adata[adata.obs[{key!r}].notna()].copy()"
        )
    levels, merged = np.unique(texts, return_inverse=True)
    return Labels(tuple(levels.tolist()), merged.reshape(-1)[codes])


def _factorize(column: pd.Series) -> tuple[Codes, list[Any]]:
    """Return codes, -1 where missing, and the distinct values, each in its own type."""
    categories = column.astype("category").cat.remove_unused_categories().cat
    # Array elements keep float32, which `tolist` would widen to a longer decimal.
    return np.asarray(categories.codes, dtype=np.int64), list(np.asarray(categories.categories))


def _treatments(
    obs: pd.DataFrame, schema: Schema, untrained: Container[str]
) -> tuple[list[Treatment], Codes]:
    labels = read_labels(obs, schema.treatment_key, role="treatment_key")
    amounts: list[Any] = []
    dose_codes = np.full(len(obs), -1, dtype=np.int64)
    if schema.dose_key is not None:
        dose_codes, amounts = _factorize(find_column(obs, schema.dose_key, role="dose_key"))
    amounts.append(None)
    pairs = labels.codes * len(amounts) + dose_codes
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    parsed = [
        parse_treatment(
            labels.levels[labels.codes[cell]],
            schema,
            dose=amounts[dose_codes[cell]],
            where=f"cell {obs.index[cell]!r}",
            untrained=untrained,
        )
        for cell in first
    ]
    distinct = sorted(set(parsed))
    position = {treatment: code for code, treatment in enumerate(distinct)}
    return distinct, np.array([position[each] for each in parsed], dtype=np.int64)[inverse]


def _contexts(obs: pd.DataFrame, schema: Schema) -> tuple[list[tuple[str, ...]], Codes]:
    columns = [read_labels(obs, key, role="covariate_keys") for key in schema.covariate_keys]
    joint = np.ravel_multi_index(
        tuple(column.codes for column in columns), tuple(len(column.levels) for column in columns)
    )
    _, first, inverse = np.unique(joint, return_index=True, return_inverse=True)
    contexts = [tuple(column.levels[column.codes[cell]] for column in columns) for cell in first]
    return contexts, inverse.reshape(-1).astype(np.int64)
