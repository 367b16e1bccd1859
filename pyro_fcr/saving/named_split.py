"""The cells of a split by name: positions are lost with the data."""

import numpy as np
import pandas as pd

from pyro_fcr.data import Split

TRAIN, _HELDOUT = "train", "held out"


def name_split(split: Split, obs_names: pd.Index) -> pd.Series:
    """Say of cells by name what they were in training.

    Parameters
    ----------
    split
        Positions of the cells.
    obs_names
        Names of all cells, ``(n_cells,)``.

    Returns
    -------
    ``"train"`` or ``"held out"`` by name; cells that were neither are not there.
    """
    names = np.asarray(obs_names, dtype=str)
    groups = [np.unique(rows) for rows in (split.train, split.heldout)]  # refits may repeat cells
    parts = np.repeat([TRAIN, _HELDOUT], [len(rows) for rows in groups])
    return pd.Series(parts, pd.Index(names[np.concatenate(groups)], name="cell"), name="part")


def find_split(named: pd.Series, obs_names: pd.Index) -> Split:
    """Find the cells of a split again, wherever they stand.

    Parameters
    ----------
    named
        From :func:`name_split`.
    obs_names
        Names of the cells at hand, each its own; some may be missing or new.
    """
    part = named.reindex(np.asarray(obs_names, dtype=str)).to_numpy()
    return Split(*(np.flatnonzero(part == name).astype(np.int64) for name in (TRAIN, _HELDOUT)))
