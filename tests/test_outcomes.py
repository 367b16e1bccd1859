"""A second outcome of a cell, here protein counts beside RNA, from obsm to questions and back."""

import json

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import simulate
from torch import nn

from pyro_fcr import FCR, Architecture, Schema
from pyro_fcr.data import Registry, SchemaError, register
from pyro_fcr.distributions import Exogenous
from pyro_fcr.model import Model

SCHEMA = Schema(
    treatment_key="drug", control="control", covariate_keys="line",
    outcome_keys={"adt": "protein_counts"},
)  # fmt: skip
PROTEINS = ["CD3", "CD4", "CD8"]
PLAN = {"max_epochs": 40, "batch_size": 128, "progress": False, "align_at": None,
        "learning_rate": 1e-2}  # fmt: skip
SIZES = Architecture(n_x=2, n_t=1, n_tx=1, n_hidden=8, decoder="additive", dropout=0.0)
WIDTHS = {"y": 12, "x": 3, "t": 2}


class WithProtein(Model):
    """RNA as in the shipped model; protein counts follow from z_t."""

    def __init__(self, **conditionals):
        super().__init__(**conditionals)
        self.adt = nn.Linear(1, len(PROTEINS))

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            rate = 10.0 * nn.functional.softplus(self.adt(z_t))
            pyro.sample("adt", dist.Poisson(rate).to_event(1), obs=batch.get("adt"))
            return pyro.sample("y", self.y(z_x, z_tx, z_t, batch["library"]), obs=batch.get("y"))


def programs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, guide = SIZES.build(WIDTHS, target_sum=300.0)
        parts = {name: getattr(model, name) for name in ("z_x", "z_tx", "z_t", "y")}
        return {"model": WithProtein(**parts), "guide": guide}


def cells():
    adata = simulate(600, n_genes=12)
    rng = np.random.default_rng(0)
    treated = (adata.obs["drug"] == "drug1").to_numpy()
    rates = np.where(treated[:, None], [2.0, 30.0, 8.0], [20.0, 3.0, 8.0])
    counts = rng.poisson(rates).astype(np.int32)
    adata.obsm["protein_counts"] = pd.DataFrame(counts, adata.obs_names, PROTEINS)
    return adata


@pytest.fixture(scope="module")
def adata():
    return cells()


@pytest.fixture(scope="module")
def fitted(adata):
    fcr = FCR(adata, SCHEMA, **programs())
    fcr.fit(**PLAN)
    return fcr


def test_an_outcome_is_registered_with_its_columns(adata):
    registry, encoded = register(adata, SCHEMA)
    assert registry.outcomes == {"adt": tuple(PROTEINS)}
    again = Registry.from_json_dict(json.loads(json.dumps(registry.to_json_dict())))
    assert again == registry
    assert Schema(**SCHEMA.to_json_dict()) == SCHEMA
    batch = encoded.batch([5, 3])
    expected = adata.obsm["protein_counts"].to_numpy()[[5, 3]]
    np.testing.assert_array_equal(batch["adt"].numpy(), expected)
    turned = adata[:9].copy()
    turned.obsm["protein_counts"] = turned.obsm["protein_counts"][PROTEINS[::-1]]
    found = registry.encode(turned).batch([5, 3])["adt"]  # by name, as genes
    np.testing.assert_array_equal(found.numpy(), expected)


def test_training_fits_the_outcome_and_logs_its_term(fitted):
    assert fitted.graph.parents["adt"] == ("z_t",)
    assert {"train/reconstruction_y", "train/reconstruction_adt"} <= set(fitted.history)
    history = fitted.history["heldout/reconstruction_adt"]
    assert history.iloc[-1] < history.iloc[0] - 3.0


def test_questions_are_about_expression_and_leave_the_outcome_to_the_program(fitted, adata):
    own = fitted.counterfactual(None, treatment="drug1", n_draws=1)
    assert own.shape == adata.shape
    assert list(fitted.predict(treatment="drug1", covariates={"line": "line0"}).var_names) == list(
        adata.var_names
    )
    with pytest.raises(ValueError, match="'CD4' is a column of the outcome adt; this question is"):
        fitted.to_arviz(genes=["CD4"])
    batch = fitted.registry.encode(adata).batch(range(600))
    control, treated = (
        pyro.poutine.trace(pyro.poutine.do(fitted.model, {"t": torch.tensor(t).expand(600, 2)}))
        .get_trace(batch.without("y", "adt"))
        .nodes["adt"]["value"]
        .mean(0)
        for t in ([0.0, 0.0], [1.0, 0.0])
    )
    assert control[0] > 1.3 * treated[0]  # 20 and 2 in truth, after a short training
    assert treated[1] > 1.3 * control[1]


def test_a_saved_model_knows_its_outcome(fitted, adata, tmp_path):
    loaded = FCR.load(fitted.save(tmp_path / "m"), adata=adata, **programs())
    assert loaded.registry.outcomes == {"adt": tuple(PROTEINS)}
    one, two = (each.get_latent_representation("z_t") for each in (fitted, loaded))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_what_is_wrong_with_an_outcome_is_one_line(fitted, adata):
    with pytest.raises(ValueError, match="the outcomes adt beside y; the shipped programs know"):
        FCR(adata, SCHEMA)
    for change, message in (
        (lambda a: a.obsm.clear(), r"obsm\['protein_counts'\], the outcome 'adt', is missing"),
        (lambda a: set_value(a, np.nan), "no finite value for cell 'cell2', column 'CD4'"),
        (lambda a: set_value(a, "x"), "does not hold numbers"),
        (drop, "has the columns 'CD3', 'CD8'; expected 'CD3', 'CD4', 'CD8'"),
    ):
        bad = adata[:9].copy()
        change(bad)
        with pytest.raises(SchemaError, match=message):
            fitted.registry.encode(bad)
    for keys, message in (
        ({"x": "p"}, "'x' is the site of a covariate"),
        ({"y": "p"}, "outcome_keys: 'y' cannot be a site"),
        ({"a b": "p"}, "outcome_keys: 'a b' cannot name a site"),
        ({"p": 3}, r"outcome_keys\['p'\] is 3; expected a key of adata.obsm"),
        ("protein", "outcome_keys is 'protein'; expected a mapping from site"),
    ):
        with pytest.raises(SchemaError, match=message):
            Schema(treatment_key="drug", covariate_keys="line", outcome_keys=keys)


def set_value(adata, value):
    table = adata.obsm["protein_counts"].astype(object)
    table.iloc[2, 1] = value
    adata.obsm["protein_counts"] = table


def drop(adata):
    adata.obsm["protein_counts"] = adata.obsm["protein_counts"][["CD3", "CD8"]]
