"""The command line: files in, files out."""

from typing import Annotated

import typer

from pyro_fcr.cli import discover, draw, evaluate, predict, simulate, train
from pyro_fcr.cli.options import grouped

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


for _command in (
    train.demo,
    train.fit,
    train.inspect,
    evaluate.evaluate,
    predict.latents,
    predict.predict,
    predict.dose_response,
    discover.effects,
    discover.interactions,
    draw.plot,
    simulate.simulate,
):
    app.command()(grouped(_command))

__all__ = ["app"]
