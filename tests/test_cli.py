import json
import re

import anndata as ad
import numpy as np
import pytest
from conftest import simulate
from typer.testing import CliRunner

from pyro_fcr import __version__
from pyro_fcr.cli import app

SCHEMA = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    simulate(600).write_h5ad(folder / "cells.h5ad")
    result = run("fit", folder / "cells.h5ad", *SCHEMA, "--out", folder / "model", "--n-tx", 1,
                 "--max-epochs", 2, "--seed", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_fit_says_what_it_learnt_from_and_where_the_model_is(folder):
    assert (folder / "model" / "model.json").is_file()
    again = run("fit", folder / "cells.h5ad", *SCHEMA, "--out", folder / "model")
    assert again.exit_code == 1
    assert "is there already. Pass --overwrite" in again.output


def test_latents_are_written_beside_the_cells(folder):
    out = folder / "latents.h5ad"
    result = run("latents", folder / "model", folder / "cells.h5ad", "--out", out)
    assert result.exit_code == 0, result.output
    assert ad.read_h5ad(out).obsm["X_fcr_z_tx"].shape == (600, 1)
    assert run("latents", folder / "model", folder / "cells.h5ad", "--out", out).exit_code == 1


def test_predict_answers_for_cells_and_for_conditions(folder):
    out = folder / "counterfactual.h5ad"
    result = run("predict", folder / "model", "--cells", folder / "cells.h5ad", "--treatment",
                 "drug2", "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    predicted = ad.read_h5ad(out)
    assert predicted.n_obs == 600
    assert set(predicted.obs["drug"]) == {"drug2"}
    assert dict(predicted.uns["pyro_fcr"])["treatment"] == "drug2"
    result = run("predict", folder / "model", "--treatment", "drug1", "--covariate", "line=line0",
                 "--n-cells", 30, "--out", out, "--overwrite")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert ad.read_h5ad(out).n_obs == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "drug7", "--covariate", "line=line0"], "'drug7' was not in the training"),
        (
            ["--treatment", "drug1"],
            "new cells need a level of line; the model knows line: ['line0'",
        ),
        ([], "Give --treatment, or --cells"),
        (["--treatment", "drug1", "--covariate", "line0"], "'line0' is not of the form key=level"),
    ],
)
def test_predict_says_what_is_wrong_without_a_traceback(folder, arguments, message):
    result = run("predict", folder / "model", "--out", folder / "none.h5ad", *arguments)
    assert result.exit_code == 1
    assert "Error: " in result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (folder / "none.h5ad").exists()


def test_inspect_shows_conditions_graph_and_claims(folder):
    shown = run("inspect", folder / "model").output
    for line in ("z_x ⟂ z_tx | x", "drug1 in line=line0", '"n_tx": 1', "NegativeBinomial"):
        assert line in shown
    assert re.search(r"z_tx +x, t +Normal +Normal", shown)
    checked = run("inspect", folder / "cells.h5ad", *SCHEMA)
    assert checked.exit_code == 0
    assert "7 conditions tell z_tx apart (all controls are one): at most 3" in checked.output
    wrong = run(
        "inspect", folder / "cells.h5ad", "--treatment-key", "drugs", "--covariate-key", "line"
    )
    assert wrong.exit_code == 1
    assert "'drugs' is no column of adata.obs; columns: 'line', 'drug'" in wrong.output


def test_bad_files_are_named(folder):
    assert (
        "holds no model.json" in run("latents", folder, folder / "cells.h5ad", "--out", "x").output
    )
    missing = run("inspect", folder / "nothing.h5ad", *SCHEMA)
    assert missing.exit_code == 1
    assert "nothing.h5ad" in missing.output


def test_help_names_every_command():
    shown = run("--help").output
    for command in ("demo", "fit", "inspect", "latents", "predict"):
        assert command in shown
    assert run("--version").output.strip() == f"pyro-fcr {__version__}"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_demo_writes_everything_it_promises(tmp_path):
    out = tmp_path / "demo"
    result = run("demo", "--out", out, "--max-epochs", 3)
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    facts = {"n_cells", "n_genes", "n_conditions", "epochs", "seconds", "heldout_elbo_per_cell"}
    assert facts < metrics.keys()
    assert {block: set(row) for block, row in metrics["nmi"].items()} == {
        block: {"x", "t", "xt"} for block in ("z_x", "z_t", "z_tx")
    }
    methods = {"fcr", "control_mean", "treatment_mean_shift", "additive", "split_half"}
    assert set(metrics["response"]) == methods
    for scores in metrics["response"].values():
        assert set(scores) == {"pearson_delta_de100", "mse_delta", "cosine_logfc"}
    cells = ad.read_h5ad(out / "cells.h5ad")
    assert cells.obsm["X_fcr_z_x_umap"].shape == (5000, 2)
    assert set(cells.obs["fitted"]) == {"train", "held out", "left out"}
    left_out = cells.obs[cells.obs["fitted"] == "left out"]
    assert set(left_out["patient"]) == {"PW034"}
    assert set(left_out["treatment"]) == {"panobinostat"}
    predicted = ad.read_h5ad(out / "predicted.h5ad")
    assert predicted.obs["extrapolated"].all()
    assert np.isfinite(predicted.X.data).all()
    report = (out / "report.html").read_text()
    assert "PW034 held out" in report
    again = run("demo", "--out", out)
    assert again.exit_code == 1
    assert "is there already" in again.output
