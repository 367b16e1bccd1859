"""Cells drawn from FCR's own generative graph, with the latents that made them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.simulation import planted
from pyro_fcr.simulation.fcr_design import FCRDesign, names
from pyro_fcr.simulation.mixing import mix
from pyro_fcr.simulation.planted import Codes, Floats
from pyro_fcr.values import checked


@dataclass(frozen=True)
class Prior:
    """Mean and log standard deviation per condition, ``(n_treatments, n_contexts, n_latent)``."""

    mean: Floats
    log_scale: Floats

    def draw(self, t: Codes, x: Codes, rng: np.random.Generator) -> Floats:
        """Draw latents of cells, ``(n_cells, n_latent)``."""
        noise = rng.normal(size=(len(t), self.mean.shape[-1]))
        return self.mean[t, x] + np.exp(self.log_scale[t, x]) * noise


@checked()
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
    priors = draw_priors(d, rng)
    t, x = draw_conditions(d, rng)
    acting = t * (rng.random(len(t)) < d.responding) if d.responding < 1 else t
    latents = {site: prior.draw(acting, x, rng) for site, prior in priors.items()}
    _plant_leaks(latents, priors, (t, x), d, rng)
    interactions = planted.draw_pairs(d.interactions, d.levels, np.random.default_rng([seed, 1]))
    mean = mix(latents, d, rng) + planted.log_fold_changes(interactions, d.levels)[t, x]
    obs = planted.observations(t, x)
    if d.n_batches:
        batch = draw_batches(x, d, rng)
        mean += rng.normal(0, d.batch_effect, (d.n_batches, d.n_genes))[batch]
        obs["batch"] = pd.Categorical(np.array(names("batch", d.n_batches))[batch])
    adata = AnnData(_observe(mean, d, rng), obs=obs)
    adata.obsm.update(latents)
    adata.var_names = names("gene", d.n_genes)
    adata.layers["mean"] = mean.astype(np.float32)
    adata.uns["truth"] = {**truth(priors, d, seed), "interactions": planted.tidy(interactions)}
    return adata


def draw_priors(d: FCRDesign, rng: np.random.Generator) -> dict[str, Prior]:
    """Draw the conditional priors; they are constant along an axis that is not a cause."""
    n_t, n_x = d.n_treatments, d.n_contexts
    shapes = {"z_x": (1, n_x, d.n_x), "z_tx": (n_t, n_x, d.n_tx), "z_t": (n_t, 1, d.n_t)}
    found = {}
    for site, shape in shapes.items():
        mean = rng.normal(0, d.mean_shift, shape)
        log_scale = rng.uniform(-d.scale_shift, d.scale_shift, shape)
        if site == "z_tx" and d.interaction_rank:
            mean, log_scale = (
                _of_rank(values, d.interaction_rank, rng) for values in (mean, log_scale)
            )
        for values in (mean, log_scale):
            if site == "z_t" or (site == "z_tx" and not d.free_control):
                values[0] = 0.0
            if site != "z_x" and d.n_inert:
                values[-d.n_inert :] = values[0]
            if site == "z_tx" and d.centred:
                values[:] = values - values.mean(axis=1, keepdims=True)
        full = (n_t, n_x, shape[-1])
        found[site] = Prior(np.broadcast_to(mean, full), np.broadcast_to(log_scale, full))
    return found


def _of_rank(values: Floats, rank: int, rng: np.random.Generator) -> Floats:
    """Return products of numbers of the contexts and vectors of the treatments, of like size."""
    contexts = rng.normal(size=(values.shape[1], rank)) / np.sqrt(rank)
    return np.einsum("xr,trd->txd", contexts, values[:, :rank])


def draw_conditions(d: FCRDesign, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """Draw treatment and context of every cell."""
    n = d.n_treatments * d.n_contexts
    sizes = rng.gamma(d.imbalance**-2, size=n) if d.imbalance > 0 else np.ones(n)
    if d.missing:
        sizes = sizes * _present(d, rng).ravel()
    t, x = np.divmod(rng.choice(n, d.n_cells, p=sizes / sizes.sum()), d.n_contexts)
    return t, x


def _present(d: FCRDesign, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which pairs have cells, ``(n_treatments, n_contexts)``."""
    present = rng.random((d.n_treatments, d.n_contexts)) >= d.missing
    present[0] = True
    kept = rng.integers(d.n_contexts, size=d.n_treatments)
    present[np.arange(d.n_treatments), kept] = True
    return present


def draw_batches(x: Codes, d: FCRDesign, rng: np.random.Generator) -> Codes:
    """Draw the batch of every cell."""
    batch = rng.integers(d.n_batches, size=d.n_cells)
    if not d.confounding:
        return batch
    return np.where(rng.random(d.n_cells) < d.confounding, x % d.n_batches, batch)


def _plant_leaks(
    latents: dict[str, Floats],
    priors: Mapping[str, Prior],
    codes: tuple[Codes, Codes],
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


def _standardised_within(values: Floats, group: Codes) -> Floats:
    result = np.empty_like(values)
    for code in np.unique(group):
        rows = group == code
        spread = values[rows].std(axis=0)
        result[rows] = (values[rows] - values[rows].mean(axis=0)) / np.where(spread > 0, spread, 1)
    return result


def _observe(
    mean: Floats, d: FCRDesign, rng: np.random.Generator
) -> npt.NDArray[np.float32] | sparse.csr_matrix:
    if d.likelihood == "normal":
        values = mean + rng.normal(0, d.noise, mean.shape)
        return (values - values.min(axis=0)).astype(np.float32)  # log1p expression is not negative
    rate = np.exp(mean + rng.normal(0, 1.0, d.n_genes))
    library = d.depth * rng.lognormal(0, 0.35, (len(rate), 1))
    rate *= library / rate.sum(axis=1, keepdims=True)
    return planted.draw_counts(rate, d.dispersion, rng, dropout=d.dropout)


def truth(priors: Mapping[str, Prior], d: FCRDesign, seed: int) -> dict[str, object]:
    """Return what ``uns["truth"]`` holds of priors and design."""
    settings = {k: v for k, v in vars(d).items() if k not in ("leaks", "interactions")}
    settings["widths"] = np.array(d.widths, dtype=int)  # h5ad knows no tuples
    leaks = {f"{block}|{cause}": share for (block, cause), share in d.leaks.items()}
    return {
        **{f"{site}_mean": np.array(prior.mean) for site, prior in priors.items()},
        **{f"{site}_scale": np.exp(prior.log_scale) for site, prior in priors.items()},
        "treatments": np.array(["control", *names("drug", d.n_treatments - 1)]),
        "contexts": np.array(names("line", d.n_contexts)),
        "design": {**settings, "seed": seed, "leaks": leaks},
    }
