"""The shipped programs for a data set, and what a data set can and cannot identify of programs."""

import logging
import warnings

import torch
from torch import nn

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry
from pyro_fcr.graph import Graph, not_claimed
from pyro_fcr.graph.contract import Checked
from pyro_fcr.modes import seeded
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.nn.conditionals import InteractionPrior, LinearPrior
from pyro_fcr.nn.decoders import DECODERS

logger = logging.getLogger(__name__)


def build_programs(
    registry: Registry, architecture: Architecture, *, seed: int
) -> tuple[nn.Module, nn.Module]:
    """Make the shipped model and guide for a data set, with parameters drawn from a seed.

    Raises
    ------
    ValueError
        The likelihood is for another scale than that of the data, or the data have sites that the
        shipped programs do not know.
    """
    sites = tuple(registry.schema.sites)
    if sites != ("x",):
        raise ValueError(
            f"The schema has the covariate sites {', '.join(sites)}; the shipped programs know "
            "only x. Pass programs of your own as model= and guide=, or covariate_keys as a list."
        )
    if outcomes := tuple(registry.outcomes):
        raise ValueError(
            f"The schema has the outcomes {', '.join(outcomes)} beside y; the shipped programs "
            "know only y. Pass programs of your own as model= and guide=, or leave out "
            "outcome_keys."
        )
    scale = DECODERS[str(architecture.likelihood)].expression
    if scale != registry.schema.expression:
        raise ValueError(
            f"likelihood {architecture.likelihood!r} is for expression={scale!r}, the schema says "
            f"{registry.schema.expression!r}. Change one of the two."
        )
    with seeded(seed):
        return architecture.build(
            registry.widths,
            target_sum=registry.target_sum,
            mean_context=torch.from_numpy(registry.mean_context("x")).to(torch.get_default_dtype()),
        )


def example_batch(registry: Registry, *, n_levels: dict[str, int] | None = None) -> Batch:
    """Make up a few cells, enough to read shapes and graphs from programs without data.

    Parameters
    ----------
    registry
        The encoding of the data.
    n_levels
        Number of distinct values of each exogenous site, which the penalties need.
    """
    n_cells, widths = 4, registry.widths
    values = {
        name: torch.zeros(n_cells, width, dtype=torch.float32) for name, width in widths.items()
    }
    levels = {key: known[0] for key, known in registry.covariates.items()}
    for site, row in registry.encode_covariates(levels).items():  # one that families can score
        values[site] = torch.from_numpy(row).to(values[site]).repeat(n_cells, 1)
    values["y"] = torch.ones(n_cells, widths["y"], dtype=torch.float32)
    values["library"] = values["y"].sum(dim=1, keepdim=True)
    for name, columns in registry.outcomes.items():
        values[name] = values["y"].new_ones(n_cells, len(columns))
    sites = [name for name in widths if name != "y"]
    codes = {name: torch.zeros(n_cells, dtype=torch.long) for name in sites}
    return Batch(values, codes, n_levels or dict.fromkeys(codes, 1), n_total=n_cells)


def foretell_unseen(model: nn.Module) -> None:
    """Have priors of interactions regress unseen pairs on seen ones, by what was trained.

    The means of a :class:`~pyro_fcr.nn.LinearPrior` named z_x are the states of untreated cells.
    """
    prior = getattr(model, "z_x", None)
    states = prior.loc.weight.T if isinstance(prior, LinearPrior) else None
    for module in model.modules():
        if isinstance(module, InteractionPrior):
            n_levels = module.mean_context.shape[1]
            module.foretell(states if states is not None and len(states) == n_levels else None)


def report_independences(graph: Graph) -> None:
    """Say in a line which independences a graph does not make, and why, so that none is missed."""
    if lost := not_claimed(graph):
        logger.warning(
            "This graph does not make these independences, and nothing enforces them: %s.",
            ", ".join(f"{claim} ({path})" for claim, path in lost.items()),
        )
    if graph.conditioned:
        logger.warning(
            "%s: given in every run of the model. The fit and the independences take it into "
            "account; predictions and counterfactuals draw latents from their priors without it.",
            ", ".join(sorted(graph.conditioned)),
        )


def report_conditions(registry: Registry, checked: Checked) -> None:
    """Compare the number of conditions with what identifies interaction blocks.

    A block with several exogenous causes is identified component by component if their joint
    values have at least ``2 n + 1`` distinct conditions for ``n`` dimensions (Mao et al. 2024,
    after the theory of nonlinear ICA with an auxiliary variable). The count is logged, with a
    warning if it is too small.
    """
    n_found, graph = registry.n_prior_conditions, checked.graph
    for site in graph.latents:
        if len(graph.label_causes(site)) < 2:
            continue
        n_latent = checked.run.value(site).shape[-1]
        message = (
            f"{site} has {n_latent} dimensions, for which the theory asks for {2 * n_latent + 1} "
            f"distinct conditions (2 n + 1); the training cells have {n_found} (all controls count "
            "as one)."
        )
        logger.info(message)
        if n_found < 2 * n_latent + 1:
            fits = max(1, (n_found - 1) // 2)
            warnings.warn(
                f"{message} Its components are not identifiable; {fits} dimensions would be.",
                stacklevel=4,
            )
