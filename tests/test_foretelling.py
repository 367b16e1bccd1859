"""Pairs that were never seen: the average, or what seen pairs foretell."""

import numpy as np
import pytest
import torch

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


def test_states_that_kept_nothing_of_unseen_pairs_are_read(shares):
    prior = InteractionPrior(N_T, N_X, 3, mean_context=torch.tensor(shares).float())
    prior.foretold += 1.0
    state = prior.state_dict()
    del state["foretold"]
    new = InteractionPrior(N_T, N_X, 3, mean_context=torch.tensor(shares).float())
    new.load_state_dict(state)
    assert (new.foretold == 0).all()
    assert "foretold" not in InteractionPrior(N_T, N_X, 3).state_dict()
