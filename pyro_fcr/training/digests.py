"""What a training run is of, in digests: a checkpoint goes on with the same cells and programs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from scipy import sparse

from pyro_fcr.data import Cells, Split
from pyro_fcr.objective import Objective

_ROWS = 4_096


def digests_of(objective: Objective, cells: Cells, split: Split) -> dict[str, str]:
    """Return a digest of each thing that a run depends on, by its name in words.

    Parameters
    ----------
    objective
        The loss, which holds both programs: names and shapes of what is trained, and the weights
        of its terms.
    cells
        Names, genes, labels and expression; how the expression is stored makes no difference.
    split
        The cells to train on and to hold out.
    """
    digests = {
        "names or order of cells": _digest("\n".join(map(str, cells.obs_names)).encode()),
        "genes or their order": _digest("\n".join(cells.genes).encode()),
    }
    for name, levels in cells.levels.items():
        parts = (levels, cells.strata[name], cells.codes[name])
        digests[f"labels of {name}"] = _digest(*(part.numpy().tobytes() for part in parts))
    digests["expression"] = _digest(cells.library.numpy().tobytes(), *_rows(cells))
    for name, values in cells.outcomes.items():
        digests[f"values of {name}"] = _digest(np.ascontiguousarray(values).tobytes())
    halves = (split.train, split.heldout)
    digests["split"] = _digest(*(np.asarray(half, dtype=np.int64).tobytes() for half in halves))
    shapes = {name: tuple(value.shape) for name, value in objective.state_dict().items()}
    digests["model, guide or loss terms"] = _digest(repr(sorted(shapes.items())).encode())
    weights = {name: _words(weight) for name, weight in objective.weights.items()}
    digests["weights of the loss terms"] = _digest(repr(sorted(weights.items())).encode())
    return digests


def _rows(cells: Cells) -> Iterable[bytes]:
    for start in range(0, len(cells), _ROWS):
        rows = sparse.csr_array(cells.expression[start : start + _ROWS])
        yield rows.indptr.astype(np.int64).tobytes()
        yield rows.indices.astype(np.int64).tobytes()
        yield rows.data.astype(np.float32).tobytes()


def _words(weight: Any) -> str:
    """Describe a weight in the same words in every process; of a function nothing is known."""
    is_plain = is_dataclass(weight) or not callable(weight)
    return repr(weight) if is_plain else type(weight).__name__


def _digest(*parts: bytes) -> str:
    """Return the digest of some bytes; parts of another length give another one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
