"""Which pairs to measure next: those of which most is not known, each given the ones before it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cli_helpers import run, succeed
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, QueryError, bootstrap
from pyro_fcr.discovery import next_pairs as ask
from pyro_fcr.discovery.unmeasured import _choose

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
            return np.repeat(np.array(own)[:, None], 12, axis=1)

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


def test_where_contexts_differ_comes_first_though_fits_agree(refits, expecting):
    """drug2 does other things in the two lines where it was seen; drug1 was seen in one."""
    one = [[0.5, 0.5, 0.5], [-1.0, 0.0, 1.0]]
    expecting(refits, [one, one, one])
    table = ask(refits)
    assert np.allclose(table["sd"], np.sqrt(2.0 * 1.5))  # drug1 is taken to differ as drug2 does
    expecting(refits, [[[0.5, 0.5, 0.5], [0.4, 0.0, 0.4]]] * 3)
    nothing = ask(refits)  # that is not known
    assert np.allclose(nothing["sd"], 0.0)
    assert np.allclose(nothing["information"], 0.0)


def test_a_pair_that_another_one_tells_comes_later():
    """Of two pairs that go together one is enough, and a lesser third tells more then."""
    covariance = np.array([[4.0, 3.9, 0.0], [3.9, 4.0, 0.0], [0.0, 0.0, 2.0]])
    chosen = [i for i, _ in _choose(covariance, 0.1, 3)]
    assert chosen[1] == 2
    assert [i for i, _ in _choose(np.diag([4.0, 4.1, 2.0]), 0.1, 3)] == [1, 0, 2]


def test_what_is_taken_away_is_what_gaussian_conditioning_says():
    rng = np.random.default_rng(0)
    covariance = np.cov(rng.normal(size=(6, 9)))
    chosen = _choose(covariance, 0.3, 4)
    some = [i for i, _ in chosen]
    own = covariance[np.ix_(some, some)] + 0.3 * np.eye(4)
    left = covariance - covariance[:, some] @ np.linalg.solve(own, covariance[some])
    removed = 1 - np.trace(left) / np.trace(covariance)
    assert sum(share for _, share in chosen) == pytest.approx(removed)


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
