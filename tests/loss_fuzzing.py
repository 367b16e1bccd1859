"""Random legal programs, and what is true of them by their recipe, not by reading them.

A recipe is a graph over up to six latents, shared by all cells or not, of any event shape, with
labels, a likelihood, factors, scales and masks, and a guide in another order, by hand or an
autoguide. Weights are parameters of modules or ``pyro.param`` statements of plain functions.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import autoguide
from torch import nn
from torch.distributions import kl_divergence

from pyro_fcr import Batch, Objective
from pyro_fcr.distributions import Exogenous, NegativeBinomial
from pyro_fcr.graph import read_graph
from pyro_fcr.graph.runs import Run, scored_sites
from pyro_fcr.modes import outside_param_store, seeded
from pyro_fcr.objective.terms import KL

N_CELLS, N_GENES, WIDTHS = 5, 4, {"x": 3, "t": 2}
SHAPES = [(), (1,), (2,), (2, 2)]
REAL, POSITIVE = ["Normal", "StudentT", "Laplace", "Mixture"], ["LogNormal", "Gamma"]
LIKELIHOODS = ["Normal", "NegativeBinomial", "Poisson"]
AUTOGUIDES = [
    "AutoNormal", "AutoDelta", "AutoDiagonalNormal", "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
]  # fmt: skip
NO_PENALTY = {"structure": 0.0, "permutation": 0.0, "label": 0.0}


@dataclass
class Latent:
    """One latent of a recipe."""

    name: str
    shape: tuple
    family: str
    parents: list
    shared: bool
    reads: list = field(default_factory=list)  # latents that the guide draws it from
    posterior: str = "Normal"
    scale: object = None  # in both programs
    one_sided: float = 1.0  # in the model alone
    mask: object = None


@dataclass
class Recipe:
    """A model and a guide, as they were meant."""

    latents: list
    outcome: list
    likelihood: str
    guide_order: list
    autoguide: str | None
    factor: list
    functions: bool

    @classmethod
    def draw(cls, rng):
        latents = []
        for number in range(rng.integers(1, 7)):
            shared = rng.random() < 0.25
            kinds = REAL if rng.random() < 0.75 else POSITIVE
            family = str(rng.choice(kinds[:-1] if shared else kinds))
            shape = SHAPES[rng.integers(1 if family == "Mixture" else 0, len(SHAPES))]
            shape = (2,) if family == "Mixture" else shape
            before = [z.name for z in latents if z.shared or not shared]
            known = before if shared else [*before, *WIDTHS]
            latents.append(Latent(f"z{number}", shape, family, _some(rng, known), shared))
        order = [latents[i] for i in rng.permutation(len(latents))]
        own = rng.random() < 0.5 and any(z.shared for z in latents)
        auto = str(rng.choice(AUTOGUIDES)) if own else None
        order.sort(key=lambda z: not z.shared)  # what all cells share is drawn first
        for i, z in enumerate(order):
            z.posterior = "LogNormal" if z.family in POSITIVE else "Normal"
            free = [o.name for o in order[:i] if (o.shared or not z.shared)]
            z.reads = [] if z.shared and auto else _some(rng, free, 0.3)
            z.scale = (
                [None, None, 0.4, "cells"][rng.integers(4)] if not auto or not z.shared else None
            )
            z.scale = 2.0 if z.shared and z.scale == "cells" else z.scale
            z.one_sided = 1.0 if rng.random() < 0.85 else 0.5
            z.mask = torch.arange(N_CELLS) % 2 > 0 if not z.shared and rng.random() < 0.2 else None
        names = [z.name for z in latents]
        factor = _some(rng, names, 0.5) if rng.random() < 0.25 else []
        outcome = _some(rng, names, 0.7) or [names[-1]]
        likelihood = str(rng.choice(LIKELIHOODS))
        return cls(latents, outcome, likelihood, order, auto, factor, bool(rng.random() < 0.4))

    def parents(self):
        """The arrows of the model that the recipe asks for."""
        found = {name: set() for name in WIDTHS}
        found |= {z.name: set(z.parents) for z in self.latents}
        found["y"] = set(self.outcome)
        return found | ({"factor": set(self.factor)} if self.factor else {})

    def allows_closed_form(self, site):
        """Whether the guide draws no cause of a latent from the latent."""
        (z,) = [z for z in self.latents if z.name == site]
        reached = {site}
        for later in self.guide_order:
            if reached & set(later.reads):
                reached.add(later.name)
        return not (reached - {site}) & set(z.parents) and not (z.shared and self.autoguide)


def _some(rng, names, share=0.5):
    return [name for name in names if rng.random() < share]


class Weights(nn.Module):
    """Linear maps by name: parameters of a module, or ``pyro.param`` statements."""

    def __init__(self, prefix, rng, *, functions):
        super().__init__()
        self.prefix, self.functions = prefix, functions
        self.seed = int(rng.integers(2**31))
        self.own = nn.ParameterDict()

    def get(self, name, n_in, n_out):
        rng = np.random.default_rng([self.seed, *name.encode()])
        made = torch.tensor(rng.normal(size=(n_in + 1, n_out)) * 0.4)
        if self.functions:
            return pyro.param(f"{self.prefix}.{name}", made)
        if name not in self.own:
            self.own[name] = nn.Parameter(made)
        return self.own[name]

    def linear(self, name, inputs, n_out, n_rows):
        rows = () if n_rows is None else (n_rows,)
        flat = [torch.ones(*rows, 1, dtype=torch.float64)]
        for shared, value in inputs:
            row = value.reshape(1, -1) if shared else value.reshape(N_CELLS, -1)
            flat.append(row[0] if n_rows is None else row.expand(N_CELLS, -1))
        joined = torch.cat(flat, -1)
        return joined @ self.get(name, joined.shape[-1] - 1, n_out)


def family_of(name, out, shape):
    """A distribution of one event shape from two numbers per entry."""
    loc, raw = (each.reshape(torch.Size([*out.shape[:-1], *shape])) for each in out.chunk(2, -1))
    loc, scale = torch.tanh(loc), 0.3 + torch.sigmoid(raw)
    if name == "Mixture":
        parts = dist.Normal(torch.stack([loc, -loc - 1], -2), scale.unsqueeze(-2)).to_event(1)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=torch.cat([loc, raw], -1)[..., :2]), parts
        )
    made = {
        "Normal": lambda: dist.Normal(loc, scale),
        "StudentT": lambda: dist.StudentT(5.0, loc, scale),
        "Laplace": lambda: dist.Laplace(loc, scale),
        "LogNormal": lambda: dist.LogNormal(loc, scale),
        "Gamma": lambda: dist.Gamma(1.0 + scale, scale),
    }[name]()
    return made.to_event(len(shape))


def weighing(z, *, of_model):
    """The scale and mask around a latent."""
    stack = ExitStack()
    if z.mask is not None:
        stack.enter_context(poutine.mask(mask=z.mask))
    if z.scale is not None:
        cells = torch.linspace(0.2, 1.5, N_CELLS, dtype=torch.float64)
        stack.enter_context(poutine.scale(scale=cells if z.scale == "cells" else z.scale))
    if of_model and z.one_sided != 1.0:
        stack.enter_context(poutine.scale(scale=z.one_sided))
    return stack


class Programs:
    """The two programs of a recipe."""

    def __init__(self, recipe, rng):
        self.recipe = recipe
        self.ours, self.theirs = (
            Weights(name, rng, functions=recipe.functions) for name in ("model", "guide")
        )
        self.shared = {z.name: z.shared for z in recipe.latents} | dict.fromkeys(WIDTHS, False)

    def inputs(self, names, values):
        return [(self.shared[name], values[name]) for name in names]

    def draw(self, z, values):
        """Draw a latent in the model."""
        n_rows = None if z.shared else N_CELLS
        inputs = self.inputs(z.parents, values)
        out = self.ours.linear(z.name, inputs, 2 * int(np.prod(z.shape)), n_rows)
        with weighing(z, of_model=True):
            values[z.name] = pyro.sample(z.name, family_of(z.family, out, z.shape))

    def model(self, batch):
        values = {}
        for z in (z for z in self.recipe.latents if z.shared):
            self.draw(z, values)
        with pyro.plate("cells", len(batch)):
            for name in WIDTHS:
                values[name] = pyro.sample(name, Exogenous(batch[name]), obs=batch[name])
            for z in (z for z in self.recipe.latents if not z.shared):
                self.draw(z, values)
            inputs = self.inputs(self.recipe.outcome, values)
            loc = torch.tanh(self.ours.linear("y", inputs, N_GENES, N_CELLS))
            pyro.sample("y", outcome_of(self.recipe.likelihood, loc), obs=batch.get("y"))
        if self.recipe.factor:
            squares = sum(values[name].square().sum() for name in self.recipe.factor)
            pyro.factor("factor", -0.1 * squares)

    def propose(self, z, values, more):
        """Draw a latent in the guide."""
        n_rows = None if z.shared else N_CELLS
        reads = [name for name in z.reads if name in values]
        inputs = [*self.inputs(reads, values), *more]
        out = self.theirs.linear(z.name, inputs, 2 * int(np.prod(z.shape)), n_rows)
        with weighing(z, of_model=False):
            values[z.name] = pyro.sample(z.name, family_of(z.posterior, out, z.shape))

    def guide(self, batch):
        values, y = {}, (False, batch["y"].log1p())
        drawn = [z for z in self.recipe.guide_order if not (z.shared and self.recipe.autoguide)]
        for z in (z for z in drawn if z.shared):
            self.propose(z, values, [])
        with pyro.plate("cells", len(batch)):
            for z in (z for z in drawn if not z.shared):
                self.propose(z, values, [y])

    def both(self):
        """Return model and guide as a user would pass them."""
        model = as_program(self.model, self.ours, self.recipe)
        if not self.recipe.autoguide:
            return model, as_program(self.guide, self.theirs, self.recipe)
        exposed = [z.name for z in self.recipe.latents if z.shared]
        auto = getattr(autoguide, self.recipe.autoguide)(poutine.block(model, expose=exposed))
        return model, Beside(auto, self.theirs, self.guide)


class Beside(nn.Module):
    """An autoguide beside one by hand."""

    def __init__(self, auto, weights, by_hand):
        super().__init__()
        self.auto, self.weights, self.by_hand = auto, weights, by_hand

    def forward(self, batch):
        self.auto(batch)
        self.by_hand(batch)


def outcome_of(likelihood, loc):
    """The distribution of expression."""
    if likelihood == "Normal":
        return dist.Normal(loc, 1.0).to_event(1)
    if likelihood == "Poisson":
        return dist.Poisson(loc.exp()).to_event(1)
    return NegativeBinomial(loc, torch.zeros(N_GENES)).to_event(1)


def as_program(function, weights, recipe):
    """A plain function, or a module that holds the weights."""
    if recipe.functions:
        return function

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = weights

        def forward(self, batch):
            return function(batch)

    return Program()


def cells(rng):
    """Cells that a program is run on."""
    codes = {name: torch.arange(N_CELLS) % n for name, n in WIDTHS.items()}
    values = {name: torch.eye(n).double()[codes[name]] for name, n in WIDTHS.items()}
    y = torch.tensor(rng.poisson(2.0, size=(N_CELLS, N_GENES))).double()
    values |= {"y": y, "library": y.sum(1, keepdim=True) + 1.0}
    return Batch(values, codes, dict(WIDTHS), n_total=N_CELLS)


def check(seed):
    """Return what is wrong with the loss of a random program, a line each."""
    rng = np.random.default_rng(seed)
    recipe, batch = Recipe.draw(rng), cells(rng)
    with seeded(int(seed)):
        torch.set_default_dtype(torch.float64)
        try:
            model, guide = Programs(recipe, rng).both()
            batch = replace(batch, n_total=int(rng.integers(N_CELLS, 50)))
            objective = Objective.from_programs(model, guide, batch, weights=NO_PENALTY)
            return [
                *_arrows(recipe, objective, batch),
                *_closed_forms(recipe, objective, batch),
                *_sum_of_all(objective, batch),
                *_gradient(objective, batch, rng),
            ]
        finally:
            torch.set_default_dtype(torch.float32)


def _arrows(recipe, objective, batch):
    found = {site: set(p) for site, p in read_graph(objective.model, batch).parents.items()}
    wanted = recipe.parents()
    return [f"into {s}: {found.get(s)}, not {p}" for s, p in wanted.items() if found.get(s) != p]


def _closed_forms(recipe, objective, batch):
    """A closed form stands only where it holds, and is what draws give."""
    wrong = []
    with outside_param_store(), torch.no_grad():
        run = Run.trace(objective.model, objective.guide, batch)
    for term in (t for t in objective.terms.values() if isinstance(t, KL) and t.analytic):
        (site,) = term.sites
        if not recipe.allows_closed_form(site):
            wrong.append(f"{site}: closed form where the guide draws its cause from it")
        q, p = run.posterior(site), run.prior(site)
        with torch.no_grad():
            value = q.sample(torch.Size([4000]))
            draws = (q.log_prob(value) - p.log_prob(value)).reshape(4000, -1)
        error = 6 * draws.std(0) / 4000**0.5 + 1e-6
        if ((kl_divergence(q, p).reshape(-1) - draws.mean(0)).abs() > error).any():
            wrong.append(f"{site}: closed form is not what draws give")
    return wrong


def _sum_of_all(objective, batch):
    """The ELBO of one draw is what Pyro's traces hold, spread over cells and data."""
    for term in objective.terms.values():
        if isinstance(term, KL):
            term.analytic = False
    with seeded(1):
        ours = objective.elbo(objective(batch)).item()
    with seeded(1), outside_param_store():
        guide = poutine.trace(objective.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(objective.model, trace=guide)).get_trace(batch)
    expected = 0.0
    for sign, trace in ((1, model), (-1, guide)):
        trace.compute_log_prob()
        for node in scored_sites(trace).values():
            local = any(frame.name == "cells" for frame in node["cond_indep_stack"])
            expected += sign * node["log_prob_sum"].item() / (N_CELLS if local else batch.n_total)
    wrong = abs(ours - expected) > 1e-8 * max(1.0, abs(expected))
    return [f"ELBO {ours}, by Pyro's traces {expected}"] if wrong else []


def _gradient(objective, batch, rng):
    """The gradient is that of finite differences under the same noise."""
    parameters = list(objective.main_parameters())

    def total():
        with seeded(2):
            return objective(batch).total

    gradients = torch.autograd.grad(total(), parameters, allow_unused=True)
    step = [torch.tensor(rng.normal(size=p.shape)).to(p) for p in parameters]
    slope = sum((g * s).sum().item() for g, s in zip(gradients, step, strict=True) if g is not None)
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, step, strict=True):
                parameter.add_(direction, alpha=sign * 1e-6)
            ends.append(total().item())
    found = (ends[0] - ends[1]) / 2e-6
    wrong = abs(found - slope) > 1e-4 * max(1.0, abs(slope))
    return [f"gradient {slope}, by differences {found}"] if wrong else []
