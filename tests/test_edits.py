"""Every edit of the graph that users make is trained, asked, saved and loaded."""

import logging
import math
import re

import numpy as np
import pyro
import pytest
import torch
from edits import EDITS, bayesian
from pyro.infer.autoguide import AutoNormal

from pyro_fcr import AVERAGE, FCR, FCRLoss
from pyro_fcr.data import register
from pyro_fcr.graph import Claim
from pyro_fcr.objective import Objective
from pyro_fcr.objective.terms import KL


@pytest.fixture(scope="module", params=EDITS, ids=list(EDITS))
def edited(request):
    """The edit, its data and a model that was trained on it for a few epochs."""
    edit = EDITS[request.param]
    adata = edit.data()
    torch.manual_seed(0)
    model, guide = edit.build(register(adata, edit.schema)[0])
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    fcr.fit(
        max_epochs=4,
        batch_size=128,
        progress=False,
        extra=edit.extra(model),
        weights={"label": 0.1},
    )
    return edit, adata, fcr


def test_claims_follow_the_edit(edited):
    edit, _, fcr = edited
    assert sorted(str(c) for c in fcr.claims()) == sorted(edit.claims)


def test_every_graph_is_drawn_and_described(edited):
    pytest.importorskip("graphviz", reason="drawing needs the graphviz package")
    _, adata, fcr = edited
    batch = fcr.registry.encode(adata).batch(np.arange(4))
    source = pyro.render_model(fcr.model, (batch,), render_distributions=True).source
    table = fcr.inspect()
    assert list(table.index) == list(fcr.graph.parents)
    for site, parents in fcr.graph.parents.items():
        assert all(re.search(rf"\b{parent} -> {site}\b", source) for parent in parents)


def test_every_parameter_receives_a_gradient(edited):
    edit, adata, fcr = edited
    batch = fcr.registry.encode(adata).batch(np.arange(64))
    weights = {"structure": 1.0, "permutation": 1.0, "label": 1.0}
    objective = Objective.from_programs(
        fcr.model, fcr.guide, batch, weights=weights, extra=edit.extra(fcr.model)
    )
    for parameter in objective.parameters():
        parameter.grad = None
    objective(batch).total.backward()
    silent = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_training_improves_every_edit(edited):
    _, _, fcr = edited
    elbo = fcr.history["heldout/elbo"]
    assert math.isfinite(elbo.iloc[-1])
    assert elbo.max() > elbo.iloc[0]


def test_questions_are_answered(edited):
    edit, adata, fcr = edited
    source = adata[:20].copy()
    predicted = fcr.counterfactual(source, **edit.target)
    assert predicted.uns["pyro_fcr"]["held"] == list(edit.held)
    assert set(predicted.obs["drug"]) == {edit.target["treatment"]}
    levels = {key: known[0] for key, known in fcr.registry.covariates.items()}
    drawn = fcr.predict(edit.target["treatment"], covariates=levels, n_cells=10)
    for answer in (predicted, drawn):
        values = answer.X.toarray() if hasattr(answer.X, "toarray") else answer.X
        assert np.isfinite(values).all()
    assert predicted.obs["extrapolated"].all() == (edit.target["treatment"] == "drug3")


def test_saving_and_loading(edited, tmp_path):
    edit, adata, fcr = edited
    torch.manual_seed(7)
    model, guide = edit.build(fcr.registry)
    loaded = FCR.load(fcr.save(tmp_path / "m"), adata=adata, model=model, guide=guide)
    for block in fcr.graph.blocks:
        np.testing.assert_array_equal(
            fcr.get_latent_representation(block), loaded.get_latent_representation(block)
        )
    one, two = (m.counterfactual(adata[:9].copy(), **edit.target).X for m in (fcr, loaded))
    assert (one != two).sum() == 0


@pytest.fixture
def trained():
    """Train one edit by name."""

    def train(name, **fit):
        edit = EDITS[name]
        adata = edit.data()
        torch.manual_seed(0)
        model, guide = edit.build(register(adata, edit.schema)[0])
        fcr = FCR(adata, edit.schema, model=model, guide=guide)
        fcr.fit(max_epochs=4, batch_size=128, progress=False, **fit)
        return fcr, adata

    return train


def test_a_technical_batch_is_held_fixed_or_averaged_out(trained):
    fcr, adata = trained("b_batch")
    source = adata[:200].copy()
    fixed = fcr.counterfactual(source, treatment="drug1", covariates={"lane": "one"})
    assert set(fixed.obs["lane"]) == {"one"}
    averaged = fcr.counterfactual(source, treatment="drug1", covariates={"lane": AVERAGE})
    share = (averaged.obs["lane"] == "one").mean()
    assert share == pytest.approx((adata.obs["lane"] == "one").mean(), abs=0.1)
    assert list(averaged.obs["source_lane"]) == list(source.obs["lane"])
    assert fixed.uns["pyro_fcr"]["held"] == ["z_x"]  # no latent depends on the lane


def test_an_unseen_treatment_is_answered_from_its_features(trained):
    fcr, adata = trained("i_features")
    control = adata[adata.obs["drug"] == "control"].copy()
    like_1, like_2, new = (
        fcr.counterfactual(control, treatment=t, output="mean", n_draws=20).X.mean(axis=0)
        for t in ("drug1", "drug2", "drug3")
    )
    assert np.linalg.norm(new - like_1) < np.linalg.norm(new - like_2)


def test_cells_of_unknown_treatment_and_context(trained):
    fcr, adata = trained("j_blind")
    bare = adata[:30].copy()
    bare.obs = bare.obs[[]]
    blind = fcr.get_latent_representation("z_t", bare, labelled=False)
    np.testing.assert_allclose(blind, fcr.get_latent_representation("z_t")[:30], atol=1e-5)


def test_a_label_reading_guide_says_what_it_lacks():
    edit = EDITS["k_extra"]
    adata = edit.data()
    fcr = FCR(adata, edit.schema)
    bare = adata[:5].copy()
    bare.obs = bare.obs[[]]
    with pytest.raises(ValueError, match="labelled is False, but the guide reads 'x'"):
        fcr.get_latent_representation("z_x", bare, labelled=False)


def test_the_shipped_programs_refuse_sites_that_they_do_not_know():
    edit = EDITS["b_batch"]
    with pytest.raises(ValueError, match=r"covariate sites x, b; the shipped .* model= and guide="):
        FCR(edit.data(), edit.schema)


@pytest.mark.parametrize("name", ["f_mixture", "f_flow"])
def test_kl_without_closed_form_is_taken_from_draws_with_one_line(name, caplog):
    edit = EDITS[name]
    adata = edit.data()
    registry = register(adata, edit.schema)[0]
    batch = registry.encode(adata).batch(np.arange(32))
    with caplog.at_level(logging.WARNING, logger="pyro_fcr"):
        objective = Objective.from_programs(*edit.build(registry), batch)
    site = "z_x" if name == "f_mixture" else "z_t"
    drawn = [t.sites for t in objective.terms.values() if isinstance(t, KL) and not t.analytic]
    assert drawn == [(site,)]
    assert [r.message.split(" from its draw")[0] for r in caplog.records] == [
        f"KL of {site} is taken"
    ]


def test_shared_latents_are_spread_over_the_data_and_drawn_from_the_guide():
    edit = EDITS["g_bayesian"]
    adata = edit.data()
    registry = register(adata, edit.schema)[0]
    model, guide = bayesian(registry, AutoNormal)
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    assert fcr.graph.shared == {"log_dispersion"}
    assert "log_dispersion" not in fcr.graph.blocks
    batch = registry.encode(adata).batch(np.arange(100))
    objective = Objective.from_programs(model, guide, batch)
    name = "kl_log_dispersion"
    draws = torch.stack([objective(batch).terms[name].detach() for _ in range(400)])
    scale, loc = guide.shared.scales.log_dispersion, guide.shared.locs.log_dispersion
    expected = (0.5 * (scale**2 + loc**2 - 1) - scale.log()).sum() / batch.n_total
    assert draws.mean().item() == pytest.approx(expected.item(), rel=0.05)


def test_a_user_s_own_svi_trains_an_autoguide_too():
    edit = EDITS["g_bayesian"]
    adata = edit.data()
    registry = register(adata, edit.schema)[0]
    batch = registry.encode(adata).batch(np.arange(64))
    for _ in range(2):  # a second model of the same names must train as well
        model, guide = bayesian(registry)
        objective = Objective.from_programs(model, guide, batch, weights={"structure": 1.0})
        before = {n: p.detach().clone() for n, p in objective.named_parameters()}
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=FCRLoss(objective))
        for _ in range(3):
            svi.step(batch)
        trained = {n for n, p in objective.named_parameters() if not torch.equal(p, before[n])}
        assert {n for n in before if "adversary" not in n and "terms" not in n} <= trained


def test_claims_can_be_dropped_and_added_by_name(trained):
    more = Claim("permutation", "z_x", "z_t", ("x",))
    edit = EDITS["k_extra"]
    adata = edit.data()
    fcr = FCR(adata, edit.schema)
    fcr.fit(
        max_epochs=1,
        progress=False,
        enforced=[*fcr.claims(), more],
        weights={"structure_z_t_x": 0.0},
    )
    assert "train/permutation_z_x_z_t" in fcr.history
    assert "train/structure_z_t_x" not in fcr.history
    assert "train/structure_z_x_t" in fcr.history
    assert more.words == "Among cells of the same x, z_x says nothing about z_t."


def test_shared_latents_of_predictions_are_the_posterior_s(trained):
    fcr, adata = trained("g_bayesian")
    with torch.no_grad():
        fcr.guide.shared.locs.log_dispersion.fill_(5.0)
    seen = []
    assert fcr.graph.shared == {"log_dispersion"}  # read before the decoder is listened to
    handle = fcr.model.y.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[-1]))
    fcr.predict("drug1", covariates={"line": "line0"}, n_cells=5)
    fcr.counterfactual(adata[:5].copy(), treatment="drug1")
    handle.remove()
    assert [value.mean().item() for value in seen] == pytest.approx([5.0, 5.0], abs=0.5)


def test_autoguides_stay_out_of_the_parameter_store_and_train_twice(trained):
    before = torch.zeros(12)
    for _ in range(2):
        fcr, _ = trained("g_bayesian")
        assert len(pyro.get_param_store()) == 0
        assert not torch.equal(fcr.guide.shared.locs.log_dispersion.detach(), before)
        assert fcr.guide.shared.locs.log_dispersion.requires_grad


def test_held_out_cells_are_divided_by_the_number_of_training_cells(trained, tmp_path):
    fcr, adata = trained("g_bayesian")
    few = adata[fcr.split.heldout[:8]].copy()
    elbos = []
    for unconstrained in (
        -10.0,
        -17.0,
    ):  # of the scales: the KL grows by 7 nats each
        with torch.no_grad():
            fcr.guide.shared.scales.log_dispersion_unconstrained.fill_(unconstrained)
        folder = fcr.save(tmp_path / str(unconstrained))
        loaded = FCR.load(folder, adata=adata, model=fcr.model, guide=fcr.guide)
        elbos.append([fcr.elbo(few), loaded.elbo(few)])
    change = np.subtract(*elbos)
    np.testing.assert_allclose(change, 12 * 7 / len(fcr.split.train), rtol=0.01)
