"""Counts per cell of an answer: the cells' own, those of the target condition, or given."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.data import expected_depths
from pyro_fcr.draws import QueryError
from pyro_fcr.queries.fitted import Fitted
from pyro_fcr.queries.targets import Asked
from pyro_fcr.values import shown

Library: TypeAlias = Literal["own", "target"] | npt.ArrayLike


@dataclass(frozen=True)
class Depth:
    """Counts per cell of an answer, and the word for their origin."""

    word: str = "own"
    sizes: Tensor | None = None
    ratio: Tensor | None = None

    @classmethod
    def of(cls, library: Library, n_cells: int) -> "Depth":
        """Read what a user gives."""
        if not isinstance(library, str):
            return cls("given", library_column(library, n_cells))
        if library not in ("own", "target"):
            raise QueryError(
                f"library is {library!r}; expected 'own', 'target', a number, or one for each cell."
            )
        return cls()

    def __call__(self, batch: Batch, cells: slice) -> Tensor | None:
        """Return the counts per cell of a block; None leaves them their own."""
        if self.ratio is not None:
            return batch["library"] * self.ratio[cells].to(batch["library"])
        return None if self.sizes is None else self.sizes[cells].to(batch["library"])


def depth_of(fcr: Fitted, asked: Asked, source: AnnData, library: Library) -> Depth:
    """Return the counts per cell of source cells under a target."""
    depth = Depth.of(library, source.n_obs)
    if isinstance(library, str) and library == "target" and not asked.open_keys:
        ratio = depths(fcr, asked) / expected_depths(source.obs, fcr.registry)
        depth = Depth("target", ratio=library_column(ratio, source.n_obs))
    return depth


def depths(fcr: Fitted, asked: Asked) -> npt.NDArray[np.float64]:
    """Return the depths of the asked conditions; the median where covariates are drawn."""
    if asked.open_keys:
        return np.full(len(asked.obs), fcr.registry.target_sum or 1.0)
    return expected_depths(asked.obs, fcr.registry)


def library_column(size: npt.ArrayLike, n_cells: int) -> Tensor:
    """Return counts per cell, ``(n_cells, 1)``, of a number or of one for each cell."""
    try:
        sizes = np.asarray(size, dtype=np.float32)
    except (TypeError, ValueError):
        raise QueryError(
            f"library is {shown(size)}; expected counts per cell, a number or one for each."
        ) from None
    if sizes.shape not in ((), (n_cells,)):
        raise QueryError(
            f"library has the shape {sizes.shape}; expected a number or one for each of "
            f"{n_cells} cells."
        )
    if not ((sizes > 0) & np.isfinite(sizes)).all():
        raise QueryError("library: counts per cell must be positive and finite.")
    return torch.from_numpy(np.broadcast_to(sizes, n_cells).copy()).unsqueeze(1)
