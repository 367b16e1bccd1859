"""The user's names beside the package's own: in answers, in tables and in files."""

import logging
import warnings
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import h5py
import pandas as pd
from anndata.io import read_elem, write_elem

from pyro_fcr.data.labels import label_text

logger = logging.getLogger(__name__)


def put_beside(obs: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Add columns to a user's own, which keep their names.

    A column whose name is taken has ``fcr_`` before it, and a line in the log says so.

    Examples
    --------
    >>> obs = pd.DataFrame({"support": ["group 1"]}, index=["c0"])
    >>> list(put_beside(obs, {"support": [0.5], "draw": [0]}))
    ['support', 'fcr_support', 'draw']
    """
    names: dict[str, str] = {}
    for name in columns:
        free = name
        while free in obs.columns:
            free = f"fcr_{free}"
        names[name] = free
    taken = {name: free for name, free in names.items() if name != free}
    if taken:
        logger.warning(
            "obs has columns of its own called %s; those of the answer are called %s.",
            ", ".join(taken),
            ", ".join(taken.values()),
        )
    return obs.assign(**{names[name]: values for name, values in columns.items()})


def named_levels(levels: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Return levels as columns of a table; one whose name is taken has ``obs_`` before it.

    A single covariate called ``context`` is what the table's own column of this name holds.

    Examples
    --------
    >>> named_levels({"line": "u", "gene": "wild type"}, ("gene", "estimate"))
    {'line': 'u', 'obs_gene': 'wild type'}
    """
    own = {name for name in taken if not (name == "context" and len(levels) == 1)}
    return {f"obs_{key}" if key in own else key: level for key, level in levels.items()}


def writable(obs: pd.DataFrame, *, labels: Collection[str] = ()) -> pd.DataFrame:
    """Return annotation that a file can hold; a line in the log names what it cannot.

    Parameters
    ----------
    obs
        Annotation of cells.
    labels
        Columns of labels, which are written as text if they cannot be written as they are; any
        other column is then left out.
    """
    if _survives(obs):
        return obs
    obs = obs.rename_axis(index=None)  # a name that a column has as well
    kept: dict[Hashable, Any] = {}
    lost = []
    for position, name in enumerate(obs.columns):
        column = obs.iloc[:, position]
        if name in labels and not _survives(column.to_frame()):
            texts = [label_text(value, where=str(name)) for value in column]
            column = pd.Series(texts, index=obs.index, name=name)
        elif isinstance(column.dtype, pd.StringDtype):  # not every version of anndata writes it
            column = column.astype(object).astype("category")
        if name not in kept and _survives(column.to_frame()):
            kept[name] = column
        else:
            lost.append(repr(name))
    if lost:
        logger.warning(
            "obs columns %s cannot be written to a file (mixed types, a reserved or repeated name, "
            "or a '/' in it) and are left out there.",
            ", ".join(lost),
        )
    return pd.DataFrame(kept, index=obs.index)


def _survives(obs: pd.DataFrame) -> bool:
    """Tell whether annotation comes back from a file."""
    with (
        warnings.catch_warnings(),
        h5py.File("probe", "w", driver="core", backing_store=False) as file,
    ):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Forward slashes")  # which zarr refuses already
        try:
            write_elem(file, "obs", obs)
            return list(read_elem(file["obs"]).columns) == list(obs.columns)
        except Exception:  # whatever a writer has against a column
            return False
