"""Good cells in a file with one thing wrong with it, as copying, disks and other programs do."""

import shutil
from functools import cache

import h5py
import mutations
import numpy as np
import zarr
from hypothesis import strategies as st
from scipy import sparse

from pyro_fcr.cli import shell
from pyro_fcr.data import register

ELEMENTS = [
    "X", "X/data", "X/indices", "X/indptr", "obs", "obs/_index", "obs/drug", "obs/drug/codes",
    "obs/drug/categories", "obs/dose", "var", "var/_index", "layers", "layers/raw", "uns", "obsm",
]  # fmt: skip
VALUES = [
    np.zeros(0), np.zeros(3), np.zeros((2, 2)), np.full(400, -1), np.full(400, 10**9), np.nan, 7,
    "text", np.array(["a", "b"], dtype="S1"), np.full(48, np.nan), np.full((48, 5), 0.5),
    np.full(49, 0), np.full(48, 9), np.full(5, "g"), np.zeros(48, dtype=[("a", "f4")]),
]  # fmt: skip
ATTRIBUTES = ["encoding-type", "encoding-version", "shape", "column-order", "_index", "ordered"]
SAID = ["", "csc_matrix", "dataframe", "array", "nonsense", "99.9.9", [0, 0], [10**9, 5], [-1, 5],
        ["drug"], ["drug", "nowhere"], "nowhere", 3, None]  # fmt: skip


@cache
def good_file(folder, suffix):
    """Write good cells once; return the place."""
    adata, place = mutations.good_cells(), folder / f"good{suffix}"
    adata.X = sparse.csr_matrix(adata.X)
    if suffix == ".zarr":
        adata.write_zarr(place)
    else:
        # With its seal: libhdf5 may never return from metadata that are blank or flipped.
        shell.write_adata(adata, place)
    return place


@st.composite
def changed_file(draw):
    """How a file is changed: its kind, what is done, and with what."""
    suffix = draw(st.sampled_from([".h5ad", ".zarr"]))
    what = draw(st.sampled_from(["cut", "flip", "blank", "delete", "value", "attribute", "other"]))
    at = draw(st.floats(0, 1, exclude_max=True))
    element = draw(st.sampled_from(ELEMENTS))
    value = draw(st.sampled_from(range(len(VALUES))))
    said = draw(st.tuples(st.sampled_from(ATTRIBUTES), st.sampled_from(SAID)))
    return suffix, what, at, element, value, said


def make(folder, changed):
    """Write the file; return its place, None where the change cannot be made."""
    suffix, what, at, element, value, said = changed
    good, place = good_file(folder, suffix), folder / f"bad{suffix}"
    (shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True))
    (shutil.copytree if suffix == ".zarr" else shutil.copy)(good, place)
    if what in ("cut", "flip", "blank", "other"):
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        path = files[int(at * len(files))]
        path.write_bytes(_bytes(path.read_bytes(), what, (at * len(files)) % 1.0))
        return place
    if suffix == ".zarr" and (place / ".zmetadata").exists():
        (place / ".zmetadata").unlink()  # else it answers for what is not there
    root = h5py.File(place, "r+") if suffix == ".h5ad" else zarr.open_group(place, mode="r+")
    try:
        _change(root, what, element, VALUES[value], said)
    except Exception:  # the library refuses to make it
        return None
    finally:
        if suffix == ".h5ad":
            root.close()
    return place


def _bytes(data, what, at):
    start = int(at * len(data))
    if what == "cut":
        return data[:start]
    if what == "flip":
        return data[:start] + bytes([data[start] ^ 0x10]) + data[start + 1 :] if data else b"\1"
    if what == "blank":
        return data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]
    return [b"", b"text\n", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"{}"][int(at * 5)]


def _change(root, what, element, value, said):
    old = root[element]
    if what == "attribute":
        name, text = said
        if text is None:
            del old.attrs[name]
        else:
            old.attrs[name] = text
        return
    attributes = dict(old.attrs)
    del root[element]
    if what == "value":
        if isinstance(root, h5py.File):
            root[element] = value
        else:
            root[element] = np.asarray(value)
        root[element].attrs.update(attributes)


def judge(folder, changed):
    """Return what comes of a file, as :func:`mutations.outcome`; None if it cannot be made."""
    place = make(folder, changed)
    if place is None:
        return None
    names = [str(place), "adata.X", "adata.obs_names", "adata.var_names", *mutations.COLUMNS]
    return mutations.outcome(lambda: register(place, mutations.good_schema()), names)
