import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cli_helpers import run, succeed
from conftest import simulate
from scipy import sparse

from pyro_fcr import __version__
from pyro_fcr.data import datasets
from pyro_fcr.metrics import SCORES

SCHEMA = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    simulate(600).write_h5ad(folder / "cells.h5ad")
    result = run("fit", folder / "cells.h5ad", *SCHEMA, "--out", folder / "model", "--n-tx", 1,
                 "--max-epochs", 2, "--seed", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def fail(*arguments, out):
    """The message of a command that must end without a traceback or a file."""
    result = run(*arguments, "--out", out)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.output
    assert not out.exists()
    assert not list(out.parent.glob(".*part*"))
    return result.output


def test_fit_says_what_it_learnt_from_and_where_the_model_is(folder):
    assert (folder / "model" / "model.json").is_file()
    again = run("fit", folder / "cells.h5ad", *SCHEMA, "--out", folder / "model")
    assert again.exit_code == 1
    assert "is there already. Pass --overwrite" in again.output


def test_fit_replaces_nothing_but_a_model(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run("fit", folder / "cells.h5ad", *SCHEMA, "--out", tmp_path, "--overwrite")
    assert "holds no model, so it is not replaced" in result.output
    assert "epoch" not in result.output  # it says so before training
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_latents_leave_all_else_of_a_file_as_it_is(folder, tmp_path):
    cells = ad.read_h5ad(folder / "cells.h5ad")
    cells.raw, cells.uns["note"] = cells.copy(), "mine"
    cells.obsm["X_fcr_z_tx"], cells.obsp["near"] = np.ones((600, 7)), sparse.eye(600, format="csr")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for source, name in (("cells.h5ad", "one.h5ad"), ("one.h5ad", "again.h5ad")):
        succeed("latents", folder / "model", tmp_path / source, "--out", tmp_path / name)
        found = ad.read_h5ad(tmp_path / name)
        assert found.uns["note"] == "mine"
        assert found.obsm["X_fcr_z_tx"].shape == (600, 1)
        assert (found.raw.X == cells.X).all()
        assert (found.obsp["near"] != cells.obsp["near"]).nnz == 0
        assert "is what pyro-fcr wrote" in succeed("inspect", tmp_path / name)


def test_latents_are_written_beside_the_cells(folder):
    out = folder / "latents.h5ad"
    result = run("latents", folder / "model", folder / "cells.h5ad", "--out", out)
    assert result.exit_code == 0, result.output
    assert ad.read_h5ad(out).obsm["X_fcr_z_tx"].shape == (600, 1)
    assert run("latents", folder / "model", folder / "cells.h5ad", "--out", out).exit_code == 1
    assert ad.read_h5ad(out).uns["fcr"]["encoding"] == "label-blind"
    told = [*("--out", out, "--overwrite"), "--encoding", "labelled", "--only-in-use"]
    assert run("latents", folder / "model", folder / "cells.h5ad", *told).exit_code == 0
    labelled = ad.read_h5ad(out)
    assert labelled.uns["fcr"]["encoding"] == "labelled"
    in_use = labelled.uns["fcr"]["in_use"]
    assert labelled.obsm["X_fcr_z_x"].shape[1] == max(1, len(in_use.get("z_x", [])))


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


def test_predict_sums_up_and_writes_a_store(folder, tmp_path):
    out = tmp_path / "summary.zarr"
    arguments = ["predict", folder / "model", "--treatment", "drug1", "--covariate", "line=line0",
                 "--n-cells", 3, "--n-draws", 20, "--output", "summary", "--quantiles", "0.1,0.9",
                 "--out", out]  # fmt: skip
    observed = ["--library", 1000, "--uncertainty", "observation"]
    assert "3 cells x 40 genes" in succeed(*arguments, *observed)
    summary = ad.read_zarr(out)
    assert set(summary.layers) - {None} == {"sd", "q10", "q90"}
    assert "not replaced" in run(*arguments, "--overwrite").output
    succeed(*arguments[:-1], tmp_path / "latent.h5ad", "--library", 1000)
    latent = ad.read_h5ad(tmp_path / "latent.h5ad")
    np.testing.assert_allclose(latent.X.sum(axis=1), 1000, rtol=1e-3)
    assert latent.layers["sd"].sum() < summary.layers["sd"].sum()


def test_predict_holds_what_it_is_told_to(folder, tmp_path):
    arguments = ["predict", folder / "model", "--cells", folder / "cells.h5ad", "--treatment",
                 "drug2", "--output", "mean"]  # fmt: skip
    succeed(*arguments, "--hold", "z_x", "--out", tmp_path / "held.h5ad")
    assert list(ad.read_h5ad(tmp_path / "held.h5ad").uns["pyro_fcr"]["held"]) == ["z_x"]
    message = fail(*arguments, "--hold", "z_t", out=tmp_path / "none.h5ad")
    assert "z_t" in message


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
        (["--treatment", "drug1", "--hold", "z_x"], "--hold is for --cells"),
        (["--treatment", "drug1", "--quantiles", "0.5"], "--quantiles is for --output summary"),
        (
            ["--treatment", "drug1", "--output", "summary", "--quantiles", "0.5;1"],
            "'0.5;1' is not a list of numbers",
        ),
        (
            ["--treatment", "drug1", "--output", "all"],
            "Unknown --output 'all'; expected draws, mean or summary.",
        ),
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
    assert "'drugs' is not a column of adata.obs; columns: 'line', 'drug'" in wrong.output


@pytest.fixture(scope="module")
def effects_csv(folder):
    succeed("effects", folder / "model", "--n-cells", 20, "--out", folder / "effects.csv")
    return folder / "effects.csv"


def test_effects_are_a_table_or_an_anndata(folder, effects_csv, tmp_path):
    table = pd.read_csv(effects_csv)
    assert len(table) == 2 * 3 * 4 * 40  # treatments, contexts, kinds, genes
    assert set(table["uncertainty"]) == {"cells"}
    arguments = ["effects", folder / "model", "--treatment", "drug2", "--n-cells", 20]
    succeed(*arguments, "--gene", "gene3", "--gene", "gene5", "--out", tmp_path / "some.csv")
    some = pd.read_csv(tmp_path / "some.csv")
    assert (set(some["treatment"]), set(some["gene"])) == ({"drug2"}, {"gene3", "gene5"})
    both = table.merge(some, on=["treatment", "context", "effect", "gene"])
    np.testing.assert_allclose(both["estimate_x"], both["estimate_y"])
    assert "12 effects x 40 genes" in succeed(*arguments, "--out", tmp_path / "effects.h5ad")
    layers = set(ad.read_h5ad(tmp_path / "effects.h5ad").layers) - {None}  # anndata 0.13 lists X
    spread, tested = {"sd", "spread_lower", "spread_upper"}, {"lower", "upper", "pvalue", "qvalue"}
    assert layers == spread | tested
    assert some["qvalue"].isna().all()  # no cells were given


def test_effects_of_refits_have_intervals_of_parameters(folder, doses, tmp_path):
    other, out = tmp_path / "other", tmp_path / "effects.csv"
    succeed("fit", folder / "cells.h5ad", *SCHEMA, "--out", other, "--n-tx", 1, "--max-epochs", 1)
    succeed("effects", folder / "model", other, "--n-cells", 5, "--out", out)
    assert set(pd.read_csv(out)["uncertainty"]) == {"parameters"}
    message = fail("effects", folder / "model", doses, out=tmp_path / "none.csv")
    assert "other genes or conditions" in message


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "none.csv",
            ["--gene", "gen3"],
            "Unknown --gene 'gen3'. Did you mean 'gene3'?",
        ),
        ("none.csv", ["--treatment", "drug7"], "'drug7'"),
        ("none.csv", ["--level", "90"], "level is 90"),
        ("none.h5ad", ["--gene", "gene3"], "--gene is for a .csv"),
        ("none.txt", [], "ends in '.txt'; expected .csv or .h5ad"),
    ],
)
def test_effects_say_what_is_wrong(folder, name, arguments, message):
    assert message in fail("effects", folder / "model", *arguments, out=folder / name)


def test_a_place_that_cannot_be_written_is_refused_before_work(folder, tmp_path):
    message = fail("effects", tmp_path, out=folder / "cells.h5ad" / "effects.csv")
    assert "effects.csv cannot be written (Not a directory)" in message
    (tmp_path / "mine.csv").mkdir()
    result = run("effects", tmp_path, "--out", tmp_path / "mine.csv", "--overwrite")
    assert "is a folder, which is not replaced" in result.output


@pytest.fixture(scope="module")
def interactions(folder):
    out = folder / "interactions"
    shown = succeed("interactions", folder / "cells.h5ad", *SCHEMA, "--out", out, "--n-tx", 1,
                    "--max-epochs", 2, "--device", "cpu", "--level", 0.2)  # fmt: skip
    return out, shown


def test_interactions_write_pairs_and_genes_and_show_the_top(interactions):
    out, shown = interactions
    pairs, genes = pd.read_csv(out / "pairs.csv"), pd.read_csv(out / "genes.csv")
    assert len(pairs) == 6
    assert pairs["pvalue"].is_monotonic_increasing
    assert set(genes["context"]) == {"line0", "line1", "line2"}
    assert f"of 6 pairs with q <= 0.2; all in {out}" in shown
    top = [line.split()[:2] for line in shown.splitlines()]
    first = top.index(["treatment", "context"]) + 1
    assert top[first : first + 6] == pairs[["treatment", "context"]].to_numpy().tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SCHEMA[:2] + SCHEMA[4:], "name them with --control"),
        ([*SCHEMA, "--level", 10], "level is 10"),
        ([*SCHEMA, "--device", "tpu"], "Unknown --device 'tpu'; expected auto, cpu or cuda."),
        ([*SCHEMA, "--likelihood", "normal"], "--likelihood 'normal' is for --expression 'log1p'"),
        ([*SCHEMA, "--replicate-key", "donor"], "'donor'"),
    ],
)
def test_interactions_say_what_is_wrong_before_training(folder, tmp_path, arguments, message):
    arguments = ["interactions", folder / "cells.h5ad", *arguments]
    assert message in fail(*arguments, out=tmp_path / "none")


def test_interactions_replace_their_files_only_if_told(folder, interactions):
    out, _ = interactions
    n_rows = len(pd.read_csv(out / "genes.csv"))
    (out / "notes.txt").write_text("mine")
    again = run("interactions", folder / "cells.h5ad", *SCHEMA, "--out", out)
    assert again.exit_code == 1
    assert "is there already. Pass --overwrite" in again.output
    succeed("interactions", folder / "cells.h5ad", *SCHEMA, "--out", out, "--n-tx", 1,
            "--max-epochs", 1, "--min-expressing", 70, "--overwrite")  # fmt: skip
    assert 0 < len(pd.read_csv(out / "genes.csv")) < n_rows
    assert (out / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def doses(folder):
    cells = simulate(300)
    amount = np.where(np.arange(300) % 2, "0.1", "10")
    cells.obs["dose"] = np.where(cells.obs["drug"] == "control", "0", amount)
    cells.write_h5ad(folder / "doses.h5ad")
    succeed("fit", folder / "doses.h5ad", *SCHEMA, "--dose-key", "dose", "--out",
            folder / "doses", "--max-epochs", 1)  # fmt: skip
    return folder / "doses"


@pytest.fixture(scope="module")
def curve(doses):
    out = doses.with_name("curve.csv")
    succeed("dose-response", doses, "--treatment", "drug1", "--dose", 1, "--dose", 20, "--gene",
            "gene1", "--gene", "gene2", "--n-draws", 20, "--out", out)  # fmt: skip
    return out


def test_dose_response_follows_doses_in_contexts(doses, curve, tmp_path):
    table = pd.read_csv(curve)
    assert len(table) == 3 * 3 * 2
    assert set(table["dose"]) == {0.0, 1.0, 20.0}
    out, hill = tmp_path / "one.csv", tmp_path / "hill.csv"
    succeed("dose-response", doses, "--treatment", "drug1", "--covariate", "line=line1", "--gene",
            "gene1", "--n-draws", 20, "--out", out, "--hill", hill)  # fmt: skip
    assert pd.read_csv(hill)["ec50"].gt(0).tolist() == [True]
    assert set(pd.read_csv(out)["line"]) == {"line1"}
    assert pd.read_csv(out)["dose"].nunique() == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "drug1", "--covariate", "line=line9"], "'line9'"),
        (["--treatment", "drug1", "--covariate", "lines=line1"], "'line' not given"),
        (["--treatment", "drug1", "--gene", "gene99"], "Unknown --gene 'gene99'."),
        (["--treatment", "control"], "is the control, which has no dose"),
        (
            ["--treatment", "drug1", "--dose", "-1"],
            "--dose is -1.0; expected a number of 0",
        ),
    ],
)
def test_dose_response_says_what_is_wrong(doses, tmp_path, arguments, message):
    assert message in fail("dose-response", doses, *arguments, out=tmp_path / "none.csv")


SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_plot_draws_the_loss_of_a_model_in_the_format_of_the_name(folder, tmp_path, suffix):
    out = tmp_path / f"loss{suffix}"
    source = folder / "model"
    succeed("plot", "loss", source / "history.csv" if suffix == ".svg" else source, "--out", out)
    assert out.read_bytes().startswith(SIGNATURES[suffix])
    assert "is there already" in run("plot", "loss", source, "--out", out).output


def svg(tmp_path, *arguments):
    """Draw a figure, and give the texts in it."""
    out = tmp_path / "figure.svg"
    succeed("plot", *arguments, "--out", out)
    return set(re.findall(r"<!-- (.*?) -->", out.read_text()))


def test_plot_draws_effects_by_treatment_or_by_gene(effects_csv, tmp_path):
    texts = svg(tmp_path, "effects", effects_csv, "--gene", "gene1", "--effect", "interaction")
    assert {"drug1", "drug2", "line0", "gene1, interaction"} <= texts
    (tmp_path / "figure.svg").unlink()
    texts = svg(tmp_path, "effects", effects_csv, "--treatment", "drug2")
    assert {"gene0", "gene39", "line2", "drug2, total"} <= texts


def test_plot_draws_paths_of_genes(effects_csv, tmp_path):
    arguments = ["paths", effects_csv, "--gene", "gene1", "--gene", "gene7"]
    texts = svg(tmp_path, *arguments, "--treatment", "drug1")
    assert {"gene1", "gene7", "through z_tx", "line0"} <= texts
    assert "choose one with --treatment" in fail("plot", *arguments, out=tmp_path / "none.svg")


def test_plot_draws_interactions(interactions, tmp_path):
    texts = svg(tmp_path, "interactions", interactions[0] / "pairs.csv", "--treatment", "drug1")
    assert "drug1 in line0" in texts
    assert "drug2 in line0" not in texts


def test_plot_draws_dose_response(curve, tmp_path):
    texts = svg(tmp_path, "dose-response", curve, "--gene", "gene2")
    assert {"gene2", "dose of drug1", "line1"} <= texts
    assert "gene1" not in texts


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_plot_draws_latents_and_makes_the_umap(folder, tmp_path):
    cells = ad.read_h5ad(folder / "cells.h5ad")[:60].copy()
    cells.obsm["X_fcr_z_x"] = np.random.default_rng(0).normal(size=(60, 3))
    cells.obsm["X_fcr_z_t"] = cells.obsm["X_fcr_z_t_umap"] = cells.obsm["X_fcr_z_x"][:, :2]
    cells.write_h5ad(tmp_path / "latents.h5ad")
    arguments = ["latents", tmp_path / "latents.h5ad"]
    texts = svg(tmp_path, *arguments, "--color", "drug")
    assert {"z_x, coloured by drug", "z_t, coloured by drug", "drug2"} <= texts
    out = tmp_path / "none.png"
    assert "--color: name a column of obs, of 'line', 'drug'" in fail("plot", *arguments, out=out)
    for wrong, message in [
        (["--color", "dose"], "no column 'dose'"),
        (["--color", "drug", "--block", "z"], "Unknown --block 'z'; expected z_t or z_x."),
    ]:
        assert message in fail("plot", *arguments, *wrong, out=out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pie", "effects.csv"], "Unknown kind of figure 'pie'; expected loss, latents"),
        (["loss", "effects.csv", "effects.csv"], "2 files are given; expected one"),
        (["loss", "effects.csv"], "no train/<term>"),
        (["loss", "nothing"], "nothing"),
        (["latents", "cells.h5ad", "--color", "drug"], "add them with `latents`"),
        (["effects", "effects.csv"], "differ in 'gene': choose one"),
        (["effects", "effects.csv", "--gene", "gen1"], "--gene 'gen1' is not among"),
        (["effects", "effects.csv", "--dose", "1"], "the table has no column dose"),
        (["effects", "model/history.csv"], "has no column 'treatment', 'context'"),
        (["interactions", "effects.csv"], "no column 'z'"),
        (["dose-response", "effects.csv"], "no column 'dose'"),
        (["paths", "cells.h5ad"], ""),
    ],
)
def test_plot_says_what_is_wrong(folder, effects_csv, tmp_path, arguments, message):
    kind, *names = arguments
    files = [folder / each if "." in each or each == "nothing" else each for each in names]
    assert message in fail("plot", kind, *files, out=tmp_path / "none.png")


def test_plot_refuses_other_formats(folder, tmp_path):
    message = fail("plot", "loss", folder / "model", out=tmp_path / "loss.gif")
    assert "expected .png or .svg or .pdf" in message


def test_bad_files_are_named(folder):
    assert (
        "holds no model.json"
        in run("latents", folder, folder / "cells.h5ad", "--out", folder / "x.h5ad").output
    )
    missing = run("inspect", folder / "nothing.h5ad", *SCHEMA)
    assert missing.exit_code == 1
    assert "nothing.h5ad" in missing.output


def test_help_names_every_command():
    shown = run("--help").output
    for command in ("demo", "fit", "inspect", "evaluate", "latents", "predict", "dose-response",
                    "effects", "interactions", "plot"):  # fmt: skip
        assert command in shown
        assert run(command, "--help").exit_code == 0
    assert run("--version").output.strip() == f"pyro-fcr {__version__}"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_demo_writes_everything_it_promises(tmp_path, monkeypatch):
    cells = datasets.gbm_panobinostat()[::5].copy()
    monkeypatch.setattr(datasets, "gbm_panobinostat", lambda: cells)
    out = tmp_path / "demo"
    result = run("demo", "--out", out, "--max-epochs", 3)
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    facts = {"n_cells", "n_genes", "n_conditions", "epochs", "seconds", "heldout_elbo_per_cell"}
    assert facts < metrics.keys()
    assert {block: set(row) for block, row in metrics["nmi"].items()} == {
        block: {"x", "t", "xt"} for block in ("z_x", "z_t", "z_tx")
    }
    methods = {"fcr", "control_mean", "treatment_mean_shift", "additive", "ridge", "noise_ceiling"}
    assert set(metrics["response"]) == methods
    for scores in metrics["response"].values():
        assert set(scores) == set(SCORES)
    cells = ad.read_h5ad(out / "cells.h5ad")
    assert cells.obsm["X_fcr_z_x_umap"].shape == (1000, 2)
    assert set(cells.obs["fitted"]) == {"train", "held out", "left out"}
    left_out = cells.obs[cells.obs["fitted"] == "left out"]
    assert set(left_out["patient"]) == {"PW034"}
    assert set(left_out["treatment"]) == {"panobinostat"}
    predicted = ad.read_h5ad(out / "predicted.h5ad")
    assert predicted.obs["extrapolated"].all()
    assert np.isfinite(predicted.X.data).all()
    report = (out / "report.html").read_text()
    assert "PW034 held out" in report
    assert "Predicted responses: unseen pair" in report
    assert 'id="clusters"' in report
    assert 'id="nmi"' not in report
    again = run("demo", "--out", out)
    assert again.exit_code == 1
    assert "is there already" in again.output
