"""A table of treatment features as users have it -> numbers, in the order of the agents' names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.labels import label_text

Features: TypeAlias = tuple[tuple[str, tuple[float, ...]], ...]
FeatureRow: TypeAlias = npt.NDArray[np.float64]

_LARGEST = float(np.finfo(np.float32).max)


def read_features(table: Any, *, controls: Iterable[str]) -> Features:
    """Check a table of features and return it as plain tuples.

    Parameters
    ----------
    table
        A mapping from agent to a sequence of numbers, a DataFrame with agents as its index, the
        path of such a table as csv, or what this function returns.
    controls
        Labels of untreated cells, which must have no row.

    Returns
    -------
    tuple
        Pairs of agent and features, sorted by agent.

    Raises
    ------
    SchemaError
        If the table is empty, has a row twice or one of the control, or its rows are not finite
        numbers or differ in length.
    """
    rows: dict[str, FeatureRow] = {}
    for name, values in _pairs(table):
        agent = label_text(name, where="agent of treatment_features")
        if agent in rows:
            raise SchemaError(
                f"treatment_features has two rows of agent {agent!r}; drop all but one"
            )
        rows[agent] = _row(agent, values)
    _check_table(rows, controls)
    return tuple((agent, tuple(rows[agent].tolist())) for agent in sorted(rows))


def _pairs(table: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(table, str | Path):
        labels: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # an agent may be NA
        path = table
        try:
            table = pd.read_csv(path, index_col=0, dtype={0: str}, **labels)
        except (OSError, ValueError) as error:
            raise SchemaError(
                f"treatment_features {str(path)[:60]!r} cannot be read as csv "
                f"({type(error).__name__}); expected a table with a row per agent"
            ) from error
    if isinstance(table, pd.DataFrame):
        return zip(table.index, table.to_numpy(), strict=True)
    if isinstance(table, Mapping):
        return table.items()
    if isinstance(table, tuple):
        return table
    raise SchemaError(
        f"treatment_features is {type(table).__name__}; expected a mapping from agent to numbers "
        "or a DataFrame with agents as index; for an array: pd.DataFrame(array, index=agents)"
    )


def _row(agent: str, values: Any) -> FeatureRow:
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        row = np.empty(())
    if row.ndim != 1:
        raise SchemaError(
            f"treatment_features of agent {agent!r}: found {type(values).__name__} "
            f"{str(values)[:40]!r}; expected a sequence of numbers; fill in what is missing and "
            "turn categories into numbers, as with pd.get_dummies"
        )
    bad = np.flatnonzero(~(np.abs(row) <= _LARGEST))
    if len(bad):
        raise SchemaError(
            f"treatment_features of agent {agent!r}: feature {bad[0]} (counted from 0) is "
            f"{row[bad[0]]:g}; expected a finite float32; fill it in, or drop the agent or the "
            "feature"
        )
    return row


def _check_table(rows: Mapping[str, FeatureRow], controls: Iterable[str]) -> None:
    widths = {agent: len(row) for agent, row in rows.items()}
    if not any(widths.values()):
        raise SchemaError(
            f"treatment_features is empty ({len(rows)} agents without any feature); give each "
            "agent a row of numbers, or pass None for one-hot treatments"
        )
    first, expected = next(iter(widths.items()))
    other = [f"{agent}: {width}" for agent, width in widths.items() if width != expected]
    if other:
        raise SchemaError(
            f"treatment_features has rows of different lengths: {listed(other)}, but {first!r} "
            f"has {expected}; give every agent the same features"
        )
    for control in set(controls) & set(rows):
        raise SchemaError(
            f"treatment_features has a row of the control {control!r}, whose features are zero by "
            "definition; leave it out, or pass control=None if it is a treatment like any other"
        )
