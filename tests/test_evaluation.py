import base64
import copy
import dataclasses
import html
import json
import re
from functools import partial
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import run
from conftest import SCHEMA, simulate
from edits import EDITS
from test_responses import DOSED, dosed

import pyro_fcr
from pyro_fcr import FCR, Schema
from pyro_fcr.data import Split, expected_depths, register
from pyro_fcr.data.pairs import Pair
from pyro_fcr.evaluation import blocks, evaluate
from pyro_fcr.evaluation.arms import Arms
from pyro_fcr.evaluation.blocks import Encoded, rank
from pyro_fcr.evaluation.judging import judged_scenarios, not_asked
from pyro_fcr.graph import Claim
from pyro_fcr.metrics import baselines
from pyro_fcr.metrics import clustering as clustering_module
from pyro_fcr.metrics.dimensions import prior_rank
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.queries.representations import label_distribution
from pyro_fcr.saving import read_model, write_model

FAST = {"n_permutations": 19, "n_draws": 10}
TRUE = Schema(treatment_key="treatment", control="control", covariate_keys="context")


def fit(adata, schema, **settings):
    architecture = pyro_fcr.Architecture(
        n_x=2, n_t=2, n_tx=2, n_hidden=16,
        likelihood="nb" if schema.expression == "counts" else "normal",
    )  # fmt: skip
    fcr = FCR(adata, schema, architecture=architecture)
    fcr.fit(max_epochs=2, batch_size=128, progress=False, **settings)
    return fcr


def plan_of(fcr, adata, split):
    return judged_scenarios(adata, fcr.registry.schema, split, unknown=partial(not_asked, fcr))


@pytest.fixture(scope="module")
def simulated():
    """Cells whose latents are known, on a fit that held out a tenth of each condition."""
    design = pyro_fcr.simulation.FCRDesign(
        n_cells=900, n_genes=20, n_contexts=3, n_treatments=3, n_tx=2, likelihood="nb"
    )
    return fit(pyro_fcr.simulation.simulate(design, seed=1), TRUE, heldout_fraction=0.2)


@pytest.fixture(scope="module")
def found(simulated):
    before = copy.deepcopy(simulated.model.state_dict())
    obs, keys = simulated.source(None).obs.copy(), set(simulated.source(None).obsm)
    result = evaluate(simulated, **FAST)
    after = simulated.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pd.testing.assert_frame_equal(simulated.source(None).obs, obs)
    assert set(simulated.source(None).obsm) == keys
    return result


def left_out(rows, adata):
    """The cells with a split column that keeps some from the fit."""
    cells = adata.copy()
    cells.obs["split"] = np.where(rows, "test", "train")
    return cells


@pytest.fixture(scope="module")
def unseen():
    """A fit that lacked two drugs in a context of three, and a drug in another."""
    adata = simulate(900, n_genes=15, n_t=3)
    line, drug = adata.obs["line"], adata.obs["drug"]
    rows = (line == "line0") & drug.isin(["drug1", "drug2", "drug3"])
    rows |= (line == "line1") & (drug == "drug1")
    schema = dataclasses.replace(SCHEMA, split_key="split", min_cells=1)
    return fit(left_out(rows, adata), schema)


# label-blind latents


def test_label_blind_latents_do_not_look_at_labels(simulated):
    adata = simulated.source(None)
    swapped = adata.copy()
    swapped.obs = swapped.obs.iloc[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    swapped.obs_names = adata.obs_names
    one, two = simulated.label_blind_latents(), simulated.label_blind_latents(swapped)
    assert set(one) == {"z_x", "z_t", "z_tx"}
    for block, latent in one.items():
        np.testing.assert_array_equal(latent, two[block])
        labelled = simulated.get_latent_representation(block, swapped)
        assert np.abs(labelled - simulated.get_latent_representation(block)).max() > 1e-3
        assert latent.std(axis=0).min() > 0


def test_label_blind_latents_are_means_over_the_training_conditions(simulated):
    adata = simulated.source(None)[:7].copy()
    total, expected = simulated.source(None).n_obs, 0.0
    counts = simulated.source(None).obs.groupby(["treatment", "context"], observed=True).size()
    for (treatment, context), n_cells in counts.items():
        adata.obs["treatment"], adata.obs["context"] = treatment, context
        expected = expected + n_cells / total * simulated.get_latent_representation("z_tx", adata)
    np.testing.assert_allclose(simulated.label_blind_latents(adata)["z_tx"], expected, atol=1e-5)


def test_many_conditions_are_drawn_by_their_cells(simulated):
    registry = simulated.registry
    sizes = [100, *[1] * 8]
    conditions = zip(registry.conditions, sizes, strict=True)
    registry = dataclasses.replace(
        registry, conditions=tuple(dataclasses.replace(c, n_cells=n) for c, n in conditions)
    )
    every = label_distribution(registry, n_labels=9, seed=0)
    np.testing.assert_allclose(every.shares, np.array(sizes) / 108)
    few = [label_distribution(registry, n_labels=4, seed=seed) for seed in range(50)]
    for drawn in few:
        assert len(drawn) <= 4
        assert drawn.shares.sum() == pytest.approx(1.0)
        assert {len(rows) for rows in drawn.values.values()} == {len(drawn)}
    first = [
        (d.values["t"] == 0).all(1) & (d.values["x"] == every.values["x"][0]).all(1) for d in few
    ]
    share = np.mean([d.shares[rows.numpy()].sum() for d, rows in zip(few, first, strict=True)])
    assert share == pytest.approx(100 / 108, abs=0.05)
    with pytest.raises(ValueError, match="n_labels is 0"):
        simulated.label_blind_latents(n_labels=0)


def test_a_guide_without_labels_is_blind_anyway():
    edit = EDITS["j_blind"]
    adata = edit.data()
    model, guide = edit.build(register(adata, edit.schema)[0])
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    for block, latent in fcr.label_blind_latents().items():
        np.testing.assert_allclose(latent, fcr.get_latent_representation(block), atol=1e-5)


@pytest.mark.parametrize("name", ["b_batch", "c_donors"])
def test_other_graphs_are_evaluated_by_their_own_claims(name):
    edit = EDITS[name]
    adata = edit.data()
    model, guide = edit.build(register(adata, edit.schema)[0])
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    fcr.fit(max_epochs=1, batch_size=128, progress=False, heldout_fraction=0.3)
    found = evaluate(fcr, **FAST)
    claims = {str(claim) for claim in fcr.claims()}
    untested = {each.split(", ")[0] for each in found.left_out}
    assert set(found.independence["statement"]) | untested >= claims
    assert set(fcr.graph.exogenous) < set(found.clustering["label"])
    assert found.identifiability.empty


# the whole evaluation


def test_clusters_are_of_equally_many_cells_with_and_without_labels(found, simulated):
    table = found.clustering
    kinds = table[["cells", "encoding"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [
        [cells, encoding]
        for cells in ("training", "held out")
        for encoding in ("labelled", "label-blind")
    ]
    assert set(table["n_cells"]) == {len(simulated.split.heldout)}
    assert len(table) == 4 * 3 * 3 * 2
    assert set(table["label"]) == {"x", "t", "xt"}
    wide = table.pivot_table("value", ["cells", "block", "label", "metric"], "encoding")
    assert (wide["labelled"] != wide["label-blind"]).any()


def test_independence_follows_the_claims_of_the_graph(found, simulated):
    table = found.independence
    claims = [str(claim) for claim in simulated.claims()]
    assert table["statement"].tolist() == claims * 2
    n_heldout = len(simulated.split.heldout)
    assert set(table.loc[table["cells"] == "held out", "n_cells"]) == {n_heldout}
    assert table["p_value"].between(1 / 20, 1).all()


def test_rank_is_that_of_the_prior_at_the_training_conditions(simulated):
    table, values = rank(simulated)
    assert table["block"].tolist() == ["z_tx"]
    row = table.iloc[0]
    assert (row["n_needed"], row["rank_needed"], row["n_conditions"]) == (5, 4, 9)
    assert row["n_distinct"] == simulated.registry.n_prior_conditions
    prior = simulated.model.z_tx
    with torch.no_grad():
        t, x = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.eye(3)
        normal = prior(t.repeat_interleave(3, 0), x.repeat(3, 1))
    expected = prior_rank(normal.mean.numpy(), normal.stddev.numpy()).singular_values
    np.testing.assert_allclose(values["value"], expected, rtol=1e-4)
    assert values["number"].tolist() == [1, 2, 3, 4]


def test_truth_is_judged_where_it_is_known(found, simulated):
    table = found.identifiability.set_index(["metric", "block"])
    assert {"r2_within", "mcc_within_pearson", "leak_within"} <= set(
        found.identifiability["metric"]
    )
    adata = simulated.source(None)
    condition = adata.obs["context"].astype(str) + adata.obs["treatment"].astype(str)
    estimate = {"z_x": simulated.get_latent_representation("z_x")}
    in_use = pyro_fcr.metrics.only_in_use(estimate, simulated.dimension_use())
    one = adata.obsm["z_x"], in_use["z_x"]
    for metric, given in (("mcc_pearson", None), ("mcc_within_pearson", condition)):
        value = pyro_fcr.metrics.mcc(*one, condition=given)
        assert table.loc[(metric, "z_x"), "value"] == pytest.approx(value)


def test_seen_pairs_are_called_so_and_judged_on_held_out_cells(found, simulated):
    assert set(found.responses["scenario"]) == {"seen pairs"}
    assert "condition_mean" in set(found.responses["method"])
    plan = plan_of(simulated, simulated.source(None), simulated.split)
    (scenario,) = plan.made
    assert not (scenario.test & scenario.train).any()
    assert set(np.flatnonzero(scenario.train)) == set(simulated.split.train)
    assert set(np.flatnonzero(scenario.test)) == set(simulated.split.heldout)
    assert len(scenario.pairs) == 6


def test_headline_is_the_model_minus_the_best_baseline(found):
    row = found.headline.query(
        "metric == 'mse_delta' and scale == 'mean_log1p' and against == 'best on average'"
    ).iloc[0]
    part = found.responses.query("metric == 'mse_delta' and scale == 'mean_log1p'")
    means = part.groupby("method")["value"].mean()
    baselines = means.drop(["fcr", "noise_ceiling"])
    assert row["baseline"] == baselines.idxmin()
    assert row["gain"] == pytest.approx(baselines.min() - means["fcr"])
    line = found.sentence("seen pairs", "mse_delta")
    assert (
        f"({row['baseline']}), squared error, all genes, seen pairs (6): {row['gain']:+.3f}" in line
    )
    with pytest.raises(ValueError, match="no 'mse_delta' of 'unseen pair'"):
        found.sentence("unseen pair", "mse_delta")


def test_conditions_that_the_fit_lacked_are_what_is_judged(unseen):
    plan = plan_of(unseen, unseen.source(None), unseen.split)
    pairs = {
        scenario.kind: {pair[0] + str(pair[1]) for pair in scenario.pairs} for scenario in plan.made
    }
    assert pairs == {
        "unseen context": {f"drug{i}('line0',)" for i in (1, 2, 3)},
        "unseen pair": {"drug1('line1',)"},
    }
    fitted = np.concatenate([unseen.split.train, unseen.split.heldout])
    for scenario in plan.made:
        assert set(np.flatnonzero(scenario.train)) == set(fitted)
        judged = [
            f"{d}('{x}',)" in pairs[scenario.kind]
            for d, x in unseen.source(None).obs[["drug", "line"]].to_numpy()
        ]
        assert list(scenario.test) == judged
    found = evaluate(unseen, **FAST)
    assert set(found.responses["scenario"]) == {"unseen pair", "unseen context"}
    assert "condition_mean" not in set(found.responses["method"])
    assert found.facts["n_left_out"] == (unseen.source(None).obs["split"] == "test").sum()
    assert found.scenarios == list(dict.fromkeys(found.responses["scenario"]))


def test_pairs_that_cannot_be_judged_are_named(unseen):
    adata = unseen.source(None)
    line, drug = adata.obs["line"], adata.obs["drug"]
    test = (adata.obs["split"] == "test").to_numpy()
    one = np.flatnonzero((line == "line1") & (drug == "drug1"))
    foreign = adata[np.flatnonzero(test)[:6]].copy()
    foreign.obs["drug"], foreign.obs["line"] = "drug9", "line2"
    foreign.obs_names = [f"new{i}" for i in range(6)]
    foreign.X = foreign.X + 1
    cells = ad.concat([adata[np.delete(np.arange(adata.n_obs), one[1:])], foreign])
    plan = plan_of(unseen, cells, unseen.split_of(cells))
    assert plan.left_out["'drug1' in line1"] == "it has 1 cell: a response with an interval needs 2"
    assert "'drug9'" in plan.left_out["'drug9' in line2"]
    found = evaluate(unseen, cells, **FAST)  # cells of an unknown drug are no reason to give up
    assert set(plan.left_out) <= set(found.left_out)


def test_predictions_follow_the_doses_of_the_judged_cells():
    fcr = fit(dosed(), DOSED, heldout_fraction=0.3)
    (scenario,) = plan_of(fcr, fcr.source(None), fcr.split).made
    arms = Arms(fcr, fcr.source(None), n_source=40, n_draws=2, seed=0)
    pair = Pair("drug1", ("line0",))
    own = (fcr.source(None).obs["drug"] == "drug1") & (fcr.source(None).obs["line"] == "line0")
    cells = fcr.source(None).obs[own.to_numpy() & scenario.test]
    targets = arms._targets(scenario.test, pair, 40)
    assert len(cells) <= 20
    assert {to["dose"] for _, to in targets} == set(cells["dose"])
    assert len(targets) > 1
    assert np.array_equal(np.sort(np.concatenate([rows for rows, _ in targets])), np.arange(40))
    treated, untreated = arms(pair, source=~scenario.test, dosed=scenario.test)
    assert set(treated.obs["dose"]) <= set(cells["dose"])
    assert treated.n_obs == untreated.n_obs


def test_treated_cells_are_predicted_at_the_depth_that_training_lets_expect(unseen):
    """As baselines have it, which are made of conditions as deep as they were measured."""
    adata = unseen.source(None)
    pair = Pair("drug1", ("line1",))
    arms = Arms(unseen, adata, n_source=40, n_draws=5, seed=0)
    every = np.ones(adata.n_obs, dtype=bool)
    treated, untreated = arms(pair, source=every, dosed=every)
    labels = pd.DataFrame({"drug": [pair.treatment, "control"], "line": ["line1"] * 2})
    wanted, own = expected_depths(labels, unseen.registry)
    assert abs(wanted / own - 1) > 0.02
    found = treated.X.sum() / untreated.X.sum()
    assert found == pytest.approx(wanted / own, rel=0.01)


def test_leaks_are_found_before_anything_is_measured(unseen, monkeypatch):
    monkeypatch.delattr("pyro_fcr.evaluation.blocks.encode")
    cells = unseen.source(None).copy()
    rows = np.flatnonzero(cells.obs["split"] == "test")[:2], unseen.split.train[:2]
    matrix = cells.X.copy()
    matrix[rows[0]] = matrix[rows[1]]
    cells.X = matrix
    with pytest.raises(ValueError, match="expression of a training cell"):
        evaluate(unseen, cells, split=unseen.split, **FAST)


def test_confounded_labels_leave_a_claim_open_and_no_more():
    adata = simulate(300, n_genes=12)
    keep = (adata.obs["line"] == "line0") == (adata.obs["drug"] == "drug1")
    adata = adata[keep & (adata.obs["drug"] != "control")].copy()
    schema = dataclasses.replace(SCHEMA, control=None, min_cells=1)
    with pytest.warns(UserWarning, match="not identifiable"):
        fcr = fit(adata, schema, heldout_fraction=0.5)
    found = evaluate(fcr, **FAST)
    for cells in ("training", "held out"):
        assert "no stratum has two levels" in found.left_out[f"z_x ⟂ t | x, {cells} cells"]
    assert set(found.independence["statement"]) == {
        "z_t ⟂ x | t",
        "z_x ⟂ z_tx | x",
        "z_tx ⟂ z_t | t",
    }
    assert "no control" in found.left_out["responses"]
    assert found.responses.empty
    assert found.scenarios == []
    assert "responses" not in found.tables


def test_too_few_held_out_cells_are_said(simulated):
    some = Split(simulated.split.train, simulated.split.heldout[:20])
    found = evaluate(simulated, split=some, **FAST)
    assert set(found.clustering["cells"]) == {"training"}
    assert "20 cells" in found.left_out["held out cells"]


def test_replicates_are_respected(simulated):
    cells = simulated.source(None).copy()
    cells.obs["well"] = [f"w{i % 6}" for i in range(cells.n_obs)]
    found = evaluate(simulated, cells, replicate_key="well", **FAST)
    assert set(found.independence["permuted"]) == {"cells within replicates"}
    with pytest.raises(pyro_fcr.SchemaError, match="'wells' is not a column"):
        evaluate(simulated, cells, replicate_key="wells", **FAST)


def test_json_can_hold_it_all(found):
    text = json.dumps(found.to_dict(), allow_nan=False)
    read = json.loads(text)
    assert read["facts"]["n_cells"] == 900
    assert len(read["responses"]) == len(found.responses)
    assert set(read["seconds"]) == {
        "encoding", "clustering", "independence", "identifiability", "responses", "calibration",
        "coverage",
    }  # fmt: skip


def test_it_prints_about_ten_lines(found, unseen):
    lines = str(found).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 210
    assert "720 training, 180 held-out, 0 left-out cells, 20 genes" in lines[0]
    assert found.sentence("seen pairs") in lines
    assert any(line.startswith("Independence: ") for line in lines)
    used = found.dimensions.query("block == 'z_tx'")["in_use"].sum()
    assert any(f"z_tx {used} of 2" in line for line in lines)
    many = dataclasses.replace(found, left_out={f"'drug{i}' in line0": "why" for i in range(99)})
    assert len(str(many).splitlines()) <= 12
    assert "Not judged: 'drug0' in line0" in str(many)


def test_intervals_are_judged_on_cells_that_training_lacked(found, unseen, simulated):
    alone = simulated.interval_coverage()
    pd.testing.assert_frame_equal(found.coverage, alone)
    both = evaluate(unseen, **FAST).coverage
    assert both["kind"].unique().tolist() == ["observation", "observation, unseen condition"]


def test_a_new_baseline_is_in_table_headline_and_page(unseen, tmp_path, monkeypatch):
    text = "half the mean change & <b>nothing</b>"

    def halved(conditions, treatment, context):
        return 0.5 * conditions.mean_shift()

    halved = baselines.Baseline(text, halved)
    monkeypatch.setitem(baselines.BASELINES, "halved", halved)
    found = evaluate(unseen, **FAST)
    rows = found.responses.query("method == 'halved'")
    assert set(rows["role"]) == {"baseline"}
    assert set(rows["metric"]) == set(SCORES)
    assert found.methods.set_index("method").loc["halved", "words"] == text
    changes = found.changes.xs("halved", level="method")
    assert len(changes) == 4
    page = found.to_html(tmp_path / "e.html").read_text("utf-8")
    table = table_of(page, "response")
    assert "<code>halved</code><small>half the mean change &amp; &lt;b&gt;" in table
    assert "<b>" not in page
    image = re.search(r'base64,([^"]+)" alt="Predicted against', page)[1]
    assert "halved" in base64.b64decode(image).decode()

    # Where it is the best one, the headline is against it.
    real = {
        ((treatment,), (context,)): change.to_numpy()
        for (_, treatment, context, method), change in found.changes.iterrows()
        if method == "real"
    }
    right = dataclasses.replace(halved, predict=lambda _, *target: real[target])
    monkeypatch.setitem(baselines.BASELINES, "halved", right)
    heads = evaluate(unseen, **FAST).headline.query("metric == 'mse_delta'")
    assert set(heads["baseline"][heads["scale"] == "mean_log1p"]) == {"halved"}


# the page and the command


def table_of(page, kind):
    return re.search(rf'<table [^>]*class="{kind}">.*?</table>', page, re.DOTALL)[0]


def test_page_shows_the_tables_and_loads_nothing(found, tmp_path):
    left = dataclasses.replace(found, left_out={"<b>pair</b>": "a & b"})
    page = left.to_html(tmp_path / "e.html", title="A <b>fit</b>").read_text("utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;pair&lt;/b&gt;" in page
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 5  # gains, scatter, singular values, truth, coverage
    assert all(source.startswith("data:image/svg") for source in sources)
    assert not re.search(r"<script|<link|https?://", page)
    assert html.escape(found.sentence("seen pairs")).replace("&#x27;", "&#39;") in page
    tests = table_of(page, "tests")
    effects = [f"{value:.3f}".replace("-", "−") for value in found.independence["effect"]]
    assert all(effect in tests for effect in effects)
    own = found.calibration.iloc[0]
    assert f"{own['slope']:.2f}".replace("-", "−") in table_of(page, "tests calibration")
    dimensions = table_of(page, "tests dimensions")
    n_in_use = found.dimensions.query("block == 'z_x'")["in_use"].sum()
    assert re.search(rf"<code>z_x</code></th>\s*<td[^>]*>{n_in_use} of 2", dimensions)
    again = left.to_html(tmp_path / "f.html", title="A <b>fit</b>").read_bytes()
    assert again == (tmp_path / "e.html").read_bytes()


def test_page_without_anything_to_judge(found, tmp_path):
    empty = {name: pd.DataFrame() for name in found.tables}
    nothing = dataclasses.replace(found, **empty, changes=pd.DataFrame(), left_out={})
    page = nothing.to_html(tmp_path / "e.html", title="Nothing").read_text("utf-8")
    assert "<img" not in page
    assert "<table" not in page


def test_best_is_marked_by_the_metrics_own_direction(found, tmp_path):
    page = found.to_html(tmp_path / "e.html", title="t").read_text("utf-8")
    table = table_of(page, "response")
    part = found.responses.query("scale == 'mean_log1p' and method != 'noise_ceiling'")
    bold = re.findall(r'class="[^"]*best"[^>]*>([^<]+)<', table)
    errors = part[part["metric"] == "mse_delta"].groupby("method")["value"].mean()
    assert f"{errors.min():.3f}" in bold
    *_, ceiling = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    assert "noise_ceiling" in ceiling
    assert len(re.findall(r'class="[^"]* ceiling"', ceiling)) == len(SCORES)
    assert "best" not in ceiling


def test_evaluate_writes_page_json_and_tables(simulated, tmp_path):
    model = simulated.save(tmp_path / "model")
    simulated.source(None).write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "out"
    arguments = ["evaluate", model, tmp_path / "cells.h5ad", "--out", out, "--seed", 3]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "FCR minus best baseline" in result.output
    found = json.loads((out / "evaluation.json").read_text())
    assert found["facts"]["n_heldout"] == len(simulated.split.heldout)
    assert found["facts"]["seed"] == 3
    names = {
        "headline", "responses", "methods", "calibration", "coverage", "dimensions", "clustering",
        "independence", "prior_rank", "singular_values", "identifiability",
    }  # fmt: skip
    assert {path.stem for path in out.glob("*.csv")} == names
    table = pd.read_csv(out / "clustering.csv")
    assert table["value"].tolist() == pytest.approx([r["value"] for r in found["clustering"]])
    again = evaluate(simulated, seed=3)
    pd.testing.assert_frame_equal(again.clustering, table)
    np.testing.assert_allclose(again.headline["gain"], [r["gain"] for r in found["headline"]])
    assert "Evaluation of model" in (out / "evaluation.html").read_text()
    assert "is there already. Pass --overwrite" in run(*arguments).output


def test_without_igraph_clusters_are_left_out_with_a_word(simulated, monkeypatch):
    monkeypatch.setattr(clustering_module, "find_spec", lambda _: None)
    found = evaluate(simulated, seed=3, **FAST)
    assert len(found.clustering) == 0
    assert "clustering" not in found.tables
    assert "pip install 'pyro-fcr[leiden]'" in found.left_out["clusters"]
    assert "clusters" in str(found)


def test_evaluate_says_what_a_model_of_an_earlier_version_lacks(simulated, tmp_path):
    saved = read_model(simulated.save(tmp_path / "model"))
    model = write_model(tmp_path / "earlier", dataclasses.replace(saved, split=None))
    simulated.source(None).write_h5ad(tmp_path / "cells.h5ad")
    result = run("evaluate", model, tmp_path / "cells.h5ad", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "saved by an earlier version" in result.output
    assert not (tmp_path / "out").exists()


def test_traces_of_other_blocks_in_unused_dimensions_are_no_leak():
    rng = np.random.default_rng(0)
    truth = {name: rng.normal(size=(600, 1)) for name in ("z_x", "z_tx", "z_t")}
    means = {**truth, "z_x": np.hstack([truth["z_x"], 1e-3 * truth["z_t"]])}
    variances = {name: np.full(mean.shape, 0.1) for name, mean in means.items()}
    codes = {"x": np.arange(600) % 3, "t": np.arange(600) % 2}
    cells = blocks.SplitCells(
        Encoded(means, means, variances, codes), Split(np.arange(500), np.arange(500, 600))
    )
    assert cells.dimensions["in_use"].tolist() == [True, False, True, True]
    y = torch.from_numpy(np.hstack(list(truth.values())) + 0.1 * rng.normal(size=(600, 3)))
    expression = SimpleNamespace(schema=SimpleNamespace(expression="log1p"))
    fcr = SimpleNamespace(registry=expression, chunks=lambda _: [({"y": y}, slice(0, 600))])
    table = blocks.identifiability(fcr, ad.AnnData(obsm=truth), cells, max_cells=600, seed=0)
    supervised = table.set_index(["metric", "block"])["supervised"]
    assert 0.8 < supervised["r2_one_map", "z_x"] < 1.0
    value = table.set_index(["metric", "block"])["value"]
    assert value["r2_within", "z_x"] > 0.9
    assert value["leak_within", "z_x -> z_t"] < 0.1


def test_traces_of_a_label_in_unused_dimensions_are_no_dependence():
    rng = np.random.default_rng(0)
    codes = {"x": np.arange(600) % 3, "t": np.arange(600) % 2}
    means = {"z_x": np.column_stack([rng.normal(size=600), 0.03 * codes["t"]])}
    variances = {"z_x": np.full((600, 2), 0.1)}
    cells = blocks.SplitCells(
        Encoded(means, means, variances, codes), Split(np.arange(500), np.arange(500, 600))
    )
    model = SimpleNamespace(claims=lambda: (Claim("structure", "z_x", "t", ("x",)),))
    table = blocks.independence(model, cells, replicate=None, n_permutations=99, seed=0)
    assert table["effect"].max() < 0.1
