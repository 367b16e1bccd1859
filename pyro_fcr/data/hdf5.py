"""Writing h5ad files so that a full disk is an error and nothing worse.

HDF5 cannot close a file whose last writes the disk refused: it tries again until the process ends,
and may crash it then. So it writes to a file object that takes everything, and tells us.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
from anndata import AnnData
from anndata.io import write_elem


class _PatientFile:
    """A file that takes what is written even after the disk refused, and keeps the error."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b", buffering=0)
        self.error: OSError | None = None
        self.at = self.size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}
        self.at = start[whence] + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self.file.fileno(), len(view), self.at)
        view[:] = data.ljust(len(view), b"\0")  # what was refused is never used
        self.at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while written < len(view) and self.error is None:
                written += os.pwrite(self.file.fileno(), view[written:], self.at + written)
        except OSError as error:
            self.error = error
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        if self.error is None:
            try:
                self.file.truncate(self.size)
            except OSError as error:
                self.error = error
        return self.size

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


@contextmanager
def new_h5ad(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Open a new file for the parts of an AnnData.

    Yields
    ------
    The file and a function that raises OSError if the disk refused what was written so far, as the
    end does.
    """
    target = _PatientFile(path)

    def check() -> None:
        if target.error is not None:
            raise target.error

    try:
        with h5py.File(target, "w") as root:
            yield root, check
        check()
    finally:
        target.file.close()


def is_h5ad(path: Path) -> bool:
    """Tell whether a file is an h5ad of the present format, whose parts are written one by one."""
    if path.suffix != ".h5ad":
        return False
    with h5py.File(path) as root:
        return root.attrs.get("encoding-type") == "anndata"


def copy_h5ad(source: Path, path: Path, more: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy a file part by part, and put more into it.

    Parameters
    ----------
    source
        The file, see :func:`is_h5ad`.
    path
        The new file.
    more
        Elements by name for each of some groups, such as ``obsm`` and ``uns``; an element of this
        name in the file is replaced.
    """
    with h5py.File(source) as given, new_h5ad(path) as (root, check):
        root.attrs.update(given.attrs)
        for name in given:
            given.copy(name, root)
            check()
        for group, elements in more.items():
            if group not in root:
                write_elem(root, group, {})
            for name, value in elements.items():
                if name in root[group]:
                    del root[group][name]
                write_elem(root[group], name, value)


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an AnnData, compressed, as its method does."""
    adata.strings_to_categoricals()
    with new_h5ad(path) as (root, _):
        write_elem(root, "/", adata, dataset_kwargs={"compression": "gzip"})
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
