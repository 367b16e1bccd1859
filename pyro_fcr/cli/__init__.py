"""The command line: files in, files out."""

import sys
from collections.abc import Sequence

from cyclopts import App, Parameter

from pyro_fcr import __version__
from pyro_fcr.cli import discover, draw, predict, reproduce, simulate, train
from pyro_fcr.cli.shell import option_name, plain_messages, read_options

commands = App(
    name="pyro-fcr",
    help=(
        "Factorized causal representations of single-cell perturbation responses. Cells are h5ad "
        "files or zarr stores with raw counts. To see what comes out: pyro-fcr demo --out demo. "
        "With --debug errors come with their traceback."
    ),
    version=f"pyro-fcr {__version__}",
    version_format="plaintext",
    default_parameter=Parameter(name_transform=option_name, negative_iterable=()),
)

for _command in (
    train.demo,
    train.fit,
    train.inspect,
    train.evaluate,
    predict.latents,
    predict.predict,
    predict.join,
    predict.dose_response,
    discover.effects,
    discover.interactions,
    discover.design,
    discover.next_pairs,
    draw.plot,
    reproduce.reproduce,
    simulate.simulate,
):
    commands.command(_command)


def app(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Parameters
    ----------
    arguments
        What stands behind ``pyro-fcr``; None takes it from ``sys.argv``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with plain_messages(debug="--debug" in given) as asked:
        run = read_options(commands, [each for each in given if each != "--debug"], asked)
        run()
