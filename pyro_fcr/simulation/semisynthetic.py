"""Cells whose context is real and whose treatment is simulated, with latents for both."""

from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from pyro_fcr.data.design import read_labels
from pyro_fcr.simulation import planted
from pyro_fcr.simulation.factorized import draw_conditions, draw_priors, truth
from pyro_fcr.simulation.fcr_design import FCRDesign
from pyro_fcr.simulation.mixing import network
from pyro_fcr.simulation.planted import Codes, Floats
from pyro_fcr.simulation.thinning import read_counts
from pyro_fcr.values import checked

_LARGEST_LOADING = 1.5  # natural log fold change per standard deviation of a latent


@checked()
def simulate_on_controls(
    adata: AnnData, design: FCRDesign, *, context_key: str, seed: int = 0
) -> AnnData:
    """Simulate treated cells on the contexts, programs and depths of real control cells.

    z_x are the first principal components of the real cells, of whatever distribution they have
    there. Every simulated cell takes z_x and library size of a real one of its context; z_t and
    z_tx are drawn from a design. The real loadings of z_x, and a random network of z_t and z_tx,
    add up to log rates around the real means of the genes. Counts are negative binomial.

    Parameters
    ----------
    adata
        Control cells only, with raw counts. They are not changed.
    design
        Sizes and priors. Genes, contexts and depths are those of the cells, and the blocks add up,
        whatever the design says.
    context_key
        Column of ``obs`` with the context of each cell.
    seed
        Seed of all draws: the same seed simulates the same cells.

    Returns
    -------
    As :func:`pyro_fcr.simulation.simulate` does.

    Raises
    ------
    SchemaError
        If values are not whole numbers of 0 or more, a cell has none, or the column is missing.

    Examples
    --------
    >>> import pyro_fcr
    >>> cells = pyro_fcr.datasets.gbm_panobinostat()
    >>> cells = cells[cells.obs["treatment"] == "control"]
    >>> design = FCRDesign(n_cells=200, n_contexts=5, n_treatments=3, likelihood="nb")
    >>> simulated = simulate_on_controls(cells, design, context_key="patient")
    >>> simulated.shape, simulated.obsm["z_x"].shape
    ((200, 300), (200, 2))
    """
    contexts = read_labels(adata.obs, context_key, role="context_key")
    d, rng = _of_cells(design, adata, len(contexts.levels)), np.random.default_rng([seed, 3])
    counts = read_counts(adata, context_key, None).toarray().astype(np.float64)
    library = counts.sum(axis=1, keepdims=True)
    scores, log_rate = _programs(counts, library, d.n_x)
    priors = draw_priors(d, rng)
    t, x = draw_conditions(d, rng)
    rows = _cells_of(x, contexts.codes, rng)
    latents = {site: priors[site].draw(t, x, rng) for site in ("z_tx", "z_t")}
    latents = {"z_x": scores[rows], **latents}
    effect = network(np.concatenate([latents["z_tx"], latents["z_t"]], axis=1), d, rng)
    mean = log_rate[rows] + d.signal * (effect - effect.mean(axis=0)) / effect.std(axis=0)
    rate = np.exp(mean)
    rate *= library[rows] / rate.sum(axis=1, keepdims=True)
    obs = planted.observations(t, x)
    obs["context"] = np.array(contexts.levels, object)[x]
    simulated = AnnData(
        planted.draw_counts(rate, d.dispersion, rng, dropout=d.dropout),
        obs=obs,
        var=pd.DataFrame(index=adata.var_names),
    )
    simulated.obsm.update(latents)
    simulated.layers["mean"] = mean.astype(np.float32)
    simulated.uns["truth"] = {**truth(priors, d, seed), "contexts": np.array(contexts.levels)}
    return simulated


def _of_cells(design: FCRDesign, adata: AnnData, n_contexts: int) -> FCRDesign:
    return replace(
        design, n_genes=adata.n_vars, n_contexts=n_contexts, likelihood="nb", mixing="additive"
    )


def _programs(counts: Floats, library: Floats, n_x: int) -> tuple[Floats, Floats]:
    """Return standardised principal components, and the log rates that these alone give."""
    scale = np.median(library)
    expression = np.log1p(counts / library * scale)
    pca = PCA(n_x, random_state=0).fit(expression)
    scores = pca.transform(expression)
    spread = scores.std(axis=0)
    mean = np.maximum(counts.sum(axis=0) / library.sum() * scale, 1e-3)
    slopes = pca.components_ * spread[:, None] * (1 + mean) / mean  # of log rate, not of log1p
    slopes = slopes.clip(-_LARGEST_LOADING, _LARGEST_LOADING)
    scores = scores / spread
    return scores, np.log(mean) + scores @ slopes


def _cells_of(x: Codes, contexts: Codes, rng: np.random.Generator) -> Codes:
    """Return a real cell of each wanted context, at random."""
    rows = np.empty(len(x), dtype=np.int64)
    for code in np.unique(x):
        wanted = x == code
        rows[wanted] = rng.choice(np.flatnonzero(contexts == code), wanted.sum())
    return rows
