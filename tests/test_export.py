"""Export to ArviZ; the same tests hold for ArviZ 0.x and 1.x."""

import warnings
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NO_PENALTIES, SCHEMA, simulate
from edits import EDITS
from matplotlib import pyplot as plt

from pyro_fcr import FCR, QueryError, Schema
from pyro_fcr.data import register
from pyro_fcr.queries import export

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 once a day
    az = pytest.importorskip("arviz")
xr = pytest.importorskip("xarray")

IS_ONE = int(version("arviz").split(".")[0]) >= 1
GENES = ["gene3", "gene1", "gene7"]
SETS = ["observed_data", "constant_data", "predictions_constant_data"]
DRAWN = ["posterior", "prior", "posterior_predictive", "prior_predictive", "log_likelihood"]


@pytest.fixture(scope="module")
def fcr():
    model = FCR(simulate(300, n_genes=12), SCHEMA)
    # Long enough for a response well above the noise of its draws.
    plan = {"batch_size": 64, "learning_rate": 1e-2, "progress": False}
    model.fit(max_epochs=60, weights=NO_PENALTIES, **plan)
    return model


@pytest.fixture(scope="module")
def cells(fcr):
    return fcr.source(None)[:40].copy()


@pytest.fixture(scope="module")
def data(fcr, cells):
    return fcr.to_arviz(cells, predictions={"treatment": "drug1"}, genes=GENES, n_draws=200)


def groups_of(data):
    return list(data.children) if IS_ONE else list(data.groups())


def test_the_container_is_that_of_the_installed_arviz(data):
    expected = xr.DataTree if IS_ONE else az.InferenceData
    assert type(data) is expected
    assert set(groups_of(data)) == {*DRAWN, *SETS, "predictions"}


def test_every_group_says_where_it_is_from(data):
    for group in (data, *(data[name] for name in groups_of(data))):
        assert group.attrs["inference_library"] == "pyro"
        assert group.attrs["inference_library_version"] == version("pyro-ppl")
        assert group.attrs["creation_library"] == "pyro_fcr"
        assert group.attrs["creation_library_version"] == version("pyro-fcr")
        assert "SVI" in group.attrs["sampling_method"]
        assert pd.Timestamp(group.attrs["created_at"]).tzinfo is not None


def test_dimensions_have_names_and_coordinates(data, cells, fcr):
    widths = {"z_x": 8, "z_tx": fcr.architecture.n_tx, "z_t": 8}
    for group in ("posterior", "prior", "predictions"):
        for site, width in widths.items():
            values = data[group][site]
            assert values.dims == ("chain", "draw", "cell", f"{site}_dim")
            assert values.shape == (1, 200, 40, width)
            assert list(values.coords) == list(values.dims)
    for group in ("posterior_predictive", "prior_predictive", "predictions"):
        y = data[group]["y"]
        assert y.dims == ("chain", "draw", "cell", "gene")
        assert list(y["gene"].values) == GENES
        assert list(y["cell"].values) == list(cells.obs_names)
        assert list(y["draw"].values) == list(range(200))
    assert data["observed_data"]["y"].dims == ("cell", "gene")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "cell")


def test_observed_and_constant_data_are_those_of_the_cells(data, cells, fcr):
    encoded = fcr.registry.encode(cells)
    np.testing.assert_array_equal(data["observed_data"]["y"], cells[:, GENES].X)
    fixed, target = data["constant_data"], data["predictions_constant_data"]
    np.testing.assert_array_equal(fixed["library"], encoded.library[:, 0])
    for group in (fixed, target):
        assert list(group["x_level"].values) == ["line0", "line1", "line2"]
        assert list(group["t_agent"].values) == ["drug1", "drug2"]
        np.testing.assert_array_equal(group["x"], encoded.site("x"))
        np.testing.assert_array_equal(group["line"], cells.obs["line"])
    np.testing.assert_array_equal(fixed["t"], encoded.site("t"))
    np.testing.assert_array_equal(fixed["drug"], cells.obs["drug"])
    assert np.unique(target["t"].values, axis=0).tolist() == [[1.0, 0.0]]
    assert set(target["drug"].values) == {"drug1"}
    assert not target["extrapolated"].values.any()
    assert (target["support"] == 1).all()


def test_the_posterior_is_the_guide_s_and_the_prior_that_of_the_cell_s_own_condition(
    data, cells, fcr
):
    batch = fcr.registry.encode(cells).batch(np.arange(40))
    target = torch.tensor([[1.0, 0.0]]).expand(40, 2)
    with torch.no_grad():
        priors = {"z_x": fcr.model.z_x(batch["x"]), "z_t": fcr.model.z_t(batch["t"])}
        acted = {"z_t": fcr.model.z_t(target), "z_tx": fcr.model.z_tx(target, batch["x"])}
    for site in ("z_x", "z_t", "z_tx"):
        assert_drawn_around(data["posterior"][site], fcr.get_latent_representation(site, cells))
    for site, prior in priors.items():
        assert_drawn_around(data["prior"][site], prior.mean.numpy())
    for site, prior in acted.items():
        assert_drawn_around(data["predictions"][site], prior.mean.numpy())


def assert_drawn_around(draws, mean):
    """Compare standardised errors of the means over draws: their root mean square is 1."""
    error = (draws.mean(("chain", "draw")).values - mean) / draws.std(("chain", "draw")).values
    assert np.sqrt(np.mean(error**2) * draws.sizes["draw"]) == pytest.approx(1, abs=0.25)


def test_what_is_held_is_that_of_the_posterior_s_draw(data):
    np.testing.assert_array_equal(data["predictions"]["z_x"], data["posterior"]["z_x"])
    for site in ("z_t", "z_tx"):
        assert not np.array_equal(data["predictions"][site], data["posterior"][site])
        assert not np.array_equal(data["prior"][site], data["posterior"][site])


def test_predictions_are_the_counterfactuals(data, cells, fcr):
    """Both are drawn: twice the number of draws, and an error of a few percent."""
    asked = fcr.counterfactual(cells, treatment="drug1", n_draws=400, output="mean")
    expected = asked[:, GENES].X.mean(axis=0)
    found = data["predictions"]["y"].mean(("chain", "draw", "cell")).values
    np.testing.assert_allclose(found, expected, rtol=0.06)
    factual = data["posterior_predictive"]["y"].mean(("chain", "draw", "cell")).values
    assert np.abs(np.log(factual / expected)).max() > 0.2  # the treatment does something


def test_expression_is_drawn_given_the_latents_of_its_draw(data, cells, fcr):
    """The likelihood of a cell, by hand from the latents, over all genes and not only the kept."""
    batch = fcr.registry.encode(cells).batch(np.arange(40))
    for draw in (0, 7):
        latents = data["posterior"].isel(chain=0, draw=draw)
        z = {site: torch.from_numpy(latents[site].values) for site in ("z_x", "z_tx", "z_t")}
        with torch.no_grad():
            y = fcr.model.y(z["z_x"], z["z_tx"], z["z_t"], batch["library"])
            expected = y.log_prob(batch["y"]).numpy()
        found = data["log_likelihood"]["y"].isel(chain=0, draw=draw)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_kept_genes_are_columns_of_all_genes(fcr, cells):
    every = fcr.to_arviz(cells, n_draws=3)
    some = fcr.to_arviz(cells, n_draws=3, genes=GENES)
    assert every["prior_predictive"]["y"].sizes["gene"] == 12
    for group in ("posterior_predictive", "prior_predictive", "observed_data"):
        xr.testing.assert_equal(every[group]["y"].sel(gene=GENES), some[group]["y"])
    xr.testing.assert_equal(every["log_likelihood"]["y"], some["log_likelihood"]["y"])
    assert list(fcr.to_arviz(cells, n_draws=1, genes="gene2")["observed_data"]["gene"]) == ["gene2"]


def test_draws_are_the_seed_s_and_leave_the_random_state_alone(fcr, cells):
    before = torch.random.get_rng_state()
    one, same, other = (fcr.to_arviz(cells, n_draws=2, seed=s)["posterior"] for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(one["z_x"], same["z_x"])
    assert not np.array_equal(one["z_x"], other["z_x"])
    assert not np.array_equal(one["z_x"][0, 0], one["z_x"][0, 1])


def test_without_cells_the_training_cells_are_taken_and_the_target_left_out(fcr):
    data = fcr.to_arviz(n_draws=2, genes=["gene0"])
    assert data["posterior"].sizes["cell"] == 300
    assert set(groups_of(data)) == {*DRAWN, *SETS[:2]}


def test_a_target_says_what_is_held_and_may_be_a_context(fcr, cells):
    target = {"covariates": {"line": "line1"}, "hold": []}
    data = fcr.to_arviz(cells, n_draws=2, predictions=target)
    assert set(data["predictions_constant_data"]["line"].values) == {"line1"}
    for site in ("z_x", "z_t", "z_tx"):
        assert not np.array_equal(data["predictions"][site], data["posterior"][site])


# edited graphs


@pytest.fixture
def edited(request):
    """The edit, its cells and an untrained model; the graph is what matters."""
    edit = EDITS[request.param]
    adata = edit.data()
    torch.manual_seed(0)
    model, guide = edit.build(register(adata, edit.schema)[0])
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    fcr.inspect()  # an autoguide has no parameters before its first run
    return edit, adata[:30].copy(), fcr


@pytest.mark.parametrize("edited", EDITS, indirect=True)
def test_every_edit_of_the_graph_is_exported(edited):
    edit, cells, fcr = edited
    data = fcr.to_arviz(cells, predictions=edit.target, n_draws=8, genes=["gene5"])
    for group in ("posterior", "prior", "predictions"):
        assert {*data[group].data_vars} - {"y"} == {*fcr.graph.latents}
        for site in fcr.graph.latents:
            dims = () if site in fcr.graph.shared else ("cell",)
            assert data[group][site].dims == ("chain", "draw", *dims, f"{site}_dim")
            assert np.isfinite(data[group][site]).all()
    for site in edit.held:
        np.testing.assert_array_equal(data["predictions"][site], data["posterior"][site])
    whole = np.issubdtype(data["posterior_predictive"]["y"].dtype, np.integer)
    assert whole == (edit.schema.expression == "counts")
    assert data["observed_data"]["y"].dtype == data["prior_predictive"]["y"].dtype
    for site, keys in fcr.registry.schema.sites.items():
        assert data["constant_data"][site].dims == ("cell", f"{site}_level")
        np.testing.assert_array_equal(data["constant_data"][keys[0]], cells.obs[keys[0]])
    featured = fcr.registry.schema.treatment_features is not None
    assert data["constant_data"]["t"].dims == ("cell", "t_feature" if featured else "t_agent")
    extrapolated = data["predictions_constant_data"]["extrapolated"].values
    assert extrapolated.all() == (edit.target["treatment"] == "drug3")
    table = az.summary(data, kind="stats", filter_vars="like", var_names=["z_x"])
    assert len(table) == 30 * data["posterior"].sizes["z_x_dim"]


@pytest.mark.parametrize("edited", ["g_bayesian"], indirect=True)
def test_shared_latents_are_one_draw_for_all_cells(edited, monkeypatch):
    _, cells, fcr = edited
    monkeypatch.setattr("pyro_fcr.queries.fitted.block_size", lambda _: 12)
    seen = []
    assert fcr.graph.shared == {"log_dispersion"}  # read before the decoder is listened to
    hook = fcr.model.y.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[-1]))
    data = fcr.to_arviz(cells, predictions={"treatment": "drug1"}, n_draws=2)
    hook.remove()
    runs = np.stack([value.numpy() for value in seen]).reshape(3, 3, 2, 12)  # chunk, group, draw
    for number, group in enumerate(("posterior", "prior", "predictions")):
        drawn = data[group]["log_dispersion"].values[0]
        for chunk in range(3):
            np.testing.assert_array_equal(runs[chunk, number], drawn)
    assert not np.array_equal(runs[0, 0], runs[0, 1])
    assert not np.array_equal(runs[0, 0, 0], runs[0, 0, 1])


def test_many_cells_are_drawn_in_chunks_and_stay_in_order(fcr, cells, monkeypatch):
    whole = fcr.to_arviz(cells, predictions={"treatment": "drug2"}, n_draws=2)
    monkeypatch.setattr("pyro_fcr.api._CHUNK", 16)
    parts = fcr.to_arviz(cells, predictions={"treatment": "drug2"}, n_draws=2)
    for group in SETS:
        left, right = (d[group] for d in (whole, parts))
        for name in left.data_vars:
            xr.testing.assert_equal(left[name], right[name])
    first = parts["posterior"]["z_x"][0, :, :16]
    second = parts["posterior"]["z_x"][0, :, 16:32]
    mean = fcr.get_latent_representation("z_x", cells)
    noise = [first.values - mean[:16], second.values - mean[16:32]]
    assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] < 0.5  # not the same noise again


def test_doses_and_columns_with_taken_names_are_labels_too():
    adata = simulate(300, n_genes=12)
    rng = np.random.default_rng(0)
    adata.obs["t"] = adata.obs.pop("drug")
    treated = adata.obs["t"] != "control"
    adata.obs["dose"] = np.where(treated, rng.choice([1.0, 10.0], 300), np.nan)
    schema = Schema(treatment_key="t", control="control", dose_key="dose", covariate_keys="line")
    cells = adata[:20].copy()
    target = {"treatment": "drug1", "dose": 10.0}
    data = FCR(adata, schema).to_arviz(cells, predictions=target, n_draws=2)
    fixed = data["constant_data"]
    np.testing.assert_array_equal(fixed["obs_t"], cells.obs["t"])
    np.testing.assert_array_equal(fixed["dose"], cells.obs["dose"])
    assert fixed["t"].dims == ("cell", "t_agent")
    assert set(data["predictions_constant_data"]["dose"].values) == {10.0}


# ArviZ reads, plots and stores it


def test_arviz_summarises_latents_and_shared_ones(data):
    table = az.summary(data, var_names=["z_t"], kind="stats", round_to="none")
    one = data["posterior"]["z_t"].sel(cell="cell3", z_t_dim=2)
    assert float(table.loc["z_t[cell3, 2]", "mean"]) == pytest.approx(float(one.mean()), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")
def test_loo_leaves_out_one_cell_at_a_time(data):
    found = az.loo(data, pointwise=True)
    assert found.n_data_points == 40
    assert found.n_samples == 200
    assert found.pareto_k.dims == ("cell",)
    assert np.isfinite(found.elpd_i if IS_ONE else found.loo_i).all()


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_predictive_checks_are_plotted(data, group):
    if IS_ONE:
        az.plot_ppc_dist(data, group=f"{group}_predictive", num_samples=5, kind="ecdf")
    else:
        az.plot_ppc(data, group=group, num_pp_samples=5, coords={"gene": GENES[:1]})
    plt.close("all")


def test_a_netcdf_file_gives_everything_back(data, tmp_path):
    pytest.importorskip("h5netcdf")
    data.to_netcdf(str(tmp_path / "fcr.nc"))
    assert_same(az.from_netcdf(str(tmp_path / "fcr.nc")), data)


def test_a_zarr_store_gives_everything_back(data, tmp_path):
    """ArviZ 0.23 itself writes zarr 2 only; through a DataTree it goes into any."""
    pytest.importorskip("zarr")
    tree = data if IS_ONE else data.to_datatree()
    tree.to_zarr(tmp_path / "fcr.zarr", consolidated=False)
    with xr.open_datatree(tmp_path / "fcr.zarr", engine="zarr", consolidated=False) as back:
        loaded = back.load() if IS_ONE else az.InferenceData.from_datatree(back.load())
    assert_same(loaded, data)
    assert len(az.summary(loaded, var_names=["z_tx"], kind="stats"))


def assert_same(loaded, data):
    assert dict(loaded.attrs) == dict(data.attrs)
    assert set(groups_of(loaded)) == set(groups_of(data))
    for group in groups_of(data):
        assert dict(loaded[group].attrs) == dict(data[group].attrs)
        for name, values in data[group].data_vars.items():
            back = loaded[group][name]
            assert back.dims == values.dims
            assert values.dtype.kind == "O" or back.dtype == values.dtype
            np.testing.assert_array_equal(back.values.astype(values.dtype), values.values)
            for dim in values.dims:
                assert list(back[dim].values) == list(values[dim].values)


# questions that have no answer


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"genes": ["gene1", "TP53"]}, r"'TP53'\. The model's genes are gene0"),
        ({"n_draws": 0}, "n_draws is 0; expected a whole number of 1 or more"),
        (
            {"predictions": {"drug": "drug1"}},
            "'drug' is not a part of a target; these are: treatment",
        ),
        ({"predictions": {"treatment": "drug1", "seed": 3}}, "'seed' is not a part of a target"),
        ({"predictions": {}}, "no target: give treatment="),
        ({"predictions": {"treatment": "drug1", "hold": ["z_t"]}}, "z_t is caused by t"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_drawn(
    fcr, cells, asked, message, monkeypatch
):
    monkeypatch.setattr("pyro_fcr.draws.sites.respond", lambda *_, **__: pytest.fail("drew"))
    with pytest.raises(QueryError, match=message):
        fcr.to_arviz(cells, **asked)


def test_a_model_without_data_asks_for_cells(fcr, tmp_path):
    loaded = FCR.load(fcr.save(tmp_path / "model"))
    with pytest.raises(ValueError, match="pass adata="):
        loaded.to_arviz()


def test_without_arviz_the_message_says_how_to_get_it(fcr, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(export, "version", missing)
    with pytest.raises(ImportError, match="pip install arviz"):
        fcr.to_arviz()
