"""What an answer looks like, and how it is put together part by part, in memory or in a file."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem
from scipy import sparse

from pyro_fcr.data.hdf5 import new_h5ad
from pyro_fcr.draws import QueryError
from pyro_fcr.draws.sinks import EveryDraw, Moments, Quantiles, Sink
from pyro_fcr.files import check_place, locate
from pyro_fcr.seals import sealed
from pyro_fcr.values import check_settings, shown

Part: TypeAlias = Mapping[str, np.ndarray | sparse.csr_matrix]
"""``"X"`` and layers by name, for the next rows of an answer."""

_VALUES_PER_PIECE = 2**20  # of an answer in a file, beside the draws at work
_SKETCH = 128  # up to so many draws quantiles are exact


@dataclass(frozen=True)
class Output:
    """What to answer with, and where to put it.

    Parameters
    ----------
    form
        ``"draws"``: a row per cell and draw. ``"mean"``: a row per cell, the mean over draws in
        ``X`` and their standard deviation in ``layers["sd"]``. ``"summary"``: the same with
        quantiles over draws in ``layers["q05"]`` and the like.
    uncertainty
        What draws, sd and quantiles are of. ``"latent"``: the expected expression given drawn
        latents, so their spread is how far the latents leave the response open.
        ``"observation"``: drawn expression, which has the noise of counting on top. None stands for
        ``"observation"`` with draws and for ``"latent"`` otherwise. Neither contains how uncertain
        the parameters are.
    quantiles
        Which quantiles a summary has: exact up to 128 draws, see
        :class:`pyro_fcr.draws.sinks.Quantiles` beyond.
    store
        A new ``.h5ad`` or ``.zarr`` to write the answer to part by part, so that it need not fit
        into memory. It is whole or not there, and has its sha256. The AnnData that is returned then
        reads from it.
    memory
        Bytes that the draws at work may take beside the answer. Where they do not suffice for a
        block of cells, its draws are made again for each part of it: slower, the same answer.
    shard
        Which part of the cells to answer for, as ``"2/8"``: the second of eight that lie side by
        side, with the draws that they have in the whole answer.
        :func:`pyro_fcr.queries.join_shards` reads all of them as one.

    Raises
    ------
    QueryError
        A choice is unknown, or a number out of its range.

    Examples
    --------
    >>> Output("summary", quantiles=(0.025, 0.975)).kind
    'latent'
    >>> Output("summary", uncertainty="observation", store="treated.zarr").kind
    'observation'
    """

    form: Literal["draws", "mean", "summary"] = "draws"
    uncertainty: Literal["latent", "observation"] | None = None
    quantiles: tuple[float, ...] = (0.05, 0.5, 0.95)
    store: str | Path | None = None
    memory: int = 2**30
    shard: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, error=QueryError)
        if self.shard is not None:
            read_shard(self.shard)
        if self.store is not None and Path(self.store).suffix not in (".h5ad", ".zarr"):
            raise QueryError(f"store {str(self.store)!r} must end in .h5ad or .zarr.")

    @property
    def kind(self) -> str:
        """What the spread is of: ``"latent"`` or ``"observation"``."""
        return self.uncertainty or ("observation" if self.form == "draws" else "latent")

    def check_free(self) -> None:
        """Raise OSError if the answer cannot be written, or something stands in its place."""
        if self.store is None:
            return
        if locate(self.store).exists():
            raise FileExistsError(f"{self.store} is there already. Give store= another path.")
        check_place(self.store)

    def sinks(self, n_draws: int) -> list[Sink]:
        """Return what takes the draws of some cells."""
        if self.form == "draws":
            return [EveryDraw()]
        if self.form == "mean" or not self.quantiles:
            return [Moments()]
        size = min(_SKETCH, n_draws + n_draws % 2)
        return [Moments(), Quantiles(self.quantiles, size=size)]

    def rows_of(self, n_cells: int, block: int) -> slice:
        """Return which cells to answer for, of blocks of cells that are drawn together.

        Raises
        ------
        QueryError
            There are fewer cells than shards.
        """
        if self.shard is None:
            return slice(0, n_cells)
        number, n_shards = read_shard(self.shard)
        if n_shards > n_cells:
            raise QueryError(
                f"shard is {self.shard!r}, but there are {n_cells} cells: ask for fewer shards."
            )
        step = block if n_cells >= block * n_shards else 1  # no block is drawn twice if it can be
        edges = [n_cells * k // n_shards // step * step for k in (number - 1, number)]
        return slice(edges[0], n_cells if number == n_shards else edges[1])

    def cuts(self, n_cells: int, n_genes: int, *, n_draws: int) -> list[slice]:
        """Cut cells so that the draws of each part fit into the memory."""
        per_cell = n_genes * sum(s.bytes_per_value(n_draws) for s in self.sinks(n_draws))
        size = n_cells
        while size > 1 and size * per_cell > self.memory:
            size = (size + 1) // 2
        return [slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]


def read_shard(text: Any) -> tuple[int, int]:
    """Return the number of a shard, from 1, and how many there are.

    Raises
    ------
    QueryError
        It is not of the form ``"2/8"``.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text) if isinstance(text, str) else None
    number, n_shards = (0, 0) if found is None else (int(found[1]), int(found[2]))
    if not 1 <= number <= n_shards:
        raise QueryError(
            f"shard is {shown(text)}; expected '1/8' to '8/8' for eight shards, and so on."
        )
    return number, n_shards


def read_part(sinks: Iterable[Sink], *, as_counts: bool) -> Part:
    """Read off sinks the next rows of an answer.

    Parameters
    ----------
    sinks
        They have taken all draws.
    as_counts
        Whether draws are counts, which are kept sparse.
    """
    found = {name: value for sink in sinks for name, value in sink.result().items()}
    part = {name: value.cpu().numpy() for name, value in found.items()}
    if "draws" not in part:
        return {"X": part.pop("mean"), **part}
    # All draws of a cell stand together.
    rows = part["draws"].reshape(-1, part["draws"].shape[-1])
    return {"X": sparse.csr_matrix(rows) if as_counts else rows}


def assemble(frame: AnnData, parts: Iterable[Part], *, store: str | Path | None = None) -> AnnData:
    """Put parts of an answer below one another.

    Parameters
    ----------
    frame
        Annotation of all rows and genes, without values.
    parts
        The values of the rows, in order.
    store
        A new ``.h5ad`` or ``.zarr`` to write them to one at a time; None keeps them in memory.

    Returns
    -------
    The answer; with ``store`` one whose ``X`` and layers are read from the file where they are
    looked at.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = AnnData(obs=pd.DataFrame(index=list("abc")), var=pd.DataFrame(index=["g"]))
    >>> parts = [{"X": np.zeros((2, 1)), "sd": np.ones((2, 1))}, {"X": np.ones((1, 1)), "sd":
    ...          np.ones((1, 1))}]
    >>> assemble(frame, parts).X.ravel()
    array([0., 0., 1.])
    """
    if store is None:
        return _in_memory(frame, parts)
    with sealed(store, overwrite=False) as draft:
        _write(draft, frame, parts)
    return read_answer(locate(store))


def _in_memory(frame: AnnData, parts: Iterable[Part]) -> AnnData:
    dense: dict[str, np.ndarray] = {}
    counts: list[sparse.csr_matrix] = []
    start = 0
    for part in parts:
        rows = slice(start, start + part["X"].shape[0])
        for name, values in part.items():
            if sparse.issparse(values):
                counts.append(values)
            else:
                dense.setdefault(name, np.empty(frame.shape, values.dtype))[rows] = values
        start = rows.stop
    frame.X = sparse.vstack(counts, format="csr") if counts else dense.pop("X")
    for name, values in dense.items():
        frame.layers[name] = values
    return frame


def _write(path: Path, frame: AnnData, parts: Iterable[Part]) -> None:
    with _new_root(path) as (root, check):
        write_elem(root, "/", frame)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        started: set[str] = set()
        for part in _pieces(parts):
            for name, values in part.items():
                group = root if name == "X" else root["layers"]
                _append(group, name, values, new=name not in started)
                started.add(name)
            check()


def _pieces(parts: Iterable[Part]) -> Iterator[Part]:
    """Join parts to pieces of so many values that a file has few chunks."""
    waiting: list[Part] = []
    n_values = 0
    for part in parts:
        waiting.append(part)
        n_values += part["X"].size  # stored ones
        if n_values >= _VALUES_PER_PIECE:
            yield _joined(waiting)
            waiting, n_values = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Part]) -> Part:
    joined = {}
    for name, first in parts[0].items():
        rows = [part[name] for part in parts]
        is_sparse = sparse.issparse(first)
        joined[name] = sparse.vstack(rows, format="csr") if is_sparse else np.concatenate(rows)
    return joined


def _append(group: Any, name: str, values: Any, *, new: bool) -> None:
    if new:
        write_elem(group, name, values, dataset_kwargs=_growing(group, values))
    elif sparse.issparse(values):
        # What anndata appends with reads all of indptr again each time.
        rows, (n_rows, n_columns) = group[name], group[name].attrs["shape"]
        starts = values.indptr[1:].astype(np.int64) + rows["indices"].shape[0]
        for part, more in (("data", values.data), ("indices", values.indices), ("indptr", starts)):
            _extend(rows[part], more)
        rows.attrs["shape"] = (int(n_rows) + values.shape[0], int(n_columns))
    else:
        _extend(group[name], values)


def _extend(array: Any, rows: np.ndarray) -> None:
    start = array.shape[0]
    array.resize((start + len(rows), *array.shape[1:]))
    array[start:] = rows


def _growing(group: Any, values: Any) -> dict[str, Any]:
    """Return how to create an array that rows are appended to, in chunks as long as the parts."""
    if sparse.issparse(values):
        return {"indptr_dtype": "int64"}  # there may be more counts than 32 bits number
    growing = {"maxshape": (None, values.shape[1])} if isinstance(group, h5py.Group) else {}
    return {"chunks": values.shape, **growing}


@contextmanager
def _new_root(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    if path.suffix == ".h5ad":
        with new_h5ad(path) as opened:
            yield opened
        return
    group = zarr.open_group(path, mode="w", zarr_format=2)
    yield group, lambda: None
    zarr.consolidate_metadata(group.store)


def read_answer(path: Path) -> AnnData:
    """Return an answer in a file, whose ``X`` and layers are read where they are looked at."""
    root: Any = h5py.File(path, "r") if path.suffix == ".h5ad" else zarr.open_group(path, mode="r")
    layers = {name: _lazy(root["layers"][name]) for name in root["layers"]}
    annotation: dict[str, Any] = {name: read_elem(root[name]) for name in ("obs", "var", "uns")}
    return AnnData(X=_lazy(root["X"]), layers=layers, **annotation)


def _lazy(element: Any) -> Any:
    is_group = isinstance(element, h5py.Group | zarr.Group)
    return sparse_dataset(element) if is_group else element
