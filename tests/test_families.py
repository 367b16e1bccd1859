"""Named families of simulated cells."""

import importlib
import json

import numpy as np
import pandas as pd
import pytest

import pyro_fcr
from pyro_fcr.simulation import (
    FAMILIES,
    FCRDesign,
    checksum,
    simulate,
    simulate_family,
    simulate_on_controls,
)

BLOCKS = ("z_x", "z_tx", "z_t")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_the_same_everywhere(name):
    adata = simulate_family(name)
    assert adata.uns["family"]["checksum"] == FAMILIES[name].checksum
    assert set(adata.obsm) == set(BLOCKS)
    assert 500 < np.asarray(adata.X.sum(axis=1)).mean() < 5_000


def test_checksums_see_counts_and_labels():
    adata = simulate_family("leaky", n_cells=100)
    before = checksum(adata)
    assert checksum(simulate_family("leaky", n_cells=100)) == before
    assert checksum(simulate_family("leaky", n_cells=100, seed=1)) != before
    changed = adata.copy()
    changed.X[0, changed.X[0].indices[0]] += 1
    assert checksum(changed) != before
    adata.obs["treatment"] = adata.obs["treatment"].to_numpy()[::-1]
    assert checksum(adata) != before


def test_unknown_families_are_refused_by_name():
    with pytest.raises(ValueError, match="Unknown family 'tan'; expected bent, leaky"):
        simulate_family("tan")


def test_enough_families_were_not_tuned_on():
    identified = [f for f in FAMILIES.values() if f.kind == "identified" and not f.tuned]
    assert len(identified) >= 5
    assert {f.kind for f in FAMILIES.values()} == {"identified", "weak", "outside"}


def codes(adata):
    truth = adata.uns["truth"]
    t = np.array([list(truth["treatments"]).index(each) for each in adata.obs["treatment"]])
    x = np.array([list(truth["contexts"]).index(each) for each in adata.obs["context"]])
    return t, x


def test_treatments_without_effect_are_like_the_control():
    truth = simulate(FCRDesign(n_cells=300, n_treatments=4, n_inert=2), seed=0).uns["truth"]
    for site in ("z_tx_mean", "z_tx_scale", "z_t_mean", "z_t_scale"):
        np.testing.assert_allclose(truth[site][-2:], np.stack([truth[site][0]] * 2))
        assert not np.allclose(truth[site][1], truth[site][0])


def test_only_some_of_the_treated_cells_respond():
    design = FCRDesign(n_cells=20_000, n_treatments=3, n_contexts=2, mean_shift=5.0, responding=0.3)
    adata = simulate(design, seed=0)
    t, _ = codes(adata)
    for drug in (1, 2):
        mean = adata.uns["truth"]["z_t_mean"][drug, 0]
        large = int(np.abs(mean).argmax())
        share = adata.obsm["z_t"][t == drug, large].mean() / mean[large]
        assert share == pytest.approx(0.3, abs=0.1)


def test_missing_pairs_have_no_cells_but_every_level_has_some():
    adata = simulate(FCRDesign(n_cells=5_000, missing=0.5, imbalance=0.0), seed=1)
    t, x = codes(adata)
    pairs = np.zeros((6, 6), bool)
    pairs[t, x] = True
    assert 0.3 < pairs[1:].mean() < 0.7
    assert pairs[0].all()
    assert pairs.any(axis=1).all()
    assert simulate(FCRDesign(n_cells=5_000, missing=1.0), seed=1).obs["treatment"].nunique() == 6


def test_batches_can_follow_the_context():
    batches = {"n_batches": 3, "n_cells": 6_000}
    for share in (0.0, 0.5, 1.0):
        adata = simulate(FCRDesign(**batches, confounding=share), seed=0)
        _, x = codes(adata)
        same = adata.obs["batch"].cat.codes.to_numpy() == x % 3
        assert same.mean() == pytest.approx(share + (1 - share) / 3, abs=0.03)


def test_a_free_control_has_priors_of_its_own():
    truth = simulate(FCRDesign(n_cells=100, free_control=True, centred=False)).uns["truth"]
    assert np.abs(truth["z_tx_mean"][0]).max() > 0.5
    assert not truth["z_t_mean"][0].any()


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "sine"])
@pytest.mark.parametrize("conditioned", [True, False])
def test_random_networks_bend_and_keep_what_is_in_the_latents(activation, conditioned):
    design = FCRDesign(
        n_cells=3_000, widths=(24,), activation=activation, conditioned=conditioned, noise=0.0
    )
    adata = simulate(design, seed=0)
    z = np.hstack([adata.obsm[block] for block in BLOCKS])
    mean = adata.layers["mean"].astype(float)
    linear = np.c_[z, np.ones(len(z))]
    left = mean - linear @ np.linalg.lstsq(linear, mean, rcond=None)[0]
    assert left.var() > 0.005 * mean.var()
    back = np.c_[mean, np.ones(len(mean))]
    back = back @ np.linalg.lstsq(back, z, rcond=None)[0]
    assert (1 - (z - back).var(axis=0) / z.var(axis=0)).min() > 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"missing": 1.5}, "missing is 1.5; expected a number"),
        ({"n_inert": 6}, "n_inert is 6, but there are 5 treatments"),
        ({"widths": (4,)}, "too narrow"),
        ({"activation": "relu"}, "Unknown activation 'relu'"),
    ],
)
def test_impossible_designs_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FCRDesign(**wrong)


def test_simulated_treatments_on_real_cells_keep_contexts_genes_and_depths():
    cells = pyro_fcr.datasets.gbm_panobinostat()
    cells = cells[cells.obs["treatment"] == "control"].copy()
    before = cells.X.copy()
    design = FCRDesign(n_cells=4_000, n_treatments=3, likelihood="nb", n_x=3, widths=(20,))
    adata = simulate_on_controls(cells, design, context_key="patient", seed=0)
    assert (before != cells.X).nnz == 0
    assert list(adata.var_names) == list(cells.var_names)
    assert set(adata.obs["context"]) == set(cells.obs["patient"])
    depth, real = (np.log(np.asarray(a.X.sum(axis=1)).ravel()) for a in (adata, cells))
    assert depth.mean() == pytest.approx(real.mean(), abs=0.1)
    control = adata[adata.obs["treatment"] == "control"]
    for patient in sorted(set(cells.obs["patient"])):
        profiles = [
            np.log1p(np.asarray(some.X.mean(axis=0)).ravel())
            for some in (
                control[control.obs["context"] == patient],
                cells[cells.obs["patient"] == patient],
            )
        ]
        assert np.corrcoef(*profiles)[0, 1] > 0.75


def test_the_program_fits_judges_and_goes_on(tmp_path, monkeypatch, capsys):
    program = importlib.import_module("families")
    asked = "--families tanh --fits default,cvae --seeds 1 --cells 600 --max-epochs 1"
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["families.py", "--out", str(tmp_path), *asked.split()])
        program.main()
    rows = [json.loads(line) for line in (tmp_path / "families.jsonl").read_text().splitlines()]
    assert [(row["family"], row["seed"], row["fit"]) for row in rows] == [
        ("tanh", 100, "default"),
        ("tanh", 100, "cvae"),
    ]
    for row in rows:
        assert 0 <= row["floor_r2_z_x"] <= row["ceiling_r2_z_x"] <= 1
        assert row["found_r2_z_x"] < 0.9  # of one epoch
    assert len(pd.read_csv(tmp_path / "families.csv")) == 2
    assert (tmp_path / "families.png").read_bytes().startswith(b"\x89PNG")
    assert "0 of 1" in capsys.readouterr().out
