"""Power to find interactions, predicted from a pilot."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_helpers import run, succeed
from conftest import SCHEMA, simulate

import pyro_fcr
from pyro_fcr import QueryError
from pyro_fcr.discovery import PlannedScreen, interaction_power


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).parent / "benchmarks" / "power.py"
    spec = importlib.util.spec_from_file_location("power_program", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pilot():
    adata = simulate(900, 30)
    adata.obs["lane"] = np.arange(900) % 3
    return adata


@pytest.mark.parametrize("number", [1, 4, 5])
def test_predicted_power_is_what_screens_find(program, number):
    row = program.compare(program.DESIGNS[number], n_screens=6, seed=number)
    assert row["predicted"] == pytest.approx(row["realised"], abs=0.05)
    assert row["FDR"] < 0.15
    assert 0.5 < row["realised"] < 0.95


def test_more_of_anything_finds_more(pilot):
    screens = [
        PlannedScreen(n_cells=50, n_contexts=3),
        PlannedScreen(n_cells=200, n_contexts=3),
        PlannedScreen(n_cells=200, n_contexts=6),
    ]
    found = interaction_power(pilot, SCHEMA, screens, sizes=(0.3, 0.6))
    power = found.pivot(index="size", columns=["n_cells", "n_contexts"], values="power")
    assert (power.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)
    assert (power.diff().iloc[1:] > 0).all(axis=None)
    assert found["max_dimensions"].tolist() == [3, 3, 3, 3, 6, 6]


def test_replicates_that_differ_cost_power(pilot):
    # A lane in which treated cells have another response.
    odd = pilot.copy()
    rows = (odd.obs["lane"] == 1) & (odd.obs["drug"] != "control")
    odd.X[rows.to_numpy()] *= np.resize([1, 2], odd.n_vars)
    screens = [PlannedScreen(n_cells=200, n_contexts=3, n_replicates=4)]
    asked = {"sizes": [1.0], "replicate_key": "lane"}
    same, other = (interaction_power(a, SCHEMA, screens, **asked) for a in (pilot, odd))
    assert other["power"].item() < same["power"].item() - 0.1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_contexts": 1}, "n_contexts is 1"),
        ({"n_cells": 4, "n_replicates": 3}, "n_replicates is 3 for 4 cells"),
        ({"n_replicates": 2}, "replicate_key names no column of the pilot"),
    ],
)
def test_a_screen_that_tells_nothing_is_refused(pilot, asked, message):
    with pytest.raises(QueryError, match=message):
        interaction_power(
            pilot, SCHEMA, [PlannedScreen(**{"n_cells": 50, "n_contexts": 2} | asked)]
        )


def test_a_pilot_that_tells_nothing_is_refused(pilot):
    with pytest.raises(QueryError, match="largest condition of the pilot has"):
        interaction_power(pilot[:60].copy(), SCHEMA, [PlannedScreen(n_cells=50, n_contexts=2)])
    one = pilot[pilot.obs["lane"] == 0].copy()
    screens = [PlannedScreen(n_cells=50, n_contexts=2, n_replicates=2)]
    with pytest.raises(QueryError, match="No treatment has two replicates"):
        interaction_power(one, SCHEMA, screens, replicate_key="lane")
    schema = pyro_fcr.Schema(treatment_key="drug", covariate_keys="line")
    with pytest.raises(QueryError, match="needs untreated cells"):
        interaction_power(pilot, schema, screens)


def test_the_command_writes_a_row_per_screen_and_size(pilot, tmp_path):
    pilot.write_h5ad(tmp_path / "pilot.h5ad")
    columns = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]
    sizes = ["--n-cells", 50, "--n-cells", 100, "--n-contexts", 4, "--size", 0.5]
    out = tmp_path / "power.csv"
    said = succeed("design", tmp_path / "pilot.h5ad", *columns, *sizes, "--out", out)
    assert "power" in said
    assert len(pd.read_csv(out)) == 2
    wrong = ["--n-cells", 50, "--n-contexts", 1]
    found = run("design", tmp_path / "pilot.h5ad", *columns, *wrong, "--out", tmp_path / "no.csv")
    assert found.exit_code == 1
    assert "--n-contexts is 1; expected a whole number of 2 or more" in found.output
