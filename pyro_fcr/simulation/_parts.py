"""Names and columns that all simulators share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

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


def main_effects(
    shape: tuple[int, int], sd: float, affected: float, rng: np.random.Generator
) -> Floats:
    """Draw effects of treatments on a share of the genes, ``shape``; the first has none."""
    effects = rng.normal(0, sd, shape)
    effects *= rng.random(shape) < affected
    effects[0] = 0.0
    return effects


def draw_counts(
    mean: Floats, dispersion: float, rng: np.random.Generator, *, dropout: float = 0.0
) -> sparse.csr_matrix:
    """Draw negative binomial counts, of which some are lost; no cell is left without any."""
    counts = rng.poisson(mean * rng.gamma(dispersion, 1 / dispersion, mean.shape))
    counts *= rng.random(counts.shape) >= dropout
    counts[counts.sum(axis=1) == 0, 0] = 1
    return sparse.csr_matrix(counts.astype(np.float32))


def centred(values: Floats, *, axis: int) -> Floats:
    """Subtract the mean along an axis."""
    return values - values.mean(axis=axis, keepdims=True)
