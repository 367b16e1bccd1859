"""Which dimensions of the latent blocks tell cells apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

Latents: TypeAlias = Mapping[str, npt.NDArray[np.floating]]

IN_USE = 0.01


def dimension_use(means: Latents, variances: Latents) -> pd.DataFrame:
    """Say how much of each dimension's variance over cells is known of the cells.

    A dimension that a model has no use for stays at its prior for every cell. Its posterior means
    are next to nothing, but a correlation or a regression knows no scale, and may read other blocks
    off them: look at latents of dimensions in use only.

    Parameters
    ----------
    means, variances
        Of each cell's posterior, block name to ``(n_cells, n_latent)``.

    Returns
    -------
    Columns ``block, dimension`` (from 0), ``share`` (variance of the means over that of the latent,
    0 to 1) and ``in_use`` (a share of 0.01 or more, the bound of Burda et al. 2016 for active
    units, arXiv 1509.00519).

    Examples
    --------
    >>> means = {"z_x": np.array([[-3.0, 0.01], [3.0, 0.0]])}
    >>> dimension_use(means, {"z_x": np.ones((2, 2))})[["share", "in_use"]].round(2).values.tolist()
    [[0.9, True], [0.0, False]]
    """
    tables = []
    for block, mean in means.items():
        known, unknown = mean.var(axis=0), variances[block].mean(axis=0)
        share = known / np.maximum(known + unknown, np.finfo(np.float32).tiny)
        tables.append(
            pd.DataFrame(
                {
                    "block": block,
                    "dimension": np.arange(len(share)),
                    "share": share.astype(np.float64),
                    "in_use": share >= IN_USE,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def only_in_use(latents: Latents, use: pd.DataFrame) -> dict[str, npt.NDArray[np.floating]]:
    """Pick the dimensions in use, of each block its most used one at least.

    Parameters
    ----------
    latents
        Block name to ``(n_cells, n_latent)``.
    use
        Of :func:`dimension_use`.
    """
    picked = {}
    for block, values in latents.items():
        own = use[use["block"] == block]
        wanted = own["in_use"] | (own["share"] == own["share"].max())
        picked[block] = values[:, wanted.to_numpy()]
    return picked
