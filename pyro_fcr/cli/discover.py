"""Effects of treatments, and treatments that act differently in one context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_fcr.cli.options import (
    CellsPath,
    Columns,
    CovariateKeys,
    Genes,
    Overwrite,
    Seed,
    Sizes,
    Training,
    TreatmentKey,
)
from pyro_fcr.cli.shell import (
    check_file,
    check_genes,
    plain_messages,
    read,
    write_adata,
    write_table,
)

if TYPE_CHECKING:
    from pyro_fcr.api import FCR
    from pyro_fcr.discovery import Interactions

_N_TOP = 10


def effects(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="Folders that `fit` wrote. Of one model intervals say how much cells differ; of "
            "several, fitted to the same conditions, how much the fits do.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            help=".csv with a row per effect and gene, or .h5ad with a row per effect.",
            show_default=False,
        ),
    ],
    treatment: Annotated[
        list[str] | None, typer.Option(help="A treatment; repeatable, all if left out.")
    ] = None,
    gene: Genes = None,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    n_cells: Annotated[int, typer.Option(help="Cells to draw per context.")] = 500,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write the effect of treatments on genes in every context, whole and by latent block.

    Estimates are log fold changes (natural logarithm) against untreated cells.
    """
    with plain_messages():
        from pyro_fcr import discovery
        from pyro_fcr.api import FCR

        check_file(out, [".csv", ".h5ad"], overwrite=overwrite)
        if gene and out.suffix != ".csv":
            raise ValueError("--gene is for a .csv; an .h5ad has all genes.")
        fits = [FCR.load(model) for model in models]
        _check_alike(models, fits)
        check_genes(gene, fits[0].registry)
        found = discovery.effects(
            fits[0] if len(fits) == 1 else fits,
            treatments=treatment or None,
            n_cells=n_cells,
            level=level,
            seed=seed,
        )
        if out.suffix == ".csv":
            write_table(found.to_frame(gene or None), out)
        else:
            write_adata(found.to_adata(), out, rows="effects")


def _check_alike(models: Sequence[Path], fits: Sequence[FCR]) -> None:
    def asked(fit: FCR) -> tuple[object, ...]:
        conditions = fit.registry.conditions
        return fit.registry.genes, {(c.treatment, c.dose, str(c.covariates)) for c in conditions}

    for model, fit in zip(models[1:], fits[1:], strict=True):
        if asked(fit) != asked(fits[0]):
            raise ValueError(
                f"{model} has other genes or conditions than {models[0]}. Give refits of one model."
            )


def interactions(
    cells: CellsPath,
    *,
    treatment_key: TreatmentKey,
    covariate_key: CovariateKeys,
    out: Annotated[
        Path, typer.Option(help="Folder for pairs.csv and genes.csv.", show_default=False)
    ],
    columns: Columns,
    replicate_key: Annotated[
        str | None,
        typer.Option(
            help="Column of obs with the replicate (donor, library, plate). Give it where there "
            "are any: cells of one replicate are no independent evidence."
        ),
    ] = None,
    sizes: Sizes,
    training: Training,
    level: Annotated[float, typer.Option(help="False discovery rate to control.")] = 0.1,
    min_counts: Annotated[
        float, typer.Option(help="Counts of a gene in one half of a pair's cells, at least.")
    ] = 10.0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Rank pairs of treatment and context by interaction, with error control.

    Trains two models, each on one half of the cells, and tests what either claims on the other's.
    """
    with plain_messages():
        from pyro_fcr.api import FCR
        from pyro_fcr.data import register
        from pyro_fcr.discovery import cross_fit, rank_interactions

        for name in ("pairs.csv", "genes.csv"):
            check_file(out / name, [".csv"], overwrite=overwrite)
        if columns.control is None:
            raise ValueError("Interactions need untreated cells: name them with --control.")
        if not 0 < level < 1:
            raise ValueError(f"--level is {level}, wanted a number between 0 and 1, such as 0.1.")
        settings = training.settings()
        schema, adata = columns.schema(treatment_key, covariate_key), read(cells)
        architecture = sizes.architecture(register(adata, schema)[0])
        cross = cross_fit(
            FCR(adata, schema, architecture=architecture, seed=seed),
            replicate_key=replicate_key,
            seed=seed,
            **settings,
            progress=True,
        )
        found = rank_interactions(cross, level=level, min_counts=min_counts, seed=seed)
        _write(found, out)


def _write(found: Interactions, out: Path) -> None:
    from pyro_fcr.files import atomic_write

    # Both are written before either takes its place.
    with atomic_write(out / "pairs.csv") as pairs, atomic_write(out / "genes.csv") as genes:
        found.pairs.to_csv(pairs, index=False)
        found.genes.to_csv(genes, index=False)
    n_found = int((found.pairs["qvalue"] <= found.level).sum())
    typer.echo(f"{n_found} of {len(found.pairs)} pairs with q <= {found.level:g}; all in {out}")
    shown = ["treatment", "dose", "context", "z", "qvalue", "strength", "n_cells"]
    top = found.pairs[[key for key in shown if key in found.pairs]].head(_N_TOP)
    typer.echo(top.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
