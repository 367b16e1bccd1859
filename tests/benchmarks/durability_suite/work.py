"""The work that is disturbed: a small model that is fitted, saved, asked and evaluated."""

import io
import os
import signal
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from pyro_fcr import FCR, Architecture, Schema, simulation
from pyro_fcr.cli import app

SCHEMA = Schema(treatment_key="treatment", control="control", covariate_keys="context")
COLUMNS = ["--treatment-key", "treatment", "--control", "control", "--covariate-key", "context"]
EPOCHS = 12
SIZES = Architecture(n_x=1, n_t=1, n_tx=1, n_hidden=8, decoder="additive", dropout=0.0)
PLAN = {"max_epochs": EPOCHS, "batch_size": 64, "progress": False, "device": "cpu",
        "align_at": None, "checkpoint_every": 1}  # fmt: skip
FIT = [*COLUMNS, "--max-epochs", EPOCHS, "--batch-size", 64, "--n-x", 1, "--n-t", 1, "--n-tx", 1,
       "--decoder", "additive", "--checkpoint-every", 1]  # fmt: skip


def child(function, *arguments, kill_after=None, started=None, **settings):
    """Run a function in a process of its own, perhaps killed; return the exit code, -9 if it was.

    Call it from a process that has computed nothing with torch: threads do not survive a fork.
    ``kill_after`` counts seconds from when ``started`` exists, a file that the function makes.
    """
    process = os.fork()
    if process == 0:
        _end_with(function, *arguments, **settings)
    if kill_after is not None:
        while started is not None and not started.exists():
            if os.waitpid(process, os.WNOHANG) != (0, 0):
                raise RuntimeError(f"a child ended before it made {started}")
            time.sleep(0.001)
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
        if started is not None:
            started.unlink()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _end_with(function, *arguments, **settings):
    try:
        warnings.simplefilter("ignore")
        function(*arguments, **settings)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        print(f"in a child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 99
    os._exit(code)


def seconds(started, function, *arguments, **settings):
    """Return how long a function takes in a child from when it makes the file ``started``."""
    assert child(function, *arguments, **settings) == 0
    took = time.time() - started.stat().st_mtime
    started.unlink()
    return took


def command(*arguments, said=None):
    """Run a command; what it says goes to a file, and how it ends is its exit code."""
    out = io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(out):
            app([str(each) for each in arguments])
    finally:
        if said is not None:
            Path(said).write_text(out.getvalue())


def make_cells(folder):
    """Write the cells."""
    design = simulation.FCRDesign(
        n_cells=400, n_genes=20, n_contexts=2, n_treatments=2, likelihood="nb"
    )
    simulation.simulate(design, seed=0).write_h5ad(folder / "cells.h5ad")


def fit(folder, *, seed=0, out=None, **files):
    """Fit a model from the start or from a checkpoint, and save it."""
    fcr = FCR(folder / "cells.h5ad", SCHEMA, architecture=SIZES, seed=seed)
    (folder / "started").touch()
    fcr.fit(**PLAN, seed=seed, callbacks=[lambda epoch, _: _mark(folder / "trained")], **files)
    fcr.save(out, overwrite=True)


def _mark(path):
    """Make a file, once: its time is that of the first call."""
    if not path.exists():
        path.touch()


def leftovers(folder):
    """Drafts and the like that a killed process left."""
    return list(Path(folder).rglob(".*"))
