"""What the command line says: in its own words, with mends that it has."""

import pytest
from cli_helpers import run
from conftest import simulate

from pyro_fcr.cli.shell import in_options

SCHEMA = ["--treatment-key", "drug", "--covariate-key", "line"]
WORDS = {"control": "--control", "min_cells": "--min-cells", "level": "--level",
         "other_controls": "--other-control", "heldout_fraction": "--heldout-fraction"}  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    return simulate(200)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("level is 3; expected 1", "--level is 3; expected 1"),
        ("Unknown level 'x'; expected a", "Unknown --level 'x'; expected a"),
        ("lower min_cells, or drop", "lower --min-cells, or drop"),
        ("Pass control=None if", "Pass no --control if"),
        (
            "pass control='a b' or heldout_fraction=0",
            "pass --control 'a b' or --heldout-fraction 0",
        ),
        ("pass other_controls=['P', 'Q']", "pass --other-control 'P' --other-control 'Q'"),
        ("a level of each; the control 'c'", "a level of each; the control 'c'"),
        ("adata.obs['min_cells']", "adata.obs['min_cells']"),
    ],
)
def test_arguments_are_said_as_options(said, shown):
    assert in_options(said, WORDS) == shown


@pytest.mark.parametrize(
    ("labels", "arguments", "words"),
    [
        ({"drug1": "Na+"}, ["--control", "control"], ["rename it, or pass another separator"]),
        ({}, ["--control", "ctrl"], ["Pass no --control if there are", "mean 'control'?"]),
        ({}, ["--control", "control", "--min-cells", 500], ["or lower --min-cells"]),
        ({}, ["--control", "control", "--heldout-fraction", 0.001],
         ["give a larger --heldout-fraction, more cells, or --heldout-fraction 0"]),
        ({}, ["--control", "control", "--heldout-fraction", 2], ["--heldout-fraction is 2.0;"]),
        ({}, ["--control", "control", "--layer", "raw"], ["Leave layer out to use adata.X"]),
    ],
)  # fmt: skip
def test_mends_exist_on_the_command_line(cells, tmp_path, labels, arguments, words):
    adata = cells.copy()
    adata.obs["drug"] = adata.obs["drug"].replace(labels)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    result = run("fit", tmp_path / "cells.h5ad", *SCHEMA, *arguments, "--out", tmp_path / "model",
                 "--max-epochs", 1)  # fmt: skip
    assert result.exit_code == 1
    assert all(word in result.output for word in words), result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "=None" not in errors[0]
    assert not (tmp_path / "model").exists()
