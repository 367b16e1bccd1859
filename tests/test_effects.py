import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import NO_PENALTIES, SCHEMA, simulate
from edits import EDITS

from pyro_fcr import FCR, Architecture, Model, QueryError, Schema, SchemaError, bootstrap
from pyro_fcr.data import register
from pyro_fcr.discovery.effects import effects
from pyro_fcr.distributions import Exogenous
from pyro_fcr.draws import new_cells
from pyro_fcr.draws.paths import path_responses
from pyro_fcr.nn import NegativeBinomialDecoder

SMALL = Architecture(n_x=3, n_t=3, n_tx=3, n_hidden=32, decoder="additive", dropout=0.0)


@pytest.fixture(scope="module")
def fitted():
    fcr = FCR(simulate(interaction=0.5), SCHEMA, architecture=SMALL)
    fcr.fit(max_epochs=100, batch_size=128, progress=False, weights=NO_PENALTIES)
    return fcr


@pytest.fixture(scope="module")
def table(fitted):
    return effects(fitted).to_frame()


def pseudobulk(adata):
    """Log of pooled counts over pooled library sizes, per condition."""
    groups = adata.to_df().groupby([adata.obs["drug"], adata.obs["line"]]).sum()
    return np.log(groups.div(groups.sum(axis=1), axis=0))


def test_total_effects_are_those_of_the_cells(fitted, table):
    bulk = pseudobulk(fitted.source(None))
    total = table[table["effect"] == "total"]
    for (drug, line), rows in total.groupby(["treatment", "line"]):
        real = bulk.loc[drug, line] - bulk.loc["control", line]
        assert np.corrcoef(rows["estimate"], real[rows["gene"]])[0, 1] > 0.9, (drug, line)


def test_parts_and_interactions(fitted, table):
    keys = ["treatment", "line", "gene"]
    wide = table.pivot(index=keys, columns="effect", values="estimate").reset_index()
    assert list(wide.columns) == [*keys, "interaction", "total", "z_t", "z_tx"]
    median = wide.groupby(["treatment", "gene"])["total"].transform("median")
    np.testing.assert_allclose(wide["interaction"], wide["total"] - median, atol=1e-12)
    # Blocks add up on the scale of logits: what z_t does varies little between contexts.
    between = wide.groupby(["treatment", "gene"])[["z_t", "z_tx", "total"]].std().mean()
    assert between["z_t"] < 0.6 * between["z_tx"]
    parts = wide["z_t"] + wide["z_tx"]
    assert np.corrcoef(parts, wide["total"])[0, 1] > 0.97


def test_a_block_that_does_nothing_has_no_effect(fitted):
    weight = fitted.model.y.heads[0].weight
    first = 32  # the columns of z_x; those of the linear z_tx follow
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, first : first + 3] = 0.0
    found = effects(fitted, n_cells=50)
    with torch.no_grad():
        weight.copy_(kept)
    values = dict(zip(found.rows["effect"], found.estimate, strict=False))
    assert np.abs(values["z_tx"]).max() == 0.0
    np.testing.assert_allclose(values["z_t"], values["total"], atol=1e-6)
    assert np.abs(values["total"]).max() > 0.1


def test_both_worlds_are_drawn_from_the_same_noise(fitted):
    registry, n = fitted.registry, 40
    x = torch.from_numpy(registry.encode_covariates({"line": "line1"})["x"]).expand(n, -1)
    t = torch.zeros(n, 2)
    cells = new_cells({"x": x, "t": t}, torch.full((n, 1), 400.0), n_genes=40)
    state = torch.get_rng_state()
    same = path_responses(
        fitted.model, fitted.guide, cells, fitted.graph, reference={"t": t}, target={"t": t}
    )
    assert torch.equal(state, torch.get_rng_state())
    assert set(same) == {"reference", "total", "z_t", "z_tx"}
    for expected in same.values():
        assert torch.equal(expected, same["reference"])


def test_the_interaction_block_cannot_say_what_a_treatment_does_everywhere():
    adata = simulate(900, n_x=4)
    adata = adata[(adata.obs["line"] != "line3") | (adata.obs["drug"] != "drug1")].copy()
    registry = register(adata, SCHEMA)[0]
    seen = registry.mean_context("x")
    share = adata.obs["line"][adata.obs["drug"] == "drug1"].value_counts(normalize=True)
    np.testing.assert_allclose(seen[0], [*share.sort_index(), 0.0], rtol=1e-5)
    fcr = FCR(adata, SCHEMA, architecture=SMALL)
    prior, loadings = fcr.model.z_tx, fcr.model.y.heads[0].weight[:, 32:35]
    with torch.no_grad():
        means = torch.stack([prior(torch.eye(2)[[0]], torch.eye(4)[[x]]).mean[0] for x in range(4)])
        average = torch.from_numpy(seen[0]) @ (means @ loadings.T)
        assert (means @ loadings.T).abs().max() > 1e-3
        torch.testing.assert_close(average, torch.zeros(40), atol=1e-6, rtol=0)
        assert (prior(torch.zeros(1, 2), torch.eye(4)[[0]]).mean == 0).all()


class DirectModel(Model):
    """Expression depends on the treatment itself, too."""

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            y = self.y(z_x, z_tx, z_t, t, batch["library"])
            return pyro.sample("y", y, obs=batch.get("y"))


def test_what_bypasses_the_blocks_is_a_part_of_its_own():
    adata = simulate(300, n_genes=12)
    registry = register(adata, SCHEMA)[0]
    model, guide = SMALL.build(registry.widths, target_sum=registry.target_sum)
    decoder = NegativeBinomialDecoder([3, 3, 3, 2], 12)
    direct = DirectModel(z_x=model.z_x, z_tx=model.z_tx, z_t=model.z_t, y=decoder)
    found = effects(FCR(adata, SCHEMA, model=direct, guide=guide), n_cells=30)
    assert set(found.rows["effect"]) == {"total", "z_t", "z_tx", "direct", "interaction"}


@pytest.mark.parametrize("name", EDITS)
def test_every_graph_has_effects(name):
    edit = EDITS[name]
    adata = edit.data()
    model, guide = edit.build(register(adata, edit.schema)[0])
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    found = effects(fcr, n_cells=20)
    sites = (*fcr.graph.blocks, *fcr.graph.known)
    reached = {site for site in sites if "t" in fcr.graph.ancestors(site)}
    assert set(found.rows["effect"]) == {"total", "interaction", *reached}
    assert np.isfinite(found.estimate).all()
    assert (found.spread_lower <= found.spread_upper).all()


def test_intervals_over_cells_and_over_refits(fitted):
    one = effects(fitted, n_cells=100, level=0.5)
    assert one.uncertainty == "cells"
    total = one.rows["effect"].to_numpy() == "total"
    assert (one.spread_lower[total] < one.estimate[total]).mean() > 0.95
    assert (one.sd[total] > 0).all()
    refits = bootstrap(fitted, 3, max_epochs=2, batch_size=256)
    three = effects(refits, n_cells=20, level=0.9)
    assert three.uncertainty == "parameters"
    each = np.array([effects(r, n_cells=20).estimate for r in refits])
    np.testing.assert_allclose(three.estimate, each.mean(axis=0))
    np.testing.assert_allclose(three.sd, each.std(axis=0, ddof=1))
    np.testing.assert_allclose(
        three.spread_upper, three.estimate + 2.92 * three.sd, rtol=2e-3, atol=1e-5
    )  # t, 2 df


def test_total_effects_are_tested_on_cells_that_no_fit_has_used(fitted, table):
    total = table["effect"] == "total"
    assert table.loc[total, "qvalue"].notna().all()
    assert table.loc[~total, ["pvalue", "qvalue"]].isna().all(axis=None)
    found = table[total & (table["qvalue"] < 0.1)]
    assert len(found) > 5
    cells = fitted.source(None)[fitted.split.heldout].copy()
    cells.X = cells.X.toarray() + 0.01 if hasattr(cells.X, "toarray") else cells.X + 0.01
    bulk = pseudobulk(cells)
    real = [
        bulk.loc[(row.treatment, row.line), row.gene] - bulk.loc[("control", row.line), row.gene]
        for row in found.itertuples()
    ]
    assert (np.sign(real) == np.sign(found["estimate"])).mean() > 0.9
    known = table["effect"].isin(["total", "interaction"])
    assert (table.loc[known, "lower"] <= table.loc[known, "upper"]).all()
    assert (table.loc[known, "lower"] < table.loc[known, "upper"]).mean() > 0.9
    assert table.loc[~known, "lower"].isna().all()


def test_refits_share_the_cells_that_they_are_tested_on(fitted):
    refits = bootstrap(fitted, 2, max_epochs=1, batch_size=256)
    found = effects(refits, n_cells=20)
    assert np.isfinite(found.qvalue[found.rows["effect"] == "total"]).all()
    first, second = (set(fcr.split.heldout) for fcr in refits)
    assert first == second


def test_the_table_and_the_adata_say_the_same(fitted, tmp_path):
    found = effects(fitted, treatments=["drug2"], n_cells=30)
    path = tmp_path / "effects.h5ad"
    found.to_adata().write_h5ad(path)
    adata = ad.read_h5ad(path)
    table = found.to_frame(["gene7", "gene3"])
    assert list(table.columns) == [
        "treatment", "line", "context", "effect", "extrapolated",
        "gene", "estimate", "sd", "spread_lower", "spread_upper", "lower", "upper", "pvalue",
        "qvalue", "uncertainty",
    ]  # fmt: skip
    assert len(table) == 3 * 4 * 2
    row = table[(table["line"] == "line2") & (table["effect"] == "z_t")].set_index("gene")
    where = (adata.obs["line"] == "line2") & (adata.obs["effect"] == "z_t")
    assert adata[where, "gene3"].X.item() == row.loc["gene3", "estimate"]
    assert adata[where, "gene7"].layers["spread_upper"].item() == row.loc["gene7", "spread_upper"]
    assert adata.uns["uncertainty"] == "cells"
    with pytest.raises(KeyError, match="'geneX' is not a gene of the model"):
        found.to_frame(["gene1", "geneX"])


def test_pairs_never_seen_are_marked_and_doses_are_arms():
    adata = simulate(900)
    unseen = (adata.obs["line"] == "line2") & (adata.obs["drug"] == "drug1")
    adata = adata[~unseen].copy()
    treated = adata.obs["drug"] != "control"
    adata.obs["dose"] = np.where(treated, np.where(np.arange(adata.n_obs) % 2, 0.5, 5.0), 0.0)
    schema = Schema(treatment_key="drug", control="control", covariate_keys="line", dose_key="dose")
    fcr = FCR(adata, schema, architecture=SMALL)
    rows = effects(fcr, n_cells=10).rows
    arms = rows[["treatment", "dose"]].drop_duplicates()
    assert set(arms.itertuples(index=False, name=None)) == {
        (drug, dose) for drug in ("drug1", "drug2") for dose in ("0.5", "5")
    }
    expected = (rows["treatment"] == "drug1") & (rows["line"] == "line2")
    np.testing.assert_array_equal(rows["extrapolated"], expected)


def test_questions_without_an_answer(fitted):
    with pytest.raises(SchemaError, match=r"drug9.*drug1"):
        effects(fitted, treatments=["drug9"])
    with pytest.raises(QueryError, match="level is 90; expected a number between 0 and 1"):
        effects(fitted, level=90)
    adata = simulate(300, n_genes=10)
    adata = adata[adata.obs["drug"] != "control"].copy()
    schema = Schema(treatment_key="drug", control=None, covariate_keys="line")
    with pytest.raises(QueryError, match="schema names no control"):
        effects(FCR(adata, schema, architecture=SMALL))


def test_enrichment_ranks_treatments_by_what_they_spare(fitted):
    found = effects(fitted, n_cells=200)
    table = found.enrichment("line1")
    assert list(table.columns) == ["treatment", "here", "elsewhere", "selectivity", "nearest"]
    assert table["selectivity"].is_monotonic_decreasing
    total = found.rows["effect"] == "total"
    here = total & (found.rows["context"] == "line1") & (found.rows["treatment"] == "drug1")
    rms = np.sqrt((found.estimate[here.to_numpy()] ** 2).mean())
    row = table.set_index("treatment").loc["drug1"]
    assert row["here"] == pytest.approx(rms)
    assert row["selectivity"] == pytest.approx(row["here"] - row["elsewhere"])
    one_gene = found.enrichment("line1", genes=["gene5"])
    assert not np.allclose(one_gene["here"], table["here"])
    with pytest.raises(QueryError, match="context 'lineX': the effects are of line0, line1, line2"):
        found.enrichment("lineX")
    with pytest.raises(KeyError, match="'geneX' is not a gene"):
        found.enrichment("line1", genes=["geneX"])


def test_effects_know_the_treatment_that_has_cells_in_features():
    edit = EDITS["i_features"]
    adata = edit.data()
    model, guide = edit.build(register(adata, edit.schema)[0])
    fcr = FCR(adata, edit.schema, model=model, guide=guide)
    rows = effects(fcr, treatments=["drug3"], n_cells=10).rows
    assert rows["extrapolated"].all()
    assert set(rows["treatment"]) == {"drug3"}
    assert isinstance(rows, pd.DataFrame)
