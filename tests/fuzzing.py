"""Random legal programs, and what is true of them by other means than those of the package.

Programs are linear with Gaussian noise, so that independences are zeros of partial covariances and
answers are sums over arrows. Nothing of the oracles looks at the package's graph.
"""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_fcr.batch import Batch
from pyro_fcr.distributions import Exogenous
from pyro_fcr.draws import Responder, TwinResponder, path_responses, reach
from pyro_fcr.draws.sinks import Sink
from pyro_fcr.graph import ProgramError, check_by_acting, claims, not_claimed, read_graph

WIDTH, CELLS = 2, 9
KNOWN = ("exogenous", "label")


@dataclass
class Site:
    """A site, its causes and how it follows them."""

    name: str
    kind: str  # exogenous, label, shared, latent, selection, outcome
    weights: dict  # cause -> (WIDTH, WIDTH)
    bias: np.ndarray
    log_scale: dict = field(default_factory=dict)  # cause -> (WIDTH,)
    deterministic: bool = False


@dataclass
class Spec:
    """A program as data."""

    sites: list
    covariance: np.ndarray  # of the exogenous sites, which depend on one another

    def __getitem__(self, name):
        return next(site for site in self.sites if site.name == name)

    def names(self, *kinds):
        """Return the sites of some kinds."""
        return [site.name for site in self.sites if site.kind in kinds]

    def below(self, sources, *, cut=()):
        """Return what some sites cause, not through those that are cut."""
        found = set()
        for site in self.sites:
            if site.name not in cut and (set(site.weights) & (found | set(sources))):
                found.add(site.name)
        return found


def random_spec(rng):
    """Draw a program of up to six latents."""
    exogenous = ["x", "t", "u"][: rng.integers(1, 4)]
    middle = [("latent", f"z{i}") for i in range(rng.integers(1, 7))]
    middle += [("label", f"m{i}") for i in range(rng.integers(0, 3))]
    middle += [("selection", "kept")] * int(rng.random() < 0.3)
    middle += [("outcome", "p")] * int(rng.random() < 0.3)
    rng.shuffle(middle)
    kinds = [("shared", "w")] * int(rng.random() < 0.3)
    kinds += [("exogenous", name) for name in exogenous] + [tuple(each) for each in middle]
    hetero, density, sites = rng.random() < 0.3, rng.uniform(0.2, 0.5), []
    for kind, name in [*kinds, ("outcome", "y")]:
        causes = [s.name for s in sites if s.kind != "selection" and rng.random() < density]
        if kind in ("exogenous", "shared"):
            causes = []
        elif kind in ("selection", "outcome") and not set(causes) & {
            n for k, n in middle if k == "latent"
        }:
            causes += [s.name for s in sites if s.kind == "latent"][:1]
        if kind in ("label", "outcome", "selection") and not causes:
            causes = [exogenous[0]]
        if name == "y" and not any(c.startswith("z") for c in causes):
            causes.append("z0")
        weights = {
            c: rng.normal(size=(WIDTH, WIDTH)) + np.eye(WIDTH) for c in dict.fromkeys(causes)
        }
        scales = {
            c: 0.2 * rng.normal(size=WIDTH) for c in weights if hetero and kind != "selection"
        }
        sites.append(Site(name, kind, weights, rng.normal(size=WIDTH), scales, rng.random() < 0.3))
    root = rng.normal(size=(WIDTH * len(exogenous), WIDTH * len(exogenous) + 2))
    return Spec(sites, root @ root.T)


class Program(nn.Module):
    """A spec as a Pyro program; ``fault`` (kind, effect, cause) hides one arrow."""

    def __init__(self, spec, fault=None):
        super().__init__()
        self.spec, self.fault = spec, fault
        self.numbers = nn.ParameterDict()
        for site in spec.sites:
            self.numbers[site.name] = nn.Parameter(torch.tensor(site.bias, dtype=torch.float32))
            for cause, weight in site.weights.items():
                value = torch.tensor(weight.T, dtype=torch.float32)
                self.numbers[f"{cause} {site.name}"] = nn.Parameter(value)

    def forward(self, batch):
        values = {}
        for site in (s for s in self.spec.sites if s.kind == "shared"):
            values[site.name] = pyro.sample(site.name, self.family(site, values, batch))
        with pyro.plate("cells", len(batch)):
            for site in (s for s in self.spec.sites if s.kind != "shared"):
                values[site.name] = self.draw(site, values, batch)

    def draw(self, site, values, batch):
        if site.kind == "exogenous":
            return pyro.sample(site.name, Exogenous(batch[site.name]), obs=batch[site.name])
        family = self.family(site, values, batch)
        if site.kind == "latent":
            return pyro.sample(site.name, family)
        if site.kind == "selection":
            return pyro.sample(site.name, family, obs=torch.zeros(len(batch), WIDTH))
        return pyro.sample(site.name, family, obs=batch.get(site.name))

    def family(self, site, values, batch):
        shape = () if site.kind == "shared" else (len(batch),)
        loc = self.numbers[site.name].expand(*shape, WIDTH)
        log_scale = torch.zeros(*shape, WIDTH)
        for cause in site.weights:
            value = self.cause(site.name, cause, values, batch)
            loc = loc + value @ self.numbers[f"{cause} {site.name}"]
            if cause in site.log_scale:
                log_scale = log_scale + value.tanh() * torch.tensor(site.log_scale[cause]).float()
        if site.deterministic and site.kind != "shared":
            loc = pyro.deterministic(f"{site.name} loc", loc, event_dim=1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def cause(self, effect, cause, values, batch):
        kind, *arrow = self.fault or ("none",)
        if arrow != [effect, cause]:
            return values[cause]
        if kind == "written":
            out = torch.zeros(len(batch), WIDTH)
            out[:] = values[cause]
            return out
        if kind == "numpy":
            return torch.from_numpy(values[cause].detach().numpy().copy())
        if kind == "batch":
            return batch[cause]
        return values[cause].mean(dim=0, keepdim=True).expand(len(batch), WIDTH)  # "cells"


class Encoder(nn.Module):
    """A guide of all latents, linear in everything that is measured."""

    def __init__(self, spec, rng):
        super().__init__()
        self.spec = spec
        n = WIDTH * len(spec.names("exogenous", "label", "outcome"))
        names = spec.names("latent", "shared")
        self.weights = {s: torch.tensor(rng.normal(size=(n, WIDTH)) / n).float() for s in names}

    def forward(self, batch):
        for name in self.spec.names("shared"):
            pyro.sample(name, dist.Normal(torch.full((WIDTH,), 0.3), 1e-6).to_event(1))
        with pyro.plate("cells", len(batch)):
            for name in self.spec.names("latent"):
                pyro.sample(name, dist.Normal(self.loc(name, batch), 1e-6).to_event(1))

    def loc(self, name, batch):
        """Return where the guide puts a latent."""
        if self.spec[name].kind == "shared":
            return torch.full((WIDTH,), 0.3)
        seen = self.spec.names("exogenous", "label", "outcome")
        return torch.cat([batch[each] for each in seen], dim=-1) @ self.weights[name]


class Noiseless(Messenger):
    """Draw every site at its mean."""

    def _pyro_sample(self, msg):
        is_plate = hasattr(msg["fn"], "subsample_size")
        if not msg["is_observed"] and msg["value"] is None and not is_plate:
            msg["value"], msg["done"] = msg["fn"].mean, True


class Last(Sink):
    """Keep the last draw."""

    def update(self, values):
        self.values = values

    def result(self):
        return {"last": self.values}

    def bytes_per_value(self, n_draws):
        return 4


def cells_of(spec, rng):
    """Make up measured cells."""
    seen = spec.names("exogenous", "label", "outcome")
    values = {s: torch.tensor(rng.normal(size=(CELLS, WIDTH))).float() for s in seen}
    codes = {s: torch.arange(CELLS) % 3 for s in spec.names(*KNOWN)}
    values["library"] = torch.ones(CELLS, 1)
    return Batch(values, codes, dict.fromkeys(codes, 3), n_total=CELLS)


# What is true, by other means


def covariance(spec):
    """Return the joint covariance of all sites and where each stands in it."""
    names = [site.name for site in spec.sites]
    at = {name: slice(WIDTH * i, WIDTH * (i + 1)) for i, name in enumerate(names)}
    n = WIDTH * len(names)
    arrows, noise = np.zeros((n, n)), np.eye(n)
    for site in spec.sites:
        for cause, weight in site.weights.items():
            arrows[at[site.name], at[cause]] = weight
    design = np.concatenate([np.arange(n)[at[s]] for s in spec.names("exogenous")])
    noise[np.ix_(design, design)] = spec.covariance
    through = np.linalg.inv(np.eye(n) - arrows)
    return through @ noise @ through.T, at


def independence(spec):
    """Return a function that tells whether two sites are independent given others."""
    joint, at = covariance(spec)
    always = spec.names("shared", "selection")
    rows = np.arange(len(joint))

    def are_independent(left, right, given):
        some = np.concatenate([rows[at[s]] for s in dict.fromkeys([*given, *always])] or [rows[:0]])
        ends = np.concatenate([rows[at[left]], rows[at[right]]])
        rest = joint[np.ix_(ends, ends)]
        if len(some):
            known = np.linalg.solve(joint[np.ix_(some, some)], joint[np.ix_(some, ends)])
            rest = rest - joint[np.ix_(ends, some)] @ known
        size = np.sqrt(np.outer(np.diag(rest), np.diag(rest)))
        return bool((np.abs(rest / size)[:WIDTH, WIDTH:] < 1e-7).all())

    return are_independent


def true_claims(spec):
    """Return the claims that a graph with these arrows must make, and no others."""
    independent, known, found = independence(spec), spec.names(*KNOWN), set()
    blocks = spec.names("latent")
    for block in blocks:
        near = label_causes(spec, block)
        selected = spec.below([block]) & set(spec.names("selection"))
        for label in known:
            if label not in near and not selected and independent(block, label, near):
                found.add(("structure", block, label, frozenset(near)))
    for left, right in combinations(blocks, 2):
        common = [s for s in known if {left, right} <= spec.below([s])]
        separators = (
            set(some)
            for size in range(len(known) + 1)
            for some in combinations(known, size)
            if independent(left, right, some)
        )
        if common and (first := next(separators, None)) is not None:
            found.add(("permutation", left, right, frozenset(first)))
    return found


def label_causes(spec, name):
    """Return the known sites from which an arrow chain without other known sites arrives."""
    known = set(spec.names(*KNOWN))
    return {s for s in known if name in spec.below([s], cut=known - {name})}


def expected(spec, cells, latents, do, *, anew, noise):
    """Return the values of all sites, in numpy: set, kept, or made of their causes."""
    values = {}
    for site in spec.sites:
        if site.name in do:
            values[site.name] = do[site.name]
        elif site.kind == "selection":
            continue
        elif site.name in anew:
            loc, scale = moments(site, values)
            values[site.name] = loc + scale * noise.get(site.name, 0.0)
        elif site.kind in ("latent", "shared"):
            values[site.name] = latents[site.name]
        else:
            values[site.name] = cells[site.name].double().numpy()
    return values


def moments(site, values):
    """Return mean and scale of a site given its causes."""
    loc = site.bias + sum((values[c] @ w.T for c, w in site.weights.items()), np.zeros(WIDTH))
    logs = (np.tanh(values[c]) * w for c, w in site.log_scale.items())
    return loc, np.exp(sum(logs, np.zeros(WIDTH)))


def own_noise(spec, cells, latents):
    """Return the noise behind the values of all sites."""
    values = expected(spec, cells, latents, {}, anew=(), noise={})
    found = {}
    for site in (s for s in spec.sites if s.kind not in ("exogenous", "selection")):
        loc, scale = moments(site, values)
        found[site.name] = (values[site.name] - loc) / scale
    return found


# The checks, one per kind of statement; each returns what is wrong


def wrong_graph(spec, graph):
    """Compare parents, kinds and claims."""
    for site in spec.sites:
        if set(graph.parents[site.name]) != set(site.weights):
            yield f"parents of {site.name}: {graph.parents[site.name]}"
    kinds = {
        "conditioned": (graph.conditioned, {"selection"}),
        "shared": (graph.shared, {"shared"}),
        "known": (graph.known, set(KNOWN)),
        "blocks": (graph.blocks, {"latent"}),
    }
    for word, (found, kind) in kinds.items():
        if set(found) != set(spec.names(*kind)):
            yield f"{word}: {found}"
    yield from _wrong_claims(spec, graph)


def _wrong_claims(spec, graph):
    made = {(c.kind, c.left, c.right, frozenset(c.given)) for c in claims(graph)}
    true, independent = true_claims(spec), independence(spec)
    for _, left, right, given in made:
        if not independent(left, right, given):
            yield f"claims {left} ⟂ {right} | {set(given)}, which does not hold"
    ends = ({(k, a, b, len(g)) for k, a, b, g in each} for each in (made, true))
    if len({frozenset(each) for each in ends}) > 1:
        yield f"claims {made} in place of {true}"
    if not all(" → " in path or " ← " in path for path in not_claimed(graph).values()):
        yield "a dropped independence without a path"


def wrong_guard(spec, graph, cells, rng):
    """Check that the legal program is let through, and one with a fault is not."""
    try:
        check_by_acting(Program(spec), graph, cells)
    except ProgramError as error:
        yield f"refuses a legal program: {error}"
    arrows = [(s.name, c) for s in spec.sites for c in s.weights if s.kind != "shared"]
    effect, cause = arrows[rng.integers(len(arrows))]
    kinds = ["written", "numpy", *(["batch"] if spec[cause].kind in KNOWN else [])]
    kinds += ["cells"] if spec[cause].kind != "shared" else []
    fault = (kinds[rng.integers(len(kinds))], effect, cause)
    broken = Program(spec, fault)
    try:
        check_by_acting(broken, read_graph(broken, cells), cells)
    except ProgramError:
        return
    yield f"lets {fault} through"


def wrong_answers(spec, graph, cells, rng):
    """Compare interventions, path effects and twins with sums over arrows."""
    model, guide = Program(spec), Encoder(spec, rng)
    latents = {s: guide.loc(s, cells).double().numpy() for s in spec.names("latent", "shared")}
    known = spec.names(*KNOWN)
    chosen = [known[i] for i in rng.permutation(len(known))[: rng.integers(1, 3)]]
    do = {s: torch.tensor(rng.normal(size=(CELLS, WIDTH))).float() for s in chosen}
    numbers = {s: v.double().numpy() for s, v in do.items()}
    labels = [s for s in known if s in spec.below(chosen) - set(chosen)]
    hold = [s for s in labels if rng.random() < 0.5]
    anew = spec.below(chosen, cut=hold) - set(chosen) - set(hold) - set(spec.names("selection"))

    found = reach(graph, chosen, hold or None)
    responder = Responder(model, guide, hold=(*found.held, *graph.shared), released=found.released)
    yield from _differs(
        "counterfactual",
        responder,
        cells,
        do,
        expected(spec, cells, latents, numbers, anew={*anew, "y"}, noise={}),
    )
    own = own_noise(spec, cells, latents)
    for noise in ("drawn", "kept"):
        twins = TwinResponder(model, guide, graph, hold=hold, noise=noise)
        kept = own if noise == "kept" else {**own, "y": np.zeros(WIDTH)}
        twin = expected(spec, cells, latents, numbers, anew={*anew, "y"}, noise=kept)
        yield from _differs(f"twin ({noise})", twins, cells, do, twin)
        same = {s: cells[s] for s in chosen}
        if noise == "kept":
            yield from _differs("own", twins, cells, same, {"y": cells["y"].double().numpy()})
    if not any(site.log_scale for site in spec.sites):
        yield from _wrong_paths(spec, graph, cells, do)


def _differs(word, responder, cells, do, values):
    sink = Last()
    with Noiseless():
        responder.feed(cells, expected=[sink], do=do)
    gap = np.abs(sink.values.double().numpy() - values["y"]).max()
    if not gap < 1e-3 * max(1.0, np.abs(values["y"]).max()):
        yield f"{word}: off by {gap:.3g} under do({', '.join(do)})"


def _wrong_paths(spec, graph, cells, do):
    zero = {s: torch.zeros_like(v) for s, v in do.items()}
    worlds = path_responses(
        Program(spec),
        Encoder(spec, np.random.default_rng(0)),
        cells,
        graph,
        reference=zero,
        target=do,
    )
    change = {k: (v - worlds["reference"]).double().numpy() for k, v in worlds.items()}
    changes = {s: v.double().numpy() for s, v in do.items()}
    total = _moved(spec, changes, set(do))
    true = {"reference": 0 * total["y"], "total": total["y"]}
    for site in spec.below(do) - set(do) - {"y"} - set(spec.names("selection")):
        true[site] = _moved(spec, {site: total[site]}, {site} | set(do))["y"]
    if set(spec["y"].weights) & set(do):
        true["direct"] = sum(
            changes[c] @ spec["y"].weights[c].T for c in do if c in spec["y"].weights
        )
    if set(true) != set(change):
        yield f"paths {set(change)} in place of {set(true)}"
    for name in set(true) & set(change):
        gap = np.abs(change[name] - true[name]).max()
        if not gap < 1e-3 * max(1.0, np.abs(total["y"]).max()):
            yield f"path through {name}: off by {gap:.3g}"


def _moved(spec, changes, fixed):
    """Return by how much all sites move if some do, along arrows."""
    moved = {s: changes.get(s, np.zeros((CELLS, WIDTH))) for s in fixed}
    for site in (s for s in spec.sites if s.name not in fixed):
        parts = (moved[c] @ w.T for c, w in site.weights.items())
        moved[site.name] = sum(parts, np.zeros((CELLS, WIDTH)))
    return moved


def wrong(seed):
    """Return what is wrong with the program of a seed."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    cells = cells_of(spec, rng)
    graph = read_graph(Program(spec), cells)
    return [
        *wrong_graph(spec, graph),
        *wrong_guard(spec, graph, cells, rng),
        *wrong_answers(spec, graph, cells, rng),
    ]
