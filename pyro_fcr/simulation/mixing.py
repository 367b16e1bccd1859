"""Networks that mix latents into the means of genes."""

from collections.abc import Callable, Mapping

import numpy as np

from pyro_fcr.simulation.fcr_design import FCRDesign
from pyro_fcr.simulation.planted import Floats

_ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "leaky_relu": lambda h: np.where(h > 0, h, 0.2 * h),
    "tanh": np.tanh,
    "sine": lambda h: h + 0.8 * np.sin(h),
}


def mix(latents: Mapping[str, Floats], d: FCRDesign, rng: np.random.Generator) -> Floats:
    """Return each gene's mean per cell, ``(n_cells, n_genes)``: injective in the latents."""
    blocks = [latents[site] for site in ("z_x", "z_tx", "z_t")]
    blocks = [np.concatenate(blocks, axis=1)] if d.mixing == "joint" else blocks
    mean = np.sum([network(block, d, rng) for block in blocks], axis=0)
    return np.asarray(d.signal * (mean - mean.mean(axis=0)) / mean.std(axis=0))


def network(z: Floats, d: FCRDesign, rng: np.random.Generator) -> Floats:
    """Rotate and bend, layer by layer, then map to genes: every step can be undone."""
    h = z / z.std(axis=0)
    if d.widths:
        return _random_network(h, d, rng)
    for _ in range(d.n_layers):
        n = h.shape[1]
        h = h @ np.linalg.qr(rng.normal(size=(n, n)))[0] + rng.normal(0, 0.5, n)
        h = 0.2 * h + np.tanh(h)
    return h @ rng.normal(size=(h.shape[1], d.n_genes))


def _random_network(h: Floats, d: FCRDesign, rng: np.random.Generator) -> Floats:
    """Run a network of random weights; layers are standardised, so that none of them saturates."""
    for width in d.widths:
        h = _ACTIVATIONS[d.activation](_mapped(h, width, d, rng) + rng.normal(0, 0.3, width))
        h = (h - h.mean(axis=0)) / h.std()
    return _mapped(h, d.n_genes, d, rng)


def _mapped(h: Floats, width: int, d: FCRDesign, rng: np.random.Generator) -> Floats:
    weights = rng.normal(size=(h.shape[1], width))
    if d.conditioned:
        left, _, right = np.linalg.svd(weights, full_matrices=False)
        weights = left @ right * np.sqrt(max(1.0, width / h.shape[1]))
    else:
        weights /= np.sqrt(h.shape[1])
    return h @ weights
