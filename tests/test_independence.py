"""The independence tests hold their level, find what is planted, and say when they cannot."""

import sys
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from conftest import make_batch, make_programs

from pyro_fcr.graph import Claim, claims, read_graph
from pyro_fcr.metrics import permutation
from pyro_fcr.metrics.hsic import hsic, hsic_table, kci
from pyro_fcr.metrics.independence import (
    CLAIMS,
    independence_table,
    independence_test,
    power_against_leak,
)

FAST = {"n_permutations": 59}


def skewed(rng, code, n_dims=2):
    """Gamma variables whose place, width and shape differ between codes."""
    size = (code.max() + 1, n_dims)
    shape, scale, place = (
        0.5 + 3 * rng.random(size),
        rng.lognormal(size=size),
        rng.normal(size=size),
    )
    return rng.gamma(shape[code]) * scale[code] + 3 * place[code]


def labels_of(rng, n, n_x=4, n_t=3):
    """Labels that depend on one another: designs are unbalanced."""
    share = rng.dirichlet(np.ones(n_x * n_t)) + 0.02
    condition = rng.choice(n_x * n_t, n, p=share / share.sum())
    return condition // n_t, condition % n_t


def within(values, stratum):
    """Centre and standardise within strata."""
    groups = pd.DataFrame(values).groupby(stratum)
    return ((values - groups.transform("mean")) / groups.transform("std", ddof=0)).to_numpy()


def rate(draw, n_draws=150, **settings):
    """Share of draws rejected at level 0.05."""
    found = [independence_test(*draw(np.random.default_rng([i, 1])), seed=i, **FAST, **settings)
             for i in range(n_draws)]  # fmt: skip
    return np.mean([test.p_value <= 0.05 for test in found])


def null_label(rng):
    x, t = labels_of(rng, 300)
    return skewed(rng, x), t, x


def null_pair(rng):
    x, _ = labels_of(rng, 300)
    return skewed(rng, x), skewed(rng, x, 3), x


@pytest.mark.parametrize("draw", [null_label, null_pair])
def test_independent_cells_are_rejected_at_the_level(draw):
    assert 0.015 < rate(draw) < 0.095


@pytest.mark.parametrize("draw", [null_label, null_pair])
def test_strata_are_what_makes_them_independent(draw):
    z, other, x = draw(np.random.default_rng(0))
    assert independence_test(z, other, np.zeros_like(x), **FAST).p_value == 1 / 60


@pytest.mark.parametrize("against", ["label", "block"])
def test_a_leak_of_one_percent_is_found_in_5000_cells(against):
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 5_000, 6, 6)
    other = t if against == "label" else skewed(rng, x, 4)
    settings = {"n_draws": 10, "n_permutations": 39}
    power = power_against_leak(skewed(rng, x), other, x, leak=[0.0, 0.01], **settings)
    assert power["rejected"][0] <= 0.3
    assert power["rejected"][1] >= 0.8
    assert power["effect"].to_numpy() == pytest.approx([0.0, 0.01], abs=0.004)


def test_power_comes_with_the_false_positive_rate():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 200)
    table = power_against_leak(skewed(rng, x), t, x, leak=[0.0], n_draws=150, n_permutations=39)
    assert 0.01 <= table["rejected"][0] <= 0.1


def test_power_with_replicates_moves_replicates():
    rng = np.random.default_rng(0)
    t = np.repeat([0, 1], 300)
    replicate = np.repeat(np.arange(12), 50)
    z = rng.normal(size=(600, 2)) + 0.7 * rng.normal(size=(12, 2))[replicate]
    x = np.zeros(600)
    settings = {"leak": [0.0, 0.5], "n_draws": 40, "n_permutations": 39}
    power = power_against_leak(z, t, x, replicate=replicate, **settings)["rejected"]
    assert power[0] <= 0.2
    assert power[1] >= 0.8


def test_the_effect_of_a_label_is_eta_squared_beyond_chance():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 3_000)
    z = skewed(rng, x, 1) + 1.5 * rng.normal(size=3)[t][:, None]
    found = independence_test(z, t, x)
    white = within(z, x).ravel()
    eta = pd.Series(white).groupby([x, t]).transform("mean").pow(2).mean()
    assert found.chance == pytest.approx((12 - 4) / (3_000 - 4), rel=0.1)
    assert found.effect == pytest.approx((eta - found.chance) / (1 - found.chance), rel=1e-6)


def test_the_effect_of_a_block_is_the_mean_squared_canonical_correlation():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2_000, 2)) @ rng.normal(size=(2, 2))
    other = np.column_stack([z[:, 0] + rng.normal(size=2_000), rng.normal(size=(2_000, 2))])
    orthonormal = [np.linalg.qr(v - v.mean(axis=0))[0] for v in (z, other)]
    expected = (np.linalg.svd(orthonormal[0].T @ orthonormal[1])[1] ** 2).mean()
    found = independence_test(z, other, np.zeros(2_000))
    assert found.effect + found.chance * (1 - found.effect) == pytest.approx(expected, rel=1e-6)


def test_effects_reach_one():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 600)
    z = rng.normal(size=(600, 3))
    assert independence_test(z, z[:, :2] @ [[1, 2], [0, 1]], x).effect == pytest.approx(1.0)
    assert independence_test(t[:, None] + 1e-9 * z[:, :1], t, x).effect == pytest.approx(1.0)


def test_a_linear_map_of_a_block_and_a_shift_of_a_stratum_change_no_effect():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 900)
    z = skewed(rng, x) + 0.5 * t[:, None]
    moved = z @ [[3.0, 1.0], [0.0, -0.5]] + 100 * rng.normal(size=4)[x][:, None]
    a, b = (independence_test(v, t, x) for v in (z, moved))
    assert a.effect == pytest.approx(b.effect)


@pytest.mark.parametrize("against", ["label", "block"])
def test_a_change_of_width_or_a_curve_is_seen_where_means_are_equal(against):
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 3_000)
    z = rng.normal(size=(3_000, 2))
    other = t if against == "label" else rng.normal(size=(3_000, 2)) + z[:, :1] ** 2
    if against == "label":
        z = z * np.array([0.8, 1.0, 1.2])[t][:, None]
    found = independence_test(z, other, x)
    assert found.p_value < 0.01
    assert abs(found.effect) < 0.005 < found.shape_effect


def test_the_shape_effect_is_that_of_a_gaussian_kernel():
    rng = np.random.default_rng(0)
    t = rng.integers(2, size=1_500)
    z = rng.normal(size=(1_500, 1)) * np.array([0.4, 1.6])[t][:, None]
    white = (z - z.mean()) / z.std()
    kernel = np.exp(-((white - white.T) ** 2) / 2)
    label = np.equal.outer(t, t) / np.bincount(t)[t]
    between = (kernel * label).sum() - kernel.mean() * 1_500
    expected = between / (1_500 - kernel.mean() * 1_500)
    found = independence_test(z, t, np.zeros(1_500)).shape_effect
    assert found == pytest.approx(expected, rel=0.25)


def test_a_dimension_that_the_model_does_not_use_does_not_count():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 900)
    z = skewed(rng, x)
    unused = np.column_stack([z, 1e-3 * within(t[:, None].astype(float), x)])
    assert independence_test(unused, t, x).effect == pytest.approx(
        independence_test(z, t, x).effect, abs=1e-3
    )


def test_the_observed_arrangement_counts_among_the_permutations():
    found = np.column_stack([np.arange(20.0)[::-1], np.zeros(20)])
    assert permutation.p_value(found) == 1 / 20
    assert permutation.p_value(found[::-1]) == 1.0
    assert permutation.p_value(np.ones((20, 2))) == 1.0


def test_same_seed_same_result():
    z, t, x = null_label(np.random.default_rng(0))
    assert independence_test(z, t, x, seed=3) == independence_test(z, t, x, seed=3)
    assert independence_test(z, t, x, seed=3).p_value != independence_test(z, t, x, seed=4).p_value


# What changes places


def test_cells_stay_in_their_stratum():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 500)
    strata = permutation.strata_of_label(t, x, None)
    moved = t[strata.rows][strata.shuffle(rng)]
    for level in range(4):
        rows = x[strata.rows] == level
        np.testing.assert_array_equal(np.sort(moved[rows]), np.sort(t[x == level]))
    assert (moved != t[strata.rows]).any()
    assert strata.permuted == "cells"


def test_a_stratum_with_one_level_does_not_count():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 500)
    t[x == 2] = 1
    found = independence_test(skewed(rng, x), t, x, **FAST)
    assert found.n_strata == 3
    assert found.n_cells == (x != 2).sum()


def nested(rng, *, n_replicates=8, spread=1.0):
    """Replicates with one label each, in one stratum each, and noise of their own."""
    replicate = rng.integers(2 * 2 * n_replicates, size=800)
    x, t = replicate % 2, replicate // 2 % 2
    z = rng.normal(size=(800, 2)) + spread * rng.normal(size=(replicate.max() + 1, 2))[replicate]
    return z + x[:, None], t, x, replicate


def crossed(rng):
    """Replicates that hold all labels, in shares of their own."""
    replicate = rng.integers(6, size=600)
    share = rng.dirichlet(np.ones(3), size=6)
    t = (share[replicate].cumsum(axis=1) < rng.random((600, 1))).sum(axis=1)
    x = rng.integers(2, size=600)
    return rng.normal(size=(600, 2)) + rng.normal(size=(6, 2))[replicate], t, x, replicate


def donors(rng):
    """Donors with one label each, in every stratum, the same noise in all."""
    donor, x = rng.integers(12, size=900), rng.integers(4, size=900)
    return rng.normal(size=(900, 2)) + rng.normal(size=(12, 2))[donor], donor % 2, x, donor


@pytest.mark.parametrize("draw", [nested, crossed, donors])
def test_replicates_keep_the_level_where_cells_do_not(draw):
    assert np.mean([with_replicates(draw, i) <= 0.05 for i in range(100)]) < 0.12
    assert rate(lambda rng: draw(rng)[:3], 20) > 0.6


def with_replicates(draw, seed, **settings):
    z, t, x, replicate = draw(np.random.default_rng([seed, 1]))
    test = independence_test(z, t, x, replicate=replicate, seed=seed, **FAST, **settings)
    return test.p_value


def test_replicates_that_share_noise_in_both_blocks_are_held_fixed():
    def draw(rng):
        replicate = rng.integers(8, size=400)
        noise = rng.normal(size=(2, 8, 2))[:, replicate]
        return (*(rng.normal(size=(2, 400, 2)) + noise), rng.integers(2, size=400), replicate)

    assert np.mean([with_replicates(draw, i) <= 0.05 for i in range(60)]) < 0.14
    assert rate(lambda rng: draw(rng)[:3], 20) > 0.6


@pytest.mark.parametrize(
    ("draw", "permuted"),
    [(nested, "replicates"), (donors, "replicates"), (crossed, "cells within replicates")],
)
def test_the_result_says_what_changed_places(draw, permuted):
    z, t, x, replicate = draw(np.random.default_rng(0))
    assert independence_test(z, t, x, replicate=replicate).permuted == permuted


def test_a_replicate_moves_as_a_whole_and_takes_all_its_strata_along():
    rng = np.random.default_rng(0)
    _, t, x, donor = donors(rng)
    strata = permutation.strata_of_label(t, x, donor)
    label = np.array([t[donor == d][0] for d in range(12)])
    for _ in range(5):
        moved = label[strata.shuffle(rng)][strata.unit]
        levels = pd.Series(moved).groupby(donor[strata.rows]).nunique()
        assert (levels == 1).all()


def test_replicates_change_places_with_those_of_the_same_strata():
    x = np.array([0, 1, 0, 1, 0, 0, 0, 1, 0, 1])
    donor = np.array([0, 0, 1, 1, 2, 3, 4, 4, 5, 5])
    strata = permutation.strata_of_label(donor % 2, x, donor)
    assert strata.pool.tolist() == [0, 0, 1, 1, 0, 0]


def test_a_leak_beyond_replicate_noise_is_found():
    z, t, x, replicate = nested(np.random.default_rng(0), spread=0.2)
    found = independence_test(z + 0.5 * t[:, None], t, x, replicate=replicate)
    assert found.p_value < 0.02


@pytest.mark.parametrize(
    ("pool", "label"),
    [
        ([0] * 6, [0, 0, 0, 1, 1, 1]),
        ([0] * 6, [0, 0, 1, 1, 2, 2]),
        ([0] * 5, [0, 0, 1, 1, 1]),
        ([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1]),
        ([0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1, 1]),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 3]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_smallest_p_value_counts_arrangements_that_look_alike(pool, label, together):
    """Against counting: an arrangement looks like another if the statistic is the same."""
    pool, label = np.array(pool), np.array(label)
    stratum = np.zeros_like(pool) if together else pool
    units = np.arange(len(pool))
    strata = permutation.Strata(units, stratum, units, pool, "replicates")
    z = np.random.default_rng(0).normal(size=len(pool))

    def statistic(order):
        groups = pd.Series(z).groupby([stratum, label[list(order)]])
        return round((groups.sum() ** 2 / groups.size()).sum(), 9)

    orders = [o for o in permutations(units) if (pool[list(o)] == pool).all()]
    found = [statistic(order) for order in orders]
    expected = np.mean([value == statistic(units) for value in found])
    assert permutation.smallest_share(label, strata) == pytest.approx(expected)


def test_too_few_replicates_are_refused_with_the_smallest_p_value():
    replicate = np.repeat(np.arange(6), 20)
    z, x = np.random.default_rng(0).normal(size=(120, 2)), np.zeros(120)
    with pytest.raises(ValueError, match=r"too few replicates.*0\.1, expected 0\.05"):
        independence_test(z, replicate % 2, x, replicate=replicate)
    eight = np.repeat(np.arange(8), 15)
    found = independence_test(z, eight % 2, x, replicate=eight)
    assert found.smallest_p == pytest.approx(2 / 70)
    assert independence_test(z, eight % 2, x).smallest_p == 1 / 201


# What is refused

Z = np.random.default_rng(0).normal(size=(60, 2))
X, T = np.arange(60) % 3, np.arange(60) // 3 % 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other": X}, "no stratum has two levels.*confounded"),
        ({"other": np.zeros(60)}, "no stratum has two levels"),
        ({"other": Z[:30]}, "60 cells of z, 30"),
        ({"other": T[:30]}, "label: shape"),
        ({"other": np.where(T == 1, np.nan, T)}, "label: missing in 15 cells"),
        ({"other": Z[:, 0]}, "60 levels in 60 cells"),
        ({"stratum": X[:, None]}, "stratum: shape"),
        ({"stratum": np.arange(60)}, "no stratum"),
        ({"stratum": np.arange(60), "other": Z}, "no stratum has two cells"),
        ({"z": Z[:, 0]}, "z must be cells x dimensions"),
        ({"z": np.where(Z > 1.9, np.inf, Z)}, "z is not finite"),
        ({"z": X[:, None] * np.ones(2)}, "z is constant within every stratum"),
        ({"other": np.ones((60, 2))}, "other is constant"),
        ({"n_permutations": 18}, "n_permutations: 18"),
    ],
)
def test_what_cannot_be_tested_is_refused(changes, message):
    given = {"z": Z, "other": T, "stratum": X, **changes}
    with pytest.raises(ValueError, match=f"(?s)z ⟂ t.*{message}|^n_perm.*18"):
        independence_test(statement="z ⟂ t | x", **given)


def test_crossed_replicates_without_two_labels_in_a_stratum_are_refused():
    z, replicate = Z, np.arange(60)
    with pytest.raises(ValueError, match="no replicate of a stratum has two cells"):
        independence_test(z, z**2, X, replicate=replicate)


# The table


def test_the_default_claims_are_those_of_the_shipped_model(batch):
    graph = read_graph(make_programs(batch)[0], make_batch())
    assert {str(claim) for claim in CLAIMS} == {str(claim) for claim in claims(graph)}
    assert set(CLAIMS) == set(claims(graph))


def test_the_table_tells_the_broken_claim_from_the_others():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 1_500)
    clean = {"z_x": skewed(rng, x), "z_t": skewed(rng, t), "z_tx": skewed(rng, 3 * x + t)}
    for broken, statement in (("label", "z_x ⟂ t | x"), ("block", "z_x ⟂ z_tx | x")):
        latents, own = dict(clean), within(clean["z_x"], x)
        if broken == "label":
            latents["z_x"] = clean["z_x"] + 0.5 * t[:, None]
        else:
            latents["z_tx"] = clean["z_tx"] + 0.5 * own
        p_value = independence_table(latents, {"x": x, "t": t}).set_index("statement")["p_value"]
        assert p_value[statement] < 0.01
        assert p_value["z_t ⟂ x | t"] > 0.01
        assert p_value["z_tx ⟂ z_t | t"] > 0.01


def test_claims_of_a_graph_of_ones_own():
    rng = np.random.default_rng(0)
    line, drug, donor = rng.integers(3, size=(3, 800)).astype(str)
    labels = {"line": line, "drug": drug, "donor": donor}
    own = (
        Claim("structure", "z_line", "drug", ("line", "donor")),
        Claim("structure", "z_line", "drug", ()),
    )
    z = skewed(rng, 3 * line.astype(int) + donor.astype(int))
    table = independence_table({"z_line": z}, labels, claims=own, **FAST)
    assert table["statement"].tolist() == ["z_line ⟂ drug | line, donor", "z_line ⟂ drug"]
    assert table["n_strata"].tolist() == [9, 1]


def test_what_a_claim_needs_is_asked_for_first():
    with pytest.raises(ValueError, match=r"z_x ⟂ t \| x: labels has \['x'\], but not 't'"):
        independence_table({"z_x": Z, "z_t": Z, "z_tx": Z}, {"x": X})
    with pytest.raises(ValueError, match=r"latents has \['z_t', 'z_x'\], but not 'z_tx'"):
        independence_table({"z_x": Z, "z_t": Z}, {"x": X, "t": T})


# HSIC and the kernel test, by causal-learn, which is among the packages for development


def test_hsic_is_the_aligned_trace_of_centred_kernels():
    rng = np.random.default_rng(0)
    label = np.arange(51) % 3  # of three levels as frequent, indicators make a delta kernel
    z = rng.normal(size=(51, 2)) + label[:, None]
    scaled = z / z.std(axis=0)
    distance = ((scaled[:, None] - scaled) ** 2).sum(axis=-1)
    kernel = np.exp(-distance / (2 * np.mean(distance[np.triu_indices(51, 1)])))
    centre = np.eye(51) - 1 / 51
    a, b = (centre @ k @ centre for k in (kernel, np.equal.outer(label, label).astype(float)))
    expected = np.trace(a @ b) / np.sqrt(np.trace(a @ a) * np.trace(b @ b))
    assert hsic(z, label).hsic == pytest.approx(expected, rel=1e-4)
    assert hsic(z, z).hsic == pytest.approx(1.0, rel=1e-4)


def test_hsic_holds_its_level_and_sees_curves():
    rng = np.random.default_rng(0)
    sides = [(rng.gamma(1.0, size=(60, 2)), rng.integers(3, size=60)) for _ in range(100)]
    draws = [hsic(z, label) for z, label in sides]
    shuffled = [hsic(z, rng.permutation(label)).hsic for z, label in sides]
    assert np.mean(shuffled) == pytest.approx(np.mean([test.null_mean for test in draws]), rel=0.1)
    assert 0.0 < np.mean([test.p_value <= 0.05 for test in draws]) < 0.12
    assert np.mean([test.hsic - test.null_mean for test in draws]) == pytest.approx(0, abs=0.005)
    z = rng.normal(size=(300, 1))
    assert hsic(z, z**2).p_value < 1e-6


def test_the_hsic_table_sets_labels_beside_random_numbers():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 600)
    latents = {"z_x": skewed(rng, x), "z_t": skewed(rng, t)}
    table = hsic_table(latents, {"x": x, "t": t}, max_cells=300)
    table = table.set_index(["block", "other"])
    assert (table["n_cells"] == 300).all()
    for block, own in (("z_x", "x"), ("z_t", "t")):
        assert table.loc[(block, own), "hsic"] > 10 * table.loc[(block, "random"), "hsic"]
        assert table.loc[(block, own), "p_value"] < 1e-6
        assert table.loc[(block, "random"), "p_value"] > 0.05
        assert table.loc[(block, "random"), "hsic"] < 2 * table.loc[(block, "random"), "null_mean"]
    assert (table["null_95"] > table["null_mean"]).all()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros(60), "other is the same"),
        (Z[:9], "'z': 60, 'other': 9"),
        (T[:9], "one row per cell"),
    ],
)
def test_hsic_refuses_what_it_cannot_measure(other, message):
    with pytest.raises(ValueError, match=message):
        hsic(Z, other)


def test_the_kernel_tests_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "causallearn.utils.KCI.KCI", None)
    for test in (lambda: kci(Z, T, X), lambda: hsic(Z, T), lambda: hsic_table({"z": Z}, {"t": T})):
        with pytest.raises(ImportError, match=r"pip install 'pyro-fcr\[independence\]'"):
            test()


def test_the_kernel_test_agrees_with_ours():
    rng = np.random.default_rng(0)
    x, t = labels_of(rng, 600)
    z = rng.normal(size=(600, 2)) + x[:, None]
    other = rng.normal(size=(600, 2)) + x[:, None]
    assert kci(z, t, x, max_cells=300) > 0.05
    assert kci(z, other, x, max_cells=300) > 0.05
    assert kci(z + t[:, None], t, x, max_cells=300) < 0.01
    assert kci(z, other + z, x, max_cells=300) < 0.01
    with pytest.raises(ValueError, match="given is the same in all 300 cells"):
        kci(z, t, np.zeros(600), max_cells=300)
