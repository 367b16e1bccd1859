"""Files and AnnData of any storage -> rows in memory, never denser than they were."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import read_elem, sparse_dataset
from scipy import sparse

from pyro_fcr.data.chunks import check_chunks
from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.data.stored import free_memory, is_on_disk, narrow_size
from pyro_fcr.files import locate
from pyro_fcr.seals import check_seal

Matrix: TypeAlias = "sparse.csr_array | npt.NDArray[np.float32]"

_VALUES_PER_READ = 2**24
_AS_FLOATS = 4  # times the memory of counts of one byte, with the copies that are made of them


def read_cells(source: AnnData | str | Path) -> AnnData:
    """Open a data set.

    Parameters
    ----------
    source
        Path of an `.h5ad` file or a `.zarr` folder; an AnnData, backed or not, is returned as is.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If it is not an AnnData, has another suffix, or cannot be read.
    pyro_fcr.seals.DamagedError
        If it is an answer of ours that is not what was written.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from pyro_fcr.data import read_cells
    >>> read_cells(ad.AnnData(np.ones((2, 3)))).shape
    (2, 3)
    """
    if isinstance(source, AnnData):
        return source
    return open_with(source, lambda path: _WHOLE[path.suffix](path))


_WHOLE: dict[str, Callable[..., AnnData]] = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}


def open_with(source: str | Path, read: Callable[[Path], AnnData]) -> AnnData:
    """Read an `.h5ad` file or a `.zarr` folder in some way, if it is one and whole.

    Raises
    ------
    FileNotFoundError, SchemaError, pyro_fcr.seals.DamagedError
        As in :func:`read_cells`.
    """
    if not isinstance(source, str | Path):
        raise SchemaError(
            f"found {type(source).__name__}; expected an AnnData or the path of an .h5ad or .zarr"
        )
    path = locate(source)
    if path.suffix not in _WHOLE:
        raise SchemaError(
            f"{str(path)!r} ends in {path.suffix!r}; expected .h5ad or .zarr; "
            "read it with scanpy and write it with adata.write_h5ad"
        )
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist (looked from {str(Path.cwd())!r})")
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        kind = "folder" if path.suffix == ".zarr" else "file"  # reading a pipe would never end
        raise SchemaError(f"{str(path)!r} is no {kind}; name the {kind} that anndata wrote")
    is_own = check_seal(path)
    try:
        if not is_own:
            root = _root(path)
            with root if isinstance(root, h5py.File) else nullcontext():
                check_chunks(root, path)
        found = read(path)
        for name in (None, *layer_names(found)):
            _check_sparse(found.X if name is None else found.layers[name])
        return found
    except Exception as error:
        said = " ".join(str(error).split())  # those of HDF5 may have several lines
        raise SchemaError(
            f"{str(path)!r} cannot be read as {path.suffix} ({said}); it may be cut short or "
            "written by another program: write it again with anndata"
        ) from error


def open_cells(source: AnnData | str | Path) -> AnnData:
    """Open a data set whose matrices stay on disk, as far as its format allows.

    Parameters
    ----------
    source
        As in :func:`read_cells`; of an AnnData nothing changes.

    Returns
    -------
    Cells with ``obs``, ``var`` and ``obsm`` in memory, ``X`` and layers on disk, and without
    ``raw``, ``uns`` and graphs.

    Raises
    ------
    FileNotFoundError, SchemaError
        As in :func:`read_cells`.
    """
    return read_cells(source) if isinstance(source, AnnData) else open_with(source, _on_disk)


def _on_disk(path: Path) -> AnnData:
    root = _root(path)
    if root.attrs.get("encoding-type") != "anndata":  # of an early version
        return _WHOLE[path.suffix](path)
    known = {name: read_elem(root[name]) for name in ("obs", "var", "obsm") if name in root}
    if isinstance(root, h5py.File):  # which keeps what it read of names, were it not closed
        root.close()
        root = _root(path)
    adata = AnnData(_lazily(root["X"]) if "X" in root else None, **known)
    for name in root.get("layers", ()):
        adata.layers[name] = _lazily(root["layers"][name])
    return adata


def _root(path: Path) -> Any:
    return h5py.File(path) if path.suffix == ".h5ad" else zarr.open_group(path, mode="r")


def _lazily(element: Any) -> Any:
    kind = str(element.attrs.get("encoding-type", "array"))
    if kind == "array":
        return element
    return sparse_dataset(element) if kind in ("csr_matrix", "csc_matrix") else read_elem(element)


def as_dense(values: Any) -> Any:
    """Return values of obsm that may be sparse as an array; a table stays one."""
    return values.toarray() if sparse.issparse(values) else values


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers; from anndata 0.13 on `adata.layers` lists X too, as None."""
    stored: Any = adata.layers
    return [name for name in stored if name is not None]


def read_matrix(adata: AnnData, schema: Schema) -> Matrix:
    """Return the expression of `schema.layer` (or `.X`) in memory that nobody else holds.

    Returns
    -------
    scipy.sparse.csr_array or numpy.ndarray
        Shape (n_cells, n_genes), float32. Sparse stays sparse (CSC becomes CSR), without
        duplicates or stored zeros; dense is C-contiguous and read by blocks of rows.

    Raises
    ------
    SchemaError
        If the layer or `.X` is missing, its storage is unknown, or it is on disk and takes more
        memory than is free.
    """
    stored = find_matrix(adata, schema)
    if isinstance(stored, CSRDataset | CSCDataset):
        _check_fits(stored, schema)
        return _canonical(stored.to_memory(), copy=False)
    if sparse.issparse(stored):
        try:
            _check_sparse(stored)
        except ValueError as error:
            raise SchemaError(
                f"{schema.source} is no sound sparse matrix ({error}); build or read it again"
            ) from error
        # The user's own matrix may be normalised in place later on: share no memory with it.
        return _canonical(stored, copy=True)
    if getattr(stored, "ndim", 0) != 2:
        raise SchemaError(_unknown_storage(stored, schema))
    return _read_dense(stored, schema)


def find_matrix(adata: AnnData, schema: Schema) -> Any:
    """Return `schema.layer` (or `.X`) as it is, in memory or on disk.

    Raises
    ------
    SchemaError
        If it is missing.
    """
    if schema.layer is not None and schema.layer not in adata.layers:
        raise SchemaError(
            f"layer {schema.layer!r} is not in adata.layers; layers: {listed(layer_names(adata))}."
            f"{did_you_mean(schema.layer, layer_names(adata))} Leave layer out to use adata.X"
        )
    stored = adata.X if schema.layer is None else adata.layers[schema.layer]
    if stored is None:
        raise SchemaError(f"adata.X is empty; name a layer, of those there: {listed(adata.layers)}")
    if isinstance(stored, np.ma.MaskedArray) or np.iscomplexobj(stored):
        raise SchemaError(_unknown_storage(stored, schema))
    return stored


def _check_sparse(matrix: Any) -> None:
    """Raise ValueError if indices lead out of a matrix, as those of a damaged file may."""
    if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        matrix.check_format(full_check=True)


def whole_matrix(adata: AnnData, schema: Schema) -> Any:
    """Return `schema.layer` (or `.X`) as it is, what is on disk in memory.

    Raises
    ------
    SchemaError
        It is missing, or takes more memory than is free.
    """
    matrix = find_matrix(adata, schema)
    if not is_on_disk(matrix):
        return matrix
    _check_fits(matrix, schema)
    return matrix.to_memory() if isinstance(matrix, CSRDataset | CSCDataset) else matrix[:]


def _check_fits(stored: Any, schema: Schema) -> None:
    needed, free = _AS_FLOATS * narrow_size(stored), free_memory()
    if needed > free:
        raise SchemaError(
            f"this needs all of {schema.source} in memory, {needed / 1e9:.1f} GB, of which "
            f"{free / 1e9:.1f} GB are free: pass some of the cells, adata[rows].to_memory()"
        )


def check_by_rows(stored: Any, schema: Schema, *, memory: int) -> None:
    """Refuse a matrix on disk that cannot be read by cells and takes more than some bytes.

    Raises
    ------
    SchemaError
        It is stored by columns.
    """
    if not isinstance(stored, CSCDataset):
        return
    needed, bound = narrow_size(stored), min(memory, free_memory() // _AS_FLOATS)
    if needed > bound:
        raise SchemaError(
            f"{schema.source} is stored by columns (CSC), which cannot be read by cells, and takes "
            f"{needed / 1e9:.2g} GB, more than {bound / 1e9:.2g} GB of memory: write it by rows, "
            "adata.X = adata.X.tocsr(), where there is enough memory"
        )


def _canonical(matrix: sparse.spmatrix | sparse.sparray, *, copy: bool) -> sparse.csr_array:
    rows = sparse.csr_array(matrix, dtype=np.float32, copy=copy)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def _read_dense(stored: Any, schema: Schema) -> npt.NDArray[np.float32]:
    n_cells, n_genes = stored.shape
    rows = np.empty((n_cells, n_genes), dtype=np.float32)
    step = max(1, _VALUES_PER_READ // max(1, n_genes))
    for start in range(0, n_cells, step):
        try:
            rows[start : start + step] = stored[start : start + step]
        except (TypeError, ValueError) as error:
            raise SchemaError(_unknown_storage(stored, schema)) from error
    return rows


def _unknown_storage(stored: Any, schema: Schema) -> str:
    dtype = getattr(stored, "dtype", "no dtype")
    return (
        f"{schema.source} is {type(stored).__name__} ({dtype}); expected real numbers in a numpy "
        "array, a scipy sparse matrix or a backed h5ad or zarr; load it: adata = adata.to_memory()"
    )
