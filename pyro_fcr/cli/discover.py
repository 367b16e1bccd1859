"""Effects of treatments, and treatments that act differently in one context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyro_fcr
from pyro_fcr.cli import shell
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.training.plan import TrainingPlan
from pyro_fcr.values import VOCABULARY

if TYPE_CHECKING:
    from pyro_fcr.discovery import Interactions

_N_TOP = 10


def effects(
    models: list[Path],
    /,
    *,
    out: shell.Out,
    cells: Path | None = None,
    treatment: list[str] | None = None,
    gene: shell.Genes = None,
    level: float = 0.9,
    n_cells: int = 500,
    seed: shell.Seed = 0,
    overwrite: shell.Overwrite = False,
) -> None:
    """Write the effect of treatments on genes in every context, whole and by latent block.

    Estimates are log fold changes (natural logarithm) against untreated cells.

    Parameters
    ----------
    models
        Folders that `fit` wrote. Of one model the spread is how much cells differ; of several,
        fitted to the same conditions, how much the fits do.
    out
        .csv with a row per effect and gene, or .h5ad with a row per effect.
    cells
        The cells of the fit: those that gave no gradient give q-values, and intervals of the truth.
    treatment
        A treatment; repeatable, all if left out.
    level
        Probability of the intervals; share of the draws within the bounds of the spread.
    n_cells
        Cells to draw per context.
    """
    from pyro_fcr.queries.targets import find_genes

    shell.check_file(out, ".csv", ".h5ad", overwrite=overwrite)
    if gene and out.suffix != ".csv":
        raise ValueError("--gene is for a .csv; an .h5ad has all genes.")
    fits = [pyro_fcr.FCR.load(model, adata=cells) for model in models]
    find_genes(fits[0].registry, gene)  # before long work
    found = pyro_fcr.effects(fits, treatments=treatment, n_cells=n_cells, level=level, seed=seed)
    if out.suffix == ".csv":
        shell.write_table(found.to_frame(gene), out, overwrite=overwrite)
    else:
        shell.write_adata(found.to_adata(), out, overwrite=overwrite, rows="effects")


def interactions(
    cells: shell.CellsPath,
    /,
    *,
    out: shell.Out,
    schema: shell.SchemaOptions,
    architecture: shell.ArchitectureOptions = Architecture(),
    plan: shell.PlanOptions = TrainingPlan(),
    replicate_key: str | None = None,
    level: float = 0.1,
    min_expressing: int = 10,
    overwrite: shell.Overwrite = False,
) -> None:
    """Rank pairs of treatment and context by interaction, with error control.

    Trains two models, each on one half of the cells, and tests what either claims on the other's.

    Parameters
    ----------
    out
        Folder of its own for pairs.csv and genes.csv.
    replicate_key
        Column of obs with the replicate (donor, library, plate). Give it where there are any: cells
        of one replicate are not independent evidence.
    level
        False discovery rate to control.
    min_expressing
        Fewest cells, in one half of a pair's, that express a gene.
    """
    shell.check_free(out, overwrite=overwrite)
    if schema.control is None:
        raise ValueError("Interactions need untreated cells: name them with --control.")
    VOCABULARY["level"].read("level", level)  # before long work
    fcr = pyro_fcr.FCR(cells, schema, architecture=architecture, seed=plan.seed)
    cross = pyro_fcr.cross_fit(
        fcr, replicate_key=replicate_key, seed=plan.seed, plan=plan, progress=plan.progress
    )
    found = pyro_fcr.rank_interactions(
        cross, level=level, min_expressing=min_expressing, seed=plan.seed
    )
    tables = {"pairs.csv": found.pairs, "genes.csv": found.genes}
    shell.write_tables(tables, out, overwrite=overwrite)
    _show(found, out)


def _show(found: Interactions, out: Path) -> None:
    n_found = int((found.pairs["qvalue"] <= found.level).sum())
    print(f"{n_found} of {len(found.pairs)} pairs with q <= {found.level:g}; all in {out}")
    shown = ["treatment", "dose", "context", "z", "qvalue", "strength", "n_cells"]
    top = found.pairs[[key for key in shown if key in found.pairs]].head(_N_TOP)
    print(top.to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def design(
    pilot: shell.CellsPath,
    /,
    *,
    out: shell.Out,
    schema: shell.SchemaOptions,
    n_cells: list[int],
    n_contexts: list[int],
    n_replicates: list[int] | None = None,
    size: list[float] | None = None,
    share: float = 0.01,
    level: float = 0.1,
    replicate_key: str | None = None,
    overwrite: shell.Overwrite = False,
) -> None:
    """Predict from a pilot what screens of other sizes would find of interactions.

    Parameters
    ----------
    out
        csv with a row per screen and size: the power to find it, and cells in all.
    n_cells
        Cells of a condition; repeatable.
    n_contexts
        Contexts; repeatable.
    n_replicates
        Replicates of a condition; repeatable, 1 if left out.
    size
        An interaction, as a difference of log fold changes (natural logarithm); repeatable, 0.25,
        0.5 and 1 if left out.
    share
        Share of all genes and pairs that interact.
    level
        False discovery rate.
    replicate_key
        Column of obs with the pilot's replicates.
    """
    from itertools import product

    from pyro_fcr.discovery import PlannedScreen, interaction_power

    shell.check_file(out, ".csv", overwrite=overwrite)
    screens = [
        PlannedScreen(n_cells=cells, n_contexts=contexts, n_replicates=replicates)
        for cells, contexts, replicates in product(n_cells, n_contexts, n_replicates or [1])
    ]
    found = interaction_power(
        pyro_fcr.data.read_cells(pilot),
        schema,
        screens,
        sizes=size or (0.25, 0.5, 1.0),
        share=share,
        level=level,
        replicate_key=replicate_key,
    )
    print(found.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    shell.write_table(found, out, overwrite=overwrite)


def next_pairs(
    models: list[Path],
    /,
    *,
    cells: shell.CellsPath,
    out: shell.Out,
    n_pairs: int = 10,
    n_cells: int = 100,
    treatment: list[str] | None = None,
    seed: shell.Seed = 0,
    overwrite: shell.Overwrite = False,
) -> None:
    """Rank pairs of treatment and context that were never measured by what they would tell.

    Parameters
    ----------
    models
        Three or more folders that `fit` wrote, of one design and fitted to the same cells with
        other seeds.
    cells
        The cells of the fits.
    out
        csv with a row per pair, in the order in which they are best measured.
    n_pairs
        Most pairs to choose.
    n_cells
        Cells that will be measured of each.
    treatment
        A treatment to choose among; repeatable, all if left out.
    """
    from pyro_fcr.discovery import next_pairs as rank

    shell.check_file(out, ".csv", overwrite=overwrite)
    fits = [pyro_fcr.FCR.load(model, adata=cells) for model in models]
    found = rank(fits, n_pairs=n_pairs, n_cells=n_cells, treatments=treatment, seed=seed)
    print(found.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    shell.write_table(found, out, overwrite=overwrite)
