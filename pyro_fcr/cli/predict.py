"""Questions to a saved model: latents, predicted cells, curves over the dose."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyro_fcr
from pyro_fcr.cli import shell


def latents(
    model: shell.ModelPath,
    cells: shell.CellsPath,
    /,
    *,
    out: shell.Out,
    encoding: Literal["label-blind", "labelled"] = "label-blind",
    only_in_use: bool = False,
    overwrite: shell.Overwrite = False,
) -> None:
    """Write the cells with each block's posterior mean in obsm (X_fcr_z_x, ...) as h5ad.

    Parameters
    ----------
    encoding
        label-blind: cells are encoded without their labels, so that what is seen of a label was
        read from expression. labelled: with them.
    only_in_use
        Leave out dimensions that the model does not use.
    """
    from pyro_fcr.data.hdf5 import copy_h5ad, is_h5ad

    shell.check_file(out, ".h5ad", overwrite=overwrite)
    adata = pyro_fcr.data.open_cells(cells)
    is_copied = is_h5ad(cells)  # with all that it holds, part by part
    if not is_copied:
        adata = pyro_fcr.data.read_cells(cells)
    fitted = pyro_fcr.FCR.load(model)
    fitted.add_latents_to(adata, encoding=encoding, only_in_use=only_in_use)
    if not is_copied:
        shell.write_adata(adata, out, overwrite=overwrite)
        return
    found = {name: adata.obsm[name] for name in adata.obsm if name.startswith("X_fcr_")}
    more = {"obsm": found, "uns": {"fcr": adata.uns["fcr"]}}
    shell.write(out, lambda draft: copy_h5ad(cells, draft, more), overwrite=overwrite)
    print(f"{adata.n_obs} cells x {adata.n_vars} genes in {out}")


def predict(
    model: shell.ModelPath,
    /,
    *,
    out: shell.Out,
    treatment: str | None = None,
    dose: str | None = None,
    covariate: list[str] | None = None,
    cells: Path | None = None,
    hold: list[str] | None = None,
    n_cells: int = 500,
    n_draws: int = 1,
    library: str | None = None,
    output: Literal["draws", "mean", "summary"] = "draws",
    uncertainty: Literal["latent", "observation"] | None = None,
    quantiles: str | None = None,
    shard: str | None = None,
    seed: shell.Seed = 0,
    overwrite: shell.Overwrite = False,
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
        With --cells: a latent that they keep, such as z_x; repeatable. If left out, those that the
        target does not cause.
    n_cells
        New cells to draw (without --cells).
    n_draws
        Draws per cell.
    library
        Counts per cell: a number, own (the default with --cells), or target (the default without):
        as the condition has them in training, or treatment and context let expect.
    output
        draws (a row per draw), mean (over a cell's draws, and their sd) or summary (quantiles,
        too).
    uncertainty
        What the spread is of: latent (expected counts) or observation (drawn counts). observation
        with draws and latent otherwise if left out.
    quantiles
        Quantiles of a summary; 0.05,0.5,0.95 if left out.
    shard
        Answer for a part of the cells, such as 2/8, the second of eight; `join` puts them together.
    """
    shell.check_file(out, ".h5ad", ".zarr", overwrite=overwrite)
    if cells is None and hold:
        raise ValueError("--hold is for --cells; new cells have no latents to keep.")
    if cells is None and treatment is None:
        raise ValueError("Give --treatment, or --cells whose response to predict.")
    if quantiles is not None and output != "summary":
        raise ValueError(f"--quantiles is for --output summary, not for {output!r}.")
    chosen = pyro_fcr.Output.quantiles if quantiles is None else _numbers(quantiles)
    store = out if out.suffix == ".zarr" else None
    asked: dict[str, Any] = {
        "treatment": treatment,
        "dose": dose,
        "covariates": shell.levels(covariate),
        "n_draws": n_draws,
        **({} if library is None else {"library": _depth(library)}),
        "output": pyro_fcr.Output(output, uncertainty, chosen, store, shard=shard),
        "seed": seed,
    }
    fitted = pyro_fcr.FCR.load(model)
    if cells is None:
        adata = fitted.predict(**asked, n_cells=n_cells)
    else:
        adata = fitted.counterfactual(cells, **asked, hold=hold)
    shell.write_adata(adata, out, overwrite=overwrite)


def join(shards: list[Path], /, *, out: shell.Out, overwrite: shell.Overwrite = False) -> None:
    """Put all shards that `predict --shard` wrote together, as one h5ad or zarr.

    Parameters
    ----------
    shards
        The shards of one answer, in any order.
    out
        .h5ad, or .zarr, which is written part by part for answers beyond memory.
    """
    shell.check_file(out, ".h5ad", ".zarr", overwrite=overwrite)
    from pyro_fcr.queries import join_shards

    adata = join_shards(shards, store=out if out.suffix == ".zarr" else None)
    shell.write_adata(adata, out, overwrite=overwrite)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--quantiles {text!r} is not a list of numbers; expected 0.05,0.5,0.95 or the like."
        ) from error


def _depth(text: str) -> float | str:
    if text in ("own", "target"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--library {text!r}: expected own, target or a number.") from error


def dose_response(
    model: shell.ModelPath,
    /,
    *,
    out: shell.Out,
    treatment: str,
    covariate: list[str] | None = None,
    dose: list[float] | None = None,
    gene: shell.Genes = None,
    n_draws: int = 200,
    level: float = 0.9,
    hill: Path | None = None,
    seed: shell.Seed = 0,
    overwrite: shell.Overwrite = False,
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
    hill
        csv to write a Hill curve of each gene and context to: EC50, slope, top.
    """
    for path in filter(None, (out, hill)):
        shell.check_file(path, ".csv", overwrite=overwrite)
    context, fitted = shell.levels(covariate) or None, pyro_fcr.FCR.load(model)
    table = fitted.dose_response(
        treatment, cells=context, doses=dose, genes=gene, n_draws=n_draws, level=level, seed=seed
    )
    shell.write_table(table, out, overwrite=overwrite)
    if hill is not None:
        from pyro_fcr.discovery import hill_curves

        shell.write_table(hill_curves(table, level=level), hill, overwrite=overwrite)
