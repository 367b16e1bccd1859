"""A discrete latent that is summed out: the loss is that of TraceEnum_ELBO."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SCHEMA, simulate
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from pyro_fcr import FCR, Architecture, Objective, SumOut
from pyro_fcr.distributions import Exogenous
from pyro_fcr.graph import read_graph
from pyro_fcr.graph.contract import ProgramError, check_programs
from pyro_fcr.model import Model

SIZES = Architecture(n_x=2, n_t=2, n_tx=2, n_hidden=8, decoder="additive", dropout=0.0)


class Responders(Model):
    """Some of the treated cells respond: z_t and z_tx reach the expression of these alone."""

    def __init__(self, *, latent_too=False, **conditionals):
        super().__init__(**conditionals)
        self.share, self.latent_too = nn.Parameter(torch.tensor(0.3)), latent_too

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            treated = 1.0 - (t == 0).all(-1).to(t)
            r = pyro.sample("r", dist.Bernoulli(self.share.sigmoid() * treated + 1e-4))
            r = r[..., None]
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = self.z_t(t)
            if self.latent_too:
                z_t = dist.Normal(z_t.mean + r, z_t.stddev).to_event(1)
            z_t = pyro.sample("z_t", z_t)
            family = self.y(z_x, r * z_tx, r * z_t, batch["library"])
            return pyro.sample("y", family, obs=batch.get("y"))


def programs(batch, **settings):
    widths = {name: batch[name].shape[-1] for name in ("y", "x", "t")}
    torch.manual_seed(0)
    model, guide = SIZES.build(widths, target_sum=30.0)
    parts = {name: getattr(model, name) for name in ("z_x", "z_tx", "z_t", "y")}
    return Responders(**parts, **settings), guide


@pytest.mark.parametrize("latent_too", [False, True])
def test_the_elbo_is_that_of_trace_enum_elbo(batch, latent_too):
    model, guide = programs(batch, latent_too=latent_too)
    with torch.no_grad():
        model.share.fill_(-0.4)
    objective = Objective.from_programs(SumOut(model, "r"), guide, batch)
    enum, differences = TraceEnum_ELBO(max_plate_nesting=1), []
    for seed in range(60):
        with torch.no_grad():
            pyro.set_rng_seed(seed)  # the same draws of the guide in both
            ours = -float(objective.elbo(objective(batch)))
            pyro.set_rng_seed(seed)
            differences.append(ours - enum.loss(config_enumerate(model), guide, batch) / len(batch))
    error = np.std(differences) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 4 * error + 1e-4
    assert error < 0.1


def test_density_and_gradient_are_those_of_a_sum_by_hand(batch):
    model, _ = programs(batch)
    summed = SumOut(model, "r")
    trace = pyro.poutine.trace(summed).get_trace(batch)
    z = {name: trace.nodes[name]["value"] for name in ("z_x", "z_tx", "z_t")}
    treated = 1.0 - (batch["t"] == 0).all(-1).float()
    share = model.share.sigmoid() * treated + 1e-4
    each = [
        log_p
        + model.y(z["z_x"], r * z["z_tx"], r * z["z_t"], batch["library"]).log_prob(batch["y"])
        for r, log_p in ((0.0, torch.log1p(-share)), (1.0, share.log()))
    ]
    wanted, found = torch.stack(each).logsumexp(0), trace.nodes["y"]["fn"].log_prob(batch["y"])
    torch.testing.assert_close(found, wanted)
    assert "r" not in trace.nodes
    gradients = [
        torch.autograd.grad(v.sum(), model.share, retain_graph=True)[0] for v in (found, wanted)
    ]
    torch.testing.assert_close(*gradients)
    chances = summed.probabilities(batch)
    assert chances.shape == (len(batch), 2)
    torch.testing.assert_close(chances.sum(-1), torch.ones(len(batch)))


def test_the_graph_is_that_of_the_margin(batch):
    model, guide = programs(batch)
    graph = read_graph(SumOut(model, "r"), batch)
    assert graph.latents == ("z_x", "z_tx", "z_t")
    assert set(graph.parents["y"]) == {"z_x", "z_tx", "z_t", "t"}
    check_programs(SumOut(model, "r"), guide, batch)
    treated = torch.ones_like(batch["t"])
    acted = pyro.poutine.do(SumOut(model, "r"), {"t": treated})
    family = pyro.poutine.trace(acted).get_trace(batch).nodes["y"]["fn"]
    share = model.share.sigmoid().item() + 1e-4  # under the treatment that was set
    torch.testing.assert_close(family.log_weights[1].exp(), torch.full((len(batch),), share))
    drawn = family.sample((200,))
    torch.testing.assert_close(drawn.mean(0).sum(-1), family.mean.sum(-1), rtol=0.2, atol=3.0)


def test_what_cannot_be_summed_out_is_named(batch):
    model, guide = programs(batch)
    with pytest.raises(ProgramError, match=r"^r: .*SumOut\(model, 'r'\)"):
        check_programs(model, guide, batch)
    for site in ("z_x", "nothing", "y"):
        with pytest.raises(ProgramError, match=f"^{site} cannot be summed out: "):
            SumOut(model, site)(batch)
    with pytest.raises(ProgramError, match=r"r is summed out, .* model\.program"):
        pyro.poutine.do(SumOut(model, "r"), {"r": torch.ones(len(batch))})(batch)


def test_responders_are_found_by_a_fit_and_kept_by_a_save(tmp_path):
    adata = simulate(400, n_genes=10)
    rng = np.random.default_rng(0)
    treated = (adata.obs["drug"] != "control").to_numpy()
    responds = treated & (rng.random(adata.n_obs) < 0.4)
    adata.X[responds, :3] += rng.poisson(60.0, size=(responds.sum(), 3))
    widths = {"y": 10, "x": 3, "t": 2}

    def build():
        torch.manual_seed(0)
        model, guide = SIZES.build(widths, target_sum=400.0)
        parts = {name: getattr(model, name) for name in ("z_x", "z_tx", "z_t", "y")}
        return {"model": SumOut(Responders(**parts), "r"), "guide": guide}

    fcr = FCR(adata, SCHEMA, **build())
    fcr.fit(max_epochs=20, batch_size=100, progress=False, align_at=None, learning_rate=1e-2)
    assert fcr.history["heldout/elbo"].iloc[-1] > fcr.history["heldout/elbo"].iloc[0]
    answer = fcr.counterfactual(None, treatment="drug1", n_draws=1)
    assert np.isfinite(answer.X.toarray()).all()
    batch = fcr.registry.encode(adata).batch(range(400))
    chances = fcr.model.probabilities(batch, fcr.guide)[:, 1].numpy()
    assert chances[~treated].max() < 0.05
    loaded = FCR.load(fcr.save(tmp_path / "m"), adata=adata, **build())
    assert loaded.model.share.item() == fcr.model.share.item()
