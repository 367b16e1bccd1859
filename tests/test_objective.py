import copy
import logging

import pyro
import pytest
import torch
from conftest import make_batch, make_programs
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_fcr.graph.contract import check_programs
from pyro_fcr.graph.runs import Run
from pyro_fcr.modes import outside_param_store
from pyro_fcr.objective import Objective, Ramp
from pyro_fcr.objective.svi import FCRLoss
from pyro_fcr.objective.terms import KL, Extra

ALL_TERMS = {"structure": 1.0, "permutation": 1.0, "label": 1.0}


NO_PENALTY = {"structure": 0.0, "permutation": 0.0, "label": 0.0}


def assert_elbo_is_that_of_pyro(objective, batch, *, particles=60):
    """Compare with Trace_ELBO within four standard errors of the mean of both."""
    programs, n = (objective.model, objective.guide), batch.n_total
    with torch.no_grad(), outside_param_store(), pyro.validation_enabled(is_validate=False):
        ours = torch.stack([objective.elbo(objective(batch)) for _ in range(particles)])
        theirs = torch.tensor([-Trace_ELBO().loss(*programs, batch) / n for _ in range(particles)])
    error = torch.sqrt((ours.var() + theirs.var()) / particles).item()
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=4 * error + 1e-4)


def objective_of(programs, batch, **weights):
    return Objective.from_programs(*programs, batch, weights=weights)


def test_terms_bear_their_names_and_sum_to_the_loss(programs, batch):
    objective = objective_of(programs, batch, structure=2.0, kl_z_tx=0.5, label=0.1)
    losses = objective(batch)
    assert list(losses.terms) == [
        "reconstruction",
        "kl_z_x",
        "kl_z_tx",
        "kl_z_t",
        "structure_z_x_t",
        "structure_z_t_x",
        "permutation_z_x_z_tx",
        "permutation_z_tx_z_t",
        "label_x",
        "label_t",
    ]
    weights = {"kl_z_tx": 0.5, "structure_z_x_t": 2.0, "structure_z_t_x": 2.0}
    weights |= {"label_x": 0.1, "label_t": 0.1}
    weights |= {"permutation_z_x_z_tx": 0.0, "permutation_z_tx_z_t": 0.0}  # ramps begin at 0
    total = sum(weights.get(name, 1.0) * value for name, value in losses.terms.items())
    torch.testing.assert_close(losses.total, total)
    elbo = -sum(losses.terms[n] for n in ("reconstruction", "kl_z_x", "kl_z_tx", "kl_z_t"))
    torch.testing.assert_close(objective.elbo(losses), elbo)


def test_weights_follow_their_schedules(programs, batch):
    objective = objective_of(programs, batch, kl_z_t=Ramp(1.0, until=0.5, start=0.2))
    at = list(objective.terms).index("kl_z_t")
    for progress, expected in [(0.0, 0.2), (0.25, 0.6), (0.5, 1.0), (1.0, 1.0)]:
        objective.set_progress(progress)
        assert objective.current_weights[at].item() == pytest.approx(expected)
    assert objective.settled_after == pytest.approx(0.5)


def test_unknown_weights_are_refused(programs, batch):
    with pytest.raises(ValueError, match=r"\['kl_z_y'\] fit no term.*kl_z_tx"):
        objective_of(programs, batch, kl_z_y=1.0)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "normal"])
def test_every_parameter_receives_a_gradient(batch, likelihood):
    programs = make_programs(batch, likelihood=likelihood)
    objective = objective_of(programs, batch, **ALL_TERMS)
    losses = objective(batch)
    losses.total.backward()
    missing = [
        name
        for name, parameter in objective.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert missing == []


def test_permutation_term_moves_the_encoders_and_not_the_decoder(programs, batch):
    objective = objective_of(programs, batch, **ALL_TERMS)
    objective(batch).terms["permutation_z_x_z_tx"].backward()
    _, guide = programs
    assert all(p.grad.norm() > 0 for p in guide.z_x.parameters())
    assert all(p.grad is None for p in programs[0].y.parameters())


def test_adversaries_are_trained_apart(programs, batch):
    objective = objective_of(programs, batch, **ALL_TERMS)
    losses = objective(batch)
    objective.adversary_loss(losses.run).backward()
    assert all(p.grad is not None for p in objective.adversary_parameters())
    assert all(p.grad is None for p in objective.main_parameters())
    shared = {id(p) for p in objective.main_parameters()}
    assert not shared & {id(p) for p in objective.adversary_parameters()}
    everything = len(list(objective.parameters()))
    assert len(shared) + len(objective.adversary_parameters()) == everything


def test_loss_per_cell_does_not_depend_on_batch_size_or_data_size(programs, batch, device):
    objective = objective_of(programs, batch, **ALL_TERMS)
    values = []
    for n, n_total in [(512, 512), (4096, 4096), (4096, 10**6)]:
        torch.manual_seed(1)
        cells = make_batch(512, device=device)
        repeats = n // 512
        big = copy.copy(cells)
        object.__setattr__(
            big, "values", {k: v.repeat(repeats, 1) for k, v in cells.values.items()}
        )
        object.__setattr__(big, "codes", {k: v.repeat(repeats) for k, v in cells.codes.items()})
        object.__setattr__(big, "n_total", n_total)
        values.append({k: v.item() for k, v in objective(big).terms.items()})
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=0.04, abs=0.04)


def test_kl_is_the_closed_form_from_guide_to_prior(programs, batch):
    run = Run.trace(*programs, batch)
    q, p = run.posterior("z_x"), run.prior("z_x")
    mean, variance = q.mean - p.mean, p.variance
    by_hand = 0.5 * (q.variance / variance + mean**2 / variance - 1 - (q.variance / variance).log())
    torch.testing.assert_close(KL("z_x", analytic=True)(run), by_hand.sum(-1).mean())
    draws = torch.stack([KL("z_x")(Run.trace(*programs, batch)) for _ in range(600)])
    assert KL("z_x", analytic=True)(run).item() == pytest.approx(draws.mean().item(), rel=0.05)


@pytest.mark.parametrize("where", ["both", "model", "guide"])
def test_scale_counts_as_in_pyro_in_either_program(programs, batch, caplog, where):
    model, guide = programs
    model = poutine.scale(model, 0.25) if where != "guide" else model
    guide = poutine.scale(guide, 0.25) if where != "model" else guide
    objective = Objective.from_programs(model, guide, batch, weights=NO_PENALTY)
    assert_elbo_is_that_of_pyro(objective, batch)
    assert sum("loss is no bound" in r.message for r in caplog.records) == 3 * (where != "both")


@pytest.mark.parametrize("where", ["both", "model", "guide"])
def test_a_masked_cell_does_not_count_in_either_program(programs, batch, caplog, where):
    model, guide = programs
    mask = torch.arange(len(batch), device=batch["library"].device) < 5
    both = Objective.from_programs(
        *(poutine.mask(p, mask) for p in programs), batch, weights=NO_PENALTY
    )
    assert_elbo_is_that_of_pyro(both, batch)
    model = poutine.mask(model, mask) if where != "guide" else model
    guide = poutine.mask(guide, mask) if where != "model" else guide
    one = Objective.from_programs(model, guide, batch, weights=NO_PENALTY)
    kls = [f"kl_{site}" for site in ("z_x", "z_tx", "z_t")]
    for name in kls:
        torch.testing.assert_close(one(batch).terms[name], both(batch).terms[name])
    assert sum("counts for both" in r.message for r in caplog.records) == 3 * (where != "both")


class _ChainedModel(nn.Module):
    """Draws a, then b from a; its guide draws them the other way round."""

    def __init__(self):
        super().__init__()
        self.y = nn.Linear(1, 3)

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            a = pyro.sample("a", dist.Normal(torch.zeros(len(batch), 1), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(0.8 * a, 0.6).to_event(1))
            pyro.sample("y", dist.Normal(self.y(b), 1.0).to_event(1), obs=batch["y"])


class _ReversedGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(3, 1)

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            b = pyro.sample("b", dist.Normal(self.b(batch["y"]), 0.7).to_event(1))
            pyro.sample("a", dist.Normal(0.9 * b, 0.5).to_event(1))


def test_kl_falls_back_to_draws_where_the_closed_form_is_wrong(caplog):
    cells = make_batch(400, n_genes=3)
    model, guide = _ChainedModel(), _ReversedGuide()
    with caplog.at_level(logging.WARNING):
        checked = check_programs(model, guide, cells)
        forms = {group.latents[0]: checked.has_closed_form_kl(group) for group in checked.groups}
    assert forms == {"a": True, "b": False}
    assert [r.message for r in caplog.records] == [
        "KL of b is taken from its draw, not in closed form: the guide draws a, a cause of b in "
        "the model, from b."
    ]
    objective = Objective.from_programs(model, guide, cells)
    with torch.no_grad():
        mine = torch.stack([objective.elbo(objective(cells)) for _ in range(400)]).mean()
        reference = -pyro.infer.Trace_ELBO(num_particles=400, vectorize_particles=False).loss(
            model, guide, cells
        ) / len(cells)
    assert mine.item() == pytest.approx(reference, abs=0.02)


def test_elbo_is_that_of_pyro(programs, batch):
    objective = objective_of(programs, batch)
    model, guide = programs
    with torch.no_grad():
        mine = torch.stack([objective.elbo(objective(batch)) for _ in range(300)]).mean().item()
    theirs = -pyro.infer.TraceMeanField_ELBO(num_particles=300).loss(model, guide, batch)
    assert mine == pytest.approx(theirs / len(batch), rel=0.01)


def test_a_user_s_own_term_is_weighted_and_logged(programs, batch):
    extra = Extra("extra_sparsity", lambda run: run.posterior("z_tx").mean.abs().mean())
    objective = Objective.from_programs(
        *programs, batch, extra=[extra], weights={"extra_sparsity": 3.0}
    )
    losses = objective(batch)
    without = Objective.from_programs(*programs, batch).evaluate(losses.run)
    added = losses.total - without.total - 3.0 * losses.terms["extra_sparsity"]
    # The discriminators of the two objectives differ, but their weight is still 0.
    assert added.item() == pytest.approx(0.0, abs=1e-4)


def train_with_pyro(seed, batch, steps=3):
    torch.manual_seed(seed)
    programs = make_programs(batch)
    objective = objective_of(programs, batch, **ALL_TERMS)
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    svi = pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": 1e-2}), loss=FCRLoss(objective))
    for _ in range(steps):
        assert isinstance(svi.step(batch), float)
    return [n for n, p in objective.named_parameters() if torch.equal(p, before[n])]


def test_a_user_s_own_svi_trains_everything_also_the_second_model(batch):
    assert train_with_pyro(0, batch) == []
    assert train_with_pyro(1, batch) == []


def test_pyro_s_svi_makes_the_loss_smaller(batch):
    programs = make_programs(batch)
    objective = objective_of(programs, batch)
    svi = pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": 1e-2}), loss=FCRLoss(objective))
    first = svi.evaluate_loss(batch)
    for _ in range(60):
        svi.step(batch)
    assert svi.evaluate_loss(batch) < first - 1.0


def test_label_heads_learn_labels_from_their_blocks(programs, batch):
    objective = objective_of(programs, batch, **ALL_TERMS)
    assert objective.terms["label_x"].blocks == ("z_x",)
    assert objective.terms["label_t"].blocks == ("z_t",)
