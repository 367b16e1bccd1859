"""Cells drawn from FCR's own generative graph, with the latents that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.simulation._parts import Floats, centred, names, numbered, observations
from pyro_fcr.simulation.planted import Interactions, Levels, RandomInteractions, tidy

LEAKS = (("z_x", "t"), ("z_t", "x"), ("z_x", "z_tx"), ("z_t", "z_tx"))
"""The independences of the graph that a simulation can break: a block, and what leaks into it."""


@dataclass(frozen=True, kw_only=True)
class FCRDesign:
    """Cells drawn from p(z_x|x) p(z_t|t) p(z_tx|t,x) p(y|z_x,z_tx,z_t), all of it known.

    Parameters
    ----------
    n_cells, n_genes
        Number of cells and of genes.
    n_contexts, n_treatments
        Number of levels of x and of t; the first treatment is the control.
    n_x, n_tx, n_t
        Number of dimensions of each block.
    mean_shift
        Standard deviation over conditions of the priors' means.
    scale_shift
        Largest absolute natural log of the priors' standard deviations, which are log-uniform. With
        0, priors differ in their means only.
    centred
        Whether means and log scales of z_tx average to zero over the contexts of a treatment. What
        a treatment does everywhere is then in z_t alone. If not, every pair of treatment and
        context has its own, as in Mao et al. 2024. z_t and z_tx of controls are standard normal in
        both cases.
    mixing
        ``"joint"``: all latents pass through one injective network; ``"additive"``: each block has
        one of its own, and the outputs add up.
    n_layers
        Number of hidden layers of the network; 0 is linear.
    likelihood
        ``"normal"`` on the log1p scale, ``"nb"`` for counts.
    noise
        Standard deviation of the Normal.
    signal
        Standard deviation over cells of a gene's mean, on the scale of log1p expression or of
        natural log rates of counts.
    depth, dispersion, dropout
        Median total of a cell, theta (variance = mean + mean**2 / theta), and the probability that
        a count is lost (set to 0). They apply to counts only.
    imbalance
        Coefficient of variation of the expected sizes of the conditions.
    n_batches, batch_effect
        Number of technical batches, drawn independently of all else, and the standard deviation of
        what each adds to the means of the genes. ``obs["batch"]`` names them.
    leaks
        Dependences against the graph by (block, cause), see :data:`LEAKS`. Each is the share of the
        block's variance within its own causes that the other variable explains.
    interactions
        Natural log fold changes of chosen genes in chosen pairs of treatment and context, as in
        ``{("drug1", "line2"): {"gene3": 1.2}}``. They are added to the mean that follows from the
        latents (log1p expression, or log rates). :class:`RandomInteractions` draws them.

    Raises
    ------
    ValueError
        If a size, share or choice is impossible, or a treatment, context or gene does not exist.

    Examples
    --------
    >>> FCRDesign(interactions={("drug1", "line2"): {"gene3": 1.2}}, n_cells=500).n_tx
    4
    """

    n_cells: int = 20_000
    n_genes: int = 60
    n_contexts: int = 6
    n_treatments: int = 6
    n_x: int = 2
    n_tx: int = 4
    n_t: int = 2
    mean_shift: float = 1.5
    scale_shift: float = 1.0
    centred: bool = True
    mixing: Literal["joint", "additive"] = "joint"
    n_layers: int = 1
    likelihood: Literal["normal", "nb"] = "normal"
    noise: float = 0.1
    signal: float = 0.7
    depth: float = 3_000.0
    dispersion: float = 10.0
    dropout: float = 0.0
    imbalance: float = 0.3
    n_batches: int = 0
    batch_effect: float = 0.3
    leaks: Mapping[tuple[str, str], float] = field(default_factory=dict)
    interactions: Interactions | RandomInteractions = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.leaks) - set(LEAKS):
            raise ValueError(f"Unknown leak {min(unknown)}; expected {', '.join(map(str, LEAKS))}.")
        if wrong := [share for share in self.leaks.values() if not 0 <= share < 1]:
            raise ValueError(f"leaks: expected shares of 0 or more and below 1, got {wrong[0]}.")
        choices = {"mixing": ("joint", "additive"), "likelihood": ("normal", "nb")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}; expected {' or '.join(known)}."
                )
        n_latent, least = self.n_x + self.n_tx + self.n_t, {"n_contexts": 2, "n_treatments": 2}
        if self.n_genes < n_latent:
            raise ValueError(
                f"{self.n_genes} genes cannot hold {n_latent} latents: the mixing is injective."
            )
        for name in ("n_cells", "n_x", "n_tx", "n_t", *least):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected {least.get(name, 1)} or more."
                )
        self.levels.check(self.interactions)

    @property
    def levels(self) -> Levels:
        """The names of the treatments (without the control), contexts and genes."""
        treatments, contexts = names("drug", self.n_treatments - 1), names("line", self.n_contexts)
        return Levels(treatments, contexts, names("gene", self.n_genes))


@dataclass(frozen=True)
class _Prior:
    """Mean and log standard deviation per condition, ``(n_treatments, n_contexts, n_latent)``."""

    mean: Floats
    log_scale: Floats

    def draw(
        self, t: npt.NDArray[np.int64], x: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> Floats:
        noise = rng.normal(size=(len(t), self.mean.shape[-1]))
        return self.mean[t, x] + np.exp(self.log_scale[t, x]) * noise


def simulate(design: FCRDesign | None = None, *, seed: int = 0) -> AnnData:
    """Simulate cells whose latents are all known.

    Parameters
    ----------
    design
        Sizes and shapes. None takes the defaults.
    seed
        Seed of all draws: the same seed simulates the same cells.

    Returns
    -------
    Cells x genes, float32: counts (CSR) or log1p expression (dense). ``obs``: ``treatment`` (with
    ``"control"``), ``context`` and, with batches, ``batch``. ``obsm["z_x"]``, ``["z_tx"]``,
    ``["z_t"]``: the latents. ``layers["mean"]``: the mean without noise and library size, natural
    log rate or log1p expression. ``uns["truth"]``: mean and standard deviation of each prior per
    condition, ``(n_treatments, n_contexts, n_latent)``, their level names, the design, and
    ``interactions``: the planted ones, as columns of a table with a row per pair and gene.

    Examples
    --------
    >>> adata = simulate(FCRDesign(n_cells=300), seed=1)
    >>> adata.shape, adata.obsm["z_tx"].shape
    ((300, 60), (300, 4))
    """
    d, rng = design or FCRDesign(), np.random.default_rng(seed)
    priors = _priors(d, rng)
    t, x = _conditions(d, rng)
    latents = {site: prior.draw(t, x, rng) for site, prior in priors.items()}
    _plant_leaks(latents, priors, (t, x), d, rng)
    planted = d.levels.draw(d.interactions, np.random.default_rng([seed, 1]))
    mean = _mix(latents, d, rng) + d.levels.log_fold_changes(planted)[t, x]
    obs = observations(t, x)
    if d.n_batches:
        batch = rng.integers(d.n_batches, size=d.n_cells)
        mean += rng.normal(0, d.batch_effect, (d.n_batches, d.n_genes))[batch]
        obs["batch"] = pd.Categorical(numbered("batch", d.n_batches)[batch])
    adata = AnnData(_observe(mean, d, rng), obs=obs)
    adata.obsm.update(latents)
    adata.var_names = names("gene", d.n_genes)
    adata.layers["mean"] = mean.astype(np.float32)
    adata.uns["truth"] = {**_truth(priors, d, seed), "interactions": tidy(planted)}
    return adata


def _priors(d: FCRDesign, rng: np.random.Generator) -> dict[str, _Prior]:
    """Draw the conditional priors; they are constant along an axis that is not a cause."""
    n_t, n_x = d.n_treatments, d.n_contexts
    shapes = {"z_x": (1, n_x, d.n_x), "z_tx": (n_t, n_x, d.n_tx), "z_t": (n_t, 1, d.n_t)}
    found = {}
    for site, shape in shapes.items():
        mean = rng.normal(0, d.mean_shift, shape)
        log_scale = rng.uniform(-d.scale_shift, d.scale_shift, shape)
        for values in (mean, log_scale):
            if site != "z_x":
                values[0] = 0.0
            if site == "z_tx" and d.centred:
                values[:] = centred(values, axis=1)
        full = (n_t, n_x, shape[-1])
        found[site] = _Prior(np.broadcast_to(mean, full), np.broadcast_to(log_scale, full))
    return found


def _conditions(
    d: FCRDesign, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    n = d.n_treatments * d.n_contexts
    sizes = rng.gamma(d.imbalance**-2, size=n) if d.imbalance > 0 else np.ones(n)
    t, x = np.divmod(rng.choice(n, d.n_cells, p=sizes / sizes.sum()), d.n_contexts)
    return t, x


def _plant_leaks(
    latents: dict[str, Floats],
    priors: Mapping[str, _Prior],
    codes: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    d: FCRDesign,
    rng: np.random.Generator,
) -> None:
    """Replace a share of a block's own noise, cell by cell, by a function of another variable."""
    t, x = codes
    clean = dict(latents)
    for (block, cause), share in d.leaks.items():
        mean, scale = priors[block].mean[t, x], np.exp(priors[block].log_scale[t, x])
        own = x if block == "z_x" else t
        if cause in clean:
            source = clean[cause] @ rng.normal(size=(clean[cause].shape[1], mean.shape[1]))
        else:
            level = {"x": x, "t": t}[cause]
            source = rng.normal(size=(level.max() + 1, mean.shape[1]))[level]
        noise = (latents[block] - mean) / scale
        leak = _standardised_within(source, own)
        latents[block] = mean + scale * (np.sqrt(1 - share) * noise + np.sqrt(share) * leak)


def _standardised_within(values: Floats, group: npt.NDArray[np.int64]) -> Floats:
    result = np.empty_like(values)
    for code in np.unique(group):
        rows = group == code
        spread = values[rows].std(axis=0)
        result[rows] = (values[rows] - values[rows].mean(axis=0)) / np.where(spread > 0, spread, 1)
    return result


def _mix(latents: Mapping[str, Floats], d: FCRDesign, rng: np.random.Generator) -> Floats:
    """Return each gene's mean per cell, ``(n_cells, n_genes)``: injective in the latents."""
    blocks = [latents[site] for site in ("z_x", "z_tx", "z_t")]
    blocks = [np.concatenate(blocks, axis=1)] if d.mixing == "joint" else blocks
    mean = np.sum([_network(block, d, rng) for block in blocks], axis=0)
    return np.asarray(d.signal * (mean - mean.mean(axis=0)) / mean.std(axis=0))


def _network(z: Floats, d: FCRDesign, rng: np.random.Generator) -> Floats:
    """Rotate and bend, layer by layer, then map to genes: every step can be undone."""
    h = z / z.std(axis=0)
    for _ in range(d.n_layers):
        h = h @ _rotation(h.shape[1], rng) + rng.normal(0, 0.5, h.shape[1])
        h = 0.2 * h + np.tanh(h)
    return h @ rng.normal(size=(h.shape[1], d.n_genes))


def _rotation(n: int, rng: np.random.Generator) -> Floats:
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def _observe(
    mean: Floats, d: FCRDesign, rng: np.random.Generator
) -> npt.NDArray[np.float32] | sparse.csr_matrix:
    if d.likelihood == "normal":
        values = mean + rng.normal(0, d.noise, mean.shape)
        return (values - values.min(axis=0)).astype(np.float32)  # log1p expression is not negative
    rate = np.exp(mean + rng.normal(0, 1.0, d.n_genes))
    library = d.depth * rng.lognormal(0, 0.35, (len(rate), 1))
    rate *= library / rate.sum(axis=1, keepdims=True)
    counts = rng.poisson(rate * rng.gamma(d.dispersion, 1 / d.dispersion, rate.shape))
    counts *= rng.random(counts.shape) >= d.dropout
    counts[counts.sum(axis=1) == 0, 0] = 1  # no cell without counts
    return sparse.csr_matrix(counts.astype(np.float32))


def _truth(priors: Mapping[str, _Prior], d: FCRDesign, seed: int) -> dict[str, object]:
    settings = {k: v for k, v in vars(d).items() if k not in ("leaks", "interactions")}
    leaks = {f"{block}|{cause}": share for (block, cause), share in d.leaks.items()}
    return {
        **{f"{site}_mean": np.array(prior.mean) for site, prior in priors.items()},
        **{f"{site}_scale": np.exp(prior.log_scale) for site, prior in priors.items()},
        "treatments": np.array(["control", *names("drug", d.n_treatments - 1)]),
        "contexts": np.array(names("line", d.n_contexts)),
        "design": {**settings, "seed": seed, "leaks": leaks},
    }
