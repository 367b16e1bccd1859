"""Comparison models are trained, asked, saved and loaded; each differs from FCR as it says."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, Architecture, Schema
from pyro_fcr.comparison import (
    COMPARISONS,
    ConditionPrior,
    TotalCorrelation,
    build_comparison,
    fit_comparison,
    fit_scvi,
    permute_dimensions,
)
from pyro_fcr.data import register
from pyro_fcr.objective import Objective
from pyro_fcr.training import TrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore:z has 7 dimensions")  # fewer would be identifiable

SIZES = Architecture(n_x=3, n_t=2, n_tx=2, n_hidden=16)
SHIPPED = ["z_x ⟂ t | x", "z_t ⟂ x | t", "z_x ⟂ z_tx | x", "z_tx ⟂ z_t | t"]
CLAIMS = {
    "fcr_no_tx": ["z_x ⟂ t | x", "z_t ⟂ x | t"],
    "cvae": ["z ⟂ x", "z ⟂ t"],
    "beta_vae": ["z ⟂ x", "z ⟂ t"],
    "factor_vae": ["z ⟂ x", "z ⟂ t"],
    "ivae": [],
}
STRUCTURE = {"structure_z_x_t", "structure_z_t_x"}
PERMUTATION = {"permutation_z_x_z_tx", "permutation_z_tx_z_t"}
PENALTIES = {
    "fcr": STRUCTURE | PERMUTATION,
    "fcr_no_structure": PERMUTATION,
    "fcr_no_permutation": STRUCTURE,
    "fcr_no_penalties": set(),
    "fcr_no_alignment": STRUCTURE | PERMUTATION,
    "fcr_elbo": set(),
    "fcr_no_tx": STRUCTURE,
    "cvae": set(),
    "ivae": set(),
    "beta_vae": set(),
    "factor_vae": {"total_correlation"},
}
STANDS_FOR = {"fcr_no_tx": {"z_tx": ("z_x", "z_t")}}
HELD = {"ivae": [], "cvae": ["z"], "beta_vae": ["z"], "factor_vae": ["z"]}


@pytest.fixture(scope="module")
def cells():
    return simulate(400, n_genes=12)


@pytest.fixture(scope="module", params=COMPARISONS)
def fitted(request, cells):
    """The comparison and a model of it that was trained for a few epochs."""
    fcr = fit_comparison(
        request.param,
        cells,
        SCHEMA,
        architecture=SIZES,
        seed=1,
        max_epochs=30,
        batch_size=128,
        progress=False,
    )
    return COMPARISONS[request.param], fcr


ALIGNED = {"fcr", "fcr_no_structure", "fcr_no_permutation", "fcr_no_penalties", "fcr_no_tx"}


def test_fcr_is_aligned_and_plain_models_are_not(fitted):
    comparison, _ = fitted
    epoch = TrainingPlan(max_epochs=100, **comparison.plan).align_epoch(20_000)
    assert (epoch == 40) == (comparison.name in ALIGNED)
    assert epoch in (None, 40)


def own_objective(comparison, fcr, batch):
    objective = Objective.from_programs(
        fcr.model,
        fcr.guide,
        batch,
        weights=comparison.weights,
        extra=comparison.extra(SIZES),
    )
    objective.set_progress(1.0)
    return objective


def test_claims_follow_the_graph(fitted):
    comparison, fcr = fitted
    wanted = CLAIMS.get(comparison.name, SHIPPED)
    assert sorted(str(claim) for claim in fcr.claims()) == sorted(wanted)


def test_only_the_penalties_of_the_comparison_are_trained(fitted):
    comparison, fcr = fitted
    terms = {name.removeprefix("train/") for name in fcr.history if name.startswith("train/")}
    likelihood = {"reconstruction", "adversary", *(f"kl_{z}" for z in fcr.graph.blocks)}
    assert terms == likelihood | PENALTIES[comparison.name]
    beta = 4.0 if comparison.name == "beta_vae" else 1.0
    assert all((fcr.history[f"weight/kl_{z}"] == beta).all() for z in fcr.graph.blocks)


def test_every_parameter_receives_a_gradient(fitted, cells):
    comparison, fcr = fitted
    batch = fcr.registry.encode(cells).batch(np.arange(64))
    objective = own_objective(comparison, fcr, batch)
    objective.zero_grad()
    objective(batch).total.backward()
    silent = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_training_improves_the_elbo(fitted):
    _, fcr = fitted
    elbo = fcr.history["heldout/elbo"]
    assert math.isfinite(elbo.iloc[-1])
    assert elbo.max() > elbo.iloc[0] + 1.0


def test_latents_stand_for_the_blocks_of_fcr(fitted, cells):
    comparison, fcr = fitted
    assert sum(fcr.get_latent_representation(z).shape[1] for z in fcr.graph.blocks) == 7
    latents = comparison.latents(fcr, cells[:9].copy())
    assert list(latents) == ["z_x", "z_t", "z_tx"]
    for block in latents:
        own = STANDS_FOR.get(comparison.name, {}).get(block, (block,))
        own = own if "z_x" in fcr.graph.blocks else ("z",)
        wanted = [fcr.get_latent_representation(z, only_in_use=True)[:9] for z in own]
        np.testing.assert_allclose(latents[block], np.hstack(wanted), atol=1e-5)


def test_questions_are_answered(fitted, cells):
    comparison, fcr = fitted
    source = cells[:40].copy()
    answers = [
        fcr.counterfactual(source, treatment=drug, output="mean") for drug in ("drug1", "drug2")
    ]
    assert answers[0].uns["pyro_fcr"]["held"] == HELD.get(comparison.name, ["z_x"])
    assert not np.allclose(answers[0].X, answers[1].X, rtol=1e-3)
    drawn = fcr.predict("drug1", covariates={"line": "line0"}, n_cells=10)
    for answer in (*answers, drawn):
        values = answer.X.toarray() if hasattr(answer.X, "toarray") else answer.X
        assert np.isfinite(values).all()
    assert drawn.shape == (10, 12)


def test_what_a_counterfactual_keeps_of_a_cell(fitted, cells):
    comparison, fcr = fitted
    source = cells[:40].copy()
    mixed = source.copy()
    mixed.X = source.X[:, ::-1].copy()  # another cell of the same library size
    one, two = (
        fcr.counterfactual(each, treatment="drug1", output="mean").X for each in (source, mixed)
    )
    assert np.allclose(one, two) == (comparison.name == "ivae")


def test_saving_and_loading(fitted, cells, tmp_path):
    comparison, fcr = fitted
    model, guide = build_comparison(comparison.name, fcr.registry, architecture=SIZES)
    own = {} if fcr.architecture else {"model": model, "guide": guide}
    loaded = FCR.load(fcr.save(tmp_path / "m"), adata=cells, **own)
    source = cells[:9].copy()
    one, two = (each.counterfactual(source, treatment="drug1").X for each in (fcr, loaded))
    assert (one != two).sum() == 0


def test_a_seed_decides_all(cells):
    plan = {"max_epochs": 1, "progress": False, "architecture": SIZES}
    one, again, other = (
        fit_comparison("factor_vae", cells, SCHEMA, seed=seed, **plan) for seed in (3, 3, 4)
    )
    adversary = [fcr.history["train/adversary"].tolist() for fcr in (one, again, other)]
    assert adversary[0] == adversary[1] != adversary[2]
    heldout = [fcr.split.heldout.tolist() for fcr in (one, again, other)]
    assert heldout[0] == heldout[1] != heldout[2]


def test_log1p_values_get_a_normal_likelihood():
    cells = simulate(300, n_genes=12)
    cells.X = np.log1p(1e3 * cells.X / cells.X.sum(axis=1, keepdims=True))
    schema = Schema(
        treatment_key="drug", control="control", covariate_keys="line", expression="log1p"
    )
    registry = register(cells, schema)[0]
    for name in ("cvae", "ivae", "fcr_no_tx"):
        model, _ = build_comparison(name, registry)
        assert type(model.y).__name__ == "NormalDecoder"
    with pytest.raises(ValueError, match="likelihood 'nb' is for"):
        build_comparison("cvae", registry, architecture=replace(SIZES, likelihood="nb"))


def test_an_unknown_name_is_refused(cells):
    with pytest.raises(ValueError, match="'vae'; expected fcr, .*ivae"):
        fit_comparison("vae", cells, SCHEMA)


def test_without_z_tx_the_decoder_follows_the_architecture():
    registry = register(simulate(300, n_genes=12), SCHEMA)[0]
    joint = Architecture(n_x=3, n_t=2, n_tx=3, decoder="joint")
    model, _ = build_comparison("fcr_no_tx", registry, architecture=joint)
    assert len(model.y.hidden) == 1
    additive = replace(joint, decoder="additive")
    model, _ = build_comparison("fcr_no_tx", registry, architecture=additive)
    assert len(model.y.hidden) == 2


def test_the_condition_prior_adds_main_effects_and_interaction():
    prior = ConditionPrior(3, 2, 4)
    x, t = torch.eye(3), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found, interaction = prior(x, t), prior.interaction(t, x)
    weight = prior.main.loc.weight.T
    torch.testing.assert_close(
        found.mean, weight[:3] + torch.cat([torch.zeros(1, 4), weight[3:]]) + interaction.mean
    )
    assert interaction.mean[0].abs().max() == 0.0  # nothing interacts without treatment
    main_scale = prior.main(torch.cat([x, t], dim=1)).stddev
    torch.testing.assert_close(found.stddev.square(), main_scale * interaction.stddev)


class OneLatent:
    """As much of a run as a term of one block sees."""

    def __init__(self, latent):
        self.latent = latent

    def value(self, site):
        return self.latent


def test_each_dimension_is_permuted_on_its_own():
    latent = torch.arange(500.0).unsqueeze(1).expand(500, 3)
    permuted = permute_dimensions(latent)
    assert torch.equal(permuted.sort(dim=0).values, latent)
    off = torch.corrcoef(permuted.T)[~torch.eye(3, dtype=torch.bool)]
    assert off.abs().max() < 0.2


def test_total_correlation_is_measured():
    """Of two normals of correlation r it is -log(1 - r^2) / 2."""
    term = TotalCorrelation("z", n_latent=2, n_hidden=32)
    optimizer = torch.optim.Adam(term.parameters(), lr=5e-3)
    noise = torch.randn(4000, 2)
    run = OneLatent(torch.stack([noise[:, 0], 0.8 * noise[:, 0] + 0.6 * noise[:, 1]], dim=1))
    for _ in range(200):
        optimizer.zero_grad()
        term.adversary_loss(run).backward()
        optimizer.step()
    assert term(run).item() == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.12)
    assert term.adversary_loss(run).item() < math.log(2.0) - 0.05
    assert term(OneLatent(noise)).item() < 0.05


def test_total_correlation_takes_a_planted_correlation_away():
    term = TotalCorrelation("z", n_latent=2, n_hidden=32)
    mixing = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.8, 0.6]]))
    main, adversary = (
        torch.optim.Adam(parameters, lr=5e-3) for parameters in ([mixing], term.parameters())
    )
    correlations = []
    for _ in range(400):
        latent = torch.randn(500, 2) @ mixing.T
        main.zero_grad()
        spread = (latent.var(dim=0) - 1.0).square().sum()
        (term(OneLatent(latent)) + spread).backward()
        main.step()
        adversary.zero_grad()
        term.adversary_loss(OneLatent(latent)).backward()
        adversary.step()
        correlations.append(torch.corrcoef(latent.detach().T)[0, 1].item())
    assert correlations[0] > 0.7
    assert abs(np.mean(correlations[-50:])) < 0.25


def test_total_correlation_reaches_the_encoder_and_its_adversary_does_not(cells):
    registry = register(cells, SCHEMA)[0]
    model, guide = build_comparison("factor_vae", registry, architecture=SIZES)
    batch = registry.encode(cells).batch(np.arange(64))
    comparison = COMPARISONS["factor_vae"]
    objective = Objective.from_programs(
        model, guide, batch, weights=comparison.weights, extra=comparison.extra(SIZES)
    )
    losses = objective(batch)
    objective.adversary_loss(losses.run).backward()
    assert all(p.grad is None for p in objective.main_parameters())
    losses.terms["total_correlation"].backward()
    assert all(p.grad is not None and p.grad.any() for p in guide.z.parameters())


def test_total_correlation_needs_two_dimensions():
    with pytest.raises(ValueError, match="z: the block has 1 dimension; expected 2"):
        TotalCorrelation("z", n_latent=1)


def test_scvi_that_is_missing_is_named(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-fcr\[scvi\]'"):
        fit_scvi(cells, SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"expression": "log1p"}, "scVI needs counts"), ({"dose_key": "dose"}, "scVI knows no doses")],
)
def test_scvi_refuses_what_it_cannot_model(cells, change, message):
    schema = Schema(treatment_key="drug", control="control", covariate_keys="line", **change)
    with pytest.raises(ValueError, match=message):
        fit_scvi(cells, schema)


def quiet_scvi(cells, *, max_epochs):
    pytest.importorskip("scvi", reason="needs scvi-tools, pip install '.[scvi]'")
    quiet = dict.fromkeys(("enable_progress_bar", "logger", "enable_checkpointing"), False)
    return fit_scvi(
        cells, SCHEMA, n_latent=7, seed=2, max_epochs=max_epochs, accelerator="cpu", **quiet
    )


@pytest.mark.filterwarnings("ignore")
def test_scvi_is_decided_by_its_seed_and_leaves_cells_alone(cells):
    before = torch.get_rng_state()
    one, two = (quiet_scvi(cells, max_epochs=2).latents() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(cells.obs) == ["line", "drug"]
    assert not cells.uns
    assert one["z_tx"].shape == (400, 7)
    np.testing.assert_array_equal(one["z_x"], two["z_x"])


@pytest.mark.filterwarnings("ignore")
def test_scvi_gives_counterfactual_cells(cells):
    fit = quiet_scvi(cells, max_epochs=200)
    source = cells[cells.obs["drug"] == "control"].copy()
    real = {t: np.log(cells[cells.obs["drug"] == t].X.mean(axis=0)) for t in set(cells.obs["drug"])}
    for treatment in ("control", "drug1", "drug2"):
        drawn = fit.counterfactual(source, treatment=treatment)
        assert set(drawn.obs["drug"]) == {treatment}
        assert set(drawn.obs["source_drug"]) == {"control"}
        assert not drawn.obs["extrapolated"].any()
        mean = np.log(np.asarray(drawn.X.mean(axis=0)).ravel())
        distance = {t: np.linalg.norm(mean - values) for t, values in real.items()}
        assert min(distance, key=distance.get) == treatment
    with pytest.raises(ValueError, match="Unknown treatment 'drug1+drug2': scVI"):
        fit.counterfactual(source, treatment="drug1+drug2")
