"""Named families of simulated cells: a benchmark of recovery that others can use.

A name stands for one design for good; what is changed gets a new version. Checksums tell whether
another machine, or another version of NumPy, made the same cells.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from pyro_fcr.simulation.factorized import simulate
from pyro_fcr.simulation.fcr_design import FCRDesign
from pyro_fcr.simulation.semisynthetic import simulate_on_controls
from pyro_fcr.values import check_choice, checked

VERSION = "families-1"

_BASE = FCRDesign(
    n_cells=12_000, n_genes=500, n_contexts=5, n_treatments=7, n_x=3, n_tx=4, n_t=3,
    likelihood="nb", widths=(32, 64),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family:
    """One design of simulated cells, of which seeds make data sets.

    Parameters
    ----------
    words
        What is special about it.
    design
        Sizes, priors, mixing and noise.
    kind
        ``"identified"``: of FCR's model class, and the theory promises recovery; ``"weak"``: so,
        too, but labels tell little; ``"outside"``: not identified, or not of the model class.
    tuned
        Whether defaults of this package were tuned on it. Report the others.
    on_controls
        Whether contexts are those of the bundled control cells, see :func:`simulate_on_controls`.
    checksum
        :func:`checksum` of the cells of seed 0.
    """

    words: str
    design: FCRDesign
    kind: Literal["identified", "weak", "outside"] = "identified"
    tuned: bool = False
    on_controls: bool = False
    checksum: str = ""


FAMILIES: Mapping[str, Family] = MappingProxyType({
    "bent": Family(
        words="the network that FCR was developed on: square layers of z + tanh z",
        design=replace(_BASE, widths=(), n_contexts=6, n_treatments=8), tuned=True,
        checksum="ed0793a000fdfb4c",
    ),
    "leaky": Family(
        words="leaky ReLU, 32 and 64 units, orthonormal weights", design=_BASE, tuned=True,
        checksum="51a5126f0ece9ff1",
    ),
    "leaky-raw": Family(
        words="leaky ReLU, 32 and 64 units, Gaussian weights",
        design=replace(_BASE, conditioned=False), tuned=True,
        checksum="fdc82db91308314c",
    ),
    "tanh": Family(
        words="tanh, 48 units; priors as in the paper: z_tx is free in every condition, of which "
        "the control is one",
        design=replace(
            _BASE, widths=(48,), activation="tanh", centred=False, free_control=True,
            n_contexts=6, n_treatments=6, n_x=2, n_t=2,
        ),
        checksum="f39f9c2f2a945786",
    ),
    "sine": Family(
        words="h + sin h, twice 24 units; z_tx is not centred over contexts; 15,000 cells",
        design=replace(
            _BASE, widths=(24, 24), activation="sine", centred=False, n_contexts=7,
            n_treatments=6, n_cells=15_000,
        ),
        checksum="ccae871936fbc23b",
    ),
    "wide": Family(
        words="leaky ReLU, 80 units, Gaussian weights; 8 contexts, 4 treatments, uneven groups",
        design=replace(
            _BASE, widths=(80,), conditioned=False, n_contexts=8, n_treatments=5, n_x=4, n_tx=3,
            n_t=2, imbalance=0.6, n_cells=16_000,
        ),
        checksum="5277eca7888c76fc",
    ),
    "scales": Family(
        words="labels change variances only, no means; leaky ReLU, 40 units",
        design=replace(_BASE, widths=(40,), mean_shift=0.0, scale_shift=1.5),
        checksum="b060702963810e6f",
    ),
    "gaps": Family(
        words="a fifth of the pairs has no cells; leaky ReLU",
        design=replace(_BASE, missing=0.2, n_contexts=6, n_treatments=8),
        checksum="9c50343a2ca2b6d5",
    ),
    "weak": Family(
        words="labels change means and variances by a third of what they do elsewhere",
        design=replace(_BASE, mean_shift=0.5, scale_shift=0.4), kind="weak",
        checksum="908cbb11beecafd1",
    ),
    "means": Family(
        words="labels change means only, so that no component is identified",
        design=replace(_BASE, widths=(40,), scale_shift=0.0), kind="outside",
        checksum="e59f5b27cb7b095e",
    ),
    "batch": Family(
        words="three batches, which half of the time follow the context and are not told",
        design=replace(_BASE, n_batches=3, confounding=0.5), kind="outside",
        checksum="75fdb7300c8d7d24",
    ),
    "messy": Family(
        words="30 % of the pairs missing, uneven groups, two drugs without effect, half of the "
        "cells respond",
        design=replace(_BASE, missing=0.3, imbalance=0.8, n_inert=2, responding=0.5),
        kind="outside", tuned=True,
        checksum="bee78112a3e51e35",
    ),
    "real-controls": Family(
        words="contexts, programs and depths of real glioblastoma cells, treatments simulated",
        design=replace(_BASE, widths=(40,), n_contexts=5, n_genes=300), kind="outside",
        on_controls=True,
        checksum="c53ad8b8009d4c03",
    ),
    "programs": Family(
        words="contexts differ in two ways in what they make of a treatment; leaky ReLU",
        design=replace(_BASE, interaction_rank=2, n_contexts=7, n_treatments=8),
        checksum="0d9a9c47b487cfa0",
    ),
    "real-programs": Family(
        words="the same on real glioblastoma cells, 5 contexts, 9 drugs",
        design=replace(
            _BASE, widths=(40,), n_contexts=5, n_treatments=10, n_genes=300, interaction_rank=2,
        ),
        kind="outside", on_controls=True,
        checksum="532ac64857d337fd",
    ),
})  # fmt: skip
"""The families of :data:`VERSION` by name."""


@checked()
def simulate_family(name: str, *, seed: int = 0, n_cells: int | None = None) -> AnnData:
    """Simulate a data set of a named family.

    Parameters
    ----------
    name
        One of :data:`FAMILIES`.
    seed
        Seed of all draws.
    n_cells
        Number of cells; None takes the family's own.

    Returns
    -------
    As :func:`pyro_fcr.simulation.simulate` does, with ``uns["family"]``: version, name, seed and
    :func:`checksum`.

    Raises
    ------
    ValueError
        The name is unknown.

    Examples
    --------
    >>> adata = simulate_family("tanh", seed=1, n_cells=300)
    >>> adata.shape, adata.uns["family"]["name"]
    ((300, 500), 'tanh')
    """
    check_choice("family", name, FAMILIES)
    family = FAMILIES[name]
    design = replace(family.design, n_cells=n_cells or family.design.n_cells)
    if family.on_controls:
        adata = simulate_on_controls(_controls(), design, context_key="patient", seed=seed)
    else:
        adata = simulate(design, seed=seed)
    adata.uns["family"] = {
        "version": VERSION, "name": name, "seed": seed, "checksum": checksum(adata),
    }  # fmt: skip
    return adata


def checksum(adata: AnnData) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of counts and labels.

    Parameters
    ----------
    adata
        Cells of a family: whole numbers in ``X``, ``treatment`` and ``context`` in ``obs``.

    Examples
    --------
    >>> len(checksum(simulate_family("leaky", n_cells=200)))
    16
    """
    counts, digest = sparse.csr_matrix(adata.X), hashlib.sha256()
    counts.sort_indices()
    for part, kind in ((counts.indptr, "<i8"), (counts.indices, "<i8"), (counts.data, "<i8")):
        digest.update(np.ascontiguousarray(part).astype(kind).tobytes())
    for key in ("treatment", "context"):
        digest.update("\n".join(adata.obs[key].astype(str)).encode())
    return digest.hexdigest()[:16]


def _controls() -> AnnData:
    from pyro_fcr.data.datasets import gbm_panobinostat  # noqa: PLC0415 (reads a file)

    cells = gbm_panobinostat()
    return cells[cells.obs["treatment"] == "control"].copy()
