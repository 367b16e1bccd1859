"""Penalties as pure functions of latents: nats per cell, no Pyro, no loop over conditions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_fcr.parts import Part


def group_mean(
    values: Tensor, group: Tensor, n_groups: int, *, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Average rows that share a group.

    Parameters
    ----------
    values
        ``(n_cells, n_features)``.
    group
        The group of each row, ``(n_cells,)`` integers below ``n_groups``.
    n_groups
        Number of groups, empty ones included.
    part
        Which rows these are of those of all processes, whose means are taken; None if they are all.

    Returns
    -------
    Means ``(n_groups, n_features)``, 0 for empty groups, and sizes ``(n_groups, 1)``.

    Examples
    --------
    >>> group_mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)[0].squeeze()
    tensor([2., 5.])
    """
    size = _group_sum(values.new_ones(len(values), 1), group, n_groups)
    total = _group_sum(values, group, n_groups)
    if part is not None:
        total, size = part.sum(torch.cat([total, size], dim=1)).tensor_split([-1], dim=1)
    return total / size.clamp(min=1.0), size


_MOST_ENTRIES = 2**25  # 128 MB


def _adds_in_any_order(values: Tensor) -> bool:
    """Return whether torch adds up rows of a group in another order at each call."""
    return values.is_cuda


def _is_in(group: Tensor, n_groups: int) -> Tensor:
    return group[:, None] == torch.arange(n_groups, device=group.device)


def _added_in_order(is_in: Tensor, values: Tensor) -> Tensor:
    """Add up the rows of ``values`` that each row of ``is_in``, ``(*, len(values))``, picks.

    Many are a product, in float64, which neither TF32 nor bfloat16 rounds.
    """
    if is_in.numel() * values.shape[-1] <= _MOST_ENTRIES:
        return torch.where(is_in[:, :, None], values, 0.0).sum(dim=1)
    return (is_in.double() @ values.double()).to(values.dtype)


def _group_sum(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Add up rows that share a group, ``(n_groups, n_features)``; the same bits at each call."""
    if _adds_in_any_order(values):
        return _added_in_order(_is_in(group, n_groups).T, values)
    return values.new_zeros(n_groups, values.shape[-1]).index_add(0, group, values)


def _of_group(mean: Tensor, group: Tensor) -> Tensor:
    """Return the row of each one's group, ``(n_cells, n_features)``; its gradient adds up, too."""
    if _adds_in_any_order(mean):
        return _added_in_order(_is_in(group, len(mean)), mean)
    return mean[group]


def structure_divergence(
    posterior: tuple[Tensor, Tensor],
    prior: tuple[Tensor, Tensor],
    condition: Tensor,
    n_conditions: int,
    *,
    part: Part | None = None,
) -> Tensor:
    """Return the divergence of each condition's posterior from the prior that its causes allow.

    The posteriors of a condition's cells are pooled by the law of total mean and variance and
    compared with the prior by KL(pooled || prior) of Gaussians, summed over dimensions and averaged
    over conditions, weighted by cells. A condition is a value of *all* exogenous sites, whereas the
    prior depends on the causes of the block only, so what remains is dependence on the other sites.
    The squared distance of means is corrected for the few cells of a condition in a batch.
    Conditions with a single cell are left out.

    Parameters
    ----------
    posterior, prior
        Mean and variance per cell, ``(n_cells, n_latent)`` each.
    condition
        Number of each cell's condition, ``(n_cells,)``.
    n_conditions
        Number of possible conditions.
    part
        As in :func:`group_mean`.

    Returns
    -------
    Nats per cell, a scalar.
    """
    means = torch.cat([posterior[0], prior[0]], dim=-1)
    within = torch.cat([posterior[1], prior[1]], dim=-1)
    found, size = group_mean(torch.cat([means, within], dim=-1), condition, n_conditions, part=part)
    mean, variance = found.chunk(2, dim=-1)
    squares = (means - _of_group(mean, condition)).square()
    spread, _ = group_mean(squares, condition, n_conditions, part=part)
    (mean, prior_mean), (variance, prior_variance) = (
        mean.chunk(2, dim=-1),
        variance.chunk(2, dim=-1),
    )
    between, prior_between = spread.chunk(2, dim=-1)
    between = size / (size - 1.0).clamp(min=1.0) * between
    variance, prior_variance = variance + between, prior_variance + prior_between
    used = (size > 1.0).to(size.dtype)
    variance, prior_variance = (torch.where(used > 0, v, 1.0) for v in (variance, prior_variance))
    distance = (mean - prior_mean).square() - between / size.clamp(min=1.0)
    ratio = variance / prior_variance
    divergence = 0.5 * (ratio - 1.0 - torch.log(ratio) + distance / prior_variance)
    weight = used * size
    return (weight * divergence).sum() / weight.sum().clamp(min=1.0)


_NEAR = 0.02  # share of the range of doses within which cells count as of one dose


def permute_within(stratum: Tensor, given: Tensor) -> Tensor:
    """Draw a permutation that moves every cell to a place of its own stratum and about its dose.

    A stratum may hold many doses, and a discriminator that sees them would tell exchanged cells
    from others by doses that do not fit. Cells therefore only go as far as a fiftieth of the range
    of ``given``; within a stratum of one dose they go everywhere.

    Parameters
    ----------
    stratum
        Number of each cell's stratum, ``(n_cells,)``.
    given
        Values of the sites that make the strata, ``(n_cells, n_features)``. Within a stratum the
        sum over features rises with each dose.

    Returns
    -------
    Index ``(n_cells,)``: ``stratum[index] == stratum``.
    """
    dose = given.sum(dim=-1, dtype=torch.float64)
    low, high = dose.aminmax()
    key = torch.addcdiv(stratum, dose, high - low + _NEAR, value=1.0 - 2.0 * _NEAR)
    places = torch.argsort(key, stable=True)
    noise = torch.rand(len(stratum), dtype=torch.float64, device=stratum.device)
    return torch.empty_like(places).scatter(0, places, torch.argsort(key.add_(noise, alpha=_NEAR)))


Logits = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_density_ratio(discriminator: Logits, left: Tensor, right: Tensor, given: Tensor) -> Tensor:
    """Return the dependence of two blocks within strata, as a discriminator sees it.

    The discriminator's logit estimates ``log q(left, right | s) / (q(left | s) q(right | s))``
    (density-ratio trick, Kim and Mnih 2018, section 3); its mean over cells is the conditional
    mutual information. The gradient reaches the latents.

    Parameters
    ----------
    discriminator
        A function of left, right and given that returns logits, ``(n_cells,)``.
    left, right
        Latents ``(n_cells, n_latent)``.
    given
        Values of the sites that are conditioned on, ``(n_cells, n_features)``.

    Returns
    -------
    Nats per cell, a scalar.
    """
    return discriminator(left, right, given).mean()


def discriminator_loss(
    discriminator: Logits,
    left: Tensor,
    right: Tensor,
    given: Tensor,
    stratum: Tensor,
    *,
    part: Part | None = None,
) -> Tensor:
    """Return the cross-entropy of telling cells from those whose right block was exchanged.

    Blocks are exchanged as :func:`permute_within` does. Latents are detached, so the loss trains
    only the discriminator.

    Parameters
    ----------
    discriminator, left, right, given
        As in :func:`log_density_ratio`.
    stratum
        Number of each cell's stratum, ``(n_cells,)``.
    part
        Which cells these are of those of all processes, which exchange blocks with one another.

    Returns
    -------
    Mean of the two cross-entropies, a scalar; log 2 if nothing can be told apart.
    """
    left, right = left.detach(), right.detach()
    joint = discriminator(left, right, given)
    exchanged = discriminator(left, _exchanged(right, given, stratum, part), given)
    return 0.5 * (F.softplus(-joint) + F.softplus(exchanged)).mean()


def _exchanged(right: Tensor, given: Tensor, stratum: Tensor, part: Part | None) -> Tensor:
    if part is None:
        return right[permute_within(stratum, given)]
    columns = [right.double(), given.double(), stratum[:, None].double()]  # in one message
    widths = [each.shape[1] for each in columns]
    all_right, all_given, all_strata = part.gather(torch.cat(columns, dim=1)).split(widths, dim=1)
    index = permute_within(all_strata.squeeze(1).long(), all_given)
    return all_right[part.own(index)].to(right.dtype)
