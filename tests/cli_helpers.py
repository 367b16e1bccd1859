"""The command line, called from tests."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from pyro_fcr.cli import app


def run(*arguments):
    """What a command leaves: exit code, what it wrote to both streams, and how it ended."""
    out, exception = io.StringIO(), None
    with redirect_stdout(out), redirect_stderr(out):
        try:
            app([str(each) for each in arguments])
        except SystemExit as error:
            exception = error
    code = 0 if exception is None else exception.code
    return SimpleNamespace(exit_code=code, output=out.getvalue(), exception=exception)


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output
