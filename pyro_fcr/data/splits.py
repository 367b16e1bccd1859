"""Which cells train the model, and which are held out to stop it in time."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyro_fcr.data.design import Codes, Mask, random_rank, read_design, read_labels
from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.values import checked

_PART_OF = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
}


@dataclass(frozen=True)
class Split:
    """Row positions of the cells used in fitting.

    Parameters
    ----------
    train
        Cells that give gradients, ascending, shape (n_train,), int64.
    heldout
        Cells that early stopping watches, ascending, shape (n_heldout,), int64; may be empty.

    Examples
    --------
    >>> import numpy as np
    >>> from pyro_fcr.data import Split
    >>> len(Split(np.array([0, 2]), np.array([1])).train)
    2
    """

    train: Codes
    heldout: Codes


@checked(error=SchemaError)
def split_cells(
    obs: pd.DataFrame, schema: Schema, *, heldout_fraction: float = 0.1, seed: int = 0
) -> Split:
    """Divide the cells into those that train and those held out.

    With `schema.split_key` the labels decide: `"train"`, `"valid"` (held out; `"val"` and
    `"validation"` mean the same), any other label is left out of both. Without `"valid"` labels,
    or without a split column, a fraction of the training cells is drawn, evenly over the
    conditions (treatment x dose x covariates; many doses of an agent are binned); every condition
    keeps a training cell.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.
    heldout_fraction
        Part of the training cells to draw, in [0, 1); 0 holds out none.
    seed
        Seed of the draw; the same seed gives the same cells.

    Raises
    ------
    SchemaError
        If no cell is labelled `"train"`, the fraction is out of range, or no cell can be spared.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr.data import Schema, split_cells
    >>> obs = pd.DataFrame({"drug": ["control", "A"] * 10, "line": ["u"] * 20})
    >>> schema = Schema(treatment_key="drug", control="control", covariate_keys="line")
    >>> split = split_cells(obs, schema, heldout_fraction=0.2)
    >>> len(split.train), obs["drug"].iloc[split.heldout].value_counts().to_dict()
    (16, {'control': 2, 'A': 2})
    """
    train, valid = _labelled(obs, schema)
    if len(valid) or heldout_fraction == 0:
        return Split(train, valid)
    conditions = read_design(obs, schema).strata[train]
    drawn = _draw(conditions, heldout_fraction, seed)
    if not drawn.any():
        raise SchemaError(
            f"no cell can be held out: {heldout_fraction:g} of {len(train)} training cells in "
            f"{len(np.unique(conditions))} conditions, each of which keeps one; "
            "give a larger heldout_fraction, more cells, or heldout_fraction=0"
        )
    return Split(train[~drawn], train[drawn])


def training_cells(obs: pd.DataFrame, schema: Schema) -> Mask:
    """Return which cells are labelled for fitting, train or valid; shape (n_cells,)."""
    mask = np.zeros(len(obs), dtype=bool)
    mask[np.concatenate(_labelled(obs, schema))] = True
    return mask


def _labelled(obs: pd.DataFrame, schema: Schema) -> tuple[Codes, Codes]:
    if schema.split_key is None:
        return np.arange(len(obs), dtype=np.int64), np.empty(0, dtype=np.int64)
    labels = read_labels(obs, schema.split_key, role="split_key")
    parts = [_PART_OF.get(level.casefold()) for level in labels.levels]
    if "train" not in parts:
        raise SchemaError(
            f"split_key {schema.split_key!r}: the training split is empty, no cell is labelled "
            f"'train'; labels: {listed(labels.levels)}.{did_you_mean('train', labels.levels)}"
        )
    of_cell = np.array(parts, dtype=object)[labels.codes]
    train, valid = (np.flatnonzero(of_cell == part) for part in ("train", "valid"))
    return train.astype(np.int64), valid.astype(np.int64)


def _draw(conditions: Codes, fraction: float, seed: int) -> Mask:
    """Mark cells so that each condition gives its share, rounded so that the total is right."""
    _, code, size = np.unique(conditions, return_inverse=True, return_counts=True)
    # Differences of a rounded running total: small conditions take turns, none is always spared.
    share = np.diff(np.floor(fraction * np.cumsum(size) + 0.5), prepend=0)
    return random_rank(conditions, seed) < np.minimum(share, size - 1)[code]
