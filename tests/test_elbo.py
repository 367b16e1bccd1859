"""The ELBO is that of Pyro: every edit of the graph, autoguide, mask, scale and plate."""

import zlib
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from edits import EDITS, bayesian
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn

from pyro_fcr import Objective
from pyro_fcr.data import register
from pyro_fcr.modes import outside_param_store
from pyro_fcr.objective.terms import KL

NO_PENALTY = {"structure": 0.0, "permutation": 0.0, "label": 0.0}
N_CELLS = 24
AUTOGUIDES = [
    AutoDelta, AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal,
    AutoLowRankMultivariateNormal, AutoIAFNormal,
]  # fmt: skip
HANDLERS = {
    "plain": lambda program: program,
    "mask": lambda program: poutine.mask(program, torch.arange(N_CELLS) % 3 > 0),
    "scale": lambda program: poutine.scale(program, 0.3),
    "scales": lambda program: poutine.scale(program, torch.linspace(0.1, 2.0, N_CELLS)),
    "both": lambda program: poutine.mask(
        poutine.scale(program, 3.0), torch.arange(N_CELLS) % 3 > 0
    ),
}


def assert_is_pyro_s(objective, batch, *, particles=40):
    """Compare with Trace_ELBO within five standard errors of the means of both, and in one draw."""
    model, guide = objective.model, objective.guide
    pyro_elbo = Trace_ELBO(max_plate_nesting=1)
    with torch.no_grad(), outside_param_store(), pyro.validation_enabled(is_validate=False):
        ours = torch.stack([objective.elbo(objective(batch)) for _ in range(particles)])
        found = [-pyro_elbo.loss(model, guide, batch) for _ in range(particles)]
        theirs = torch.tensor(found) / batch.n_total
        for term in objective.terms.values():
            if isinstance(term, KL):
                term.analytic = False
        torch.manual_seed(3)
        one = objective.elbo(objective(batch)).item()
        torch.manual_seed(3)
        assert one == pytest.approx(-pyro_elbo.loss(model, guide, batch) / len(batch), rel=1e-4)
    error = torch.sqrt((ours.var() + theirs.var()) / particles).item()
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=5 * error + 1e-3)


def cells_of(edit):
    adata = edit.data()
    registry = register(adata, edit.schema)[0]
    cells = replace(registry.encode(adata), n_total=N_CELLS)
    return registry, cells.batch(np.arange(N_CELLS))


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_under_mask_and_scale(name):
    torch.manual_seed(0)
    registry, batch = cells_of(EDITS[name])
    model, guide = EDITS[name].build(registry)
    model.eval(), guide.eval()
    shared = name.startswith("g_")  # has no row per cell
    kinds = [kind for kind in HANDLERS if not shared or kind in ("plain", "scale")]
    chosen = kinds[zlib.crc32(name.encode()) % len(kinds)]
    for kind in dict.fromkeys(("plain", chosen)):
        programs = (HANDLERS[kind](program) for program in (model, guide))
        objective = Objective.from_programs(*programs, batch, weights=NO_PENALTY)
        assert_is_pyro_s(objective, batch)


@pytest.mark.parametrize("kind", HANDLERS)
def test_every_mask_and_scale(kind):
    torch.manual_seed(0)
    registry, batch = cells_of(EDITS["f_mixture"])  # one KL of three is taken from draws
    programs = (HANDLERS[kind](p.eval()) for p in EDITS["f_mixture"].build(registry))
    objective = Objective.from_programs(*programs, batch, weights=NO_PENALTY)
    assert [t.analytic for t in objective.terms.values() if isinstance(t, KL)].count(True) == 2
    assert_is_pyro_s(objective, batch)


@pytest.mark.parametrize("autoguide", AUTOGUIDES)
def test_every_autoguide_of_what_cells_share(autoguide):
    torch.manual_seed(0)
    registry, batch = cells_of(EDITS["g_bayesian"])
    model, guide = (program.eval() for program in bayesian(registry, autoguide))
    objective = Objective.from_programs(model, guide, batch, weights=NO_PENALTY)
    assert not objective.terms["kl_log_dispersion"].analytic
    assert_is_pyro_s(objective, batch)


def two_shared(batch):
    """Two shared latents, a plate of genes, a factor, and an observed cause with a density."""
    with pyro.plate("genes", 5, dim=-1):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    pyro.factor("penalty", -0.5 * level.abs().sum())
    with pyro.plate("cells", len(batch), dim=-1):
        x = pyro.sample("x", dist.Normal(0.5, 2.0).expand([3]).to_event(1), obs=batch["x"])
        z = pyro.sample("z", dist.Normal(x.sum(-1), 1.0))
        y = dist.Normal(level + z.unsqueeze(-1), spread).to_event(1)
        pyro.sample("y", y, obs=batch["y"][:, :5].log1p())


@pytest.mark.parametrize("autoguide", AUTOGUIDES)
def test_latents_that_a_guide_draws_together_have_one_term(autoguide):
    torch.manual_seed(0)
    _, batch = cells_of(EDITS["k_extra"])
    shared = autoguide(poutine.block(two_shared, expose=["level", "spread"]))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.loc = shared, nn.Parameter(torch.zeros(()))

        def forward(self, batch):
            self.shared(batch)
            with pyro.plate("cells", len(batch), dim=-1):
                z = pyro.sample("z", dist.Normal(batch["y"][:, 0].log1p() + self.loc, 0.5))
            pyro.factor("correction", 0.1 * z.square().sum(), has_rsample=True)

    objective = Objective.from_programs(two_shared, Both(), batch, weights=NO_PENALTY)
    names = {name for name in objective.terms if name.startswith("kl")}
    together = autoguide not in (AutoDelta, AutoNormal)
    levels = {"kl_level_spread"} if together else {"kl_level", "kl_spread"}
    assert names == {"kl_z", *levels}
    assert objective.terms["kl_z"].auxiliary == ("correction",)
    assert {"factor_penalty", "reconstruction", "reconstruction_x"} <= set(objective.terms)
    assert_is_pyro_s(objective, batch)


def test_what_cells_share_is_spread_over_the_data_and_a_weight_of_0_stays_in_the_elbo():
    torch.manual_seed(0)
    registry, batch = cells_of(EDITS["g_bayesian"])
    model, guide = (program.eval() for program in bayesian(registry))
    objective = Objective.from_programs(model, guide, batch, weights={**NO_PENALTY, "kl_z_x": 0.0})
    whole = replace(batch, n_total=10 * N_CELLS)

    torch.manual_seed(1)
    losses = objective(whole)
    shared = losses.terms["kl_log_dispersion"].item()
    torch.manual_seed(1)
    assert objective(batch).terms["kl_log_dispersion"].item() == pytest.approx(10 * shared)
    assert "kl_z_x" in objective.terms
    without = losses.total + losses.terms["kl_z_x"]
    assert -objective.elbo(losses).item() == pytest.approx(without.item(), rel=1e-5)
