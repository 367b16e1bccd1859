"""Names and columns that all simulators share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.simulation.planted import names

Floats = npt.NDArray[np.float64]


def numbered(word: str, n: int) -> npt.NDArray[np.str_]:
    """Return the names as an array that codes can index."""
    return np.array(names(word, n))


def observations(t: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return ``obs`` of cells: treatment 0 is control, others are drugs; contexts are lines."""
    return pd.DataFrame(
        {
            "treatment": np.array(["control", *names("drug", int(t.max()))])[t],
            "context": numbered("line", int(x.max()) + 1)[x],
        },
        index=pd.Index(names("cell", len(t))),
    )


def centred(values: Floats, *, axis: int) -> Floats:
    """Subtract the mean along an axis."""
    return values - values.mean(axis=axis, keepdims=True)
