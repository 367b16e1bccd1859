"""The edits of the generative graph that users make, as they would write them."""

from dataclasses import dataclass, field

import numpy as np
import pyro
import torch
from conftest import SCHEMA, simulate
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

from pyro_fcr import Architecture, Guide, Model, Schema
from pyro_fcr.distributions import Exogenous
from pyro_fcr.nn import Decoder, Encoder, LinearPrior, LogNormalize, NegativeBinomialDecoder
from pyro_fcr.objective.terms import Extra

SIZES = Architecture(n_x=3, n_t=2, n_tx=2, n_hidden=16)


@dataclass
class Edit:
    """A graph, the data that it needs, and what is claimed of it by hand."""

    build: object
    claims: list
    adata: object = None
    schema: Schema = SCHEMA
    extra: object = lambda model: ()
    target: dict = field(default_factory=lambda: {"treatment": "drug1"})
    held: tuple = ("z_x",)
    labelled: bool = True

    def data(self):
        return simulate(400, n_genes=12) if self.adata is None else self.adata()


SHIPPED = ["z_x ⟂ t | x", "z_t ⟂ x | t", "z_x ⟂ z_tx | x", "z_tx ⟂ z_t | t"]


def shipped(registry, **changes):
    sizes = {**SIZES.__dict__, **changes}
    return Architecture(**sizes).build(registry.widths, target_sum=registry.target_sum)


# (a) another likelihood: a family is one method


class StudentDecoder(Decoder):
    def __init__(self, n_latents, n_genes, **layers):
        super().__init__(n_latents, n_genes, **layers)
        self.log_scale = nn.Parameter(torch.zeros(n_genes))

    def family(self, heads, library):
        return dist.StudentT(4.0, heads[0], self.log_scale.exp())


def student(registry):
    model, guide = shipped(registry, likelihood="normal")
    model.y = StudentDecoder([3, 2, 2], registry.widths["y"])
    return model, guide


def logged():
    adata = simulate(400, n_genes=12)
    adata.X = np.log1p(1e3 * adata.X / adata.X.sum(axis=1, keepdims=True))
    return adata


LOGGED = Schema(treatment_key="drug", control="control", covariate_keys="line", expression="log1p")


# (b) a technical batch that predictions hold fixed or average out


class BatchModel(Model):
    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            b = pyro.sample("b", Exogenous(batch["b"]), obs=batch["b"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            y = self.y(z_x, z_tx, z_t, b, batch["library"])
            return pyro.sample("y", y, obs=batch.get("y"))


def technical_batch(registry):
    model, guide = shipped(registry)
    decoder = NegativeBinomialDecoder([3, 2, 2, registry.widths["b"]], registry.widths["y"])
    return BatchModel(z_x=model.z_x, z_tx=model.z_tx, z_t=model.z_t, y=decoder), guide


def with_column(name):
    adata = simulate(400, n_genes=12)
    adata.obs[name] = np.where(np.arange(400) % 3 == 0, "one", "two")
    return adata


def sites(**columns):
    return Schema(treatment_key="drug", control="control", covariate_keys=columns)


# (c) cell line and donor as sites with a latent each


class DonorModel(Model):
    def __init__(self, *, z_d, **conditionals):
        super().__init__(**conditionals)
        self.z_d = z_d

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            d = pyro.sample("d", Exogenous(batch["d"]), obs=batch["d"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_d = pyro.sample("z_d", self.z_d(d))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            y = self.y(z_x, z_d, z_tx, z_t, batch["library"])
            return pyro.sample("y", y, obs=batch.get("y"))


class DonorGuide(Guide):
    def __init__(self, *, z_d, **encoders):
        super().__init__(**encoders)
        self.z_d = z_d

    def forward(self, batch):
        y, x, t = self.features(batch["y"], batch["library"]), batch["x"], batch["t"]
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.z_x(y, x))
            pyro.sample("z_d", self.z_d(y, batch["d"]))
            pyro.sample("z_tx", self.z_tx(y, t, x))
            pyro.sample("z_t", self.z_t(y, t))


def donors(registry):
    model, guide = shipped(registry)
    genes, n_donors = registry.widths["y"], registry.widths["d"]
    decoder = NegativeBinomialDecoder([3, 2, 2, 2], genes)
    priors = {"z_x": model.z_x, "z_tx": model.z_tx, "z_t": model.z_t}
    encoders = {"z_x": guide.z_x, "z_tx": guide.z_tx, "z_t": guide.z_t}
    return (
        DonorModel(z_d=LinearPrior(n_donors, 2), y=decoder, **priors),
        DonorGuide(z_d=Encoder(genes + n_donors, 2), features=guide.features, **encoders),
    )


# (d) no interaction block: an additive model


class AdditiveModel(nn.Module):
    def __init__(self, z_x, z_t, y):
        super().__init__()
        self.z_x, self.z_t, self.y = z_x, z_t, y

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_t = pyro.sample("z_t", self.z_t(t))
            return pyro.sample("y", self.y(z_x, z_t, batch["library"]), obs=batch.get("y"))


class AdditiveGuide(nn.Module):
    def __init__(self, features, z_x, z_t):
        super().__init__()
        self.features, self.z_x, self.z_t = features, z_x, z_t

    def forward(self, batch):
        y = self.features(batch["y"], batch["library"])
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.z_x(y, batch["x"]))
            pyro.sample("z_t", self.z_t(y, batch["t"]))


def additive(registry):
    model, guide = shipped(registry)
    decoder = NegativeBinomialDecoder([3, 2], registry.widths["y"])
    return (
        AdditiveModel(model.z_x, model.z_t, decoder),
        AdditiveGuide(guide.features, guide.z_x, guide.z_t),
    )


# (e) z_tx from the sampled z_x and z_t


class ChainedModel(Model):
    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_t = pyro.sample("z_t", self.z_t(t))
            z_tx = pyro.sample("z_tx", self.z_tx(z_x, z_t))
            return pyro.sample("y", self.y(z_x, z_tx, z_t, batch["library"]), obs=batch.get("y"))


def chained(registry):
    model, guide = shipped(registry)
    z_tx = Encoder(3 + 2, 2, n_hidden=16)
    return ChainedModel(z_x=model.z_x, z_tx=z_tx, z_t=model.z_t, y=model.y), guide


# (f) a richer prior: a mixture, or a flow; the KL is then taken from draws


class MixturePrior(nn.Module):
    def __init__(self, n_parent, n_latent, n_components=3):
        super().__init__()
        self.loc = nn.Linear(n_parent, n_components * n_latent)
        self.logits = nn.Linear(n_parent, n_components)
        self.n_components = n_components

    def forward(self, parent):
        loc = self.loc(parent).unflatten(-1, (self.n_components, -1))
        components = dist.Normal(loc, 0.7).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits(parent)), components)


def mixture(registry):
    model, guide = shipped(registry)
    model.z_x = MixturePrior(registry.widths["x"], 3)
    return model, guide


def flow(registry):
    model, guide = shipped(registry)
    model.z_t = WarpedPrior(registry.widths["t"], 2)
    return model, guide


class WarpedPrior(nn.Module):
    """A Gaussian warped by a spline: skewed, several modes, no moments in closed form."""

    def __init__(self, n_parent, n_latent):
        super().__init__()
        self.base = LinearPrior(n_parent, n_latent)
        self.spline = dist.transforms.Spline(n_latent, count_bins=4, bound=6.0)

    def forward(self, parent):
        return dist.TransformedDistribution(self.base(parent), [self.spline])


# (g) global latents: Bayesian gene dispersions, with an autoguide beside the amortised guide


class BayesianDispersionDecoder(NegativeBinomialDecoder):
    def __init__(self, n_latents, n_genes, **layers):
        Decoder.__init__(self, n_latents, n_genes, **layers)
        self.register_buffer("center", torch.zeros(n_genes))

    def forward(self, *inputs):
        *latents_and_library, self.log_dispersion = inputs
        return Decoder.forward(self, *latents_and_library)


class BayesianModel(Model):
    def forward(self, batch):
        dispersion = dist.Normal(self.y.center, 1.0).to_event(1)
        log_dispersion = pyro.sample("log_dispersion", dispersion)
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            y = self.y(z_x, z_tx, z_t, batch["library"], log_dispersion)
            return pyro.sample("y", y, obs=batch.get("y"))


class BayesianGuide(nn.Module):
    def __init__(self, amortised, shared):
        super().__init__()
        self.amortised, self.shared = amortised, shared

    def forward(self, batch):
        self.shared(batch)
        self.amortised(batch)


def bayesian(registry, autoguide=AutoNormal):
    model, guide = shipped(registry)
    decoder = BayesianDispersionDecoder([3, 2, 2], registry.widths["y"])
    model = BayesianModel(z_x=model.z_x, z_tx=model.z_tx, z_t=model.z_t, y=decoder)
    return model, BayesianGuide(guide, autoguide(poutine.block(model, expose=["log_dispersion"])))


# (h) sparse additive decoder: one loading per gene and latent, shrunk to zero


class LinearDecoder(NegativeBinomialDecoder):
    def __init__(self, n_latents, n_genes):
        nn.Module.__init__(self)
        self.loadings = nn.ModuleList(nn.Linear(n, n_genes, bias=False) for n in n_latents)
        self.bias = nn.Parameter(torch.zeros(n_genes))
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes))

    def forward(self, *latents_and_library):
        *latents, library = latents_and_library
        logits = sum(f(z) for f, z in zip(self.loadings, latents, strict=True))
        return self.family([logits + self.bias], library).to_event(1)


def sparse(registry):
    model, guide = shipped(registry)
    model.y = LinearDecoder([3, 2, 2], registry.widths["y"])
    return model, guide


def shrunk_loadings(model):
    def total(run):
        return 1e-3 * sum(block.weight.abs().sum() for block in model.y.loadings)

    return (Extra("extra_sparsity", total),)


# (j) a guide that reads expression only


class BlindGuide(nn.Module):
    def __init__(self, features, z_x, z_tx, z_t):
        super().__init__()
        self.features, self.z_x, self.z_tx, self.z_t = features, z_x, z_tx, z_t

    def forward(self, batch):
        y = self.features(batch["y"], batch["library"])
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.z_x(y))
            pyro.sample("z_tx", self.z_tx(y))
            pyro.sample("z_t", self.z_t(y))


def blind(registry):
    model, _ = shipped(registry)
    encoders = [Encoder(registry.widths["y"], n, n_hidden=16) for n in (3, 2, 2)]
    return model, BlindGuide(LogNormalize(registry.target_sum), *encoders)


# (l) an observed mediator: the treatment arrests the cell cycle, whose phase is a column of obs


class MediatorModel(Model):
    def __init__(self, *, m, **conditionals):
        super().__init__(**conditionals)
        self.m = m

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            m = pyro.sample("m", dist.OneHotCategorical(logits=self.m(t)), obs=batch["m"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            y = self.y(z_x, z_tx, z_t, m, batch["library"])
            return pyro.sample("y", y, obs=batch.get("y"))


def mediator(registry):
    model, guide = shipped(registry)
    decoder = NegativeBinomialDecoder([3, 2, 2, 2], registry.widths["y"], n_hidden=16)
    priors = {"z_x": model.z_x, "z_tx": model.z_tx, "z_t": model.z_t}
    return MediatorModel(m=nn.Linear(registry.widths["t"], 2), y=decoder, **priors), guide


FEATURES = {"drug1": [1.0, 0.0, 0.5], "drug2": [0.0, 1.0, 0.5], "drug3": [0.9, 0.1, 0.4]}

EDITS = {
    "a_zinb": Edit(lambda r: shipped(r, likelihood="zinb"), SHIPPED),
    "a_normal": Edit(lambda r: shipped(r, likelihood="normal"), SHIPPED, logged, LOGGED),
    "a_student": Edit(student, SHIPPED, logged, LOGGED),
    "b_batch": Edit(
        technical_batch,
        [
            "z_x ⟂ t | x",
            "z_x ⟂ b | x",
            "z_tx ⟂ b | x, t",
            "z_t ⟂ x | t",
            "z_t ⟂ b | t",
            "z_x ⟂ z_tx | x",
            "z_tx ⟂ z_t | t",
        ],
        lambda: with_column("lane"),
        sites(x="line", b="lane"),
    ),
    "c_donors": Edit(
        donors,
        [
            "z_x ⟂ d | x",
            "z_x ⟂ t | x",
            "z_d ⟂ x | d",
            "z_d ⟂ t | d",
            "z_tx ⟂ d | x, t",
            "z_t ⟂ x | t",
            "z_t ⟂ d | t",
            "z_x ⟂ z_tx | x",
            "z_tx ⟂ z_t | t",
        ],
        lambda: with_column("donor"),
        sites(x="line", d="donor"),
        held=("z_x", "z_d"),
    ),
    "l_mediator": Edit(
        mediator,
        [
            "z_x ⟂ t | x",
            "z_x ⟂ m | x",
            "z_tx ⟂ m | x, t",
            "z_t ⟂ x | t",
            "z_t ⟂ m | t",
            "z_x ⟂ z_tx | x",
            "z_tx ⟂ z_t | t",
        ],
        lambda: with_column("phase"),
        sites(x="line", m="phase"),
    ),
    "d_additive": Edit(additive, ["z_x ⟂ t | x", "z_t ⟂ x | t"]),
    "e_chained": Edit(chained, ["z_x ⟂ t | x", "z_t ⟂ x | t"]),
    "f_mixture": Edit(mixture, SHIPPED),
    "f_flow": Edit(flow, SHIPPED),
    "g_bayesian": Edit(bayesian, SHIPPED),
    "g_map": Edit(lambda r: bayesian(r, AutoDelta), SHIPPED),
    "h_sparse": Edit(sparse, SHIPPED, extra=shrunk_loadings),
    "i_features": Edit(
        shipped,
        SHIPPED,
        schema=Schema(
            treatment_key="drug",
            control="control",
            covariate_keys="line",
            treatment_features=FEATURES,
        ),
        target={"treatment": "drug3"},
    ),
    "j_blind": Edit(blind, SHIPPED, labelled=False),
    "k_extra": Edit(
        shipped,
        SHIPPED,
        extra=lambda model: (Extra("extra_norm", lambda run: run.value("z_tx").square().mean()),),
    ),
}
