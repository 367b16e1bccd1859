"""Hill curves, synergy and genetic interactions against known truth."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

import pyro_fcr
from pyro_fcr import QueryError
from pyro_fcr.discovery import (
    compare_ec50,
    genetic_interactions,
    hill_curves,
    measured_doses,
    synergy,
)
from pyro_fcr.discovery.combinations import loewe_effect

DOSES = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).parent / "benchmarks" / "doses.py"
    spec = importlib.util.spec_from_file_location("doses_program", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def curve(dose, ec50, slope, top):
    return top * dose**slope / (dose**slope + ec50**slope)


def table(ec50=0.3, slope=1.5, top=1.2, *, gene="g", line="u", drug="A", noise=0.0, seed=0):
    values = curve(DOSES, ec50, slope, top)
    values = values + np.random.default_rng(seed).normal(0, noise, len(DOSES))
    about = {"treatment": drug, "line": line, "dose": DOSES, "gene": gene, "estimate": values}
    return pd.DataFrame(about | ({"se": noise} if noise else {}))


def test_a_curve_without_noise_is_found():
    row = hill_curves(table()).iloc[0]
    assert row["ec50"] == pytest.approx(0.3, rel=0.05)
    assert row["slope"] == pytest.approx(1.5, rel=0.06)
    assert row["top"] == pytest.approx(1.2, rel=0.02)
    assert row["r2"] > 0.999


@pytest.mark.parametrize("seed", range(4))
def test_estimates_are_those_of_least_squares(seed):
    given = table(noise=0.05, seed=seed)
    row = hill_curves(given).iloc[0]

    def shape(dose, bottom, top, slope, log_ec50):
        return bottom + curve(dose, 10**log_ec50, slope, top)

    best, _ = curve_fit(shape, DOSES, given["estimate"], p0=[0, 1, 1, -0.5], maxfev=10_000)
    assert row["log10_ec50"] == pytest.approx(best[3], abs=0.06)
    assert row["top"] == pytest.approx(best[1], abs=0.04)
    assert row["ec50_lower"] < 0.3 < row["ec50_upper"]


def test_an_ec50_beyond_the_doses_has_an_open_interval():
    row = hill_curves(table(ec50=60.0, slope=1.0, top=2.0, noise=0.05)).iloc[0]
    assert row["ec50_upper"] == np.inf
    assert 0 < row["ec50_lower"] < 60
    assert np.isinf(row["se_log10_ec50"])


def test_a_flat_curve_is_no_response():
    found = hill_curves(
        pd.concat([table(top=0.0, noise=0.1, seed=i, gene=f"g{i}") for i in range(60)])
    )
    assert (found["pvalue"] < 0.05).mean() < 0.15
    assert hill_curves(table(noise=0.1))["pvalue"].item() < 1e-6


def test_several_refits_give_intervals_of_their_spread():
    rng = np.random.default_rng(0)
    tables = [table(ec50=0.3 * 10 ** rng.normal(0, 0.1)) for _ in range(8)]
    row = hill_curves(tables).iloc[0]
    assert row["se_log10_ec50"] == pytest.approx(0.1, rel=0.5)
    assert row["ec50_lower"] < 0.3 < row["ec50_upper"]
    with pytest.raises(QueryError, match="the tables differ"):
        hill_curves([tables[0], table(gene="h")])


def test_marks_of_a_model_s_table_are_no_context():
    own = table().assign(lower=0.0, upper=1.0, extrapolated=False, support=1.0)
    assert list(hill_curves(own).columns[:3]) == ["treatment", "line", "gene"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.drop(columns="dose"), "no column 'dose'"),
        (lambda t: t[t["dose"] < 0.05], "A, u has 2 doses above 0; a curve needs 3"),
        (lambda t: pd.concat([t, t]), "gene 'g' has dose 0 of 'A' twice"),
        (lambda t: t.assign(estimate=t["estimate"].where(t["dose"] != 1)), "gene 'g' lacks a dose"),
        (lambda t: [], "no table is given"),
    ],
)
def test_a_wrong_table_is_refused(edit, message):
    with pytest.raises(QueryError, match=message):
        hill_curves(edit(table()))


def test_contexts_are_compared_with_error_control():
    same = [table(noise=0.05, seed=i, gene=f"s{i}", line=w) for i in range(30) for w in "u"]
    same += [table(noise=0.05, seed=90 + i, gene=f"s{i}", line="v") for i in range(30)]
    moved = [table(noise=0.05, seed=200 + i, gene=f"d{i}") for i in range(10)]
    moved += [table(1.5, noise=0.05, seed=300 + i, gene=f"d{i}", line="v") for i in range(10)]
    found = compare_ec50(hill_curves(pd.concat(same + moved)))
    called = found["qvalue"] <= 0.1
    differs = found["gene"].str.startswith("d")
    assert called[differs].all()
    assert called[~differs].sum() <= 3
    assert found.loc[differs, "ratio"].median() == pytest.approx(0.2, rel=0.2)
    with pytest.raises(QueryError, match="'u' is the only context"):
        compare_ec50(hill_curves(table()))


def test_genes_that_do_not_respond_are_not_compared():
    flat = [table(top=0.0, noise=0.1, line=line, seed=i) for i, line in enumerate("uv")]
    assert compare_ec50(hill_curves(pd.concat(flat)))["qvalue"].isna().all()


def test_a_drug_with_itself_is_additive_by_loewe_and_not_by_bliss():
    both = table(ec50=0.15, drug="A+A2")  # twice the dose
    found = synergy(both, [table(), table(drug="A2")])
    strong = found[found["dose"] > 0.05]
    np.testing.assert_allclose(strong["excess_loewe"], 0, atol=0.02)
    np.testing.assert_allclose(strong["bliss"], 2 * curve(strong["dose"], 0.3, 1.5, 1.2))
    assert (found.query("dose > 0.2")["excess_bliss"] < -0.1).all()


def test_loewe_knows_no_effect_in_opposite_directions():
    one, other = np.array([[1.0, 0.0, 1.0]]), np.array([[-1.0, 0.0, 1.0]])
    assert np.isnan(loewe_effect(np.array([1.0]), one, other)).all()
    weak = np.array([[0.5, 0.0, 1.0]])
    together = loewe_effect(np.array([10.0]), one, weak)
    assert 10 / 11 <= together[0] <= 1.0


def test_refits_say_how_sure_an_excess_is():
    rng = np.random.default_rng(0)

    def refits(drug, top):
        tops = rng.normal(top, 0.05, 6)
        return [table(top=each, drug=drug, gene="g") for each in tops]

    parts = [refits("A", 0.5), refits("B", 0.5)]
    more = synergy(refits("A+B", 1.6), parts)
    assert (more.query("dose > 0.5")["excess_bliss_qvalue"] < 0.05).all()
    none = synergy(refits("A+B", 1.0), parts)
    assert (none["excess_bliss_qvalue"] > 0.05).all()
    with pytest.raises(QueryError, match="a table for each of two parts"):
        synergy(refits("A+B", 1.0), parts[:1])
    with pytest.raises(QueryError, match="'B' has no curve at"):
        synergy(table(drug="A+B"), [table(), table(drug="B", line="v")])


def test_cells_give_curves_whose_intervals_hold_the_truth(program):
    row = program.curves(3, n_cells=60, n_genes=80)
    for name in ("ec50", "slope", "top"):
        assert row[f"{name} coverage"] > 0.8
    assert abs(row["top bias"]) < 0.03
    assert abs(row["log10 ec50 bias"]) < 0.05
    assert row["ec50 FDR"] < 0.2
    assert row["ec50 power"] > 0.4


def test_measured_doses_need_doses_and_control(program):
    adata = pyro_fcr.datasets.gbm_panobinostat()[::20].copy()
    schema = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    with pytest.raises(QueryError, match="needs a schema with dose_key and control"):
        measured_doses(adata, schema, "panobinostat")


def test_every_kind_of_genetic_interaction_is_told(program):
    row = program.doubles(0, n_cells=60, n_genes=120, n_each=4)
    assert row["strength, additive"] == pytest.approx(1.0, abs=0.05)  # and not pulled to 0
    assert row["strength, suppressive"] == pytest.approx(0.5, abs=0.05)
    assert row["FDR"] < 0.2
    right = [row[f"right, {kind}"] for kind in program.KINDS]
    assert min(right) >= 0.5
    assert np.mean(right) > 0.85


def test_without_combinations_there_is_nothing_to_classify():
    adata = pyro_fcr.datasets.gbm_panobinostat()[::20].copy()
    schema = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    with pytest.raises(QueryError, match="No combination of two agents has 20 cells"):
        genetic_interactions(adata, schema)


def test_replicates_are_what_is_left_out():
    adata = pyro_fcr.datasets.norman_k562_combinations()
    adata = adata[:, np.asarray(adata.X.mean(axis=0)).ravel() > 0.3].copy()
    adata.obs["lane"] = np.arange(adata.n_obs) % 4
    schema = pyro_fcr.Schema(
        treatment_key="treatment", control="control", covariate_keys="cell_line"
    )
    found = genetic_interactions(adata, schema, replicate_key="lane")
    assert len(found) == 5
    assert found["strength_se"].gt(0).all()
    assert found["similarity"].abs().max() <= 1
    assert (found["kind"] == "unclear").equals(found["strength_se"] >= 0.25)
