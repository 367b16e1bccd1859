"""Predicted cells go into other people's tools below the real ones, put there by anndata.concat.

The tools are no dependency of this project; where one is missing, its tests skip.
"""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from conftest import SCHEMA, simulate
from scipy import sparse

from pyro_fcr import FCR, Architecture

DRUGS = ("drug1", "drug2", "drug3", "drug4")
ignore_warnings_of_tools = pytest.mark.filterwarnings("ignore")


def import_tool(name, install):
    # A tool that is there and fails to import is a matter of its own versions, not of this code.
    return pytest.importorskip(name, reason=f"needs {name}: {install}", exc_type=ImportError)


@pytest.fixture(scope="module")
def pertpy():
    return import_tool("pertpy", "pip install pertpy 'statsmodels<0.15'")


@pytest.fixture(scope="module")
def cell_eval():
    return import_tool("cell_eval", "pip install cell-eval")


@pytest.fixture(scope="module")
def real():
    adata = simulate(1_500, 60, n_t=len(DRUGS))
    adata.X = sparse.csr_matrix(adata.X)
    return adata


@pytest.fixture(scope="module")
def fitted(real, device):
    fcr = FCR(real, SCHEMA, architecture=Architecture(n_x=4, n_t=4, n_tx=2, n_hidden=32))
    fcr.fit(max_epochs=30, batch_size=128, learning_rate=5e-3, progress=False, device=device)
    return fcr


def cells_of(adata, treatment):
    return adata[adata.obs["drug"] == treatment]


def together(**parts):
    return ad.concat(parts, label="origin", index_unique="-")


def predictions(fcr, real, output):
    """Real controls, and below them what they would be under each drug."""
    control = cells_of(real, "control")
    parts = {drug: fcr.counterfactual(control, treatment=drug, output=output) for drug in DRUGS}
    return together(control=control, **parts)


def log_normalised(adata):
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    return adata


def test_predicted_cells_stand_below_real_ones(real, tmp_path):
    both = predictions(FCR(real, SCHEMA), real, "draws")
    assert sparse.issparse(both.X)
    assert both.X.dtype == np.float32
    assert both.obs_names.is_unique
    assert list(both.var_names) == list(real.var_names)
    assert set(both.obs["drug"]) == {"control", *DRUGS}
    assert not both.obs[["line", "drug"]].isna().any(axis=None)
    both.write_h5ad(tmp_path / "both.h5ad")


@ignore_warnings_of_tools
@pytest.mark.parametrize("output", ["draws", "mean"])
def test_pertpy_finds_predicted_cells_nearest_to_those_of_their_treatment(
    pertpy, fitted, real, output
):
    control = cells_of(real, "control")
    predicted = fitted.counterfactual(control, treatment="drug1", output=output)
    groups = {name: cells_of(real, name) for name in ("control", *DRUGS)}
    both = log_normalised(together(predicted=predicted, **groups))
    sc.pp.pca(both, n_comps=10)
    distance = pertpy.tools.Distance("edistance", obsm_key="X_pca")
    how = {"selected_group": "predicted", "show_progressbar": False, "n_jobs": 1}
    found = distance.onesided_distances(both, "origin", **how)
    assert found.drop("predicted").idxmin() == "drug1"
    mean, variance = distance.onesided_distances(
        both, "origin", bootstrap=True, n_bootstrap=5, **how
    )
    assert (mean.drop("predicted") > 0).all()
    assert np.isfinite(variance).all()


@ignore_warnings_of_tools
def test_pertpy_takes_the_counts_themselves(pertpy, fitted, real):
    predicted = fitted.counterfactual(cells_of(real, "control"), treatment="drug1")
    distance = pertpy.tools.Distance("edistance")
    near = distance(predicted.X, cells_of(real, "drug1").X)
    assert near < distance(predicted.X, cells_of(real, "drug2").X)
    assert near < distance(predicted.X, cells_of(real, "control").X)


def evaluate(cell_eval, predicted, real, folder, *, profile="anndata"):
    """Score each treatment; cell-eval normalises in place, so it gets copies."""
    evaluator = cell_eval.MetricsEvaluator(
        adata_pred=predicted.copy(),
        adata_real=real.copy(),
        control_pert="control",
        pert_col="drug",
        num_threads=1,
        outdir=str(folder),
        skip_de=profile == "anndata",
    )
    scores, _ = evaluator.compute(profile=profile, write_csv=False, break_on_error=True)
    return scores.to_pandas().set_index("perturbation")


@ignore_warnings_of_tools
def test_cell_eval_finds_drawn_cells_like_the_real_ones(cell_eval, fitted, real, tmp_path):
    scores = evaluate(cell_eval, predictions(fitted, real, "draws"), real, tmp_path, profile="full")
    assert set(scores.index) == set(DRUGS)
    assert np.isfinite(scores.to_numpy()).all()
    assert (scores["pearson_delta"] > 0.8).all()
    assert (scores["de_spearman_lfc_sig"] > 0.7).all()
    assert (scores["discrimination_score_l1"] == 1).all()


@ignore_warnings_of_tools
def test_cell_eval_tells_a_wrong_prediction(cell_eval, fitted, real, tmp_path):
    wrong = predictions(fitted, real, "draws")
    turned = dict(zip(DRUGS, [*DRUGS[1:], DRUGS[0]], strict=True))
    wrong.obs["drug"] = wrong.obs["drug"].replace(turned)
    assert (evaluate(cell_eval, wrong, real, tmp_path)["pearson_delta"] < 0.6).all()


@ignore_warnings_of_tools
def test_cell_eval_takes_expected_counts_that_are_log_normalised(cell_eval, fitted, real, tmp_path):
    # It takes fractions for log1p values: expected counts are to be brought there beforehand.
    predicted = log_normalised(predictions(fitted, real, "mean"))
    scores = evaluate(cell_eval, predicted, log_normalised(real), tmp_path)
    assert np.isfinite(scores.to_numpy()).all()
    assert (scores["pearson_delta"] > 0.8).all()
