"""The command line, called from tests."""

from typer.testing import CliRunner

from pyro_fcr.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output
