"""Questions to a saved model: latents, predicted cells, curves over the dose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_fcr.cli.options import CellsPath, Genes, ModelPath, Out, Overwrite, Seed
from pyro_fcr.cli.shell import (
    check_file,
    check_genes,
    levels,
    say_written,
    write_adata,
    write_table,
)

if TYPE_CHECKING:
    from pyro_fcr.queries import Output


def latents(
    model: ModelPath, cells: CellsPath, /, *, out: Out, overwrite: Overwrite = False
) -> None:
    """Write the cells with each block's posterior mean in obsm (X_fcr_z_x, ...) as h5ad."""
    from pyro_fcr.api import FCR
    from pyro_fcr.data import read_cells

    check_file(out, [".h5ad"], overwrite=overwrite)
    adata = read_cells(cells)
    FCR.load(model).add_latents_to(adata)
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
    output: str = "draws",
    uncertainty: str | None = None,
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
    from pyro_fcr.api import FCR

    _check_answer(out, overwrite=overwrite)
    if cells is None and hold:
        raise ValueError("--hold is for --cells; new cells have no latents to keep.")
    if cells is None and treatment is None:
        raise ValueError("Give --treatment, or --cells whose response to predict.")
    shared: dict[str, Any] = {
        "treatment": treatment,
        "dose": dose,
        "covariates": levels(covariate or []),
        "n_draws": n_draws,
        "library": library,
        "output": _output(output, uncertainty, quantiles, out),
        "seed": seed,
    }
    fitted = FCR.load(model)
    if cells is None:
        adata = fitted.predict(**shared, n_cells=n_cells)
    else:
        adata = fitted.counterfactual(cells, **shared, hold=hold or None)
    say_written(adata, out) if out.suffix == ".zarr" else write_adata(adata, out)


def _check_answer(out: Path, *, overwrite: bool) -> None:
    if out.suffix == ".zarr" and out.exists():
        raise FileExistsError(
            f"{out} is there already, and stores are not replaced. Remove it or give another --out."
        )
    check_file(out, [".h5ad", ".zarr"], overwrite=overwrite)


def _output(form: str, uncertainty: str | None, quantiles: str | None, out: Path) -> Output:
    from pyro_fcr.queries import Output

    choices: dict[str, Any] = {"form": form, "uncertainty": uncertainty}
    if quantiles is not None:
        if form != "summary":
            raise ValueError(f"--quantiles is for --output summary, not for {form!r}.")
        choices["quantiles"] = _numbers(quantiles)
    return Output(**choices, store=out if out.suffix == ".zarr" else None)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--quantiles {text!r} is no list of numbers; expected 0.05,0.5,0.95 or the like."
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
    from pyro_fcr.api import FCR
    from pyro_fcr.queries import dose_response as curves

    check_file(out, [".csv"], overwrite=overwrite)
    context, fitted = levels(covariate or []), FCR.load(model)
    check_genes(gene, fitted.registry)
    table = curves(
        fitted,
        treatment,
        cells=context or None,
        doses=dose or None,
        genes=gene or None,
        n_draws=n_draws,
        level=level,
        seed=seed,
    )
    write_table(table, out)
