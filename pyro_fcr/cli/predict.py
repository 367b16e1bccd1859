"""Questions to a saved model: latents, predicted cells, curves over the dose."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyro_fcr
from pyro_fcr.cli.shell import (
    CellsPath,
    Genes,
    ModelPath,
    Out,
    Overwrite,
    Seed,
    check_file,
    levels,
    write_adata,
    write_table,
)


def latents(
    model: ModelPath, cells: CellsPath, /, *, out: Out, overwrite: Overwrite = False
) -> None:
    """Write the cells with each block's posterior mean in obsm (X_fcr_z_x, ...) as h5ad."""
    check_file(out, ".h5ad", overwrite=overwrite)
    adata = pyro_fcr.data.read_cells(cells)
    pyro_fcr.FCR.load(model).add_latents_to(adata)
    write_adata(adata, out)


def predict(
    model: ModelPath,
    /,
    *,
    out: Out,
    treatment: str | None = None,
    dose: str | None = None,
    covariate: list[str] | None = None,
    cells: Path | None = None,
    hold: list[str] | None = None,
    n_cells: int = 500,
    n_draws: int = 1,
    library: float | None = None,
    output: Literal["draws", "mean", "summary"] = "draws",
    uncertainty: Literal["latent", "observation"] | None = None,
    quantiles: str | None = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Predict cells under a treatment, dose or context and write them as h5ad or zarr.

    Parameters
    ----------
    out
        .h5ad, or .zarr, which is written part by part for answers beyond memory.
    treatment
        Target treatment.
    dose
        Target dose.
    covariate
        Target context as key=level; one per covariate.
    cells
        Source cells: what would *they* express (counterfactual)? Without: new cells of the
        condition, which then needs --treatment and every --covariate.
    hold
        With --cells: a latent that they keep, such as z_x; repeatable. Those that the target is no
        cause of if left out.
    n_cells
        New cells to draw (without --cells).
    n_draws
        Draws per cell.
    library
        Counts per cell; the cells' own, or the training median, if left out.
    output
        draws (a row per draw), mean (over a cell's draws, and their sd) or summary (quantiles,
        too).
    uncertainty
        What the spread is of: latent (expected counts) or observation (drawn counts). observation
        with draws and latent otherwise if left out.
    quantiles
        Quantiles of a summary; 0.05,0.5,0.95 if left out.
    """
    if out.suffix == ".zarr" and out.exists():
        raise FileExistsError(
            f"{out} is there already, and stores are not replaced. Remove it or give another --out."
        )
    check_file(out, ".h5ad", ".zarr", overwrite=overwrite)
    if cells is None and hold:
        raise ValueError("--hold is for --cells; new cells have no latents to keep.")
    if cells is None and treatment is None:
        raise ValueError("Give --treatment, or --cells whose response to predict.")
    if quantiles is not None and output != "summary":
        raise ValueError(f"--quantiles is for --output summary, not for {output!r}.")
    answer: dict[str, Any] = {"store": out if out.suffix == ".zarr" else None}
    if quantiles is not None:
        answer["quantiles"] = _numbers(quantiles)
    asked: dict[str, Any] = {
        "treatment": treatment,
        "dose": dose,
        "covariates": levels(covariate),
        "n_draws": n_draws,
        "library": library,
        "output": pyro_fcr.Output(output, uncertainty, **answer),
        "seed": seed,
    }
    fitted = pyro_fcr.FCR.load(model)
    if cells is None:
        adata = fitted.predict(**asked, n_cells=n_cells)
    else:
        adata = fitted.counterfactual(cells, **asked, hold=hold)
    write_adata(adata, out)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--quantiles {text!r} is not a list of numbers; expected 0.05,0.5,0.95 or the like."
        ) from error


def dose_response(
    model: ModelPath,
    /,
    *,
    out: Out,
    treatment: str,
    covariate: list[str] | None = None,
    dose: list[float] | None = None,
    gene: Genes = None,
    n_draws: int = 200,
    level: float = 0.9,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Follow genes over the doses of a treatment and write the curves as csv.

    The estimate is the log fold change (natural logarithm) against dose 0 of the same context.

    Parameters
    ----------
    out
        csv to write.
    treatment
        The treatment.
    covariate
        Context as key=level, one per covariate; all contexts if left out.
    dose
        A dose; repeatable. Eight over the trained range if left out.
    n_draws
        Cells to draw per context and dose.
    level
        Share of the cells within the bands.
    """
    check_file(out, ".csv", overwrite=overwrite)
    context, fitted = levels(covariate) or None, pyro_fcr.FCR.load(model)
    table = fitted.dose_response(
        treatment, cells=context, doses=dose, genes=gene, n_draws=n_draws, level=level, seed=seed
    )
    write_table(table, out)
