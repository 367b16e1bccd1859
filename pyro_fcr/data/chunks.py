"""Chunks that a file lacks: zarr and HDF5 read them as zeros without a word."""

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

_DEEPEST = 3  # obsm/NAME/COLUMN/codes
_SPARSE = ("csr_matrix", "csc_matrix")


class _Lack(NamedTuple):
    """What an array lacks: how many of its chunks, and the first and last entry of the first."""

    n_missing: int
    n_chunks: int
    first: int
    last: int

    def __str__(self) -> str:
        more = "" if self.n_missing == 1 else "the first: "
        number = f"{self.n_missing} of {self.n_chunks} chunks"
        return f"{number} ({more}entries {self.first} to {self.last})"


def check_chunks(root: Any, path: Path) -> None:
    """Look for chunks that are missing of the cells in a file.

    A chunk of zeros alone may be left out by zarr, and is read as zeros; a chunk that was lost is,
    too. What is never all zero (the parts of a sparse matrix, names) is refused; what may be (dense
    expression, columns) is told.

    Parameters
    ----------
    root
        The group of an AnnData, of HDF5 or zarr.
    path
        Where it is.

    Raises
    ------
    ValueError
        A part that cannot be all zero is missing; the message names it.

    Warns
    -----
    UserWarning
        Dense values or columns have missing chunks.
    """
    for name, array, holder in _arrays(root):
        lack = _lack(array, path)
        if lack is None:
            continue
        if _is_never_zero(name, holder):
            raise ValueError(f"{name} lacks {lack}")
        if told := _could_be_lost(name, holder, lack):
            warnings.warn(
                f"{name} in {str(path)!r} lacks {lack}, which {told}. If they are not, copy or "
                "write the file again.",
                stacklevel=4,
            )


def _arrays(root: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each array of the cells, the array and the group that holds it."""
    parts = [name for name in ("X", "layers", "obs", "var", "obsm") if name in root]
    stack = [(name, root[name], root) for name in parts]
    while stack:
        name, element, holder = stack.pop(0)
        if hasattr(element, "shape"):
            yield name, element, holder
        elif name.count("/") < _DEEPEST:  # links may lead in a circle
            stack += [(f"{name}/{each}", element[each], element) for each in element]


def _is_never_zero(name: str, holder: Any) -> bool:
    part = name.rsplit("/", 1)[-1]
    kind = holder.attrs.get("encoding-type")
    if part == holder.attrs.get("_index") or (part, kind) == ("categories", "categorical"):
        return holder[part].shape[0] > 1  # one name may be empty
    if kind not in _SPARSE or not holder["data"].shape[0]:
        return False
    return part != "indices" or holder.attrs["shape"][1] > 1  # of a single gene all are zero


def _could_be_lost(name: str, holder: Any, lack: _Lack) -> str | None:
    """Return how what is missing is read if that may be wrong, None where it is as it should be."""
    kind, _, part = name.rpartition("/")
    if name == "X" or kind == "layers":
        return "are read as zeros"
    if name.startswith("obs/") and part == "codes" and holder["categories"].shape[0] > 1:
        first = holder["categories"][:1][0]
        return f"are read as {first.decode() if isinstance(first, bytes) else str(first)!r}"
    is_column = name.startswith(("obs/", "obsm/")) and part not in ("codes", "mask")
    return "are read as zeros" if is_column and lack.n_missing < lack.n_chunks else None


def _lack(array: Any, path: Path) -> _Lack | None:
    if not array.shape or not math.prod(array.shape):
        return None
    is_hdf5 = isinstance(array, h5py.Dataset)
    if is_hdf5 and array.chunks is None:
        is_there = array.is_virtual or array.id.get_storage_size() > 0 or array.external
        return None if is_there else _Lack(1, 1, 0, array.shape[0] - 1)
    step = array.chunks if is_hdf5 else array.shards or array.chunks
    grid = [math.ceil(n / each) for n, each in zip(array.shape, step, strict=True)]
    if is_hdf5 and array.id.get_num_chunks() == math.prod(grid):
        return None
    places = itertools.product(*map(range, grid))
    missing = [each for each in places if not _is_there(array, each, step, path, is_hdf5=is_hdf5)]
    if not missing:
        return None
    first = missing[0][0] * step[0]
    return _Lack(len(missing), math.prod(grid), first, min(array.shape[0], first + step[0]) - 1)


def _is_there(array: Any, place: Any, step: Any, path: Path, *, is_hdf5: bool) -> bool:
    if is_hdf5:
        offset = tuple(int(each) for each in np.multiply(place, step))
        return array.id.get_chunk_info_by_coord(offset).byte_offset is not None
    return (path / array.path / array.metadata.encode_chunk_key(place)).is_file()
