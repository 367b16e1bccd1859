"""Models: the demo, training, and a look at what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_fcr.cli.options import (
    CellsPath,
    Columns,
    CovariateKeys,
    Epochs,
    Out,
    Overwrite,
    Seed,
    Sizes,
    Training,
    TreatmentKey,
)
from pyro_fcr.cli.shell import check_free, plain_messages, read

if TYPE_CHECKING:
    from pyro_fcr.api import FCR
    from pyro_fcr.data import Registry


def demo(out: Out = Path("demo"), max_epochs: Epochs = 150, seed: Seed = 0) -> None:
    """Run the main job on bundled real cells; write report, metrics, latents, model."""
    with plain_messages():
        from pyro_fcr.demo import run_demo

        metrics = run_demo(out, max_epochs=max_epochs, seed=seed)
        typer.echo(f"Predicted and real response of the held-out pair {metrics['heldout_pair']}:")
        for name, scores in metrics["response"].items():
            values = "  ".join(f"{key} {value:6.3f}" for key, value in scores.items())
            typer.echo(f"  {name:21s} {values}")


def fit(
    cells: CellsPath,
    *,
    treatment_key: TreatmentKey,
    covariate_key: CovariateKeys,
    out: Out,
    columns: Columns,
    sizes: Sizes,
    training: Training,
    checkpoint: Annotated[Path | None, typer.Option(help="File to write checkpoints to.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Checkpoint to go on from.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a model on cells and save it."""
    with plain_messages():
        from pyro_fcr.api import FCR
        from pyro_fcr.data import register

        check_free(out, overwrite=overwrite)
        if out.exists() and not (out / "model.json").is_file():
            raise FileExistsError(f"{out} holds no model, so it is not replaced.")
        settings = training.settings()
        schema, adata = columns.schema(treatment_key, covariate_key), read(cells)
        architecture = sizes.architecture(register(adata, schema)[0])
        model = FCR(adata, schema, architecture=architecture, seed=seed)
        history = model.fit(**settings, seed=seed, checkpoint=checkpoint, resume=resume)
        model.save(out, overwrite=overwrite)
        typer.echo(f"{len(history)} epochs ({history.attrs['stopped']}); model in {out}")


def inspect(
    path: Annotated[Path, typer.Argument(help="A saved model, or cells with a schema.")],
    *,
    treatment_key: Annotated[str | None, typer.Option(help="For cells: as in `fit`.")] = None,
    covariate_key: Annotated[list[str] | None, typer.Option(help="For cells: as in `fit`.")] = None,
    columns: Columns,
) -> None:
    """Show the conditions, graph and claims of a saved model, or check cells before training."""
    with plain_messages():
        from pyro_fcr.api import FCR
        from pyro_fcr.data import register

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
        registry, _ = register(read(path), columns.schema(treatment_key, covariate_key))
        _show_registry(registry)


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
