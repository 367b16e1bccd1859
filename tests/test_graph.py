import re

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from conftest import make_batch, make_programs
from pyro import poutine
from torch import nn

from pyro_fcr.graph import Graph, claims, not_claimed, read_graph
from pyro_fcr.graph.contract import ProgramError, check_programs, describe_programs
from pyro_fcr.objective import Objective

SHIPPED = {
    "x": (),
    "t": (),
    "z_x": ("x",),
    "z_tx": ("x", "t"),
    "z_t": ("t",),
    "y": ("z_x", "z_tx", "z_t"),
}


def graph_of(parents):
    observed = {site for site, causes in parents.items() if not causes} | {"y"}
    return Graph(parents, dict.fromkeys(parents, "Normal"), frozenset(observed))


def test_graph_is_read_from_the_program(programs, batch):
    model, guide = programs
    state = torch.get_rng_state()
    graph = read_graph(model, batch)
    assert dict(graph.parents) == SHIPPED
    assert graph.exogenous == ("x", "t")
    assert graph.latents == ("z_x", "z_tx", "z_t")
    assert graph.outcomes == ("y",)
    assert read_graph(guide, batch).latents == graph.latents
    assert torch.equal(state, torch.get_rng_state())


def test_claims_of_the_shipped_graph_are_those_of_the_paper():
    assert [str(c) for c in claims(graph_of(SHIPPED))] == [
        "z_x ⟂ t | x",
        "z_t ⟂ x | t",
        "z_x ⟂ z_tx | x",
        "z_tx ⟂ z_t | t",
    ]


def test_claims_follow_the_graph():
    with_batch = SHIPPED | {"b": (), "z_b": ("b",), "y": ("z_x", "z_tx", "z_t", "z_b")}
    assert [str(c) for c in claims(graph_of(with_batch))] == [
        "z_x ⟂ t | x",
        "z_x ⟂ b | x",
        "z_tx ⟂ b | x, t",
        "z_t ⟂ x | t",
        "z_t ⟂ b | t",
        "z_b ⟂ x | b",
        "z_b ⟂ t | b",
        "z_x ⟂ z_tx | x",
        "z_tx ⟂ z_t | t",
    ]
    without_interaction = {s: p for s, p in SHIPPED.items() if s != "z_tx"}
    without_interaction["y"] = ("z_x", "z_t")
    assert [str(c) for c in claims(graph_of(without_interaction))] == ["z_x ⟂ t | x", "z_t ⟂ x | t"]
    # Blocks that cause one another cannot be separated by what is observed: no such claim is made.
    chained = SHIPPED | {"z_t": ("t",), "z_tx": ("z_x", "z_t")}
    assert [str(c) for c in claims(graph_of(chained))] == ["z_x ⟂ t | x", "z_t ⟂ x | t"]


def test_do_condition_and_predictive_work_as_in_any_pyro_program(programs, batch):
    model, _ = programs
    unseen = batch.without("y")
    other = torch.zeros_like(batch["t"])
    nodes = poutine.trace(poutine.do(model, {"t": other})).get_trace(unseen).nodes
    torch.testing.assert_close(nodes["z_t"]["fn"].mean, torch.zeros_like(nodes["z_t"]["value"]))
    fixed = torch.ones(len(batch), 2, device=other.device)
    nodes = poutine.trace(poutine.condition(model, {"z_x": fixed})).get_trace(unseen).nodes
    assert torch.equal(nodes["z_x"]["value"], fixed)
    drawn = poutine.trace(poutine.uncondition(model)).get_trace(batch).nodes
    assert torch.equal(drawn["x"]["value"], batch["x"])
    assert not torch.equal(drawn["y"]["value"], batch["y"])
    samples = pyro.infer.Predictive(model, num_samples=3)(unseen)
    assert samples["y"].shape == (3, *batch["y"].shape)


def test_render_model_draws_the_graph(programs, batch):
    pytest.importorskip("graphviz", reason="drawing needs the graphviz package")
    source = pyro.render_model(programs[0], (batch,)).source
    assert "z_tx" in source
    assert "Exogenous" not in source or "x" in source


class Wrapped(nn.Module):
    """A guide with one site changed."""

    def __init__(self, guide, change):
        super().__init__()
        self.guide, self.change = guide, change

    def forward(self, batch):
        return self.change(self.guide)(batch)


class _Renamed(nn.Module):
    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, batch):
        y = self.guide.features(batch["y"], batch["library"])
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.guide.z_x(y, batch["x"]))
            pyro.sample("z_tx", self.guide.z_tx(y, batch["t"], batch["x"]))
            pyro.sample("z_treatment", self.guide.z_t(y, batch["t"]))


class _Poisson(nn.Module):
    def forward(self, *inputs):
        shape = (len(inputs[0]), 2)
        return pyro.distributions.Poisson(torch.ones(shape, device=inputs[0].device)).to_event(1)


class _OtherPlate(nn.Module):
    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, batch):
        y = self.guide.features(batch["y"], batch["library"])
        with pyro.plate("rows", len(batch)):
            pyro.sample("z_x", self.guide.z_x(y, batch["x"]))
            pyro.sample("z_tx", self.guide.z_tx(y, batch["t"], batch["x"]))
            pyro.sample("z_t", self.guide.z_t(y, batch["t"]))


def test_missing_and_renamed_latents_are_named(programs, batch):
    model, guide = programs
    with pytest.raises(ProgramError, match="model draws z_tx, but the guide does not"):
        check_programs(model, Wrapped(guide, lambda g: poutine.block(g, hide=["z_tx"])), batch)
    with pytest.raises(ProgramError, match=r"draws z_t, but the guide does not.*z_treatment"):
        check_programs(model, _Renamed(guide), batch)


def test_wrong_size_family_and_plate_are_named(programs, batch):
    model, guide = programs
    with pytest.raises(ProgramError, match=r"z_x: event_shape is \(2,\).*\(3,\)"):
        check_programs(model, make_programs(batch, n_x=3)[1], batch)
    with pytest.raises(ProgramError, match=r"z_x: its plates are cells .* rows"):
        check_programs(model, _OtherPlate(guide), batch)
    guide.z_tx = _Poisson()
    with pytest.raises(ProgramError, match="z_tx: the guide's Poisson has no reparametrised draws"):
        check_programs(model, guide, batch)


def test_objective_is_checked_before_it_is_built(programs, batch):
    model, guide = programs
    with pytest.raises(ProgramError, match="z_t"):
        Objective.from_programs(model, _Renamed(guide), batch)


def test_networks_take_sample_dimensions(batch):
    model, guide = make_programs(batch)
    with pyro.plate("draws", 5, dim=-2):
        trace = poutine.trace(guide).get_trace(batch)
        replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(batch)
    assert replayed.nodes["y"]["fn"].batch_shape == (5, len(batch))


def test_batches_of_one_cell_work(batch):
    model, guide = make_programs(batch)
    one = make_batch(1, device=batch["library"].device)
    objective = Objective.from_programs(model, guide, batch)
    assert torch.isfinite(objective(one).total)


def test_programs_are_described_site_by_site(programs, batch):
    model, guide = programs
    rows = {row["site"]: row for row in describe_programs(model, guide, batch)}
    assert list(rows) == list(SHIPPED)
    assert rows["z_tx"] == {
        "site": "z_tx",
        "parents": "x, t",
        "distribution": "Normal",
        "guide": "Normal",
        "shape": (2,),
        "observed": False,
        "per_cell": True,
        "parameters": sum(p.numel() for m in (model, guide) for p in m.z_tx.parameters()),
    }
    assert rows["y"]["distribution"] == "NegativeBinomial"
    assert rows["x"]["observed"]


class _NoPlate(nn.Module):
    """The shipped model without its plate over cells: what forgetting the `with` gives."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        x, t = batch["x"], batch["t"]
        z_x = pyro.sample("z_x", self.model.z_x(x))
        z_tx = pyro.sample("z_tx", self.model.z_tx(t, x))
        z_t = pyro.sample("z_t", self.model.z_t(t))
        y = self.model.y(z_x, z_tx, z_t, batch["library"])
        return pyro.sample("y", y, obs=batch["y"])


def test_a_forgotten_plate_or_event_dimension_is_named(programs, batch):
    model, guide = programs
    with pytest.raises(ProgramError, match=r"z_x: its plates are none .* cells"):
        check_programs(_NoPlate(model), guide, batch)

    class Flat(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, *inputs):
            return self.encoder(*inputs).base_dist  # .to_event(1) forgotten

    guide.z_t = Flat(guide.z_t)
    with pytest.raises(ProgramError, match=r"at site z_t .*End its distribution with .to_event"):
        check_programs(model, guide, batch)


class _TwoPlates(nn.Module):
    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, batch):
        self.guide(batch)
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_more", self.guide.z_x(batch["y"], batch["x"]))


def test_a_second_plate_is_named(programs, batch):
    model, guide = programs
    with pytest.raises(ProgramError, match=r"named 'cells'.*second use.*under one .with"):
        check_programs(model, _TwoPlates(guide), batch)


class _NoOutcome(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.model.z_x(batch["x"]))
            pyro.sample("z_tx", self.model.z_tx(batch["t"], batch["x"]))
            pyro.sample("z_t", self.model.z_t(batch["t"]))


def test_an_outcome_must_be_observed(programs, batch):
    model, guide = programs
    with pytest.raises(ProgramError, match=r"observes nothing .*Pass obs=batch.get\('y'\)"):
        check_programs(_NoOutcome(model), guide, batch)


def test_a_plain_pyro_svi_trains_the_shipped_programs(programs, batch):
    """Nothing of ours: the programs are registered by hand, as Pyro asks for plain modules."""
    model, guide = programs

    def registered_model(batch):
        pyro.module("model", model)
        return model(batch)

    def registered_guide(batch):
        pyro.module("guide", guide)
        return guide(batch)

    svi = pyro.infer.SVI(
        registered_model, registered_guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO()
    )
    losses = [svi.step(batch) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(p.grad is not None for part in programs for p in part.parameters())


def random_graph(rng, *, n_labels, n_blocks, density):
    """Labels and blocks in a random order of causes, with arrows between any two at random."""
    names = [f"u{i}" for i in range(n_labels)] + [f"z{i}" for i in range(n_blocks)]
    order = list(rng.permutation(names))
    parents = {
        site: tuple(cause for cause in order[:i] if rng.random() < density)
        for i, site in enumerate(order)
    }
    parents["y"] = tuple(name for name in names if name.startswith("z"))
    labels = frozenset(names[:n_labels])
    return Graph(parents, dict.fromkeys(parents, "Normal"), labels | {"y"}, labels=labels)


def is_open(arrows, path, given):
    """Pearl's rule, site by site."""
    for before, site, after in zip(path, path[1:], path[2:], strict=False):
        if arrows.has_edge(before, site) and arrows.has_edge(after, site):
            if not given & {site, *nx.descendants(arrows, site)}:
                return False
        elif site in given:
            return False
    return True


@pytest.mark.parametrize("seed", range(60))
def test_the_connection_that_is_named_is_open_and_the_shortest(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, n_labels=3, n_blocks=2, density=rng.random())
    arrows = graph.with_design()
    for pair, words in not_claimed(graph).items():
        left, right = pair.split(" ⟂ ")
        path = re.split(" [→←] ", words)
        assert (path[0], path[-1]) == (left, right)
        given = set(graph.label_causes(left))
        if right in graph.blocks:
            given |= set(graph.label_causes(right))
        assert is_open(arrows, path, given)
        every = nx.all_simple_paths(arrows.to_undirected(), left, right)
        assert len(path) == min(len(each) for each in every if is_open(arrows, each, given))


def test_large_graphs_are_read_without_trying_every_path_or_set():
    graph = random_graph(np.random.default_rng(0), n_labels=20, n_blocks=6, density=0.5)
    lost = not_claimed(graph)
    assert len(lost) > 50
    assert len(claims(graph)) + len(lost) > 80
