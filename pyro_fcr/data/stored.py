"""Expression that stays on disk: blocks of rows, looked through once, read when asked for."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from pyro_fcr.data.errors import SchemaError

Rows = npt.NDArray[np.int64]
Look = Callable[[Any, int], None]
"""Is given a block in memory and the position of its first row."""

_VALUES_PER_READ = 2**17
_CENTRED = 0.05  # of a standard deviation: means of z-scores and residuals
_UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, LookupError)
_NEAR = 32  # rows between two that are asked for, up to which both are read at once


Expression: TypeAlias = Any
"""A matrix in memory (CSR or dense), a :class:`StoredMatrix`, or a :class:`Pool` of its rows."""

CELLS_PER_POOL = 2**14
"""Cells that are read together, and shuffled, in an epoch over a matrix on disk, at most."""

VALUES_PER_POOL = 2**25
"""Values that are read together, at most."""


@dataclass
class Survey:
    """What one pass over a matrix finds.

    Parameters
    ----------
    totals, n_shown
        Sum of each cell and number of its values other than zero, ``(n_cells,)`` each.
    sums, n_cells
        Sum of each gene and number of cells that have it, ``(n_genes,)`` each.
    squares
        Sum of all squares.
    along
        Each cell along one direction, see :func:`along`, ``(n_cells,)``.
    least, largest
        The extremes.
    is_whole
        Whether all values are whole numbers of 0 or more.
    """

    totals: npt.NDArray[np.float64]
    n_shown: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    n_cells: npt.NDArray[np.int64]
    along: npt.NDArray[np.float64]
    squares: float = 0.0
    least: float = 0.0
    largest: float = 0.0
    is_whole: bool = True

    @classmethod
    def of_nothing(cls, shape: tuple[int, int]) -> Survey:
        """Return the survey of a matrix that was not looked through yet."""
        n, m = shape
        shown = np.zeros(n, np.int64), np.zeros(m), np.zeros(m, np.int64)
        return cls(np.zeros(n), *shown, along=np.zeros(n))

    @property
    def is_centred(self) -> bool:
        """Whether most genes have a mean of about 0, as z-scores and residuals have."""
        means = np.abs(self.sums) / max(1, len(self.totals))
        square = self.squares / max(1, len(self.totals) * len(self.sums))
        return bool(np.median(means) < _CENTRED * np.sqrt(square))

    def add(self, block: Any, first: int) -> None:
        """Take in a block of rows."""
        rows = slice(first, first + block.shape[0])
        values = block if isinstance(block, np.ndarray) else block.data
        self.totals[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).reshape(-1)
        self.sums += np.asarray(block.sum(axis=0, dtype=np.float64)).reshape(-1)
        self.along[rows] = block @ _direction(block.shape[1])
        if isinstance(block, np.ndarray):
            self.n_shown[rows] = np.count_nonzero(block, axis=1)
            self.n_cells += np.count_nonzero(block, axis=0)
        else:
            self.n_shown[rows] = np.diff(block.indptr)
            self.n_cells += np.bincount(block.indices, minlength=len(self.n_cells))
        self.squares += float(np.square(values, dtype=np.float64).sum())
        self.least = min(self.least, float(values.min(initial=0)))
        self.largest = max(self.largest, float(values.max(initial=0)))
        self.is_whole &= bool(((values >= 0) & (values == np.rint(values))).all())


class StoredMatrix:
    """A matrix on disk, ``(n_cells, n_genes)``, whose rows are read into memory when asked for.

    Parameters
    ----------
    stored
        A sparse dataset of anndata with rows together (CSR), or an array of HDF5 or zarr.
    columns
        The columns to take, in their order; None takes all.
    rows
        The rows to take, which lie side by side.
    dtype
        Type of what is read.

    Notes
    -----
    Beside :attr:`nbytes`, a read of some MB and two pools are in memory, of :data:`CELLS_PER_POOL`
    cells or :data:`VALUES_PER_POOL` values at most.
    """

    ndim = 2

    def __init__(
        self,
        stored: Any,
        *,
        columns: Rows | None = None,
        rows: slice = slice(None),
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.stored, self.columns, self.rows = stored, columns, rows
        self.dtype, self.is_sparse = np.dtype(dtype), isinstance(stored, CSRDataset)
        n_genes = stored.shape[1] if columns is None else len(columns)
        self._first, last, _ = rows.indices(int(stored.shape[0]))
        self.shape = (last - self._first, int(n_genes))
        self._survey: Survey | None = None
        if self.is_sparse and (missing := {"data", "indices", "indptr"} - set(stored.group)):
            raise self._damaged(f"its {min(missing)} are missing")

    def _damaged(self, reason: object) -> SchemaError:
        place = self.stored.group if self.is_sparse else self.stored
        file = getattr(place, "file", None)
        name = getattr(place, "store_path", place) if file is None else file.filename
        return SchemaError(
            f"the matrix in {str(name)!r} cannot be read ({reason}); the file may be damaged, or "
            "not of numbers: write it again with anndata"
        )

    @cached_property
    def _starts(self) -> Rows:
        """Place of the first value of each row, and of the end."""
        group, n_rows = self.stored.group, int(self.stored.shape[0])
        first, last = self._first, self._first + self.shape[0]
        try:
            starts = np.asarray(group["indptr"][first : last + 1], dtype=np.int64)
            lengths = {name: int(group[name].shape[0]) for name in ("indptr", "data", "indices")}
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        n = lengths["data"]
        fits = lengths == {"indptr": n_rows + 1, "data": n, "indices": n}
        if not fits or (np.diff(starts, prepend=0, append=n) < 0).any():
            raise self._damaged("its indptr does not fit")
        if (first == 0 and starts[0] > 0) or (last == n_rows and starts[-1] < n):
            raise self._damaged("its indptr does not fit")
        return starts

    @property
    def n_values(self) -> int:
        """Values that are stored of the rows."""
        if self.is_sparse:
            return int(self._starts[-1] - self._starts[0])
        return self.shape[0] * int(self.stored.shape[1])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        held = self._survey
        starts = self._starts.nbytes if self.is_sparse else 0
        return starts + (0 if held is None else 3 * held.totals.nbytes)

    @property
    def nbytes_in_memory(self) -> int:
        """Memory that the matrix would take with counts of one byte, in bytes."""
        return self.n_values * 5 + 8 * self.shape[0] if self.is_sparse else self.n_values

    @property
    def survey(self) -> Survey:
        """What :meth:`look_through` found."""
        if self._survey is None:
            self.look_through(lambda block, first: None)
        assert self._survey is not None
        return self._survey

    def select(self, columns: Rows) -> StoredMatrix:
        """Return the matrix with some columns, in their order."""
        if self.columns is None and np.array_equal(columns, np.arange(self.shape[1])):
            return self
        return StoredMatrix(self.stored, columns=columns, rows=self.rows, dtype=self.dtype)

    def window(self, rows: slice) -> StoredMatrix:
        """Return rows that lie side by side, of all that are stored."""
        return StoredMatrix(self.stored, columns=self.columns, rows=rows, dtype=self.dtype)

    def astype(self, dtype: npt.DTypeLike, *, copy: bool = False) -> StoredMatrix:
        """Return the matrix with values of another type."""
        other = StoredMatrix(self.stored, columns=self.columns, rows=self.rows, dtype=dtype)
        other._survey = self._survey
        return other

    def look_through(self, look: Look) -> None:
        """Read every row once, hand blocks to a function, and keep the :class:`Survey`."""
        found = Survey.of_nothing(self.shape)
        for first, block in self.blocks():
            look(block, first)
            found.add(block, first)
        self._survey = found

    def to_memory(self, look: Look, *, counts: bool) -> Any:
        """Read every row once and keep it.

        Parameters
        ----------
        look
            As in :meth:`look_through`; what it raises ends the reading.
        counts
            Whether the values are, and are kept in the narrowest unsigned type that fits.
        """
        kept = _Kept(self, counts=counts)
        for first, block in self.blocks():
            look(block, first)
            kept.add(block, first)
        return kept.matrix()

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """Yield the position of a first row and the rows from there on, a block at a time."""
        first = 0
        while first < self.shape[0]:
            last = self._end_of_block(first)
            yield first, self._read([(first, last)])
            first = last

    def _end_of_block(self, first: int) -> int:
        if not self.is_sparse:
            return min(self.shape[0], first + max(1, _VALUES_PER_READ // self.stored.shape[1]))
        limit = self._starts[first] + _VALUES_PER_READ
        return max(first + 1, int(np.searchsorted(self._starts, limit, side="right")) - 1)

    def _read(self, runs: Sequence[tuple[int, int]]) -> Any:
        """Return the rows of some runs, each from a first row to before a last one."""
        try:
            rows = self._read_sparse(runs) if self.is_sparse else self._read_dense(runs)
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        return rows.astype(self.dtype, copy=False)

    def _read_dense(self, runs: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
        at = self._first
        read = [np.asarray(self.stored[at + a : at + b], np.float32) for a, b in runs]
        rows = np.concatenate(read)
        return rows if self.columns is None else np.ascontiguousarray(rows[:, self.columns])

    def _read_sparse(self, runs: Sequence[tuple[int, int]]) -> sparse.csr_array:
        group, starts = self.stored.group, self._starts
        places = [slice(starts[first], starts[last]) for first, last in runs]
        values = np.concatenate([np.asarray(group["data"][p], np.float32) for p in places])
        genes = np.concatenate([group["indices"][p] for p in places])
        lengths = [np.diff(starts[first : last + 1]) for first, last in runs]
        ends = np.concatenate([[0], *lengths]).cumsum()
        shape = len(ends) - 1, self.stored.shape[1]
        rows = sparse.csr_array((values, genes, ends), shape=shape)
        rows.check_format(full_check=True)  # native code trusts indices
        rows.sum_duplicates()
        if not values.all():
            rows.eliminate_zeros()
        if self.columns is not None:
            rows = rows[:, self.columns]
            rows.sort_indices()
        return rows

    def __getitem__(self, rows: slice | Rows) -> Any:
        """Return rows, by slice or positions, as they would be of a matrix in memory."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        if not len(rows):
            return self._read([(0, 0)])
        wanted = np.unique(rows)
        cuts = np.flatnonzero(np.diff(wanted) > _NEAR) + 1
        firsts, lasts = wanted[[0, *cuts]], wanted[[*(cuts - 1), -1]] + 1
        read = self._read(list(zip(firsts, lasts, strict=True)))
        offsets = np.concatenate([[0], (lasts - firsts).cumsum()[:-1]]) - firsts
        at = rows + offsets[np.searchsorted(firsts, rows, side="right") - 1]
        return read if np.array_equal(at, np.arange(read.shape[0])) else read[at]

    def pool(self, rows: Rows) -> Pool:
        """Read rows into memory, to pick batches of them."""
        wanted = np.unique(rows)
        return Pool(wanted, self[wanted], self.shape)


@dataclass(frozen=True, eq=False)
class Pool:
    """Some rows of a matrix on disk, under their positions there.

    Parameters
    ----------
    rows
        The positions, sorted.
    matrix
        The rows, in memory.
    shape
        The shape of the whole.
    """

    rows: Rows
    matrix: Any
    shape: tuple[int, int]

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.matrix.dtype

    def __getitem__(self, rows: Rows) -> Any:
        return self.matrix[np.searchsorted(self.rows, rows)]


class _Kept:
    """Rows as they are read; counts are as narrow as those so far allow."""

    def __init__(self, matrix: StoredMatrix, *, counts: bool) -> None:
        self.shape, self.is_sparse, self.counts = matrix.shape, matrix.is_sparse, counts
        n = matrix.n_values if self.is_sparse else 0
        place = np.int32 if n <= np.iinfo(np.int32).max else np.int64
        kind = np.uint8 if counts else np.float32
        self.values: Any = np.empty(n if self.is_sparse else self.shape, kind)
        self.indices, self.starts = np.empty(n, np.int32), np.zeros(self.shape[0] + 1, place)

    def add(self, block: Any, first: int) -> None:
        """Keep a block."""
        values = block.data if self.is_sparse else block
        if self.counts:
            kind = np.min_scalar_type(int(values.max(initial=0)))
            self.values = self.values.astype(np.promote_types(self.values.dtype, kind), copy=False)
        if not self.is_sparse:
            self.values[first : first + len(block)] = block
            return
        at = int(self.starts[first])
        self.values[at : at + len(values)] = values
        self.indices[at : at + len(values)] = block.indices
        self.starts[first + 1 : first + block.shape[0] + 1] = at + block.indptr[1:]

    def matrix(self) -> Any:
        """Return the matrix."""
        if not self.is_sparse:
            return self.values
        n = int(self.starts[-1])
        kept = self.values[:n], self.indices[:n], self.starts
        return sparse.csr_array(kept, shape=self.shape)


def blocks_of(matrix: Any) -> Iterator[tuple[int, Any]]:
    """Yield the position of a first row and the rows from there on, of a matrix of any storage."""
    if isinstance(matrix, StoredMatrix):
        yield from matrix.blocks()
        return
    n_cells, n_genes = matrix.shape
    stored = n_cells * n_genes if isinstance(matrix, np.ndarray) else matrix.nnz
    step = max(1, _VALUES_PER_READ * n_cells // max(1, stored))
    for first in range(0, n_cells, step):
        yield first, matrix[first : first + step]


def survey_of(matrix: Any) -> Survey:
    """Return the survey of a matrix of any storage."""
    if isinstance(matrix, StoredMatrix):
        return matrix.survey
    found = Survey.of_nothing(matrix.shape)
    for first, block in blocks_of(matrix):
        found.add(block, first)
    return found


def along(matrix: Expression) -> npt.NDArray[np.float64]:
    """Read every cell along one direction: equal expression gives equal numbers, ``(n_cells,)``."""
    if isinstance(matrix, StoredMatrix):
        return matrix.survey.along
    return matrix @ _direction(matrix.shape[1])


def _direction(n_genes: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).random(n_genes)


def is_on_disk(matrix: Any) -> bool:
    """Tell whether a matrix of an AnnData is on disk."""
    is_sparse = isinstance(matrix, CSRDataset | CSCDataset)
    return is_sparse or type(matrix).__module__.startswith(("h5py", "zarr"))


def stored_matrix(matrix: Any) -> StoredMatrix | None:
    """Return a matrix of an AnnData that is on disk; None of others, and of one by columns."""
    if isinstance(matrix, CSCDataset) or getattr(matrix, "ndim", 2) != 2:
        return None
    return StoredMatrix(matrix) if is_on_disk(matrix) else None


def narrow_size(stored: Any) -> int:
    """Return the memory that a matrix on disk would take with counts of one byte, in bytes."""
    if isinstance(stored, CSCDataset):
        return int(stored.group["data"].shape[0]) * 5 + 8 * int(stored.shape[0])
    return StoredMatrix(stored).nbytes_in_memory


def free_memory() -> int:
    """Return how many bytes this process may still take: of the machine, or of its own limit."""
    free = _of_linux("/proc/meminfo", r"MemAvailable:\s+(\d+)")
    taken = _of_linux("/proc/self/status", r"VmSize:\s+(\d+)")
    if not free:  # another system: half of all memory
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else max(0, min(free, limit - taken))


def _of_linux(path: str, pattern: str) -> int:
    """Return a number of kB that Linux tells, in bytes; 0 elsewhere."""
    place = Path(path)
    found = re.search(pattern, place.read_text()) if place.is_file() else None
    return 0 if found is None else int(found[1]) * 1024
