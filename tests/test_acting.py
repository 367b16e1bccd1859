"""The graph is checked by acting on the program: what provenance cannot see is refused by name."""

import logging

import numpy as np
import pyro
import pytest
import torch
from conftest import SCHEMA, make_batch, make_programs, simulate
from edits import EDITS, BayesianModel, shipped
from pyro import distributions as dist
from torch import nn

from pyro_fcr import FCR, Model, ProgramError
from pyro_fcr.data import register
from pyro_fcr.distributions import Exogenous
from pyro_fcr.graph import check_by_acting, claims, not_claimed, read_graph


class InPlace(nn.Module):
    """A prior that writes into its mean, for treated cells only."""

    def __init__(self, n_t, n_latent):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_t, n_latent))  # no effect before training

    def forward(self, t):
        loc = torch.zeros(*t.shape[:-1], self.weight.shape[1])
        on = t.sum(-1) > 0
        loc[on] = t[on] @ self.weight
        return dist.Normal(loc, 1.0).to_event(1)


class OutOfTorch(InPlace):
    def forward(self, t):
        loc = torch.from_numpy(t.numpy() @ self.weight.detach().numpy())
        return dist.Normal(loc, 1.0).to_event(1)


class Counting(nn.Module):
    def __init__(self, prior):
        super().__init__()
        self.prior, self.calls = prior, 0

    def forward(self, t):
        self.calls += 1
        return dist.Normal(self.prior(t).mean, 1.0 + 0.1 * self.calls).to_event(1)


class Random(Counting):
    numpy = np.random.default_rng(0)

    def forward(self, t):
        return dist.Normal(self.prior(t).mean, 1.0 + self.numpy.random()).to_event(1)


class OverCells(Counting):
    def forward(self, t):
        mean = self.prior(t).mean
        return dist.Normal(mean - mean.mean(dim=0), 1.0).to_event(1)


class ReadsBatch(Model):
    """A model that takes one thing from the batch where it should take a site."""

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(batch["x"] if self.what == "x" else x))
            if self.what == "code":
                x = nn.functional.one_hot(batch.codes["x"], x.shape[-1]).to(x)
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            library = batch["y"].sum(1, keepdim=True) if self.what == "y" else batch["library"]
            return pyro.sample("y", self.y(z_x, z_tx, z_t, library), obs=batch.get("y"))


class HiddenLatent(nn.Module):
    """A guide whose z_t takes a number out of the z_x that it drew."""

    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, batch):
        y = self.guide.features(batch["y"], batch["library"])
        with pyro.plate("cells", len(batch)):
            z_x = pyro.sample("z_x", self.guide.z_x(y, batch["x"]))
            pyro.sample("z_tx", self.guide.z_tx(y, batch["t"], batch["x"]))
            shift = torch.tensor(z_x.tolist())[..., :1]
            z_t = self.guide.z_t(y, batch["t"]).base_dist
            pyro.sample("z_t", dist.Normal(z_t.loc + shift, z_t.scale).to_event(1))


def refused(model, batch, match):
    with pytest.raises(ProgramError, match=match):
        check_by_acting(model, read_graph(model, batch), batch)


@pytest.mark.parametrize(
    ("prior", "match"),
    [
        (InPlace(2, 2), r"z_t depends on t, but .* no arrow .*torch.where"),
        (OutOfTorch(2, 2), r"z_t depends on t, but .* no arrow"),
        (Counting(InPlace(2, 2)), r"z_t has another distribution .*self.training"),
        (Random(InPlace(2, 2)), r"z_t has another distribution .*numpy"),
    ],
)
def test_what_hides_an_arrow_is_named(prior, match):
    batch = make_batch()
    model, _ = make_programs(batch)
    model.z_t = prior
    with torch.no_grad():
        before = [p.clone() for p in model.parameters()]
        refused(model, batch, match)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("x", r"z_x reads batch\['x'\] itself.*pyro.sample\('x'"),
        ("code", r"z_tx reads batch.codes\['x'\] itself"),
        ("y", r"y reads batch\['y'\] itself"),
    ],
)
def test_a_batch_that_is_read_in_place_of_a_site_is_named(what, match):
    batch = make_batch()
    model = ReadsBatch(**dict(make_programs(batch)[0].named_children()))
    model.what = what
    refused(model, batch, match)


def test_a_value_without_a_site_is_named_with_its_mend():
    adata, edit = EDITS["b_batch"].data(), EDITS["b_batch"]
    registry = register(adata, edit.schema)[0]
    model, guide = edit.build(registry)

    class NoSite(type(model)):
        def forward(self, batch):
            with pyro.plate("cells", len(batch)):
                x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
                t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
                z_x, z_t = pyro.sample("z_x", self.z_x(x)), pyro.sample("z_t", self.z_t(t))
                z_tx = pyro.sample("z_tx", self.z_tx(t, x))
                y = self.y(z_x, z_tx, z_t, batch["b"], batch["library"])
                return pyro.sample("y", y, obs=batch.get("y"))

    model.__class__ = NoSite
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    for act in (fcr.inspect, lambda: fcr.fit(max_epochs=1)):
        with pytest.raises(ProgramError, match=r"y reads batch\['b'\].*Make it a site.*Exogenous"):
            act()


def test_cells_that_depend_on_one_another_are_named():
    batch = make_batch()
    model, _ = make_programs(batch)
    model.z_t = OverCells(model.z_t)
    refused(model, batch, r"z_t of a cell depends on the other cells")


def test_a_guide_is_acted_on_too():
    batch = make_batch()
    guide = HiddenLatent(make_programs(batch)[1])
    with pytest.raises(ProgramError, match="z_t depends on z_x"):
        check_by_acting(guide, read_graph(guide, batch), batch, reads=True)


@pytest.mark.parametrize("name", ["b_batch", "e_chained", "f_flow", "g_bayesian", "h_sparse"])
def test_edits_are_let_through(name):
    edit = EDITS[name]
    adata = edit.data()
    model, guide = edit.build(register(adata, edit.schema)[0])
    FCR(adata, edit.schema, model=model, guide=guide).inspect()


class PointMasses(Model):
    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", dist.Delta(batch["x"], event_dim=1), obs=batch["x"])
            t = pyro.sample("t", dist.Delta(batch["t"], event_dim=1), obs=batch["t"])
            z_x, z_t = pyro.sample("z_x", self.z_x(x)), pyro.sample("z_t", self.z_t(t))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            return pyro.sample("y", self.y(z_x, z_tx, z_t, batch["library"]), obs=batch.get("y"))


def test_what_is_set_may_be_a_point_mass():
    batch = make_batch()
    model = PointMasses(**dict(make_programs(batch)[0].named_children()))
    graph = read_graph(model, batch)
    assert graph.exogenous == ("x", "t")
    assert [str(c) for c in claims(graph)][:2] == ["z_x ⟂ t | x", "z_t ⟂ x | t"]
    check_by_acting(model, graph, batch)


# What the claims are read from


class Coupled(Model):
    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x, z_t = pyro.sample("z_x", self.z_x(x)), pyro.sample("z_t", self.z_t(t))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            total = z_x[..., 0] + (z_t[..., 0] if self.how != "one" else 0.0)
            if self.how == "factor":
                pyro.factor("coupling", -total.square())
            else:
                kept = torch.ones_like(batch["library"][..., 0]) if self.how == "like" else 1.0
                pyro.sample("kept", dist.Bernoulli(logits=total), obs=kept + 0 * total.detach())
            pyro.deterministic("score", z_t.sum(-1, keepdim=True), event_dim=1)
            return pyro.sample("y", self.y(z_x, z_tx, z_t, batch["library"]), obs=batch.get("y"))


def coupled(how):
    batch = make_batch()
    model = Coupled(**dict(make_programs(batch)[0].named_children()))
    model.how = how
    return read_graph(model, batch)


@pytest.mark.parametrize("how", ["factor", "selection"])
def test_what_is_conditioned_on_takes_independences_away(how):
    graph = coupled(how)
    site = "coupling" if how == "factor" else "kept"
    assert graph.conditioned == {site}
    assert [str(c) for c in claims(graph)] == ["z_x ⟂ z_tx | x, t", "z_t ⟂ z_tx | x, t"]
    assert not_claimed(graph)["z_x ⟂ t"] == f"z_x → {site} ← z_t ← t"


def test_a_block_that_selects_cells_is_not_held_to_its_prior():
    graph = coupled("one")
    assert "z_x ⟂ t | x" not in map(str, claims(graph))
    assert not_claimed(graph) == {"z_x ⟂ t": "z_x → kept"}


def test_deterministic_values_are_no_causes():
    graph = coupled("factor")
    assert "score" not in graph.parents
    assert graph.exogenous == ("x", "t")
    assert set(graph.parents["y"]) == {"z_x", "z_tx", "z_t"}


def test_the_fit_says_which_independences_an_edit_dropped(caplog):
    adata = simulate(120, n_genes=8)
    model, guide = EDITS["e_chained"].build(register(adata, SCHEMA)[0])
    with caplog.at_level(logging.WARNING, logger="pyro_fcr"):
        FCR(adata, SCHEMA, model=model, guide=guide).fit(
            max_epochs=1, progress=False, align_at=None
        )
    lines = [r.message for r in caplog.records if "does not make" in r.message]
    assert len(lines) == 1
    assert "z_x ⟂ z_tx (z_x → z_tx)" in lines[0]


def test_shared_latents_are_given():
    registry = register(simulate(100, n_genes=8), SCHEMA)[0]
    model, _ = shipped(registry)
    parts = dict(model.named_children())

    class Tied(BayesianModel):
        def forward(self, batch):
            w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            with pyro.plate("cells", len(batch)):
                x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
                t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
                z_x = pyro.sample("z_x", dist.Normal(self.z_x(x).mean + w, 1.0).to_event(1))
                z_t = pyro.sample("z_t", dist.Normal(self.z_t(t).mean + w, 1.0).to_event(1))
                z_tx = pyro.sample("z_tx", self.z_tx(t, x))
                y = self.y(z_x, z_tx, z_t, batch["library"])
                return pyro.sample("y", y, obs=batch.get("y"))

    batch = make_batch(n_genes=8)
    graph = read_graph(Tied(**parts), batch)
    assert graph.shared == {"w"}
    assert [str(c) for c in claims(graph)] == [
        "z_x ⟂ t | x",
        "z_t ⟂ x | t",
        "z_x ⟂ z_tx | x",
        "z_t ⟂ z_tx | t",
    ]
