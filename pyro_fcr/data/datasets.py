"""Real cells: those that come with the package (see ``data/README.md``), and published screens."""

from importlib.resources import as_file, files

import anndata as ad
from anndata import AnnData

from pyro_fcr.data.published import cook2020, mcfarland2020, sciplex3

__all__ = [
    "cook2020",
    "gbm_panobinostat",
    "mcfarland2020",
    "norman_k562_combinations",
    "sciplex3",
]


def gbm_panobinostat() -> AnnData:
    """Load glioblastoma slice cultures of 5 patients, with and without panobinostat.

    Returns
    -------
    5,000 cells x 300 genes of raw counts, 500 in each of 10 groups; ``obs``: ``patient``,
    ``treatment`` (``control``, ``panobinostat``), ``dose`` (uM). Zhao et al. 2021, GEO GSE148842,
    genes as in the R package lemur. Each arm is a library of its own: treatment and library cannot
    be told apart.

    Examples
    --------
    >>> gbm_panobinostat().shape
    (5000, 300)
    """
    return _read("gbm_panobinostat.h5ad")


def norman_k562_combinations() -> AnnData:
    """Load K562 cells under CRISPR activation of one or two genes.

    Returns
    -------
    3,375 cells x 500 genes of raw counts; ``obs``: ``cell_line``, ``treatment`` (``control``, 18
    single genes and 15 pairs ``A+B``). Norman et al. 2019, as in perturbench. Half of the genes
    are 0 in all cells of this selection: filter them first.

    Examples
    --------
    >>> norman_k562_combinations().shape
    (3375, 500)
    """
    return _read("norman_k562_combinations.h5ad")


def _read(name: str) -> AnnData:
    with as_file(files("pyro_fcr.bundled") / name) as path:
        return ad.read_h5ad(path)
