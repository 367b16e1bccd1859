"""Cells that stay on disk: the same answers as from memory, a pool of them at a time."""

import dataclasses
import os
import subprocess
import sys
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata.io import sparse_dataset, write_elem
from conftest import SCHEMA, simulate
from data_helpers import write
from scipy import sparse

import pyro_fcr
from pyro_fcr import Architecture, SchemaError
from pyro_fcr.data import io, open_cells, register, stored
from pyro_fcr.data.io import whole_matrix
from pyro_fcr.data.stored import StoredMatrix, free_memory, stored_matrix
from pyro_fcr.training import batches

N_CELLS = 900


@pytest.fixture(scope="module")
def adata():
    adata = simulate(N_CELLS, 20)
    adata.X = sparse.csr_matrix(adata.X)
    return adata


def quietly(write, cells, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of formats of zarr to come
        return write(cells, path)


@pytest.fixture(scope="module", params=["sparse.h5ad", "dense.h5ad", "sparse.zarr", "layer.h5ad"])
def place(request, adata, tmp_path_factory):
    path, cells = tmp_path_factory.mktemp("stored") / request.param, adata.copy()
    if "dense" in path.name:
        cells.X = cells.X.toarray()
    if "layer" in path.name:
        cells.layers["counts"], cells.X = cells.X, sparse.csr_matrix(cells.shape, dtype=np.float32)
    return quietly(write, cells, path)


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch):
    monkeypatch.setattr(stored, "_VALUES_PER_READ", 900)
    monkeypatch.setattr(batches, "CELLS_PER_POOL", 256)
    monkeypatch.setattr(batches, "_RUN", 64)


def schema_of(place):
    return pyro_fcr.Schema(
        treatment_key="drug",
        control="control",
        covariate_keys="line",
        layer="counts" if "layer" in place.name else None,
    )


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else matrix


def test_registered_from_disk_is_registered_from_memory(adata, place):
    expected, in_memory = register(adata, SCHEMA)
    for memory in (1, None):
        registry, cells = register(place, schema_of(place), memory=memory)
        assert isinstance(cells.expression, StoredMatrix) == (memory == 1)
        assert registry.conditions == expected.conditions
        assert registry.target_sum == expected.target_sum
        assert cells.expression.dtype == in_memory.expression.dtype == np.uint16
        assert torch.equal(cells.library, in_memory.library)
        for rows in (np.array([5, 3, 800, 3]), slice(890, None), np.arange(100, 120)):
            found, wanted = cells.expression[rows], in_memory.expression[rows]
            np.testing.assert_array_equal(dense(found), dense(wanted))


def test_a_fit_from_disk_gives_what_one_from_memory_gives(adata, place):
    fitted, found = [], []
    for source, schema, memory in ((adata, SCHEMA, None), (place, schema_of(place), "1kB")):
        fcr = pyro_fcr.FCR(
            source, schema, architecture=Architecture(decoder="additive"), memory=memory
        )
        assert isinstance(fcr._own().cells.expression, StoredMatrix) == (memory == "1kB")
        fcr.fit(max_epochs=4, align_at=None, progress=False)
        fitted.append(fcr)
    mine, theirs = fitted
    assert abs(mine.elbo() - theirs.elbo()) < 1.0
    for program in ("model", "guide"):
        getattr(theirs, program).load_state_dict(getattr(mine, program).state_dict())
    controls = np.flatnonzero(adata.obs["drug"] == "control")[:20]
    for fcr in fitted:
        answer = fcr.counterfactual(fcr.source(None)[controls], treatment="drug1")
        found.append((fcr.elbo(), fcr.get_latent_representation("z_x"), dense(answer.X)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_epoch_has_every_cell_once_and_reads_runs(adata, place):
    _, cells = register(place, schema_of(place), memory=1)
    made = batches.Batches(cells, np.arange(N_CELLS), batch_size=64, device=torch.device("cpu"))
    epochs = [torch.cat(made.shuffled_rows(0, epoch)) for epoch in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert len(epochs[0].unique()) == len(epochs[0]) == 64 * (N_CELLS // 64)
    pool = epochs[0][:256].sort().values
    assert (pool.diff() > 1).sum() <= 256 // 64  # runs of cells side by side
    for rows, batch in zip(made.shuffled_rows(0, 1), made.shuffled(0, 1), strict=True):
        np.testing.assert_array_equal(batch["y"].numpy(), dense(adata.X[rows.numpy()]))


def test_a_wrong_value_on_disk_is_named_by_its_cell(adata, tmp_path):
    cells = adata.copy()
    cells.X = cells.X.astype(np.float32)
    cells.X[700, 0] = 0.5
    cells.write_h5ad(tmp_path / "wrong.h5ad")
    for memory in (1, None):
        with pytest.raises(SchemaError, match="cell 'cell700', gene 'gene0'"):
            register(tmp_path / "wrong.h5ad", SCHEMA, memory=memory)


def test_log_values_on_disk_are_looked_at_as_in_memory(adata, tmp_path):
    cells = adata.copy()
    schema = pyro_fcr.Schema(
        treatment_key="drug", control="control", covariate_keys="line", expression="log1p"
    )
    cells.X.data = np.minimum(cells.X.data, 9.0)
    cells.write_h5ad(tmp_path / "whole.h5ad")
    for source in (cells, tmp_path / "whole.h5ad"):
        with pytest.warns(UserWarning, match="whole numbers only"):
            _, found = register(source, schema, memory=1)
        assert found.expression.dtype == np.float32


def test_columns_are_taken_in_the_registered_order(adata, place):
    order = np.random.default_rng(0).permutation(adata.n_vars)
    opened = open_cells(place)
    matrix = stored_matrix(opened.X if "layer" not in place.name else opened.layers["counts"])
    np.testing.assert_array_equal(
        dense(matrix.select(order)[np.array([4, 2])]), dense(adata.X[[4, 2]])[:, order]
    )


@pytest.mark.parametrize(("size", "wrong"), [("much", "'much'"), ("2 cows", "'2 cows'")])
def test_a_size_that_is_none_is_refused(adata, size, wrong):
    with pytest.raises(ValueError, match=f"memory is {wrong}; expected a size such as '2GB'"):
        pyro_fcr.FCR(adata, SCHEMA, memory=size)


def test_free_memory_respects_a_limit(monkeypatch):
    assert free_memory() > 0
    monkeypatch.setattr(stored.resource, "getrlimit", lambda _: (2**20, 2**20))
    assert free_memory() == 0


def test_what_needs_everything_in_memory_says_how_much(adata, place, monkeypatch):
    opened, schema = open_cells(place), schema_of(place)
    np.testing.assert_array_equal(dense(whole_matrix(opened, schema)), dense(adata.X))
    monkeypatch.setattr(io, "free_memory", lambda: 10)
    with pytest.raises(SchemaError, match="needs all of adata.* in memory, 0.0 GB"):
        whole_matrix(opened, schema)


def test_a_matrix_by_columns_is_read_if_it_fits_and_refused_if_not(adata, tmp_path, monkeypatch):
    cells = adata.copy()
    cells.X = sparse.csc_matrix(cells.X)
    cells.write_h5ad(tmp_path / "columns.h5ad")
    expected = pyro_fcr.FCR(adata, SCHEMA)
    found = pyro_fcr.FCR(tmp_path / "columns.h5ad", SCHEMA)
    assert (found._own().cells.expression != expected._own().cells.expression).nnz == 0
    message = r"stored by columns \(CSC\).*more than 1e-06 GB of memory: write it by rows"
    with pytest.raises(SchemaError, match=message):
        pyro_fcr.FCR(tmp_path / "columns.h5ad", SCHEMA, memory="1kB")
    monkeypatch.setattr(io, "free_memory", lambda: 4000)
    for question in (
        lambda: pyro_fcr.FCR(tmp_path / "columns.h5ad", SCHEMA),
        lambda: expected.counterfactual(tmp_path / "columns.h5ad", treatment="drug1"),
    ):
        with pytest.raises(SchemaError, match=message):
            question()
    with pytest.raises(SchemaError, match="needs all of adata.X in memory"):
        whole_matrix(open_cells(tmp_path / "columns.h5ad"), SCHEMA)


def test_rows_side_by_side_are_encoded_alone(adata, place):
    registry, whole = register(adata, SCHEMA)
    registry = dataclasses.replace(registry, schema=schema_of(place))
    for rows in (slice(0, 5), slice(300, 820), slice(899, None)):
        found = registry.encode(place, rows=rows, memory=0)
        assert isinstance(found.expression, StoredMatrix)
        assert len(found) == len(range(*rows.indices(N_CELLS)))
        expected = whole.batch(np.arange(N_CELLS)[rows])
        one = found.batch(np.arange(len(found)))
        for name, values in expected.values.items():
            assert torch.equal(one[name], values), name
        np.testing.assert_array_equal(found.obs_names, whole.obs_names[rows])


def test_a_wrong_value_of_a_window_is_named_by_its_cell(adata, tmp_path):
    cells = adata.copy()
    cells.X = cells.X.astype(np.float32)
    cells.X[700, 0] = 0.5
    cells.write_h5ad(tmp_path / "wrong.h5ad")
    registry, _ = register(adata, SCHEMA)
    assert len(registry.encode(tmp_path / "wrong.h5ad", rows=slice(0, 700), memory=0)) == 700
    with pytest.raises(SchemaError, match="cell 'cell700', gene 'gene0'"):
        registry.encode(tmp_path / "wrong.h5ad", rows=slice(690, 800), memory=0)


def test_cells_given_by_their_path_are_not_read_whole(adata, place, monkeypatch):
    fcr = pyro_fcr.FCR(place, schema_of(place), architecture=Architecture(n_hidden=16))
    expected = fcr.get_latent_representation("z_x"), fcr.elbo()
    longest, read = [], StoredMatrix._read

    def watched(self, runs):
        rows = read(self, runs)
        longest.append(rows.shape[0])
        return rows

    monkeypatch.setattr(StoredMatrix, "_read", watched)
    monkeypatch.setattr(pyro_fcr.api, "_CHUNK", 64)
    np.testing.assert_allclose(fcr.get_latent_representation("z_x", place), expected[0], atol=1e-5)
    assert fcr.elbo(place) == pytest.approx(expected[1], abs=2.0)
    assert max(longest) < 400  # of a pass that checks; a chunk has 64


def lose_a_chunk(place, name):
    max(path for path in (place / name).rglob("[0-9]*") if path.is_file()).unlink()


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.parametrize("open_", [io.read_cells, open_cells])
def test_parts_without_a_chunk_for_a_reason_are_read(adata, tmp_path, suffix, open_):
    cells, place = adata.copy(), tmp_path / f"cells{suffix}"
    cells.layers["nothing"] = sparse.csr_matrix(cells.shape, dtype=np.float32)
    cells.obs = cells.obs.assign(lane=pd.Categorical(["a"] * N_CELLS), zero=0.0, no=False)
    assert open_(quietly(write, cells, place)).shape == cells.shape


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "name", ["X/data", "X/indices", "X/indptr", "obs/_index", "obs/drug/categories", "var/_index"]
)
def test_a_lost_chunk_of_zarr_is_told(adata, tmp_path, name, version):
    with ad.settings.override(zarr_write_format=version):
        place = quietly(write, adata, tmp_path / "cells.zarr")
    lose_a_chunk(place, name)
    for open_ in (io.read_cells, open_cells):
        with pytest.raises(SchemaError, match=rf"cells\.zarr.*{name} lacks 1 of \d+ chunks"):
            open_(place)


@pytest.mark.parametrize(
    ("name", "read_as"), [("X", "zeros"), ("layers/raw", "zeros"), ("obs/drug/codes", "'control'")]
)
def test_a_chunk_that_may_be_all_zero_is_told(adata, tmp_path, name, read_as):
    cells = adata.copy()
    cells.X = cells.layers["raw"] = cells.X.toarray()
    place = quietly(write, cells, tmp_path / "cells.zarr")
    lose_a_chunk(place, name)
    for open_ in (io.read_cells, open_cells):
        with pytest.warns(UserWarning, match=f"^{name} in .*, which are read as {read_as}"):
            open_(place)


def test_a_part_of_h5ad_that_was_never_written_is_told(adata, tmp_path):
    place = write(adata, tmp_path / "cells.h5ad")
    with h5py.File(place, "r+") as file:
        data = file["X/data"]
        values = data[: len(data) // 2]
        del file["X/data"]
        half = file["X"].create_dataset("data", data.shape, data.dtype, chunks=len(values))
        half[: len(values)] = values
    with pytest.raises(SchemaError, match="X/data lacks . of . chunks .*entries [1-9]"):
        open_cells(place)


def test_a_pool_has_so_many_values_at_most(adata, place, monkeypatch):
    _, cells = register(place, schema_of(place), memory=1)
    made = batches.Batches(cells, np.arange(N_CELLS), batch_size=16, device=torch.device("cpu"))
    assert made._batches_per_pool == 256 // 16
    per_cell = cells.expression.n_values / N_CELLS
    monkeypatch.setattr(stored, "VALUES_PER_POOL", int(100 * per_cell))
    assert made._batches_per_pool == 100 // 16
    monkeypatch.setattr(stored, "VALUES_PER_POOL", 1)
    assert made._batches_per_pool == 1


_WITHIN_A_LIMIT = """
import re, resource, sys
from pathlib import Path
import pyro_fcr
from pyro_fcr import api
from pyro_fcr.data import stored

few, path, margin = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
stored.VALUES_PER_POOL, api._CHUNK = 2**19, 256  # as small as the limit

def ask(path):
    schema = pyro_fcr.Schema(treatment_key="drug", control="control", covariate_keys="line")
    sizes = pyro_fcr.Architecture(decoder="additive", n_hidden=8, dropout=0.0)
    fcr = pyro_fcr.FCR(path, schema, architecture=sizes)
    fcr.fit(max_epochs=1, batch_size=64, align_at=None, progress=False)
    return fcr, fcr.get_latent_representation("z_x")

ask(few)  # what libraries map, they have mapped
status = Path("/proc/self/status").read_text()
taken = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", status)[1])
resource.setrlimit(resource.RLIMIT_AS, (taken + margin, taken + margin))
try:
    bytearray(2 * margin)
except MemoryError:
    fcr, latents = ask(path)
    assert isinstance(fcr._own().cells.expression, stored.StoredMatrix)
    print(*latents.shape, len(fcr.history))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_file_of_four_times_a_limit_of_memory_trains_and_has_latents(adata, tmp_path):
    margin, n_cells, n_genes = 64 * 2**20, 11_264, 2_000
    small, block = simulate(300, n_genes), simulate(1_024, n_genes)
    small.X += 1  # no gene without counts
    small.write_h5ad(tmp_path / "few.h5ad")
    block.X = sparse.csr_matrix(1.0 + block.X, dtype=np.float64)  # stores every value
    obs = pd.concat([block.obs] * 11).set_axis([f"cell{i}" for i in range(n_cells)])
    with h5py.File(tmp_path / "many.h5ad", "w") as root:
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(root, "obs", obs)
        write_elem(root, "var", block.var)
        write_elem(root, "X", block.X)
        for _ in range(10):
            sparse_dataset(root["X"]).append(block.X)
    assert (tmp_path / "many.h5ad").stat().st_size > 4 * margin
    names = [str(tmp_path / name) for name in ("few.h5ad", "many.h5ad")]
    done = subprocess.run(
        [sys.executable, "-c", _WITHIN_A_LIMIT, *names, str(margin)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [str(n_cells), "8", "1"], done.stderr[-2000:]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_what_is_no_file_or_folder_of_cells_is_refused(tmp_path, suffix):
    os.mkfifo(pipe := tmp_path / f"pipe{suffix}")
    other = tmp_path / f"other{suffix}"
    other.mkdir() if suffix == ".h5ad" else other.touch()
    for place in (pipe, other):
        for open_ in (io.read_cells, open_cells):
            with pytest.raises(SchemaError, match=f"{place.name}' is no f.*that anndata wrote"):
                open_(place)


@pytest.mark.parametrize("linked", ["X", "obs/loop"])
def test_links_that_lead_in_a_circle_end(adata, tmp_path, linked):
    place = write(adata, tmp_path / "cells.h5ad")
    with h5py.File(place, "r+") as file:
        file.pop(linked, None)
        file[linked] = file["/"]
    for open_ in (io.read_cells, open_cells):
        try:
            assert open_(place).n_obs == N_CELLS  # obs does not list the link among its columns
        except SchemaError as error:
            assert "cells.h5ad' cannot be read" in str(error)  # noqa: PT017
