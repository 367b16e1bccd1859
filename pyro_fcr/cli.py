"""The command line: files in, files out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from anndata import AnnData

    from pyro_fcr.api import FCR
    from pyro_fcr.data import Registry, Schema

# Commands import what they need themselves: scanpy and torch take seconds, --help must not.

app = typer.Typer(
    name="pyro-fcr",
    help=(
        "Factorized causal representations of single-cell perturbation responses. Cells are h5ad "
        "files or zarr stores with raw counts. To see what comes out: pyro-fcr demo --out demo"
    ),
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CellsPath = Annotated[Path, typer.Argument(help="h5ad file or zarr store.", show_default=False)]
ModelPath = Annotated[Path, typer.Argument(help="Folder that `fit` wrote.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Where to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the cells; about 8,000 steps if left out.")
]
TreatmentKey = Annotated[
    str, typer.Option(help="Column of obs with the treatment; combinations as A+B.")
]
CovariateKeys = Annotated[
    list[str], typer.Option("--covariate-key", help="Column of obs with a context; repeatable.")
]
Control = Annotated[str | None, typer.Option(help="Label of untreated cells, if there are any.")]
DoseKey = Annotated[str | None, typer.Option(help="Column of obs with the dose.")]
Layer = Annotated[str | None, typer.Option(help="Layer with the values, in place of X.")]
SplitKey = Annotated[
    str | None,
    typer.Option(help="Column of obs: `train`, `valid` (held out); other labels are left out."),
]
Expression = Annotated[str, typer.Option(help="What the values are: counts or log1p.")]


@app.callback()
def main(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.")] = False,
) -> None:
    """Show the version, or leave the work to a command."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"pyro-fcr {installed('pyro-fcr')}")
        raise typer.Exit


@app.command()
def demo(out: Out = Path("demo"), max_epochs: Epochs = 150, seed: Seed = 0) -> None:
    """Run the main job on bundled real cells; write report, metrics, latents, model."""
    with _plain_messages():
        from pyro_fcr.demo import run_demo

        metrics = run_demo(out, max_epochs=max_epochs, seed=seed)
        typer.echo(f"Predicted and real response of the held-out pair {metrics['heldout_pair']}:")
        for name, scores in metrics["response"].items():
            values = "  ".join(f"{key} {value:6.3f}" for key, value in scores.items())
            typer.echo(f"  {name:21s} {values}")


@app.command()
def fit(
    cells: CellsPath,
    *,
    treatment_key: TreatmentKey,
    covariate_key: CovariateKeys,
    out: Out,
    control: Control = None,
    dose_key: DoseKey = None,
    layer: Layer = None,
    split_key: SplitKey = None,
    expression: Expression = "counts",
    n_x: Annotated[int, typer.Option(help="Dimensions of z_x.")] = 8,
    n_t: Annotated[int, typer.Option(help="Dimensions of z_t.")] = 8,
    n_tx: Annotated[
        int | None, typer.Option(help="Dimensions of z_tx; what the data identify if left out.")
    ] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="nb, zinb or normal; by --expression if left out.")
    ] = None,
    max_epochs: Epochs = None,
    batch_size: Annotated[int, typer.Option(help="Cells per step.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 3e-3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint: Annotated[Path | None, typer.Option(help="File to write checkpoints to.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Checkpoint to go on from.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a model on cells and save it."""
    with _plain_messages():
        from pyro_fcr.api import FCR
        from pyro_fcr.programs import default_architecture

        _check_out(out, overwrite=overwrite)
        schema = _schema(
            treatment_key, covariate_key, control, dose_key, layer, split_key, expression
        )
        adata = _read(cells)
        architecture = default_architecture(schema.register(adata))
        architecture = replace(
            architecture,
            n_x=n_x,
            n_t=n_t,
            n_tx=n_tx or architecture.n_tx,
            likelihood=likelihood or architecture.likelihood,  # type: ignore[arg-type]
        )
        model = FCR(adata, schema, architecture=architecture, seed=seed)
        history = model.fit(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            device=device,
            seed=seed,
            checkpoint=checkpoint,
            resume=resume,
        )
        model.save(out, overwrite=overwrite)
        typer.echo(f"{len(history)} epochs ({history.attrs['stopped']}); model in {out}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A saved model, or cells with a schema.")],
    *,
    treatment_key: Annotated[str | None, typer.Option(help="For cells: as in `fit`.")] = None,
    covariate_key: Annotated[list[str] | None, typer.Option(help="For cells: as in `fit`.")] = None,
    control: Control = None,
    dose_key: DoseKey = None,
    layer: Layer = None,
    split_key: SplitKey = None,
    expression: Expression = "counts",
) -> None:
    """Show the conditions, graph and claims of a saved model, or check cells before training."""
    with _plain_messages():
        from pyro_fcr.api import FCR

        if (path / "model.json").is_file():
            model = FCR.load(path)
            _show_registry(model.registry)
            _show_programs(model)
            return
        if treatment_key is None or not covariate_key:
            raise ValueError(
                f"{path} is no saved model. To check cells, say what their columns mean: "
                "--treatment-key and --covariate-key."
            )
        schema = _schema(
            treatment_key, covariate_key, control, dose_key, layer, split_key, expression
        )
        _show_registry(schema.register(_read(path)))


@app.command()
def latents(model: ModelPath, cells: CellsPath, *, out: Out, overwrite: Overwrite = False) -> None:
    """Write the cells with each block's posterior mean in obsm["X_fcr_<block>"] as h5ad."""
    with _plain_messages():
        from pyro_fcr.api import FCR

        _check_out(out, overwrite=overwrite)
        adata = _read(cells)
        FCR.load(model).add_latents_to(adata)
        _write(adata, out)


@app.command()
def predict(
    model: ModelPath,
    *,
    out: Out,
    treatment: Annotated[str | None, typer.Option(help="Target treatment.")] = None,
    dose: Annotated[str | None, typer.Option(help="Target dose.")] = None,
    covariate: Annotated[
        list[str] | None, typer.Option(help="Target context as key=level; repeatable.")
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Source cells: what would *they* express (counterfactual)? Without: new cells of "
            "the condition, which then needs --treatment and every --covariate."
        ),
    ] = None,
    n_cells: Annotated[int, typer.Option(help="New cells to draw (without --cells).")] = 500,
    n_draws: Annotated[int, typer.Option(help="Draws per source cell (with --cells).")] = 1,
    output: Annotated[
        str, typer.Option(help="draws (counts as observed) or mean (expected counts).")
    ] = "draws",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Predict cells under a treatment, dose or context and write them as h5ad."""
    with _plain_messages():
        from pyro_fcr.api import FCR

        _check_out(out, overwrite=overwrite)
        fitted, context = FCR.load(model), _levels(covariate or [])
        shared: dict[str, Any] = {"dose": dose, "output": output, "seed": seed}
        if cells is not None:
            adata = fitted.counterfactual(
                _read(cells), treatment=treatment, covariates=context, n_draws=n_draws, **shared
            )
        elif treatment is None:
            raise ValueError("Give --treatment, or --cells whose response to predict.")
        else:
            adata = fitted.predict(treatment, covariates=context, n_cells=n_cells, **shared)
        _write(adata, out)


@contextmanager
def _plain_messages() -> Iterator[None]:
    """Show log lines and warnings as text, and errors that name their mend without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pyro_fcr").setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"Warning: {message}", err=True)
        try:
            yield
        except (ValueError, OSError, FloatingPointError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


def _schema(
    treatment_key: str,
    covariate_key: list[str],
    control: str | None,
    dose_key: str | None,
    layer: str | None,
    split_key: str | None,
    expression: str,
) -> Schema:
    from pyro_fcr.data import Schema

    return Schema(
        treatment_key=treatment_key,
        control=control,
        covariate_keys=tuple(covariate_key),
        dose_key=dose_key,
        layer=layer,
        split_key=split_key,
        expression=expression,  # type: ignore[arg-type]
    )


def _read(path: Path) -> AnnData:
    from pyro_fcr.data import read_cells

    return read_cells(path)


def _write(adata: AnnData, out: Path) -> None:
    from pyro_fcr.files import atomic_write

    with atomic_write(out) as path:
        adata.write_h5ad(path, compression="gzip")
    typer.echo(f"{adata.n_obs} cells x {adata.n_vars} genes in {out}")


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already. Pass --overwrite or another --out.")


def _levels(pairs: list[str]) -> dict[str, str]:
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"--covariate {wrong[0]!r} is not of the form key=level.")
    return dict(pair.split("=", 1) for pair in pairs)


def _show_registry(registry: Registry) -> None:
    typer.echo(f"{len(registry.genes)} genes; agents: {', '.join(registry.agents)}")
    typer.echo(f"{'cells':>7s}  condition")
    for condition in registry.conditions:
        dose = f" {'+'.join(f'{d:g}' for d in condition.dose)}" if condition.dose else ""
        context = ", ".join(f"{k}={v}" for k, v in condition.covariates.items())
        typer.echo(f"{condition.n_cells:7d}  {condition.treatment}{dose} in {context}")
    n = registry.n_prior_conditions
    typer.echo(
        f"{n} conditions tell z_tx apart (all controls are one): at most {(n - 1) // 2} "
        "identifiable dimensions (2 n + 1 conditions for n)"
    )


def _show_programs(model: FCR) -> None:
    typer.echo(model.inspect().to_string())
    typer.echo("independences that training enforces")
    for claim in model.claims():
        typer.echo(f"  {claim}    {claim.words}")
    if model.architecture is not None:
        typer.echo(f"architecture: {json.dumps(model.architecture.__dict__)}")
