"""The paper's data sets, fitted and measured anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyro_fcr
from pyro_fcr.cli import shell
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.training.plan import TrainingPlan

if TYPE_CHECKING:
    from anndata import AnnData

_Name = Literal["sciplex", "multiplex-tram", "multiplex-5", "multiplex-9"]


def reproduce(
    dataset: _Name,
    /,
    *,
    out: shell.Out,
    cells: Path | None = None,
    treatment: list[str] | None = None,
    cell_line: list[str] | None = None,
    time: list[str] | None = None,
    n_genes: int = 2_000,
    heldout_share: float = 0.1,
    architecture: shell.ArchitectureOptions = Architecture(),
    plan: shell.PlanOptions = TrainingPlan(),
    overwrite: shell.Overwrite = False,
) -> None:
    """Fit and measure a data set of the paper, and put its numbers beside.

    Writes the model, its evaluation (clusters, conditional independence, responses of held-out
    pairs beside baselines), HSIC, and NMI beside what the paper gives.

    Parameters
    ----------
    dataset
        sciplex, multiplex-tram, multiplex-5 or multiplex-9.
    out
        Folder to write.
    cells
        The published file (scPerturb, pertpy); fetched if left out.
    treatment
        A drug to keep, beside control; repeatable. The paper does not say which drugs sciplex,
        multiplex-5 and multiplex-9 have.
    cell_line
        A cell line to keep; repeatable, all if left out.
    time
        A time to keep, of MIX-Seq; repeatable, all if left out.
    n_genes
        Most variable genes to keep.
    heldout_share
        Share of the pairs of drug and cell line whose treated cells are kept from the fit.
    """
    shell.check_free(out, overwrite=overwrite)
    adata = _load(dataset, cells, treatment, cell_line, time)
    from pyro_fcr.comparison import paper

    schema = pyro_fcr.Schema(
        treatment_key="treatment",
        control="control",
        covariate_keys=("cell_line",),
        dose_key="dose" if dataset == "sciplex" else None,
    )
    found = paper.reproduce(
        dataset,
        adata,
        schema,
        n_genes=n_genes,
        share=heldout_share,
        architecture=architecture,
        plan=plan,
    )
    title = f"{dataset}, as in Mao et al. 2024"
    shell.put(out, lambda folder: found.to_folder(folder, title=title, overwrite=overwrite))
    print(found.evaluation)
    print(found.nmi.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"model, evaluation, hsic.csv and nmi.csv in {out}")


def _load(
    dataset: _Name,
    cells: Path | None,
    treatment: list[str] | None,
    cell_line: list[str] | None,
    time: list[str] | None,
) -> AnnData:
    if dataset == "sciplex":
        if time:
            raise ValueError("--time is for the sets of MIX-Seq; sci-Plex 3 has 24 and 72 hours.")
        return pyro_fcr.datasets.sciplex3(cells, treatments=treatment, cell_lines=cell_line)
    if dataset == "multiplex-tram":
        treatment = treatment or ["Trametinib"]
    elif not treatment:
        raise ValueError(
            f"{dataset}: the paper does not say which experiments of MIX-Seq it has; name each "
            "drug with --treatment."
        )
    return pyro_fcr.datasets.mcfarland2020(
        cells, treatments=treatment, cell_lines=cell_line, times=time
    )
