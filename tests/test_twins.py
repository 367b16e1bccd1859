"""Counterfactuals of single cells: their noise is kept, and what is exact can be computed."""

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import simulate
from edits import EDITS
from fuzzing import Last, Noiseless
from pyro import distributions as dist
from pyro import poutine
from torch import nn

from pyro_fcr import FCR, Architecture, QueryError, Schema
from pyro_fcr.data import register
from pyro_fcr.distributions import Exogenous
from pyro_fcr.draws.twins import TwinResponder, carry

N, GENES, COPIES = 6, 5, 3000
SCHEMA = Schema(
    treatment_key="drug", control="control", covariate_keys="line", expression="log1p", min_cells=1
)


def linear_cells():
    rng = np.random.default_rng(0)
    n = N * COPIES  # each cell many times, in place of many draws
    obs = pd.DataFrame(
        {"line": ["a", "b"] * (n // 2), "drug": ["control", "d", "d"] * (n // 3)},
        index=[f"c{i}" for i in range(n)],
    )
    y = np.tile(rng.uniform(0, 3, size=(N, GENES)), (COPIES, 1)).astype(np.float32)
    return ad.AnnData(y, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))


class Linear(nn.Module):
    """t -> z -> y <- w, linear and Gaussian; t sets mean and scale of z."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(1)
        self.numbers = {k: rng.normal(size=(GENES, 2)).astype(np.float32) for k in ("A", "B")}
        self.a, self.b = (nn.Parameter(torch.from_numpy(v)) for v in self.numbers.values())

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            w = pyro.sample("w", dist.Normal(torch.zeros(len(batch), 2), 1.0).to_event(1))
            shift = torch.tensor([1.0, -2.0])
            scale = (1.0 + t).expand(-1, 2)
            z = pyro.sample("z", dist.Normal(t * shift, scale).to_event(1))
            mean = z @ self.a.T + w @ self.b.T
            return pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=batch.get("y"))


def posterior(numbers, t, y):
    """Mean and covariance of (z, w) given y, in numpy."""
    load = np.concatenate([numbers["A"], numbers["B"]], axis=1)
    prior = np.diag([(1 + t) ** 2] * 2 + [1.0] * 2)
    mean = np.array([t, -2.0 * t, 0.0, 0.0])
    gain = prior @ load.T @ np.linalg.inv(load @ prior @ load.T + 0.25 * np.eye(GENES))
    return mean + gain @ (y - load @ mean), prior - gain @ load @ prior


class Exact(nn.Module):
    """The exact posterior: w given y, then z given w and y."""

    def __init__(self, numbers):
        super().__init__()
        load = torch.from_numpy(np.concatenate([numbers["A"], numbers["B"]], axis=1))
        mean = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 0.0, 0.0]])  # by treatment
        prior = torch.diag_embed(torch.tensor([[1.0, 1, 1, 1], [4.0, 4, 1, 1]]))
        noise = 0.25 * torch.eye(GENES)
        gain = prior @ load.T @ torch.linalg.inv(load @ prior @ load.T + noise)
        cov = prior - gain @ load @ prior
        self.on_w = cov[:, :2, 2:] @ torch.linalg.inv(cov[:, 2:, 2:])
        rest = cov[:, :2, :2] - self.on_w @ cov[:, 2:, :2]
        self.tril_w, self.tril_z = (
            torch.linalg.cholesky(cov[:, 2:, 2:]),
            torch.linalg.cholesky(rest),
        )
        self.mean, self.gain, self.load = mean, gain, load

    def forward(self, batch):
        t = batch["t"][:, 0].long()
        rest = batch["y"] - self.mean[t] @ self.load.T
        mean = self.mean[t] + (self.gain[t] @ rest.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("cells", len(batch)):
            w = pyro.sample("w", dist.MultivariateNormal(mean[:, 2:], scale_tril=self.tril_w[t]))
            shift = (self.on_w[t] @ (w - mean[:, 2:]).unsqueeze(-1)).squeeze(-1)
            pyro.sample(
                "z", dist.MultivariateNormal(mean[:, :2] + shift, scale_tril=self.tril_z[t])
            )


@pytest.fixture(scope="module")
def linear():
    adata, model = linear_cells(), Linear()
    return adata, FCR(adata, SCHEMA, model=model, guide=Exact(model.numbers)), model.numbers


def twin_by_hand(numbers, t, y, target):
    """Mean and covariance of expression in the twin world, with its noise drawn and kept."""
    mean, cov = posterior(numbers, t, y)
    ratio = (1 + target) / (1 + t)
    start, end = np.array([t, -2.0 * t]), np.array([target, -2.0 * target])
    moved = end + ratio * (mean[:2] - start)
    drawn = numbers["A"] @ moved + numbers["B"] @ mean[2:]
    kept = y + numbers["A"] @ (moved - mean[:2])
    spread = (ratio - 1) ** 2 * numbers["A"] @ cov[:2, :2] @ numbers["A"].T
    return drawn, kept, spread


def test_twins_of_a_linear_gaussian_model_are_exact(linear):
    adata, fcr, numbers = linear
    ask = {"treatment": "d", "output": "mean"}
    drawn = fcr.unit_counterfactual(adata, **ask)
    kept = fcr.unit_counterfactual(adata, outcome_noise="kept", **ask)
    for cell, (drug, y) in enumerate(zip(adata.obs["drug"][:N], adata.X[:N], strict=True)):
        by_hand = twin_by_hand(numbers, float(drug == "d"), y.astype(float), 1.0)
        np.testing.assert_allclose(drawn.X[cell::N].mean(axis=0), by_hand[0], atol=0.1)
        np.testing.assert_allclose(kept.X[cell::N].mean(axis=0), by_hand[1], atol=0.1)
        spread = np.cov(kept.X[cell::N], rowvar=False)
        np.testing.assert_allclose(spread, by_hand[2], atol=0.1)


def test_an_own_treatment_changes_nothing(linear):
    adata, fcr, _ = linear
    own = adata[adata.obs["drug"] == "d"].copy()
    kept = fcr.unit_counterfactual(own, treatment="d", outcome_noise="kept", output="mean")
    np.testing.assert_allclose(kept.X, own.X, atol=1e-5)
    drawn = fcr.unit_counterfactual(own, treatment="d", output="mean").X[::4]
    again = fcr.posterior_predictive(own, output="mean").X[::4]
    np.testing.assert_allclose(drawn.mean(axis=0), again.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(again.T), atol=0.1)


def test_twins_are_not_what_is_drawn_anew(linear):
    adata, fcr, numbers = linear
    ask = {"treatment": "d", "output": "mean"}
    twins, others = fcr.unit_counterfactual(adata, **ask), fcr.counterfactual(adata, **ask)
    assert (twins.uns["pyro_fcr"]["world"], others.uns["pyro_fcr"]["world"]) == (
        "twin",
        "interventional",
    )
    for cell, (drug, y) in enumerate(zip(adata.obs["drug"][:N], adata.X[:N], strict=True)):
        mean, _ = posterior(numbers, float(drug == "d"), y.astype(float))
        expected = numbers["A"] @ [1.0, -2.0] + numbers["B"] @ mean[2:]
        np.testing.assert_allclose(others.X[cell::N].mean(axis=0), expected, atol=0.15)
    apart = [(twins.X - others.X)[cell::N].mean(axis=0) for cell in range(N)]
    assert np.abs(apart).max() > 0.5


def test_counts_keep_the_noise_of_their_latents_only():
    adata = simulate(60, n_genes=8)
    schema = Schema(treatment_key="drug", control="control", covariate_keys="line")
    fcr = FCR(adata, schema, architecture=Architecture(n_x=2, n_t=2, n_tx=2, n_hidden=8))
    treated = fcr.unit_counterfactual(adata, treatment="drug1", n_draws=3)
    assert treated.shape == (180, 8)
    with pytest.raises(
        QueryError, match="y: no noise can be read off a value of a NegativeBinomial"
    ):
        fcr.unit_counterfactual(adata, treatment="drug1", outcome_noise="kept")
    with pytest.raises(QueryError, match=r"outcome_noise .*'new'"):
        fcr.unit_counterfactual(adata, treatment="drug1", outcome_noise="new")
    with pytest.raises(QueryError, match="hold: 'z_x' is no label"):
        fcr.unit_counterfactual(adata, treatment="drug1", hold=["z_x"])
    with pytest.raises(QueryError, match="no target"):
        fcr.unit_counterfactual(adata)


def test_a_mediator_keeps_its_noise_or_is_held():
    edit = EDITS["l_mediator"]
    adata = edit.data()
    torch.manual_seed(0)
    model, guide = edit.build(register(adata, edit.schema)[0])
    seen = []
    model.y.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    own = fcr.registry.encode(adata).batch(np.arange(40))["m"]
    source = adata[:40].copy()
    with torch.no_grad():
        model.m.weight.copy_(torch.tensor([[0.0, 8.0], [0.0, 0.0]]))
    for hold, drug, expected in (
        (None, "drug1", own),  # drug1 does not change the odds of the phases
        (["m"], "drug2", own),
        (None, "drug2", torch.eye(2)[:1].expand(40, 2)),  # drug2 leaves only one
    ):
        answer = fcr.unit_counterfactual(
            source[(source.obs["drug"] != "drug2").to_numpy()].copy(), treatment=drug, hold=hold
        )
        rows = torch.from_numpy((source.obs["drug"] != "drug2").to_numpy())
        assert (seen[-1] == expected[rows]).float().mean() > 0.97
        assert answer.obs["phase"].isna().all() == (hold is None)


FAMILIES = {
    "normal": lambda k: dist.Normal(torch.ones(4, 3) * k, 1.0 + k).to_event(1),
    "student": lambda k: dist.StudentT(4.0, torch.ones(4, 3) * k, 1.0 + k).to_event(1),
    "multivariate": lambda k: dist.MultivariateNormal(
        torch.ones(4, 3) * k, torch.eye(3) * (1 + k) + 0.3
    ),
    "lognormal": lambda k: dist.LogNormal(torch.ones(4, 3) * k, 1.0 + k).to_event(1),
    "exponential": lambda k: dist.Exponential(torch.ones(4, 3) * (1 + k)).to_event(1),
    "uniform": lambda k: dist.Uniform(torch.ones(4, 3) * k, 2.0 + 2 * k).to_event(1),
    "bernoulli": lambda k: dist.Bernoulli(logits=torch.ones(4, 3) * (k - 1)).to_event(1),
    "category": lambda k: dist.Categorical(logits=torch.tensor([[0.0, k, -1.0]]).expand(4, 3)),
    "one_hot": lambda k: dist.OneHotCategorical(logits=torch.tensor([[0.0, k, -1.0]]).expand(4, 3)),
    "masked": lambda k: (
        dist.Normal(torch.ones(4, 3) * k, 1.0 + k).to_event(1).mask(torch.ones(4) > 0)
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_is_carried_from_one_distribution_to_the_other(name):
    """The same distribution gives the value back; draws become draws of the other distribution."""
    torch.manual_seed(0)
    factual, target = FAMILIES[name](0.0), FAMILIES[name](1.5)
    value = factual.sample((20_000,))
    same = carry(factual, value, FAMILIES[name](0.0), site="z")
    torch.testing.assert_close(same, value, rtol=1e-3, atol=1e-4)
    moved, drawn = carry(factual, value, target, site="z"), target.sample((20_000,))
    assert moved.shape == drawn.shape
    for low in (0.1, 0.5, 0.9):
        ours, theirs = (
            torch.quantile(v.float()[:, 0].reshape(-1)[:60_000], low) for v in (moved, drawn)
        )
        assert ours.item() == pytest.approx(theirs.item(), rel=0.06, abs=0.06)
    assert moved.float().mean().item() == pytest.approx(drawn.float().mean().item(), rel=0.06)


def test_categories_are_stable_where_their_odds_do_not_fall():
    """Gumbel noise: a category that gains more than all others stays (Oberst and Sontag 2019)."""
    torch.manual_seed(0)
    factual = dist.Categorical(logits=torch.tensor([0.5, 0.0, -0.5]).expand(5000, 3))
    target = dist.Categorical(logits=torch.tensor([0.5, 1.0, -0.5]).expand(5000, 3))
    value = factual.sample()
    moved = carry(factual, value, target, site="m")
    assert (moved[value == 1] == 1).all()
    assert ((moved == value) | (moved == 1)).all()
    assert (moved != value).any()


def test_what_has_no_noise_to_keep_is_named():
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(4, 2)), dist.Normal(torch.zeros(4, 2), 1.0)
    )
    with pytest.raises(QueryError, match=r"z: no noise can be read off .* MixtureSameFamily.*flow"):
        carry(mixture, torch.zeros(4), mixture, site="z")
    with pytest.raises(QueryError, match="z: no noise .* Normal and a StudentT"):
        carry(dist.Normal(0.0, 1.0), torch.zeros(1), dist.StudentT(3.0, 0.0, 1.0), site="z")


def structural(t, numbers):
    """The linear program with its noise spelt out, as twin worlds of ChiRho need it."""
    noise = {
        name: pyro.sample(name, dist.Normal(torch.zeros(len(t), size), 1.0).to_event(2))
        for name, size in (("u", 2), ("w", 2), ("e", GENES))
    }
    t = pyro.sample("t", dist.Delta(t, event_dim=2))
    z = t * torch.tensor([1.0, -2.0]) + (1.0 + t) * noise["u"]
    a, b = (torch.from_numpy(numbers[name]) for name in ("A", "B"))
    return pyro.deterministic("y", z @ a.T + noise["w"] @ b.T + 0.5 * noise["e"], event_dim=2)


def test_twins_are_those_of_chirho(linear):
    """The same abducted noise in ChiRho's twin worlds gives the same cells."""
    handlers = pytest.importorskip("chirho.counterfactual.handlers", reason="needs chirho")
    do = pytest.importorskip("chirho.interventional.handlers").do
    adata, fcr, numbers = linear
    cells = fcr.registry.encode(adata[:N].copy()).batch(np.arange(N))
    sink, one = Last(), torch.ones(N, 1)
    twins = TwinResponder(fcr.model, fcr.guide, fcr.graph, noise="kept")
    with Noiseless():
        twins.feed(cells, expected=[sink], do={"t": one})
        found = poutine.trace(fcr.guide).get_trace(cells)
    t, z, w = cells["t"], found.nodes["z"]["value"], found.nodes["w"]["value"]
    noise = {"u": (z - t * torch.tensor([1.0, -2.0])) / (1.0 + t), "w": w}
    noise["e"] = (cells["y"] - z @ fcr.model.a.T - w @ fcr.model.b.T).detach() / 0.5
    with handlers.TwinWorldCounterfactual(-1), do(actions={"t": one}):
        world = poutine.condition(structural, noise)
        factual, other = poutine.trace(world).get_trace(t, numbers).nodes["y"]["value"]
    torch.testing.assert_close(factual, cells["y"], atol=1e-4, rtol=0)
    torch.testing.assert_close(sink.values, other, atol=1e-4, rtol=0)
