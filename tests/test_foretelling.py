"""Pairs that were never seen: the average, or what seen pairs foretell."""

import numpy as np
import pytest
import torch
from conftest import SCHEMA, simulate

from pyro_fcr import FCR
from pyro_fcr.nn import InteractionPrior
from pyro_fcr.nn.foretelling import context_weights

N_T, N_X = 6, 5


@pytest.fixture
def shares():
    """A design that lacks one context of each of four treatments."""
    cells = np.ones((N_T, N_X))
    cells[range(4), range(4)] = 0
    return cells / cells.sum(axis=1, keepdims=True)


def prior_of(shares, effects):
    """A prior whose pairs do what is wanted: an embedding has a place for each pair's effect."""
    n_t, n_x, n_latent = effects.shape
    prior = InteractionPrior(
        n_t, n_x, n_latent, n_embedding=n_x * n_latent, mean_context=torch.tensor(shares).float()
    )
    with torch.no_grad():
        prior.treatment.weight.copy_(torch.tensor(effects).reshape(n_t, -1).T)
        prior.context.weight.copy_(torch.eye(n_x).repeat_interleave(n_latent, dim=0))
        prior.loc.weight.copy_(torch.eye(n_latent).repeat(1, n_x))
    return prior


def answers(prior):
    t = torch.eye(N_T).repeat_interleave(N_X, dim=0)
    return prior(t, torch.eye(N_X).repeat(N_T, 1)).mean.detach().reshape(N_T, N_X, -1).numpy()


def deviations(effects, shares):
    average = (shares[:, :, None] * effects).sum(axis=1, keepdims=True)
    return effects - average


def test_unseen_pairs_are_foretold_where_contexts_differ_in_few_ways(shares):
    rng = np.random.default_rng(3)
    effects = rng.normal(size=(N_T, 1, 3)) * rng.normal(size=(N_X, 1))
    prior, expected = prior_of(shares, effects), deviations(effects, shares)
    before = answers(prior)
    np.testing.assert_allclose(before[shares > 0], expected[shares > 0], atol=1e-5)
    assert (np.abs(before[shares == 0]) < 1e-5).all()
    prior.foretell()
    found = answers(prior)
    np.testing.assert_allclose(found[shares > 0], before[shares > 0])
    gap = np.abs(found - expected)[shares == 0].max()
    assert gap < 0.25 * np.abs(expected[shares == 0]).max()


def test_unseen_pairs_get_the_average_where_nothing_foretells_them(shares):
    effects = np.random.default_rng(0).normal(size=(40, N_T, N_X, 3))
    found = [(context_weights(each, shares) @ each)[shares == 0] for each in effects]
    assert np.median(np.square(found).mean(axis=(1, 2))) < 0.05  # of a variance of 1


def test_a_context_without_any_treatment_is_foretold_by_the_state_of_its_untreated_cells():
    """Of one treatment in eight contexts, where nothing else tells contexts apart."""
    rng = np.random.default_rng(1)
    states, noise = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    effects = (states @ rng.normal(size=(3, 2)))[None]
    shares = np.full((1, 8), 1 / 7)
    shares[0, 7] = 0.0
    own = deviations(effects, shares)
    found = (context_weights(effects, shares, states) @ own)[0, 7]
    assert np.linalg.norm(found - own[0, 7]) < 0.4 * np.linalg.norm(own[0, 7])
    assert (context_weights(effects, shares) == 0).all()
    unlike = context_weights(noise[None], shares, states) @ deviations(noise[None], shares)
    assert np.abs(unlike).max() < 0.5 * np.abs(noise).max()


def test_states_do_not_hide_what_other_treatments_tell(shares):
    rng = np.random.default_rng(3)
    effects = rng.normal(size=(N_T, 1, 3)) * rng.normal(size=(N_X, 1))
    states = rng.normal(size=(N_X, 4))
    expected = deviations(effects, shares)[shares == 0]
    found = context_weights(effects, shares, states) @ deviations(effects, shares)
    assert np.abs(found[shares == 0] - expected).max() < 0.25 * np.abs(expected).max()


def test_what_an_unseen_pair_would_be_by_the_embeddings_is_not_looked_at(shares):
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(N_T, 1, 3)) * rng.normal(size=(N_X, 1))
    found = context_weights(effects, shares)
    effects[shares == 0] = 100.0
    np.testing.assert_array_equal(context_weights(effects, shares), found)
    assert np.abs(found[shares == 0]).max() > 0.1
    assert (found[shares > 0] == 0).all()


def test_pairs_without_any_other_treatment_or_context_get_the_average():
    shares = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert (context_weights(np.ones((2, 3, 2)), shares) == 0).all()


def test_with_two_covariates_unseen_levels_get_the_average_in_proportion():
    shares = torch.tensor([[0.5, 0.5, 0.0, 0.3, 0.7]])  # three lines, two donors
    prior = InteractionPrior(1, 5, 2, mean_context=shares)
    prior.foretell()
    assert (prior.foretold == 0).all()
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 1.0]])
    found = prior(torch.ones(2, 1), x).mean
    other = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0]])
    of_seen = prior(torch.ones(2, 1), other).mean
    torch.testing.assert_close(found[0] - found[1], of_seen[0] - of_seen[1], atol=1e-5, rtol=1e-4)


def test_what_is_foretold_follows_from_the_parameters_and_is_not_saved(shares):
    prior = InteractionPrior(N_T, N_X, 3, mean_context=torch.tensor(shares).float())
    assert "foretold" not in prior.state_dict()


def test_a_fitted_model_foretells_and_does_so_again_when_it_is_loaded(tmp_path, monkeypatch):
    adata = simulate(300, n_genes=10, n_t=2)
    rows = (adata.obs["drug"] == "drug1") & (adata.obs["line"] == "line0")
    adata = adata[~rows.to_numpy()].copy()

    def even(effects, shares, states):
        assert len(states) == shares.shape[1]
        return np.full((*shares.shape, shares.shape[1]), 0.3) * (shares == 0)[:, :, None]

    monkeypatch.setattr("pyro_fcr.nn.conditionals.context_weights", even)
    fcr = FCR(adata, SCHEMA)
    fcr.fit(max_epochs=1, progress=False)
    assert fcr.model.z_tx.foretold.abs().max() > 0
    fcr.save(tmp_path / "model")
    loaded = FCR.load(tmp_path / "model", adata=adata)
    torch.testing.assert_close(loaded.model.z_tx.foretold, fcr.model.z_tx.foretold)


def test_a_treatment_seen_in_a_single_other_context_tells_nothing_of_contexts(monkeypatch):
    """Less its own average a single context is zero, but for rounding that must not be divided."""
    monkeypatch.setattr("pyro_fcr.nn.foretelling._most_cautious", lambda rules, gains: rules[0])
    shares = np.array([[0.3, 0.3, 0.4, 0.0], [0.7, 0.0, 0.0, 0.3]])
    for seed in range(20):
        effects = np.random.default_rng(seed).normal(size=(2, 4, 3))
        assert (context_weights(effects, shares)[0, 3] == 0).all()


def test_where_contexts_are_alike_by_chance_the_average_is_kept(shares):
    """Regression that seen pairs left out in turn speak for, but not beyond their errors."""
    rng, lost = np.random.default_rng(5), []
    for _ in range(40):
        effects = rng.normal(size=(N_T, N_X, 3))
        found = context_weights(effects, shares) @ deviations(effects, shares)
        lost.append(np.square(found[shares == 0]).mean())
    assert np.mean(lost) < 0.01  # of a variance of 1
