"""Names and columns that every simulator gives its cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]


def names(word: str, n: int) -> list[str]:
    """Give ``word1`` to ``word<n>``."""
    return [f"{word}{i + 1}" for i in range(n)]


def numbered(word: str, n: int) -> npt.NDArray[np.str_]:
    """Give the same as an array, to be indexed by codes."""
    return np.array(names(word, n))


def observations(t: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Give ``obs`` of cells: treatment 0 is the control, the others drugs; contexts are lines."""
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
