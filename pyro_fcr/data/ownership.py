"""The cells that a model was made with: its own copy, and how others differ from it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import label_codes
from pyro_fcr.data.errors import SchemaError
from pyro_fcr.data.io import find_matrix, read_matrix
from pyro_fcr.data.registry import Registry
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.stored import StoredMatrix, along, free_memory, stored_matrix

logger = logging.getLogger(__name__)


class OwnCells:
    """What a model keeps of cells, so that edits of their AnnData no longer reach it.

    Parameters
    ----------
    given
        The cells.
    registry
        Their encoding.
    cells
        Encoded already, if they are; None encodes them when they are first asked for.
    obsm
        Names of arrays in ``given.obsm`` to keep.

    Attributes
    ----------
    adata
        All of ``obs``, the names of the genes, the expression as ``X`` and in the layer that the
        schema names, and its outcomes in ``obsm``.
    """

    def __init__(
        self,
        given: AnnData,
        registry: Registry,
        *,
        cells: Cells | None = None,
        obsm: Iterable[str] = (),
    ) -> None:
        self.registry, layer = registry, registry.schema.layer
        kept = registry.schema.outcomes.values()
        matrix = _own_matrix(given, registry.schema) if cells is None else cells.expression
        if isinstance(matrix, StoredMatrix):
            matrix = matrix.stored
        self.adata = AnnData(
            matrix,
            obs=given.obs.copy(),
            var=pd.DataFrame(index=given.var_names.copy()),
            layers={} if layer is None else {layer: matrix},
            obsm={name: given.obsm[name].copy() for name in {*obsm, *kept}},
        )
        if cells is not None:
            self.cells = cells
        self._given: weakref.ref[AnnData] | None = weakref.ref(given)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": None}  # a weak reference cannot be pickled

    @cached_property
    def cells(self) -> Cells:
        """The cells as tensors."""
        return self.registry.encode(self.adata)

    @property
    def is_encoded(self) -> bool:
        """Whether the tensors are made; cells left out of a fit may have labels of no encoding."""
        return "cells" in self.__dict__

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.adata.obs_names

    def warn_if_changed(self) -> None:
        """Say in the log if the AnnData that the model was made with has other cells or labels."""
        given = None if self._given is None else self._given()
        changed = given is not None and self._changed_labels(given.obs)
        if changed:
            logger.warning(
                "adata has changed since the model was made with it (cells: %s). The fit uses the "
                "%d cells as they were then; make a new FCR to use them as they are now.",
                changed,
                self.adata.n_obs,
            )

    def _changed_labels(self, obs: pd.DataFrame) -> str:
        was = self.adata.obs
        gone, new = was.index.difference(obs.index), obs.index.difference(was.index)
        said = [f"{len(n)} {word}" for n, word in ((gone, "gone"), (new, "new")) if len(n)]
        both = was.index.intersection(obs.index)
        for key in self.registry.schema.columns:
            if key not in obs:
                said.append(f"column {key!r} gone")
            elif n := int((_texts(was.loc[both, key]) != _texts(obs.loc[both, key])).sum()):
                said.append(f"{n} with another {key!r}")
        return ", ".join(said)

    def encode_others(
        self, adata: AnnData, *, rows: slice = slice(None), memory: int | None = None
    ) -> Cells:
        """Encode cells as they are; say in the log which of them are known with other values.

        Parameters
        ----------
        adata, rows, memory
            As in :meth:`Registry.encode`.

        Raises
        ------
        SchemaError
            The cells are not what the schema says.
        """
        try:
            others = self.registry.encode(adata, rows=rows, memory=memory)
        except SchemaError as error:
            if not len(self.obs_names.intersection(adata.obs_names)):
                raise
            raise SchemaError(
                f"{error}. The model keeps a copy of its own cells: leave out adata to ask about "
                "them as they were when it was made"
            ) from None
        for what, names in self._changed_cells(others).items():
            logger.warning(
                "%d of %d cells are known to the model with other values of %s, first %r. They are "
                "taken as they are now; adata=None takes them as they were when it was made.",
                *(len(names), len(others), what, str(names[0])),
            )
        return others

    def _changed_cells(self, others: Cells) -> dict[str, pd.Index]:
        """Return names of cells that both have, by what differs: expression, or a site."""
        if not self.is_encoded:
            return {}
        at = self.obs_names.get_indexer(others.obs_names)
        rows = np.flatnonzero(at >= 0)
        at = at[rows]
        theirs = along(others.expression)[rows]
        differs = {"expression": ~np.isclose(self._digest[at], theirs, rtol=1e-5)}
        for name, values in others.outcomes.items():
            differs[name] = (self.cells.outcomes[name][at] != values[rows]).any(axis=1)
        for name, levels in others.levels.items():
            own = self.cells.levels[name][self.cells.codes[name][at]]
            differs[name] = (own != levels[others.codes[name][rows]]).any(dim=1).numpy()
        found = {name: others.obs_names[rows[cells]] for name, cells in differs.items()}
        return {name: names for name, names in found.items() if len(names)}

    @cached_property
    def _digest(self) -> npt.NDArray[np.float64]:
        # Questions about a few cells at a time would otherwise read all of the model's own.
        return along(self.cells.expression)


def _own_matrix(given: AnnData, schema: Schema) -> Any:
    """Return a copy in memory of the expression; what is on disk and large stays there."""
    stored = stored_matrix(find_matrix(given, schema))
    large = stored is not None and stored.nbytes_in_memory > free_memory() // 2
    return stored if large else read_matrix(given, schema)


def _texts(column: pd.Series) -> npt.NDArray[np.str_]:
    levels, codes = label_codes(column, where=f"obs column {column.name!r}")
    return np.array([*levels, ""])[codes]
