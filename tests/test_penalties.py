import numpy as np
import pytest
import torch
from operations import Operations
from torch import nn
from torch.distributions import Normal, kl_divergence

from pyro_fcr.objective import penalties
from pyro_fcr.objective.terms import Discriminator


def test_group_mean_counts_empty_groups(device):
    values = torch.tensor([[1.0], [3.0], [5.0]], device=device)
    mean, size = penalties.group_mean(values, torch.tensor([2, 2, 0], device=device), 4)
    assert mean.squeeze().tolist() == [5.0, 0.0, 2.0, 0.0]
    assert size.squeeze().tolist() == [1.0, 0.0, 2.0, 0.0]


def test_sums_in_one_order_are_the_same_sums(monkeypatch):
    """On CUDA torch adds up groups in another order, and so to other bits, at each call."""
    group = torch.randint(0, 7, (60,))
    values, weight = torch.randn(60, 3), torch.randn(60, 3)
    found, unordered = [], []
    for in_order, most in ((False, 0), (True, 2**25), (True, 100)):
        monkeypatch.setattr(penalties, "_adds_in_any_order", lambda _, mend=in_order: mend)
        monkeypatch.setattr(penalties, "_MOST_ENTRIES", most)
        leaf = values.clone().requires_grad_()
        with Operations() as operations:
            mean, size = penalties.group_mean(leaf, group, 9)
            spread = (leaf - penalties._of_group(mean, group)).square()
            (spread * weight).sum().backward()
        found.append((mean, size, spread, leaf.grad))
        unordered.append(operations.unordered)
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other)
    assert "index_add" in unordered[0]
    assert unordered[1:] == [[], []]


def _loop(posterior, prior, condition):
    """The structure divergence written as a loop over conditions."""
    total, n = 0.0, 0
    for c in condition.unique():
        rows = condition == c
        size = int(rows.sum())
        if size < 2:
            continue
        between = posterior[0][rows].var(dim=0, unbiased=True)
        variance = posterior[1][rows].mean(dim=0) + between
        squared = (posterior[0][rows].mean(0) - prior[0][rows].mean(0)) ** 2 - between / size
        p = prior[1][rows].mean(0) + prior[0][rows].var(dim=0, unbiased=False)
        total += size * (0.5 * (variance / p - 1 - (variance / p).log() + squared / p)).sum()
        n += size
    return total / n


def test_structure_divergence_is_the_loop_over_conditions():
    condition = torch.randint(0, 7, (60,))
    condition[0] = 9  # a condition with a single cell
    posterior = (torch.randn(60, 3), torch.rand(60, 3) + 0.1)
    prior = (torch.randn(60, 3), torch.rand(60, 3) + 0.1)
    mine = penalties.structure_divergence(posterior, prior, condition, 12)
    torch.testing.assert_close(mine, _loop(posterior, prior, condition))


def test_structure_divergence_is_the_kl_of_gaussians_for_many_cells():
    p, q = Normal(0.3, 1.5), Normal(-0.4, 0.8)
    loc = q.loc + 0.6 * torch.randn(200_000, 1)  # pooled: variance 0.6^2 + (0.8^2 - 0.6^2)
    posterior = (loc, torch.full_like(loc, 0.8**2 - 0.6**2))
    prior = (torch.full_like(loc, 0.3), torch.full_like(loc, 1.5**2))
    mine = penalties.structure_divergence(posterior, prior, torch.zeros(len(loc)).long(), 1)
    assert mine.item() == pytest.approx(kl_divergence(q, p).item(), abs=5e-3)


def test_structure_divergence_is_unbiased_for_few_cells_of_a_condition():
    """A posterior that is the prior has distance 0 however few cells a batch has of a condition."""
    condition = torch.arange(40_000) // 4
    loc = torch.randn(40_000, 1) * 0.7
    posterior = (loc, torch.full_like(loc, 1 - 0.7**2))
    prior = (torch.zeros_like(loc), torch.ones_like(loc))
    few = penalties.structure_divergence(posterior, prior, condition, 10_000).item()
    biased = 0.5 * 0.7**2 / 4  # what the squared distance of means would add
    assert few < 0.7 * biased


def test_no_gradient_is_lost_to_empty_or_single_conditions():
    loc = torch.randn(3, 2, requires_grad=True)
    posterior, prior = (loc, torch.ones(3, 2)), (torch.zeros(3, 2), torch.ones(3, 2))
    penalties.structure_divergence(posterior, prior, torch.tensor([0, 1, 5]), 8).backward()
    assert torch.equal(loc.grad, torch.zeros(3, 2))


def test_permutation_stays_within_strata_and_moves_cells(device):
    stratum = torch.randint(0, 5, (500,), device=device)
    index = penalties.permute_within(stratum, torch.ones(500, 2, device=device))
    assert torch.equal(stratum[index], stratum)
    assert torch.equal(index.sort().values, torch.arange(500, device=device))
    assert (index != torch.arange(500, device=device)).float().mean() > 0.9


def test_permutation_is_uniform():
    stratum = torch.tensor([0, 1, 0, 0])
    seen = np.zeros((4, 4))
    for _ in range(3000):
        seen[torch.arange(4), penalties.permute_within(stratum, 0.3 * stratum[:, None])] += 1 / 3000
    expected = np.array([[1, 0, 1, 1], [0, 3, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]) / 3
    np.testing.assert_allclose(seen, expected, atol=0.05)


def _blocks(dependence, n=4000):
    """Two blocks that share a cause s, and something more if dependence is not 0."""
    s = torch.randint(0, 3, (n,))
    given = torch.eye(3)[s]
    common = torch.randn(n, 1)
    left = s[:, None] + dependence * common + torch.randn(n, 2)
    right = -1.0 * s[:, None] + dependence * common + torch.randn(n, 2)
    return left, right, given, s


def test_cells_are_exchanged_within_about_one_dose():
    dose = torch.rand(2000, 1).square()
    stratum = (4 * dose[:, 0]).long()
    index = penalties.permute_within(stratum, dose)
    assert torch.equal(stratum[index], stratum)
    assert (dose[index] - dose).abs().max() <= 0.0201
    assert (index != torch.arange(2000)).float().mean() > 0.8


def _many_doses(dependence, n=512):
    """Two blocks that follow the dose, in strata of many doses each."""
    dose, common = torch.rand(n, 1), torch.randn(n, 1)
    left = dose + 0.5 * (torch.randn(n, 1) + dependence * common)
    right = 4.0 * dose + 0.1 * (torch.randn(n, 1) + dependence * common)
    return left, right, dose, (4 * dose[:, 0]).long()


@pytest.mark.parametrize(("dependence", "low", "high"), [(0.0, -0.04, 0.04), (1.5, 0.15, 1.5)])
def test_doses_within_a_stratum_are_no_dependence(dependence, low, high):
    discriminator = Discriminator(3, n_hidden=32)
    _train(discriminator, lambda: _many_doses(dependence), steps=600)
    left, right, dose, _ = _many_doses(dependence, 4000)
    assert low < penalties.log_density_ratio(discriminator, left, right, dose).item() < high


def _train(discriminator, blocks, steps=300):
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        penalties.discriminator_loss(discriminator, *blocks()).backward()
        optimizer.step()


@pytest.mark.parametrize(("dependence", "low", "high"), [(0.0, -0.03, 0.03), (1.5, 0.2, 1.5)])
def test_discriminator_tells_dependent_from_independent_blocks(dependence, low, high):
    discriminator = Discriminator(2 + 2 + 3, n_hidden=32)
    _train(discriminator, lambda: _blocks(dependence, 512))
    left, right, given, _ = _blocks(dependence)
    ratio = penalties.log_density_ratio(discriminator, left, right, given).item()
    assert low < ratio < high


def test_encoders_receive_the_gradient_and_dependence_falls():
    """A linear encoder that leaks one block into the other learns not to, from the penalty only."""
    encoder = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]))
    discriminator = Discriminator(2 + 2 + 3, n_hidden=32)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    adversary = torch.optim.Adam(discriminator.parameters(), lr=3e-3)

    def leak():
        return encoder.weight[:, 2:].norm() / encoder.weight.norm()

    before = leak().item()
    for step in range(600):
        own, right, given, s = _blocks(0.0, 512)
        left = encoder(torch.cat([own, right], dim=1))
        if step > 100:
            optimizer.zero_grad()
            penalties.log_density_ratio(discriminator, left, right, given).backward()
            assert encoder.weight.grad.norm() > 0
            optimizer.step()
        adversary.zero_grad()
        penalties.discriminator_loss(discriminator, left, right, given, s).backward()
        adversary.step()
    assert leak().item() < 0.4 * before


def test_discriminator_loss_gives_the_latents_no_gradient():
    left, right, given, s = _blocks(1.0, 64)
    left.requires_grad_()
    loss = penalties.discriminator_loss(Discriminator(7), left, right, given, s)
    with pytest.raises(RuntimeError, match="unused|not have been used"):
        torch.autograd.grad(loss, left)
