"""Any storage of the same cells gives the same batches, at no more memory than it needs."""

import tracemalloc
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from data_helpers import assert_batches_equal, make_adata, make_schema, only, real_file, write
from scipy import sparse

from pyro_fcr.data import SchemaError, read_cells, register
from pyro_fcr.data.io import layer_names

ROWS = np.array([7, 0, 3, 3, 47])


def _in_memory(kind):
    adata = make_adata()
    dense = adata.X
    convert = {
        "dense": np.asarray,
        "fortran": np.asfortranarray,
        "integers": lambda x: x.astype(np.int64),
        "csr": sparse.csr_matrix,
        "csc": sparse.csc_matrix,
        "csr_array": sparse.csr_array,
    }[kind]
    adata.X = convert(dense)
    return adata


def _stored(kind, suffix, tmp_path):
    return write(_in_memory(kind), tmp_path / f"cells{suffix}")


@pytest.fixture
def reference():
    adata = make_adata()
    registry = register(adata, make_schema())[0]
    return registry, registry.encode(adata).batch(ROWS)


@pytest.mark.parametrize("kind", ["dense", "fortran", "integers", "csr", "csc", "csr_array"])
def test_storage_in_memory(kind, reference):
    registry, expected = reference
    adata = _in_memory(kind)
    assert register(adata, make_schema())[0] == registry
    cells = registry.encode(adata)
    assert sparse.issparse(cells.expression) == kind.startswith("cs")
    assert cells.expression.dtype == np.uint8
    assert_batches_equal(cells.batch(ROWS), expected)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_storage_on_disk(kind, suffix, tmp_path, reference):
    registry, expected = reference
    path = _stored(kind, suffix, tmp_path)
    assert register(path, make_schema())[0] == registry
    assert_batches_equal(registry.encode(str(path)).batch(ROWS), expected)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_backed(kind, view, tmp_path, reference):
    registry, expected = reference
    adata = ad.read_h5ad(_stored(kind, ".h5ad", tmp_path), backed="r")
    assert adata.isbacked
    if view:
        adata = adata[adata.obs_names.tolist()]
        assert adata.is_view
    assert register(adata, make_schema())[0] == registry
    assert_batches_equal(registry.encode(adata).batch(ROWS), expected)
    adata.file.close()


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_layer_left_on_disk(kind, tmp_path, reference):
    zarr = pytest.importorskip("zarr")
    registry, expected = reference
    group = zarr.open(str(_stored(kind, ".zarr", tmp_path)), mode="r")
    stored = group["X"] if kind == "dense" else ad.io.sparse_dataset(group["X"])
    adata = make_adata()
    adata.layers["counts"] = stored
    adata.X = np.full(adata.shape, 0.5)
    cells = replace(registry, schema=make_schema(layer="counts")).encode(adata)
    assert_batches_equal(cells.batch(ROWS), expected)


def test_backed_dense_is_read_in_blocks(tmp_path, monkeypatch, reference):
    registry, expected = reference
    monkeypatch.setattr("pyro_fcr.data.io._VALUES_PER_READ", 35)  # 7 cells of 5 genes
    adata = ad.read_h5ad(_stored("dense", ".h5ad", tmp_path), backed="r")
    assert_batches_equal(registry.encode(adata).batch(ROWS), expected)
    adata.file.close()


def _wide_sparse(n_cells=3_000, n_genes=20_000):
    """A tenth of a per cent filled: the dense form would have 240 MB."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.arange(n_genes) % n_cells, rng.integers(n_cells, size=40_000)])
    columns = np.concatenate([np.arange(n_genes), rng.integers(n_genes, size=40_000)])
    counts = sparse.coo_array((np.ones(len(rows), np.float32), (rows, columns)))
    obs = pd.DataFrame({"drug": ["control", "A"] * (n_cells // 2), "line": "u"})
    obs.index = obs.index.map("c{}".format)
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs)


@pytest.mark.parametrize("kind", ["csr", "csc", "backed csr", "backed csc"])
def test_sparse_is_never_densified(kind, tmp_path):
    adata = _wide_sparse()
    adata.X = adata.X.asformat(kind.split()[-1])
    if "backed" in kind:
        adata = ad.read_h5ad(write(adata, tmp_path / "wide.h5ad"), backed="r")
    tracemalloc.start()
    cells = register(adata, make_schema())[1]
    cells.batch(np.arange(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # 64 dense cells are 5 MB, all of them 240 MB
    assert cells.nbytes < 1e6


def test_batch_holds_what_the_columns_say(reference):
    registry, batch = reference
    adata = make_adata()
    obs = adata.obs.iloc[ROWS]
    assert registry.agents == ("A", "B")
    np.testing.assert_array_equal(batch.values["y"], adata.X[ROWS])
    np.testing.assert_array_equal(batch.values["library"], adata.X[ROWS].sum(1, keepdims=True))
    for agent, column in zip(registry.agents, batch.values["t"].T, strict=True):
        np.testing.assert_array_equal(column, [agent in drug.split("+") for drug in obs["drug"]])
    for level, column in zip(registry.covariates["line"], batch.values["x"].T, strict=True):
        np.testing.assert_array_equal(column, obs["line"] == level)
    assert {name: each.dtype for name, each in batch.values.items()} == dict.fromkeys(
        ("x", "t", "y", "library"), torch.float32
    )


def test_codes_are_the_distinct_rows():
    adata = make_adata()
    cells = register(adata, make_schema())[1]
    batch = cells.batch(np.arange(len(cells)))
    for name in ("x", "t"):
        levels, codes = np.unique(batch.values[name].numpy(), axis=0, return_inverse=True)
        np.testing.assert_array_equal(cells.levels[name], levels)
        np.testing.assert_array_equal(batch.codes[name], codes.reshape(-1))
        assert batch.codes[name].dtype == torch.int64
        assert batch.n_levels[name] == len(levels)
        np.testing.assert_array_equal(cells.site(name), batch.values[name])


def test_labels_alone_give_the_same_sites():
    adata = make_adata()
    registry = register(adata, make_schema())[0]
    cells, sites = registry.encode(adata), registry.encode_obs(adata.obs)
    assert sites.keys() == {"x", "t"}
    for name, rows in sites.items():
        torch.testing.assert_close(rows, cells.site(name), rtol=0, atol=0)


def test_several_covariates_are_blocks_of_one_site():
    adata = make_adata()
    adata.obs["donor"] = pd.Categorical(np.arange(len(adata)) % 3)
    registry = register(adata, make_schema(covariate_keys=["line", "donor"]))[0]
    batch = registry.encode(adata).batch([4])
    assert registry.covariates == {"line": ("u", "v"), "donor": ("0", "1", "2")}
    levels = {"donor": "1", "line": adata.obs["line"].iloc[4]}
    expected = registry.encode_covariates(levels)["x"]
    np.testing.assert_array_equal(batch.values["x"][0], expected)
    assert expected[2:].tolist() == [0, 1, 0]
    assert batch.n_levels["x"] == 6


def test_genes_are_matched_by_name(reference):
    registry, expected = reference
    for kind in ("dense", "csr", "csc"):
        shuffled = _in_memory(kind)[:, ["g3", "g0", "g4", "g2", "g1"]].copy()
        cells = registry.encode(shuffled)
        assert cells.genes == registry.genes
        assert kind == "dense" or cells.expression.has_canonical_format
        assert_batches_equal(cells.batch(ROWS), expected)


def test_extra_genes_are_dropped_with_one_warning(reference):
    registry, expected = reference
    wide = make_adata(n_genes=7)
    wide.X[:, :5] = make_adata().X
    wide.X[0, 6] = 0.5  # no count, but in a gene that does not matter
    with pytest.warns(UserWarning, match="2 genes that were not registered") as caught:
        cells = registry.encode(wide[:, ::-1].copy())
    assert only(caught, "were not registered").filename == __file__
    assert_batches_equal(cells.batch(ROWS), expected)


def test_new_cells_may_be_a_part_of_the_levels(reference):
    registry, _ = reference
    adata = make_adata()
    part = adata[(adata.obs["drug"] == "A") & (adata.obs["line"] == "v")].copy()
    batch = registry.encode(part).batch(np.arange(6))
    assert batch.values["t"].unique(dim=0).tolist() == [[1, 0]]
    assert batch.values["x"].unique(dim=0).tolist() == [[0, 1]]
    assert batch.n_levels == {"x": 1, "t": 1}


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_the_users_data_stay_as_they_are(kind):
    adata = _in_memory(kind)
    before = adata.copy()
    cells = register(adata, make_schema())[1]
    expected = cells.batch(ROWS)
    assert np.array_equal(
        np.asarray(sparse.csr_array(adata.X).data), sparse.csr_array(before.X).data
    )
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert [*adata.uns, *layer_names(adata), *adata.obsm] == []
    (adata.X if kind == "dense" else adata.X.data)[:] = 9  # as a normalisation in place would
    assert_batches_equal(cells.batch(ROWS), expected)


def test_untidy_sparse_is_tidied_in_a_copy():
    adata = make_adata()
    dense = adata.X.copy()
    tidy = sparse.csr_matrix(dense)
    halves = [tidy.data - 1, np.ones_like(tidy.data)]
    untidy = sparse.csr_matrix(
        (np.stack(halves, 1).ravel(), np.repeat(tidy.indices, 2), tidy.indptr * 2),
        shape=tidy.shape,
    )
    adata.X = untidy
    nnz = adata.X.nnz
    cells = register(adata, make_schema())[1]
    assert adata.X.nnz == nnz == 2 * tidy.nnz
    assert cells.expression.nnz == tidy.nnz
    np.testing.assert_array_equal(cells.batch(ROWS).values["y"], dense[ROWS])


def test_log1p_has_library_one():
    adata = make_adata()
    adata.X = np.log1p(adata.X / 3)
    registry = register(adata, make_schema(expression="log1p"))[0]
    batch = registry.encode(adata).batch(ROWS)
    assert registry.target_sum is None
    assert batch.values["library"].tolist() == [[1.0]] * len(ROWS)
    np.testing.assert_allclose(batch.values["y"], adata.X[ROWS], rtol=1e-6)


@pytest.mark.parametrize(
    "index", [ROWS.tolist(), ROWS.astype(np.int32), torch.from_numpy(ROWS), ROWS[::-1][::-1]]
)
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_index_may_be_any_whole_numbers(index, kind, reference):
    registry, expected = reference
    assert_batches_equal(registry.encode(_in_memory(kind)).batch(index), expected)


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_wrong_index(kind, reference):
    registry, _ = reference
    cells = registry.encode(_in_memory(kind))
    with pytest.raises(TypeError, match=r"np\.flatnonzero"):
        cells.batch(np.ones(len(cells), dtype=bool))
    with pytest.raises(TypeError, match="one-dimensional"):
        cells.batch(3)
    with pytest.raises(IndexError):
        cells.batch([len(cells)])
    assert cells.batch([]).values["y"].shape == (0, 5)


@pytest.mark.parametrize(
    ("largest", "dtype"), [(5, "u1"), (255, "u1"), (256, "u2"), (70_000, "u4")]
)
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_counts_are_held_in_the_narrowest_type_and_come_back_whole(kind, largest, dtype):
    adata = make_adata()
    adata.X[7, 2] = largest
    dense = adata.X.copy()
    adata.X = adata.X if kind == "dense" else sparse.csr_array(adata.X)
    cells = register(adata, make_schema())[1]
    assert cells.expression.dtype == dtype
    np.testing.assert_array_equal(cells.batch(np.arange(48)).values["y"], dense)
    np.testing.assert_array_equal(cells.library[:, 0], dense.sum(axis=1))


def test_log_values_stay_floats(reference):
    adata = make_adata()
    adata.X = np.log1p(adata.X)
    assert register(adata, make_schema(expression="log1p"))[1].expression.dtype == "f4"


def test_n_total_scales_to_the_training_cells():
    adata = make_adata()
    cells = register(adata, make_schema())[1]
    assert (len(cells), cells.n_genes, cells.n_total) == (48, 5, 48)
    assert cells.batch(ROWS).n_total == 48
    assert replace(cells, n_total=40).batch(ROWS).n_total == 40


def test_batch_goes_to_the_device(reference):
    registry, _ = reference
    batch = registry.encode(make_adata()).batch(ROWS, device="meta")
    assert {each.device.type for each in (*batch.values.values(), *batch.codes.values())} == {
        "meta"
    }


def test_nbytes_counts_every_array():
    adata = _in_memory("csr")
    cells = register(adata, make_schema())[1]
    matrix = cells.expression
    arrays = [matrix.data, matrix.indices, matrix.indptr, cells.obs_names, cells.library.numpy()]
    arrays += [cells.levels[name].numpy() for name in ("x", "t")]
    arrays += [cells.codes[name].numpy() for name in ("x", "t")]
    assert cells.nbytes == sum(array.nbytes for array in arrays)
    assert cells.obs_names.tolist() == adata.obs_names.tolist()


def test_read_cells_passes_anndata_through():
    adata = make_adata()
    assert read_cells(adata) is adata


def test_real_glioblastoma_from_disk_and_backed():
    path = real_file("gbm_panobinostat.h5ad")
    schema = make_schema(treatment_key="treatment", covariate_keys="patient", dose_key="dose")
    registry = register(path, schema)[0]
    cells = registry.encode(path)
    assert (len(cells), cells.n_genes) == (5000, 300)
    assert registry.widths == {"x": 5, "t": 1, "y": 300}
    assert registry.doses == {"panobinostat": (0.2, 0.2)}
    assert [condition.n_cells for condition in registry.conditions] == [500] * 10
    assert registry.n_prior_conditions == 6
    assert cells.site("t").sum() == 2500
    backed = ad.read_h5ad(path, backed="r")
    assert_batches_equal(registry.encode(backed).batch(ROWS), cells.batch(ROWS))
    backed.file.close()
    query = ("panobinostat", {"patient": registry.covariates["patient"][0]})
    assert not registry.is_extrapolated(*query, dose=0.2)
    assert registry.is_extrapolated(*query, dose=0.3)


def test_real_combinations_with_zero_genes():
    sc = pytest.importorskip("scanpy")
    adata = ad.read_h5ad(real_file("norman_k562_combinations.h5ad"))
    schema = make_schema(treatment_key="treatment", covariate_keys="cell_line")
    with pytest.raises(SchemaError, match=r"250 of 500 genes are zero.*sc\.pp\.filter_genes"):
        register(adata, schema)
    sc.pp.filter_genes(adata, min_cells=1)
    registry = register(adata, schema)[0]
    assert registry.widths["y"] == 250
    assert sum(each.n_cells for each in registry.conditions) == len(registry.encode(adata)) == 3375


def test_real_context_of_seven_cell_types():
    schema = make_schema(treatment_key="treatment", covariate_keys="cell_type", dose_key="dose")
    registry = register(real_file("kang_ifnb_small.h5ad"), schema)[0]
    assert registry.widths == {"x": 7, "t": 1, "y": 2001}
    assert registry.n_prior_conditions == 8
    assert sum(each.n_cells for each in registry.conditions) == 2694
    assert registry.encode_treatment("IFNb", 100).tolist() == [1.0]


def test_real_combinations_add_up():
    adata = ad.read_h5ad(real_file("norman_k562_combinations.h5ad"))
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    registry = register(adata, make_schema(treatment_key="treatment", covariate_keys="cell_line"))[
        0
    ]
    assert len(registry.treatments) == 34
    assert registry.n_prior_conditions == 34
    t = registry.encode(adata).site("t").numpy()
    parts = adata.obs["treatment"].astype(str).str.count(r"\+") + 1
    expected = np.where(adata.obs["treatment"] == "control", 0, parts)
    np.testing.assert_array_equal(t.sum(axis=1), expected)


def test_real_data_without_control():
    adata = ad.read_h5ad(real_file("neutrophil_12cytokines.h5ad"))
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    schema = make_schema(treatment_key="treatment", control=None, covariate_keys="cell_type")
    registry = register(adata, schema)[0]
    assert (len(registry.agents), registry.n_prior_conditions) == (12, 12)
    assert registry.encode(adata).site("t").sum(dim=1).unique().tolist() == [1.0]
