"""The same cells in two worlds: the noise that made their own latents is kept (Pearl's twins).

A latent is a function of its causes and of noise of its own, z = f(causes, u). An interventional
answer draws u anew where an intervention reaches z. Here u is what made the z that the guide reads
off the cell, and f is that of the family: location and scale for a Normal, a change of variables
for a flow, the largest of perturbed logits for a category (Oberst and Sontag 2019, section 3).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.responder import Responder, abduct
from pyro_fcr.draws.worlds import Expect, QueryError, reach, world
from pyro_fcr.graph import Graph

Noise = Literal["drawn", "kept"]
_LEAST_LOGIT = -60.0


class TwinResponder(Responder):
    """Draw what cells would express in a twin world, in which their own noise is kept.

    Parameters
    ----------
    model, guide
        The two programs.
    graph
        The graph of the model.
    hold
        Labels that stay as measured.
    noise
        Whether the noise of expression is ``"drawn"`` anew, or ``"kept"`` like that of the latents,
        which needs a likelihood whose noise can be read off a value (a Normal).
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        graph: Graph,
        *,
        hold: Iterable[str] = (),
        noise: Noise = "drawn",
    ) -> None:
        super().__init__(model, guide)
        self.graph, self.labels, self.noise = graph, tuple(hold), noise

    def _draws(self, batch: Batch, cells: Batch, do: Mapping[str, Tensor]) -> Callable[[bool], Any]:
        """Make a function that draws the twin world once and returns its site y."""
        found = reach(self.graph, do, self.labels)
        reached = self.graph.descendants(do, fixed=self.labels)
        carried = reached & {*self.graph.latents, *found.released} & self.graph.ancestors("y")

        def draw(with_noise: bool) -> Any:  # noqa: FBT001 (as in the class above)
            latents = abduct(self.guide, batch, self.graph.latents)
            held = {site: value for site, value in latents.items() if site not in carried}
            nodes: Any = poutine.trace(poutine.condition(self.model, latents)).get_trace(batch)
            twin = world(self.model, held=held, do=do)
            if self.noise == "drawn" and not with_noise:
                twin = Expect()(twin)
            kept = carried | ({"y"} if self.noise == "kept" else set())
            twin = Carried({site: nodes.nodes[site] for site in kept})(twin)
            return poutine.trace(twin).get_trace(cells).nodes["y"]

        return draw


class Carried(Messenger):
    """Give sites the values that the noise behind their factual values makes of other causes.

    Parameters
    ----------
    factual
        The sites of the factual world: ``["fn"]`` and ``["value"]``.
    """

    def __init__(self, factual: Mapping[str, Any]) -> None:
        super().__init__()
        self.factual = factual

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.factual:
            node = self.factual[msg["name"]]
            msg["value"] = carry(node["fn"], node["value"], msg["fn"], site=msg["name"])
            msg["is_observed"], msg["done"] = False, True


def carry(factual: Any, value: Tensor, target: Any, *, site: str) -> Tensor:
    """Return what the noise behind a value makes of another distribution of the same family.

    Parameters
    ----------
    factual
        The distribution that the value was drawn from.
    value
        The value.
    target
        The distribution in the other world.
    site
        Its name, for errors.

    Raises
    ------
    QueryError
        The noise of this family cannot be read off a value; names site, family and mend.

    Examples
    --------
    >>> from torch.distributions import LogNormal, Normal
    >>> one, two = torch.tensor(1.0), torch.tensor(2.0)
    >>> carry(Normal(0.0, 1.0), one, Normal(5.0, 3.0), site="z")
    tensor(8.)
    >>> carry(LogNormal(0.0, 1.0), two, LogNormal(0.0, 2.0), site="z")  # exp(2 log 2)
    tensor(4.)
    """
    family = type(factual).__name__
    if type(factual) is not type(target):
        raise QueryError(
            _NO_NOISE.format(site=site, family=f"{family} and a {type(target).__name__}")
        )
    if family in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        return carry(factual.base_dist, value, target.base_dist, site=site)
    for applies, rule in _RULES:
        if applies(factual):
            return rule(factual, value, target, site)
    try:
        return target.icdf(factual.cdf(value))
    except NotImplementedError:
        raise QueryError(_NO_NOISE.format(site=site, family=family)) from None


_NO_NOISE = (
    "{site}: no noise can be read off a value of a {family}. Give {site} a family whose noise can "
    "be (Normal, LogNormal, StudentT, a flow, a category), draw the noise of expression anew "
    "(outcome_noise='drawn'), or ask counterfactual(), which draws anew what the target reaches."
)


def _is_flow(factual: Any) -> bool:
    return hasattr(factual, "transforms") and all(t.bijective for t in factual.transforms)


def _through_flow(factual: Any, value: Tensor, target: Any, site: str) -> Tensor:
    for transform in reversed(factual.transforms):
        value = transform.inv(value)
    value = carry(factual.base_dist, value, target.base_dist, site=site)
    for transform in target.transforms:
        value = transform(value)
    return value


def _shifted(factual: Any, value: Tensor, target: Any, site: str) -> Tensor:
    del site
    return target.loc + target.scale * (value - factual.loc) / factual.scale


def _rotated(factual: Any, value: Tensor, target: Any, site: str) -> Tensor:
    del site
    centred = (value - factual.loc).unsqueeze(-1)
    noise = torch.linalg.solve_triangular(factual.scale_tril, centred, upper=False)
    return target.loc + (target.scale_tril @ noise).squeeze(-1)


def _category(factual: Any, value: Tensor, target: Any, site: str) -> Tensor:
    """Keep the Gumbel noise whose largest perturbed logit is the value."""
    del site
    one_hot = type(factual).__name__.startswith("OneHot")
    chosen = value if one_hot else F.one_hot(value.long(), factual.logits.shape[-1])
    index = _perturbed(factual.logits, chosen.bool(), target.logits).argmax(dim=-1)
    return F.one_hot(index, factual.logits.shape[-1]).to(value) if one_hot else index.to(value)


def _yes_or_no(factual: Any, value: Tensor, target: Any, site: str) -> Tensor:
    del site
    logits, others = (torch.stack([0 * d.logits, d.logits], dim=-1) for d in (factual, target))
    chosen = torch.stack([value == 0, value != 0], dim=-1)
    return _perturbed(logits, chosen, others).argmax(dim=-1).to(value)


def _perturbed(logits: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    logits = F.log_softmax(logits, dim=-1).clamp(min=_LEAST_LOGIT).expand(chosen.shape)
    gumbel = -torch.log(torch.empty_like(logits).exponential_())
    # Exponentials of the logits add up to 1, so the largest perturbed logit is a standard Gumbel.
    largest = -torch.log(torch.empty_like(logits[..., :1]).exponential_())
    below = -torch.logaddexp(-largest, -(gumbel + logits))
    return others.clamp(min=_LEAST_LOGIT) + torch.where(chosen, largest, below) - logits


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda family: all(hasattr(family, name) for name in names)


def _is(*names: str) -> Callable[[Any], bool]:
    return lambda family: type(family).__name__ in names


_Rule = tuple[Callable[[Any], bool], Callable[[Any, Tensor, Any, str], Tensor]]
_RULES: tuple[_Rule, ...] = (
    (_is_flow, _through_flow),
    (_is("Delta"), lambda factual, value, target, site: target.v),
    (_is("Bernoulli"), _yes_or_no),
    (_is("Categorical", "OneHotCategorical"), _category),
    (_has("loc", "scale_tril"), _rotated),
    (_has("loc", "scale"), _shifted),
)
