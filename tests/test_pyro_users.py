"""What Pyro users write is adopted, so that it is trained, saved and loaded, or refused by name."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from conftest import SCHEMA, make_batch, make_programs, simulate
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

from pyro_fcr import FCR, Architecture, FCRLoss, Objective, ProgramError
from pyro_fcr.data import register
from pyro_fcr.distributions import Exogenous, NegativeBinomial
from pyro_fcr.graph import check_programs
from pyro_fcr.params import obstacle_to_copies
from pyro_fcr.training.alignment import align
from pyro_fcr.training.batches import Batches
from pyro_fcr.training.tracing import TracedStep, eager_gradients

SIZES = Architecture(n_x=2, n_t=2, n_tx=2, n_hidden=8, decoder="additive", dropout=0.0)
FIT = {"max_epochs": 3, "batch_size": 64, "progress": False, "align_at": None}


@pytest.fixture(scope="module")
def adata():
    return simulate(240, n_genes=8)


def parts_of(adata):
    registry = register(adata, SCHEMA)[0]
    return SIZES.build(registry.widths, target_sum=registry.target_sum)


class ParamPrior(nn.Module):
    def forward(self, t):
        loc = pyro.param("z_t.loc", lambda: torch.randn(t.shape[-1], 2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        return dist.Normal(t @ loc, scale).to_event(1)


class ParamEncoder(nn.Module):
    def forward(self, y, t):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        return dist.Normal(y[..., :2], scale).to_event(1)


def test_parameters_of_pyro_param_are_trained_saved_and_loaded(adata, tmp_path):
    def made():
        model, guide = parts_of(adata)
        model.z_t, guide.z_t = ParamPrior(), ParamEncoder()
        return model, guide

    torch.manual_seed(0)
    fcr = FCR(adata, SCHEMA, model=made()[0], guide=made()[1])
    before = {name: value.clone() for name, value in fcr.model.state_dict().items()}
    assert {"adopted./z_t/loc", "adopted./scale"} <= set(before)
    fcr.fit(**FIT)
    after = fcr.model.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before if "adopted" in name)
    # One name is one parameter, whichever program says it.
    assert fcr.model.adopted.unconstrained("scale") is fcr.guide.adopted.unconstrained("scale")
    assert len(pyro.get_param_store()) == 0
    batch = fcr.registry.encode(adata).batch(range(4))
    nodes = poutine.trace(fcr.model).get_trace(batch).nodes  # Pyro's own handlers see them, too
    torch.testing.assert_close(nodes["z_t.loc"]["value"], after["adopted./z_t/loc"])
    assert (nodes["scale"]["value"] > 0).all()
    loaded = FCR.load(fcr.save(tmp_path / "m"), adata=adata, model=made()[0], guide=made()[1])
    assert loaded.elbo(adata[:50].copy()) == fcr.elbo(adata[:50].copy())
    again = copy.deepcopy(fcr.model)  # a copy has parameters of its own
    assert again.adopted.unconstrained("scale") is not fcr.model.adopted.unconstrained("scale")


def test_plain_functions_and_handlers_are_programs(adata, tmp_path):
    def programs():
        model, guide = parts_of(adata)

        def model_function(batch):
            return model(batch)

        def guide_function(batch):
            return guide(batch)

        return model, guide, model_function, guide_function

    torch.manual_seed(0)
    model, guide, model_function, guide_function = programs()
    fcr = FCR(adata, SCHEMA, model=model_function, guide=guide_function)
    before = copy.deepcopy(model.state_dict())
    history = fcr.fit(**FIT)
    assert not any(torch.equal(v, before[k]) for k, v in model.named_parameters() if "bias" in k)
    assert history["heldout/elbo"].iloc[-1] > history["heldout/elbo"].iloc[0]
    folder = fcr.save(tmp_path / "m")
    *_, one, two = programs()
    loaded = FCR.load(folder, adata=adata, model=one, guide=two)
    np.testing.assert_array_equal(
        fcr.get_latent_representation("z_t"), loaded.get_latent_representation("z_t")
    )
    # A copy of a function would compute with the same networks: the alignment leaves it alone.
    cells = Batches(register(adata, SCHEMA)[1], np.arange(99), batch_size=64, device=fcr.device)
    objective = Objective.from_programs(model_function, guide_function, cells.batch(cells.rows))
    assert "a plain function" in align(objective, cells, teach_steps=1, learning_rate=1e-3).obstacle
    masked = FCR(adata, SCHEMA, model=poutine.mask(model, torch.tensor(True)), guide=guide)
    assert masked.model.z_t is model.z_t
    assert obstacle_to_copies(masked.model) == ""
    assert copy.deepcopy(masked.model).z_t is not model.z_t


def test_a_conditioned_model_takes_the_guide_of_the_whole_one(programs, batch, caplog):
    model, guide = programs
    given = torch.zeros(len(batch), 2, device=batch["library"].device)
    checked = check_programs(pyro.condition(model, {"z_x": given}), guide, batch)
    assert [group.latents for group in checked.groups] == [("z_tx",), ("z_t",)]
    assert "The model observes z_x: the guide's draw of it does not count." in caplog.messages
    objective = Objective.from_programs(pyro.condition(model, {"z_x": given}), guide, batch)
    assert "reconstruction_z_x" in objective.terms

    def reading(batch):  # the other latents are drawn from the one that does not count
        with pyro.plate("cells", len(batch)):
            z_x = pyro.sample("z_x", dist.Normal(given, 1.0).to_event(1))
            for site in ("z_tx", "z_t"):
                pyro.sample(site, dist.Normal(z_x, 1.0).to_event(1))

    with pytest.raises(ProgramError, match=r"observes z_x, but the guide draws it and z_t, z_tx"):
        check_programs(pyro.condition(model, {"z_x": given}), reading, batch)


def test_what_would_never_train_or_have_an_effect_is_refused_by_name(programs, batch):
    model, guide = programs
    loose = torch.zeros(2, requires_grad=True)

    def weighted(site, fn):
        return poutine.infer_config(fn, lambda s: {"beta": 0.1} if s["name"] == site else {})

    with pytest.raises(ProgramError, match=r"tensor of shape \(2,\).*parameter of no module"):
        check_programs(lambda b: model(poutine_shift(b, loose)), guide, batch)
    with pytest.raises(ProgramError, match=r"z_t: infer=\{'beta': ...\} has no effect .*'kl_z_t'"):
        check_programs(weighted("z_t", model), guide, batch)

    def subsampled(b):
        with pyro.plate("cells", 10 * len(b), subsample_size=len(b)):
            for site in ("z_x", "z_tx", "z_t"):
                pyro.sample(site, dist.Normal(torch.zeros(len(b), 2), 1.0).to_event(1))

    with pytest.raises(ProgramError, match=r"z_x: the plate 'cells' draws 24 of 240 cells"):
        check_programs(model, subsampled, batch)


def poutine_shift(batch, shift):
    return replace(batch, values={**batch.values, "library": batch["library"] + shift.sum()})


@pytest.mark.parametrize("adopted", [False, True])
def test_pyro_s_own_loss_trains_the_shipped_programs_however_many_there_are(batch, adopted):
    for _ in range(2):  # the second of the same names trains as well
        model, guide = make_programs(batch)
        if adopted:
            Objective.from_programs(model, guide, batch)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        before = {id(p): p.detach().clone() for m in (model, guide) for p in m.parameters()}
        for _ in range(2):
            svi.step(batch)
        model.z_t = make_programs(batch)[0].z_t  # and so does a part that was put in its place
        start = model.z_t.loc.weight.detach().clone()
        svi.step(batch)
        assert not torch.equal(model.z_t.loc.weight, start)
        kept = [p for m in (model, guide) for p in m.parameters() if id(p) in before]
        assert not any(torch.equal(p, before[id(p)]) for p in kept)


def test_bayesian_weights_of_a_finished_network_train(adata):
    torch.manual_seed(0)
    model, guide = parts_of(adata)
    to_pyro_module_(model)
    to_pyro_module_(guide)
    head = model.y.heads[0]
    prior = dist.Normal(0.0, 0.5).expand(head.weight.shape).to_event(2)
    del head.weight
    head.weight = PyroSample(prior)
    plain = type(model).forward

    class Bayesian(type(model)):
        def forward(self, batch):
            self.y.heads[0].weight  # noqa: B018 (drawn here, before the plate over cells)
            return plain(self, batch)

    model.__class__ = Bayesian
    shared = AutoNormal(poutine.block(model, expose=["y.heads.0.weight"]))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.shared = guide, shared

        def forward(self, batch):
            self.shared(batch)
            self.cells(batch)

    fcr = FCR(adata, SCHEMA, model=model, guide=Both())
    assert fcr.graph.shared == {"y.heads.0.weight"}
    history = fcr.fit(**FIT)
    assert "train/kl_y.heads.0.weight" in history
    assert history["heldout/elbo"].iloc[-1] > history["heldout/elbo"].iloc[0]


def test_double_precision_and_its_process_default(adata, tmp_path):
    model, guide = (part.double() for part in parts_of(adata))
    fcr = FCR(adata, SCHEMA, model=model, guide=guide)
    fcr.fit(**{**FIT, "max_epochs": 1})
    assert fcr.counterfactual(adata[:5].copy(), treatment="drug1", output="mean").shape == (5, 8)
    single = FCR(adata, SCHEMA, architecture=SIZES)
    single.fit(**{**FIT, "max_epochs": 1})
    expected, folder = single.elbo(), single.save(tmp_path / "m")
    torch.set_default_dtype(torch.float64)
    try:
        assert single.elbo() == pytest.approx(expected)
        loaded = FCR.load(folder, adata=adata)
        assert loaded.dtype == torch.float64
        assert loaded.elbo(adata[single.split.heldout].copy()) == pytest.approx(expected, abs=0.5)
        built = FCR(adata, SCHEMA, architecture=SIZES)
        assert np.isfinite(built.fit(**{**FIT, "max_epochs": 1})["heldout/elbo"]).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_give_the_serial_answers(adata):
    def fitted(seed):
        fcr = FCR(adata, SCHEMA, architecture=SIZES, seed=seed)
        return fcr.fit(**{**FIT, "max_epochs": 2}, seed=seed)["heldout/elbo"].to_numpy()

    fcr = FCR(adata, SCHEMA, architecture=SIZES)

    def asked(treatment):
        return fcr.counterfactual(adata[:9].copy(), treatment=treatment, output="mean").X

    state, treatments = torch.get_rng_state(), ["drug1", "drug2"] * 6
    serial = [*map(fitted, (0, 1)), *map(asked, treatments)]
    with ThreadPoolExecutor(4) as pool:
        fits, answers = pool.map(fitted, (0, 1)), pool.map(asked, treatments)
        threaded = [*fits, *answers]
    for one, two in zip(serial, threaded, strict=True):
        np.testing.assert_array_equal(one, two)
    assert torch.equal(state, torch.get_rng_state())


def test_predictive_takes_two_steps_or_an_unconditioned_model(programs, batch):
    model, guide = programs
    same = Predictive(model, guide=guide, num_samples=2)(batch)["y"]
    assert (same == batch["y"]).all()  # Pyro returns what is observed
    with pytest.raises(KeyError, match=r"holds no 'y'.*posterior_samples=latents"):
        Predictive(model, guide=guide, num_samples=2)(batch.without("y"))
    latents = Predictive(guide, num_samples=3)(batch)
    drawn = Predictive(model, posterior_samples=latents)(batch.without("y"))["y"]
    free = Predictive(poutine.uncondition(model), guide=guide, num_samples=3)(batch)["y"]
    for values in (drawn, free):
        assert values.shape == (3, *batch["y"].shape)
        assert (values != batch["y"]).any()


def test_particles_are_vectorised_or_averaged(programs, batch):
    model, guide = programs
    one, many = (
        Trace_ELBO(num_particles=200, vectorize_particles=v, max_plate_nesting=1)
        for v in (False, True)
    )
    assert many.loss(model, guide, batch) == pytest.approx(one.loss(model, guide, batch), rel=0.02)
    objective = Objective.from_programs(model, guide, batch, weights={"structure": 0.0})
    spread = {}
    for n in (1, 16):
        loss = FCRLoss(objective, num_particles=n)
        spread[n] = np.std([loss.loss(model, guide, batch) for _ in range(30)])
    assert spread[16] < 0.5 * spread[1]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=FCRLoss(objective, num_particles=4))
    assert svi.step(batch) > svi.evaluate_loss(batch) - 50.0


def test_the_importance_weighted_bound_rises_from_the_elbo_to_the_evidence(adata):
    fcr = FCR(adata, SCHEMA, architecture=SIZES)
    fcr.fit(**FIT)
    few = adata[:60].copy()
    elbo = np.mean([fcr.elbo(few, seed=s) for s in range(20)])
    ones = np.mean([fcr.log_evidence(1, few, seed=s) for s in range(20)])
    assert ones == pytest.approx(elbo, abs=0.3)
    bounds = [fcr.log_evidence(n, few) for n in (10, 200)]
    assert ones < bounds[0] < bounds[1]


class _Odd(nn.Module):
    """A latent of any event shape beside z_t, read by the decoder in a row."""

    def __init__(self, parts, shape):
        super().__init__()
        self.parts, self.shape = parts, shape

    def prior(self, t):
        loc = t.sum(-1).reshape(-1, *[1] * len(self.shape)).expand(-1, *self.shape)
        return dist.Normal(loc, 1.0).to_event(len(self.shape))

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            q = pyro.sample("q", self.prior(t)).reshape(len(batch), -1)
            z_x = pyro.sample("z_x", self.parts.z_x(x))
            loc = torch.log_softmax(F.pad(torch.cat([q, z_x], -1), (0, 10))[:, :10], -1)
            y = NegativeBinomial(loc + batch["library"].log(), torch.zeros(10)).to_event(1)
            pyro.sample("y", y, obs=batch.get("y"))


class _OddGuide(nn.Module):
    def __init__(self, parts, shape):
        super().__init__()
        self.parts, self.shape = parts, shape
        self.q = nn.Linear(10, max(1, int(np.prod(shape))))

    def forward(self, batch):
        y = self.parts.features(batch["y"], batch["library"])
        with pyro.plate("cells", len(batch)):
            q = self.q(y).reshape(len(batch), *self.shape)
            pyro.sample("q", dist.Normal(q, 1.0).to_event(len(self.shape)))
            pyro.sample("z_x", self.parts.z_x(y, batch["x"]))


@pytest.mark.parametrize("shape", [(), (2, 2)], ids=["scalar", "matrix"])
def test_latents_of_any_shape_have_penalties(shape):
    batch = make_batch()
    model, guide = make_programs(batch)
    programs = _Odd(model, shape), _OddGuide(guide, shape)
    weights = {"structure": 1.0, "permutation": 1.0, "label": 1.0}
    objective = Objective.from_programs(*programs, batch, weights=weights)
    assert "structure_q_x" in objective.terms
    objective(batch).total.backward()
    assert programs[1].q.weight.grad.any()


def test_a_site_without_strata_is_named(programs, batch):
    codes = {"x": batch.codes["x"]}
    unstratified = replace(batch, codes=codes, n_levels={"x": 3})
    with pytest.raises(ProgramError, match=r"t: the batch has no strata .*structure_z_x_t"):
        Objective.from_programs(*programs, unstratified)
    free = {"structure": 0.0, "permutation": 0.0}
    objective = Objective.from_programs(*programs, unstratified, weights=free)
    assert torch.isfinite(objective(unstratified).total)


class _Shifted(dist.Normal):
    """A family of the user's: it scores values otherwise than the one that it is a kind of."""

    def log_prob(self, value):
        return super().log_prob(value) - 3.0


def test_a_subclass_does_not_inherit_a_closed_form_and_a_factor_says_how_it_was_drawn(
    programs, batch, caplog
):
    model, guide = programs
    prior = model.z_t

    class Prior(nn.Module):
        def forward(self, t):
            family = prior(t).base_dist
            return _Shifted(family.loc, family.scale).to_event(1)

    model.z_t = Prior()
    objective = Objective.from_programs(model, guide, batch)
    assert not objective.terms["kl_z_t"].analytic
    assert any("there is none for Normal against _Shifted" in m for m in caplog.messages)

    def corrected(b):
        guide(b)
        pyro.factor("correction", torch.ones(()), has_rsample=False)

    with pytest.raises(ProgramError, match=r"correction: the guide's Unit has no reparam"):
        check_programs(model, corrected, batch)


def test_weights_that_are_drawn_within_the_plate_are_named(programs, batch):
    model, guide = programs
    to_pyro_module_(model)
    prior = dist.Normal(0.0, 1.0).expand(model.z_t.loc.weight.shape).to_event(2)
    del model.z_t.loc.weight
    model.z_t.loc.weight = PyroSample(prior)
    with pytest.raises(ProgramError, match=r"z_t\.loc\.weight.*before.*plate"):
        check_programs(model, guide, batch)


def test_a_traced_step_of_adopted_parameters_and_shared_networks_is_the_eager_one(adata):
    registry, cells = register(adata, SCHEMA)
    torch.manual_seed(0)
    model, guide = parts_of(adata)
    model.z_t, guide.z_t = ParamPrior(), ParamEncoder()
    net = nn.Linear(registry.widths["x"], 2)
    batch = cells.batch(np.arange(32))

    class OfNet(nn.Module):
        def forward(self, *inputs):
            return dist.Normal(net(inputs[-1]), 1.0).to_event(1)

    model.z_x, guide.z_x = OfNet(), OfNet()  # one network in both, an attribute of neither
    objective = Objective.from_programs(model, guide, batch)
    step = TracedStep(objective, batch)
    with pyro.validation_enabled(is_validate=False):
        found = []
        for evaluate in (step, partial(eager_gradients, objective)):
            torch.manual_seed(1)
            found.append(evaluate(batch))
    torch.testing.assert_close(*(torch.stack([f.total, *f.terms]) for f in found))
    for one, other in zip(found[0].main, found[1].main, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert sum("adopted" in name for name, _ in objective.named_parameters()) == 4


def test_a_discrete_latent_is_refused_with_the_ways_to_sum_it_out(programs, batch):
    model, guide = programs

    def responders(b):
        with pyro.plate("responders", 1):
            pyro.sample("r", dist.Bernoulli(0.5))
        return model(b)

    def guided(b):
        with pyro.plate("responders", 1):
            pyro.sample("r", dist.Bernoulli(0.5))
        guide(b)

    for other in (guide, guided):
        with pytest.raises(ProgramError, match=r"^r: .*discrete latents have no gradient.*SumOut"):
            check_programs(responders, other, batch)
