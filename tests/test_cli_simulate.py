"""`pyro-fcr simulate`."""

import anndata as ad
import numpy as np
import pytest
from cli_helpers import run, succeed

from pyro_fcr.data import datasets
from pyro_fcr.simulation import EffectDesign, FCRDesign, simulate, simulate_from_controls

SMALL = ["--cells", 300, "--genes", 30, "--contexts", 2, "--treatments", 3]


def fail(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.output
    return result.output


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    cells = datasets.gbm_panobinostat()
    path = tmp_path_factory.mktemp("controls") / "controls.h5ad"
    cells[cells.obs["treatment"] == "control"][::5].copy().write_h5ad(path)
    return path


def test_simulate_writes_what_the_function_gives(tmp_path):
    out = tmp_path / "cells.h5ad"
    shown = succeed("simulate", "--out", out, *SMALL, "--likelihood", "nb", "--depth", 800,
                    "--n-x", 1, "--n-tx", 2, "--n-t", 3, "--layers", 2, "--mixing", "additive",
                    "--leak", "z_x|t=0.3", "--leak", "z_t|x=0.1", "--batches", 2, "--seed", 4,
                    "--interaction", "drug1|line2|gene3=1.2")  # fmt: skip
    assert "300 cells x 30 genes in" in shown
    design = FCRDesign(
        n_cells=300, n_genes=30, n_contexts=2, n_treatments=3, n_x=1, n_tx=2, n_t=3,
        likelihood="nb", depth=800, n_layers=2, mixing="additive", n_batches=2,
        leaks={("z_x", "t"): 0.3, ("z_t", "x"): 0.1},
        interactions={("drug1", "line2"): {"gene3": 1.2}},
    )  # fmt: skip
    wanted, found = simulate(design, seed=4), ad.read_h5ad(out)
    assert (found.X != wanted.X).nnz == 0
    for site in ("z_x", "z_tx", "z_t"):
        assert np.array_equal(found.obsm[site], wanted.obsm[site])
    assert list(found.uns["truth"]["interactions"]["gene"]) == ["gene3"]
    assert not list(tmp_path.glob(".*"))


def test_simulate_takes_noise_and_the_defaults_of_the_design(tmp_path):
    succeed("simulate", "--out", tmp_path / "a.h5ad", *SMALL, "--noise", 0.5,
            "--interacting-pairs", 2, "--interacting-genes", 3)  # fmt: skip
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    settings = found.uns["truth"]["design"]
    assert settings["noise"] == 0.5
    assert settings["n_tx"] == FCRDesign().n_tx
    assert len(found.uns["truth"]["interactions"]["gene"]) == 6


def test_simulate_overwrites_only_when_told(tmp_path):
    out = tmp_path / "cells.h5ad"
    out.write_text("mine")
    assert "is there already" in fail("simulate", "--out", out, *SMALL)
    assert "no seal" in fail("simulate", "--out", out, *SMALL, "--overwrite")
    assert out.read_text() == "mine"
    out.unlink()
    for again in ((), ("--overwrite",)):
        succeed("simulate", "--out", out, *SMALL, *again)
        assert ad.read_h5ad(out).n_obs == 300
    assert "is there already" in fail("simulate", "--out", out, *SMALL)


def test_simulate_from_controls(controls, tmp_path):
    out = tmp_path / "cells.h5ad"
    shown = succeed("simulate", "--from-controls", controls, "--context-key", "patient",
                    "--treatments", 3, "--seed", 6, "--out", out)  # fmt: skip
    assert "500 cells x 300 genes in" in shown
    found, real = ad.read_h5ad(out), ad.read_h5ad(controls)
    assert sorted(found.obs["treatment"].unique()) == ["control", "drug1", "drug2"]
    assert (found.layers["original"] != real.X).nnz == 0
    design = EffectDesign(n_treatments=3)
    wanted = simulate_from_controls(real, design, context_key="patient", seed=6)
    assert (found.X != wanted.X).nnz == 0
    assert found.uns["truth"]["log_fold_change"].shape == (3, 5, 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--leak", "z_x:t=0.3"], "--leak 'z_x:t=0.3' is not of the form z_x|t=0.3"),
        (["--leak", "z_x|t=much"], "is not of the form z_x|t=0.3"),
        (["--leak", "z_x|y=0.3"], "Unknown leak"),
        (["--interaction", "drug1|gene3=1"], "is not of the form drug1|line2|gene3=1.2"),
        (["--interaction", "drug1|line9|gene3=1"], "Unknown context 'line9'"),
        (["--interaction", "drug1|line1|gene3=1", "--interacting-pairs", 2], "one of the two"),
        (["--likelihood", "poisson"], "Unknown --likelihood 'poisson'; expected normal or nb."),
        (["--context-key", "patient"], "goes with --from-controls"),
        (["--from-controls", "no.h5ad"], "leave it out"),
    ],
)
def test_simulate_says_what_is_wrong(tmp_path, arguments, message):
    out = tmp_path / "cells.h5ad"
    assert message in fail("simulate", "--out", out, *SMALL, *arguments)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "needs --context-key"), (["--context-key", "donor"], "not a column of adata.obs")],
)
def test_simulate_needs_the_context_of_real_cells(controls, tmp_path, arguments, message):
    shown = fail("simulate", "--from-controls", controls, "--out", tmp_path / "a.h5ad", *arguments)
    assert message in shown


def test_simulate_writes_h5ad_alone(tmp_path):
    assert "expected .h5ad" in fail("simulate", "--out", tmp_path / "cells.csv", *SMALL)
