"""What an intervention reaches is drawn, along directed paths, and nothing else moves."""

import numpy as np
import pyro
import pytest
import torch
from edits import EDITS, MediatorModel
from pyro import distributions as dist
from torch import nn

from pyro_fcr import FCR, QueryError
from pyro_fcr.data import register
from pyro_fcr.distributions import Exogenous
from pyro_fcr.draws import path_responses, reach
from pyro_fcr.graph import Graph, read_graph

PHASE = 3  # the gene that the phase sets


class Marker(nn.Module):
    """One gene follows the phase; nothing else has an effect."""

    def forward(self, z_x, z_tx, z_t, m, library):
        rate = torch.ones(*m.shape[:-1], 12) + 0.0 * (z_x[..., :1] + z_tx[..., :1] + z_t[..., :1])
        rate = rate + 9.0 * m[..., :1] * nn.functional.one_hot(torch.tensor(PHASE), 12)
        return dist.Poisson(rate).to_event(1)


@pytest.fixture(scope="module")
def asked():
    """A model in which drug1 puts cells into phase "one" with probability .9, control .2."""
    edit = EDITS["l_mediator"]
    adata = edit.data()
    torch.manual_seed(0)
    model, guide = edit.build(register(adata, edit.schema)[0])
    with torch.no_grad():
        model.m.bias.copy_(torch.tensor([0.2, 0.8]).log())
        model.m.weight.copy_(torch.tensor([[0.9 / 0.2, 1.0], [0.1 / 0.8, 1.0]]).log())
    model.y = Marker()
    return adata, FCR(adata, edit.schema, model=model, guide=guide)


def mean_of_marker(answer):
    return answer.X[:, PHASE].mean()


def test_an_observed_mediator_is_drawn_or_held(asked):
    adata, fcr = asked
    source = adata[adata.obs["drug"] == "control"].copy()
    share = (source.obs["phase"] == "one").mean()
    settings = {"treatment": "drug1", "output": "mean", "n_draws": 20}
    total = fcr.counterfactual(source, **settings)
    assert mean_of_marker(total) == pytest.approx(1 + 9 * 0.9, rel=0.03)
    assert total.obs["phase"].isna().all()
    assert list(total.obs["source_phase"]) == list(source.obs["phase"])
    assert total.uns["pyro_fcr"]["drawn"] == ["phase"]
    assert not total.obs["extrapolated"].any()
    direct = fcr.counterfactual(source, hold=["m"], **settings)
    assert mean_of_marker(direct) == pytest.approx(1 + 9 * share, rel=1e-4)
    assert list(direct.obs["phase"]) == list(source.obs["phase"])
    assert direct.uns["pyro_fcr"]["held"] == total.uns["pyro_fcr"]["held"] == ["z_x"]


def test_other_interventions_leave_the_mediator_as_measured(asked):
    adata, fcr = asked
    source = adata[:50].copy()
    moved = fcr.counterfactual(source, covariates={"line": "line1"}, output="mean")
    assert list(moved.obs["phase"]) == list(source.obs["phase"])
    is_one = (source.obs["phase"] == "one").to_numpy()
    np.testing.assert_allclose(moved.X[:, PHASE], 1 + 9.0 * is_one, rtol=1e-5)
    phase = fcr.counterfactual(source, covariates={"phase": "one"}, output="mean")
    np.testing.assert_allclose(phase.X[:, PHASE], 10.0, rtol=1e-5)


def test_new_cells_draw_the_mediator_where_it_is_left_out(asked, tmp_path):
    _, fcr = asked
    levels, settings = {"line": "line0"}, {"n_cells": 4000, "output": "mean"}
    drawn = fcr.predict("drug1", covariates=levels, **settings)
    assert mean_of_marker(drawn) == pytest.approx(1 + 9 * 0.9, rel=0.03)
    assert drawn.obs["phase"].isna().all()
    drawn.write_h5ad(tmp_path / "drawn.h5ad")
    given = fcr.predict("drug1", covariates={**levels, "phase": "two"}, **settings)
    assert mean_of_marker(given) == pytest.approx(1.0, rel=1e-5)
    with pytest.raises(QueryError, match="level of line"):
        fcr.predict("drug1", covariates={})


def test_effects_have_the_path_through_the_mediator(asked):
    _, fcr = asked
    table = fcr.effects(treatments=["drug1"], n_cells=4000).to_frame([f"gene{PHASE}"])
    assert set(table["effect"]) == {"total", "m", "z_t", "z_tx", "interaction"}
    assert sorted(set(table["context"])) == ["line0", "line1", "line2"]
    assert not table["extrapolated"].any()
    found = table.groupby("effect")["estimate"].mean()
    expected = np.log((1 + 9 * 0.9) / (1 + 9 * 0.2))
    assert found["total"] == pytest.approx(expected, rel=0.05)
    assert found["m"] == pytest.approx(expected, rel=0.05)
    assert abs(found[["z_t", "z_tx"]]).max() < 1e-6


def test_a_dose_curve_draws_what_treatments_change(asked):
    adata, _ = asked
    adata = adata.copy()
    adata.obs["dose"] = np.where(adata.obs["drug"] == "control", 0.0, 1.0)
    schema = EDITS["l_mediator"].schema
    schema = type(schema)(**{**schema.__dict__, "dose_key": "dose"})
    torch.manual_seed(0)
    model, guide = EDITS["l_mediator"].build(register(adata, schema)[0])
    model.y = Marker()
    with torch.no_grad():
        model.m.bias.copy_(torch.tensor([0.2, 0.8]).log())
        model.m.weight.copy_(torch.tensor([[8.0, 0.0], [0.0, 0.0]]))
    fcr = FCR(adata, schema, model=model, guide=guide)
    control = adata[adata.obs["drug"] == "control"].copy()
    curve = fcr.dose_response("drug1", cells={"line": "line0"}, doses=[1.0], genes=[f"gene{PHASE}"])
    ours = fcr.dose_response("drug1", cells=control, doses=[1.0], genes=[f"gene{PHASE}"])
    for table in (curve, ours[ours["line"] == "line0"]):
        assert "phase" not in table
        assert table["estimate"].iloc[1] == pytest.approx(np.log(10 / 2.8), rel=0.15)


def test_groups_of_draws_hold_no_measured_value_of_what_is_drawn(asked):
    pytest.importorskip("arviz", reason="needs ArviZ")
    adata, fcr = asked
    data = fcr.to_arviz(adata[:6].copy(), predictions={"treatment": "drug1"}, n_draws=300)
    found = data["predictions_constant_data"]
    assert not {"m", "phase", "obs_phase"} & set(found)
    assert {"x", "t", "line", "extrapolated"} <= set(found)
    assert {"m", "phase"} <= set(data["constant_data"])
    marker = data["predictions"]["y"].values[..., PHASE].mean()
    assert marker == pytest.approx(1 + 9 * 0.9, rel=0.05)


def graph_of(**parents):
    observed = frozenset({s for s, p in parents.items() if not p} | {"y", "m"})
    labels = frozenset(observed - {"y"})
    return Graph(parents, dict.fromkeys(parents, "Normal"), observed, labels=labels)


CHAIN = {"t": (), "m": ("t",), "z_m": ("m",), "z": ("t",), "y": ("z_m", "z")}


def test_holding_a_label_holds_what_is_reached_through_it_alone():
    graph = graph_of(**CHAIN)
    assert reach(graph, ["t"]).released == ("m", "y")
    assert reach(graph, ["t"]).held == ()
    kept = reach(graph, ["t"], ["m"])
    assert (kept.held, kept.released) == (("z_m",), ("y",))
    assert reach(graph, ["t"], ["m", "z_m"]).held == ("z_m",)
    assert reach(graph, ["t"], []).held == ()
    with pytest.raises(QueryError, match="z is caused by t"):
        reach(graph, ["t"], ["m", "z"])
    with pytest.raises(QueryError, match="z_m is caused by t"):
        reach(graph, ["t"], ["z_m"])
    with pytest.raises(QueryError, match=r"unknown latent 'q'.*labels that may be held are m"):
        reach(graph, ["t"], ["q"])


class Signature(MediatorModel):
    """t -> z_t -> s -> y, and t -> m -> y."""

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_t = pyro.sample("z_t", dist.Normal(2.0 * t, 1.0).to_event(1))
            s = pyro.sample("s", dist.Normal(0.5 * z_t + 0.25 * z_x[..., :2], 0.3).to_event(1))
            m = pyro.sample("m", dist.Normal(t.sum(-1, keepdim=True), 0.1).to_event(1))
            mean = torch.cat([z_x, s, m], dim=-1)
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=batch.get("y"))


def test_paths_follow_the_arrows(asked):
    adata, fcr = asked
    batch = fcr.registry.encode(adata).batch(np.arange(16))
    model = Signature(**dict(fcr.model.named_children()))
    graph = read_graph(model, batch.without("y"))
    graph = Graph(**{**graph.__dict__, "observed": graph.observed | {"y", "m"}})
    one = torch.tensor([1.0, 0.0]).expand(16, 2)
    worlds = path_responses(
        model, fcr.guide, batch, graph, reference={"t": 0 * one}, target={"t": one}
    )
    change = {k: (v - worlds["reference"]) for k, v in worlds.items()}
    through_s = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0]).expand(16, 6)
    through_m = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).expand(16, 6)
    for name, expected in {
        "z_t": through_s,
        "s": through_s,
        "m": through_m,
        "total": through_s + through_m,
    }.items():
        torch.testing.assert_close(change[name], expected, atol=1e-5, rtol=0)
    assert set(change) == {"reference", "total", "z_t", "s", "m"}
