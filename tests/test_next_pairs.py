"""Which pairs to measure next: those of which refits differ most."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cli_helpers import run, succeed
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, QueryError, bootstrap
from pyro_fcr.discovery import next_pairs as ask

MISSING = [("drug1", "line0"), ("drug1", "line2"), ("drug2", "line1")]


@pytest.fixture(scope="module")
def cells():
    adata = simulate(600, n_genes=12, n_t=2)
    pairs = list(zip(adata.obs["drug"], adata.obs["line"], strict=True))
    return adata[[pair not in MISSING for pair in pairs]].copy()


@pytest.fixture(scope="module")
def refits(cells):
    return bootstrap(FCR(cells, SCHEMA), 3, max_epochs=1)


@pytest.fixture
def expecting(monkeypatch):
    """Have fits expect what is given, ``(n_fits, n_treatments, n_contexts)``, of every gene."""

    def set_to(refits, values):
        def expected(fcr, arm, contexts, **_):
            own = values[refits.index(fcr)][int(arm.treatment[-1]) - 1]
            some = [int(context["line"][-1]) for context in contexts]
            return np.repeat(np.array(own)[some, None], 12, axis=1)

        monkeypatch.setattr("pyro_fcr.discovery.unmeasured.total_effects", expected)

    return set_to


def pairs_of(table):
    return list(table[["treatment", "context"]].itertuples(index=False, name=None))


def test_all_pairs_that_were_not_measured_are_ranked_once(refits):
    table = ask(refits)
    assert sorted(pairs_of(table)) == MISSING
    assert list(table) == ["treatment", "line", "context", "information", "sd", "effect"]
    assert (table["line"] == table["context"]).all()
    assert 0.0 < table["information"].sum() <= 1.0
    assert (ask(refits, n_pairs=1)["information"] == table["information"][:1]).all()
    assert set(ask(refits, treatments="drug2")["treatment"]) == {"drug2"}
    pd.testing.assert_frame_equal(ask(refits), table)


def test_where_fits_differ_comes_first(refits, expecting):
    alike = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    fits = np.array([alike, alike, alike])
    fits[:, 1, 1] = [-1.0, 0.0, 1.0]  # drug2 in line1
    expecting(refits, fits)
    table = ask(refits)
    assert pairs_of(table)[0] == ("drug2", "line1")
    assert table["information"][0] > 0.9
    assert table["sd"][0] == pytest.approx(1.0, abs=0.01)


def test_what_is_learnt_is_the_spread_of_the_fits_as_far_as_cells_let_it(refits, expecting):
    fits = np.zeros((3, 2, 3))
    fits[:, 0, 0], fits[:, 1, 1] = [-0.2, 0.0, 0.2], [-0.1, 0.0, 0.1]
    expecting(refits, fits)
    many = ask(refits, n_cells=10**9).set_index("context")["information"]
    assert many["line0"] == pytest.approx(0.8, abs=1e-3)  # .04 of .05
    assert many["line1"] == pytest.approx(0.2, abs=1e-3)
    assert many["line2"] == 0.0
    few = ask(refits, n_cells=20).set_index("context")["information"]
    assert few["line1"] / many["line1"] < few["line0"] / many["line0"] < 0.9
    expecting(refits, np.zeros((3, 2, 3)))
    assert np.allclose(ask(refits)[["information", "sd", "effect"]], 0.0)


def test_more_cells_tell_more(refits):
    few, many = (ask(refits, n_cells=n)["information"].sum() for n in (2, 2000))
    assert few < many


def test_contexts_without_untreated_cells_are_not_proposed(cells):
    away = (cells.obs["drug"] == "control") & (cells.obs["line"] == "line1")
    with pytest.warns(UserWarning, match="without control cells"):
        refits = bootstrap(FCR(cells[~away.to_numpy()].copy(), SCHEMA), 3, max_epochs=1)
    assert sorted(pairs_of(ask(refits))) == MISSING[:2]


def test_what_cannot_be_answered_is_said_before_work(refits, cells, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("asked the model")

    monkeypatch.setattr("pyro_fcr.discovery.unmeasured.total_effects", refused)
    with pytest.raises(QueryError, match="three or more"):
        ask(refits[:2])
    with pytest.raises(QueryError, match="n_pairs"):
        ask(refits, n_pairs=0)
    with pytest.raises(QueryError, match="n_cells"):
        ask(refits, n_cells=1.5)
    with pytest.warns(UserWarning, match="taken as a treatment"):
        blind = FCR(cells, replace(SCHEMA, control=None))
    with pytest.raises(QueryError, match="no control"):
        ask([blind] * 3)


def test_nothing_is_left_to_measure():
    refits = bootstrap(FCR(simulate(300, n_genes=8, n_t=2), SCHEMA), 3, max_epochs=1)
    with pytest.raises(QueryError, match="was measured"):
        ask(refits)


def test_command(cells, refits, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    models = []
    for seed in range(3):
        fcr = FCR(cells, SCHEMA, seed=seed)
        fcr.fit(max_epochs=1, progress=False, seed=seed)
        fcr.save(tmp_path / f"model{seed}")
        models.append(tmp_path / f"model{seed}")
    out = tmp_path / "next.csv"
    asked = ["--cells", tmp_path / "cells.h5ad", "--out", out, "--n-pairs", 2]
    printed = succeed("next-pairs", *models, *asked)
    table = pd.read_csv(out)
    assert set(pairs_of(table)) < set(MISSING)
    assert table["treatment"][0] in printed
    result = run("next-pairs", *models[:2], *asked, "--overwrite")
    assert result.exit_code == 1
    assert "three or more" in result.output
