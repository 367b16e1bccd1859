"""Measures of identifiability are 1, 0 or a known number where mathematics says so."""

import numpy as np
import pandas as pd
import pytest

from pyro_fcr.metrics.arrays import joint_codes, remove_condition_means
from pyro_fcr.metrics.dimensions import prior_rank
from pyro_fcr.metrics.identifiability import (
    _label_only,
    agreement_between_seeds,
    identifiability_table,
    label_only_estimate,
)
from pyro_fcr.metrics.recovery import block_r2, leakage, mcc, rotation_floor, weak_mcc
from pyro_fcr.metrics.regression import dci
from pyro_fcr.metrics.supervised import supervised_latents

DIMS = {"z_x": 2, "z_tx": 4, "z_t": 2}
N, N_X, N_T = 5_000, 4, 3


def labels(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(N_X, size=N), rng.integers(N_T, size=N)


X, T = labels()
CONDITION = pd.factorize(joint_codes(X, T))[0]


def simulate(*, spread=0.0, seed=0):
    """Blocks with means by x, by x and t, by t; standard normal within, or of differing scale."""
    rng = np.random.default_rng(seed)
    blocks = {}
    for (name, n_dims), label in zip(DIMS.items(), (X, CONDITION, T), strict=True):
        mean = 2.0 * rng.normal(size=(label.max() + 1, n_dims))
        scale = np.exp(rng.uniform(-spread, spread, size=mean.shape))
        blocks[name] = mean[label] + scale[label] * rng.normal(size=(N, n_dims))
    return blocks


def rotation(n_dims, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n_dims, n_dims)))[0]


def warped(z, seed=0):
    """Move a block through an invertible map that mixes its dimensions."""
    z = (z - z.mean(axis=0)) / z.std(axis=0) @ rotation(z.shape[1], seed)
    z = z + 0.7 * np.tanh(2 * z)
    return (z @ rotation(z.shape[1], seed + 1)) * 3.0 + 10.0


@pytest.fixture(scope="module")
def truth():
    return simulate(spread=0.7)


@pytest.fixture(scope="module")
def plain():
    return simulate()


@pytest.fixture(scope="module")
def label_only(truth):
    return {
        block: label_only_estimate(z, CONDITION, seed=k)
        for k, (block, z) in enumerate(truth.items())
    }


@pytest.mark.parametrize("condition", [None, CONDITION], ids=["raw", "within"])
@pytest.mark.parametrize("method", ["pearson", "spearman"])
class TestCorrelations:
    def test_order_sign_and_scale_do_not_matter(self, truth, method, condition):
        z = truth["z_tx"]
        estimate = z[:, [2, 0, 3, 1]] * [-1.0, 5.0, 0.1, -2.0] + 3.0
        kind = {"method": method, "condition": condition}
        assert mcc(z, z, **kind) == pytest.approx(1.0)
        assert mcc(z, estimate, **kind) == pytest.approx(1.0)

    def test_a_dead_dimension_counts_as_zero_and_a_spare_one_for_nothing(
        self, truth, method, condition
    ):
        z, kind = truth["z_tx"], {"method": method, "condition": condition}
        dead = np.column_stack([z[:, :3], np.full(N, 7.0)])
        assert mcc(z, dead, **kind) == pytest.approx(mcc(z, z[:, :3], **kind))
        assert mcc(z, dead, **kind) == pytest.approx(0.75)
        assert mcc(z, np.column_stack([np.zeros(N), z]), **kind) == pytest.approx(1.0)
        assert mcc(z, np.full((N, 2), 1e6), **kind) == 0.0
        assert weak_mcc(z, np.zeros((N, 2)), **kind) == 0.0
        assert weak_mcc(z, dead, **kind) < 0.9
        assert weak_mcc(dead, z, **kind) == pytest.approx(0.75)

    def test_a_rotation_is_weakly_but_not_strongly_the_same(self, method, condition):
        z = np.random.default_rng(0).normal(size=(N, 8))
        kind = {"method": method, "condition": condition}
        assert weak_mcc(z, z @ rotation(8), **kind) == pytest.approx(1.0)
        assert rotation_floor(z, **kind) == pytest.approx(0.63, abs=0.02)
        assert mcc(z, z @ rotation(8), **kind) == pytest.approx(0.63, abs=0.05)


def test_spearman_forgives_monotone_maps(truth):
    z = truth["z_tx"]
    assert mcc(z, np.exp(z), method="spearman") == pytest.approx(1.0)
    assert mcc(z, np.exp(z)) < 0.9


def test_weak_mcc_does_not_score_many_dimensions_by_chance():
    rng = np.random.default_rng(0)
    assert weak_mcc(rng.normal(size=(400, 4)), rng.normal(size=(400, 60))) < 0.15


def test_within_conditions_labels_say_nothing_about_correlations(truth, label_only):
    z, copied = truth["z_x"], label_only["z_x"]
    assert mcc(z, copied) > 0.4
    assert mcc(z, copied, condition=CONDITION) < 0.05
    assert weak_mcc(z, copied, condition=CONDITION) < 0.05


def test_condition_means_are_removed():
    z = simulate()["z_tx"]
    within = remove_condition_means(z, CONDITION)
    assert pd.DataFrame(within).groupby(CONDITION).mean().abs().max().max() < 1e-12
    means = label_only_estimate(np.repeat(z[:1], N, axis=0) * CONDITION[:, None], CONDITION)
    assert (remove_condition_means(means * 0.1, CONDITION) == 0).all()


@pytest.mark.parametrize("condition", [None, CONDITION], ids=["raw", "within"])
def test_truth_predicts_itself_and_so_do_invertible_maps_of_it(truth, condition):
    itself = np.diag(block_r2(truth, truth, condition=condition))
    mixed = {block: warped(z) for block, z in truth.items()}
    assert itself == pytest.approx(np.ones(3), abs=1e-3)
    assert np.diag(block_r2(truth, mixed, condition=condition)).min() > 0.97
    monotone = {block: np.tanh(0.5 * z) + 0.1 * z**3 for block, z in truth.items()}
    assert np.diag(block_r2(truth, monotone, condition=condition)).min() > 0.97


def test_labels_alone_score_within_conditions_nothing(truth, label_only):
    raw = np.diag(block_r2(truth, label_only))
    within = block_r2(truth, label_only, condition=CONDITION)
    assert raw.min() > 0.2
    assert within.abs().to_numpy().max() < 0.01
    means = {
        b: label_only_estimate(z, CONDITION) * 0 + CONDITION[:, None] for b, z in truth.items()
    }
    assert block_r2(truth, means, condition=CONDITION).abs().to_numpy().max() < 1e-6


def test_label_only_blocks_do_not_share_their_noise(truth):
    floor = _label_only(truth, CONDITION, seed=0)
    assert mcc(floor["z_x"], floor["z_t"], condition=CONDITION) < 0.05


def test_r2_within_conditions_uses_what_differs_between_them(truth):
    codes, z = CONDITION, remove_condition_means(truth["z_tx"], CONDITION)
    sign = np.where(np.arange(codes.max() + 1) % 2, 1.0, -1.0)[codes, None]
    table = block_r2(truth, {"z_tx": sign * z}, condition=codes)
    assert table.loc["z_tx", "z_tx"] > 0.93


def test_r2_weighs_dimensions_by_variance(plain):
    z = np.random.default_rng(0).normal(size=(N, 2)) * [3.0, 1.0]
    assert block_r2({"z": z}, {"z": z[:, :1]}).iloc[0, 0] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("amount", [0.0, 0.25, 1.0])
def test_a_planted_leak_is_found_in_its_size_and_place(plain, amount):
    estimate = dict(plain)
    estimate["z_t"] = plain["z_t"] + amount * remove_condition_means(plain["z_x"], CONDITION)
    table = block_r2(plain, estimate, condition=CONDITION)
    share = amount**2 / (1 + amount**2)
    assert table.loc["z_t", "z_x"] == pytest.approx(share, abs=0.03)
    assert table.loc["z_t", "z_t"] == pytest.approx(1 - share, abs=0.03)
    assert leakage(table)["max"] == pytest.approx(share, abs=0.03)
    assert leakage(table)["mean"] == pytest.approx(share / 6, abs=0.01)


def test_leakage_of_a_table_in_any_order():
    names = ["a", "b", "c"]
    table = pd.DataFrame(np.eye(3), index=names, columns=names)
    table.loc["a", "c"], table.loc["b", "a"] = 0.6, -0.5
    assert leakage(table.loc[["c", "a", "b"]]) == {"max": 0.6, "mean": pytest.approx(0.1)}


def test_scores_do_not_depend_on_global_state_and_inputs_stay(truth):
    before = {block: z.copy() for block, z in truth.items()}
    np.random.seed(1)  # noqa: NPY002
    first = block_r2(truth, truth, condition=CONDITION, seed=3)
    np.random.seed(2)  # noqa: NPY002
    pd.testing.assert_frame_equal(first, block_r2(truth, truth, condition=CONDITION, seed=3))
    assert all((truth[block] == z).all() for block, z in before.items())


def test_dci_of_permuted_and_of_mixed_latents():
    rng = np.random.default_rng(0)
    z = {block: rng.normal(size=(N, n_dims)) for block, n_dims in DIMS.items()}
    permuted = {block: -values[:, ::-1] for block, values in z.items()}
    assert dci(z, permuted).to_numpy() == pytest.approx(np.ones((2, 3)), abs=0.01)
    within_blocks = dci(z, {b: v @ rotation(v.shape[1]) for b, v in z.items()})
    assert within_blocks.loc["blocks"].min() > 0.99
    assert within_blocks.loc["dimensions", "disentanglement"] < 0.8
    everything = np.concatenate(list(z.values()), axis=1) @ rotation(8)
    mixed = dci(z, dict(zip(z, np.split(everything, [2, 6], axis=1), strict=True)))
    assert mixed.loc["blocks", ["disentanglement", "completeness"]].max() < 0.6
    assert mixed["informativeness"].min() > 0.99


def test_table_stands_between_floor_and_ceiling(truth):
    estimate = {
        block: warped(z) + np.random.default_rng(5).normal(size=z.shape)
        for block, z in truth.items()
    }
    estimate["z_t"] = estimate["z_t"] + 2.0 * remove_condition_means(truth["z_x"], CONDITION)
    names = np.array(["a", "b", "c", "d"])[X]
    table = identifiability_table(truth, estimate, x=names, t=T).set_index(["metric", "block"])
    assert list(table) == ["value", "floor", "ceiling"]
    assert table.notna().all().all()
    leaks = table.index.get_level_values("metric").str.startswith("leak")
    assert table.loc[~leaks, "ceiling"].min() > 0.98
    assert table.loc[leaks, ["floor", "ceiling"]].abs().max().max() < 0.01
    diagonal = table.loc["r2_within"]
    assert (diagonal["value"] > 0.3).all()
    assert diagonal["floor"].abs().max() < 0.01
    assert table.loc["r2", "floor"].min() > 0.2
    assert table.loc[("mcc_pearson", "z_tx"), "floor"] == pytest.approx(0.78, abs=0.05)
    assert table.loc["leak_within", "value"].idxmax() == "z_t -> z_x"
    expected = block_r2(truth, estimate, condition=CONDITION)
    assert table.loc[("leak_within", "z_t -> z_x"), "value"] == expected.loc["z_t", "z_x"]
    assert table.loc[("dci_blocks_disentanglement", "all"), "floor"] == 0.0


def test_fits_agree_as_far_as_they_are_the_same(plain):
    rotated = {block: z @ rotation(z.shape[1]) for block, z in plain.items()}
    swapped = {**plain, "z_x": plain["z_t"], "z_t": plain["z_x"]}
    same = agreement_between_seeds([plain, rotated], condition=CONDITION)
    same = same.set_index(["metric", "block"])
    assert same.loc[["weak_mcc", "r2"], "min"].min() > 0.99
    assert same.loc[("mcc", "z_tx"), "max"] < 0.9
    three = agreement_between_seeds([plain, rotated, swapped], condition=CONDITION)
    three = three.set_index(["metric", "block"])
    assert three.loc[("r2", "z_x"), "min"] < 0.01
    assert three.loc[("r2", "z_x"), "mean"] == pytest.approx(1 / 3, abs=0.01)
    assert three.loc[("leak", "z_t -> z_x"), "max"] > 0.99


def test_agreement_says_which_block_holds_the_other(plain):
    both = {**plain, "z_t": np.concatenate([plain["z_t"], plain["z_x"]], axis=1)}
    table = agreement_between_seeds([plain, both], condition=CONDITION)
    leaks = table.set_index(["metric", "block"]).loc["leak", "max"]
    assert leaks["z_t -> z_x"] > 0.99
    assert leaks["z_x -> z_t"] == pytest.approx(0.5, abs=0.03)


class TestPriorRank:
    def draw(self, n_conditions, *, n_latent=3, spread=1.0):
        rng = np.random.default_rng(0)
        mean = rng.normal(size=(n_conditions, n_latent))
        return mean, np.exp(rng.uniform(-spread, spread, size=mean.shape))

    def test_many_differing_conditions_suffice(self):
        found = prior_rank(*self.draw(30))
        assert found.sufficient
        assert (found.rank, found.rank_needed, found.n_needed, found.n_distinct) == (6, 6, 7, 30)
        assert found.condition_number < 50
        assert "enough to identify 3" in found.sentence
        assert "not enough" not in found.sentence

    @pytest.mark.parametrize("n_conditions", range(2, 7))
    def test_with_fewer_than_needed_the_rank_is_one_less_than_their_number(self, n_conditions):
        mean, scale = self.draw(n_conditions)
        found = prior_rank(mean, scale, tolerance=1e-9)
        assert found.rank == n_conditions - 1
        assert not found.sufficient
        assert len(found.singular_values) == 6
        assert f"{n_conditions} distinct conditions (7 needed)" in found.sentence
        assert found.condition_number == np.inf

    def test_exactly_enough_conditions_have_full_rank(self):
        assert prior_rank(*self.draw(7), tolerance=1e-6).rank == 6

    def test_means_alone_do_not_suffice_nor_does_a_hint_of_variance(self):
        mean, _ = self.draw(30)
        assert prior_rank(mean, np.full_like(mean, 0.7)).rank == 3
        hint = 0.7 * np.exp(np.random.default_rng(1).uniform(-0.01, 0.01, size=mean.shape))
        assert prior_rank(mean, hint).rank == 3

    def test_repeated_conditions_count_once(self):
        mean, scale = (np.repeat(values, 5, axis=0) for values in self.draw(4))
        found = prior_rank(mean, scale)
        assert (found.n_conditions, found.n_distinct) == (20, 4)
        assert found.rank <= 3

    def test_latents_that_move_together_do_not_suffice(self):
        mean, scale = (np.repeat(values[:, :1], 3, axis=1) for values in self.draw(30))
        assert prior_rank(mean, scale).rank == 2

    def test_shift_scale_and_order_of_conditions_do_not_matter(self):
        mean, scale = self.draw(12)
        factor = np.array([1e-3, 1.0, 1e3])
        moved = prior_rank(mean[::-1] * factor + 7.0 * factor, scale[::-1] * factor)
        assert moved.singular_values == pytest.approx(prior_rank(mean, scale).singular_values)

    @pytest.mark.parametrize(
        ("mean", "scale", "message"),
        [
            (np.zeros((3, 2)), np.ones((3, 1)), r"mean is \(3, 2\) and scale \(3, 1\)"),
            (np.zeros((3, 1)), np.zeros((3, 1)), r"positive everywhere; the smallest is 0"),
            (np.zeros((1, 1)), np.ones((1, 1)), r"got one condition"),
            (np.full((3, 1), np.nan), np.ones((3, 1)), r"mean is not finite"),
        ],
    )
    def test_refuses(self, mean, scale, message):
        with pytest.raises(ValueError, match=message):
            prior_rank(mean, scale)


BAD = np.where(np.arange(N)[:, None] == 3, np.nan, np.zeros((N, 2)))
GOOD = np.zeros((N, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: mcc(z["z_x"], z["z_x"][:-1]), r"one row per cell, got .*5000.*4999"),
        (lambda z: mcc(z["z_x"], BAD), r"estimate is not finite in 1 cells; the first is row 3"),
        (lambda z: mcc(z["z_x"], z["z_x"][:, 0]), r"cells x dimensions and not empty, got \(5000,"),
        (lambda z: mcc(z["z_x"], GOOD, method="kendall"), r"Unknown method 'kendall'"),
        (lambda z: mcc(z["z_x"], GOOD, condition=np.zeros(N)), r"one level for all cells"),
        (
            lambda z: weak_mcc(z["z_x"], GOOD, condition=X[:9]),
            r"expected \(5000,\), one label per cell",
        ),
        (lambda z: weak_mcc(z["z_x"][:2], GOOD[:2]), r"got 2 cells"),
        (lambda z: block_r2({}, z), r"truth has no blocks"),
        (lambda z: block_r2(z, {"z_x": BAD}), r"estimate z_x is not finite"),
        (lambda z: block_r2(z, {"z_x": GOOD[:-1]}), r"one row per cell"),
        (lambda z: block_r2(z, z, condition=np.zeros(N)), r"one level for all cells"),
        (lambda z: block_r2(z, z, condition=np.arange(N)), r"0 cells lie in conditions of at leas"),
        (lambda z: leakage(pd.DataFrame([[1.0]], index=["a"], columns=["a"])), r"two or more"),
        (lambda z: leakage(pd.DataFrame(np.eye(2))[[0]]), r"two or more blocks both ways"),
        (lambda z: dci({"z": GOOD}, {"z": GOOD}), r"two or more blocks on a side"),
        (lambda z: identifiability_table(z, {"z_x": GOOD}, x=X, t=T), r"expected the same names"),
        (lambda z: identifiability_table(z, z, x=X * 0, t=T * 0), r"one level for all cells"),
        (lambda z: identifiability_table(z, z, x=X[:-1], t=T), r"one label per cell"),
        (lambda z: identifiability_table(z, z, x=np.where(X, X, np.nan), t=T), r"missing in"),
        (lambda z: agreement_between_seeds([z]), r"got 1 fits; expected two or more"),
        (lambda z: agreement_between_seeds([z, {"z_x": GOOD}]), r"the same blocks"),
    ],
)
def test_refuses(plain, call, message):
    with pytest.raises(ValueError, match=message):
        call(plain)


def test_one_map_for_all_conditions_finds_out_what_turns_from_one_to_the_next():
    rng = np.random.default_rng(0)
    x, t = rng.integers(4, size=(2, 6_000))
    true = {block: rng.normal(size=(6_000, 2)) for block in ("z_x", "z_t")}
    sign = rng.choice([-1.0, 1.0], size=(4, 4))[x, t]
    turned = {block: z * sign[:, None] for block, z in true.items()}
    table = identifiability_table(true, turned, x=x, t=t).set_index(["metric", "block"])
    assert table.loc[("r2_within", "z_x"), "value"] > 0.95
    assert table.loc[("r2_one_map", "z_x"), "value"] < 0.2
    assert table.loc[("r2_one_map", "z_x"), "ceiling"] > 0.99
    assert table.loc[("leak_one_map_max", "all"), "value"] < 0.05


def test_supervised_latents_are_a_ceiling_between_labels_and_truth():
    rng = np.random.default_rng(0)
    x, t = rng.integers(3, size=(2, 3_000))
    true = {"z_x": rng.normal(size=(3_000, 2)) + x[:, None], "z_t": rng.normal(size=(3_000, 1))}
    joined = np.hstack(list(true.values()))
    expression = np.tanh(joined @ rng.normal(size=(3, 40))) + rng.normal(size=(3_000, 40))
    found = supervised_latents(true, expression, 3 * x + t, seed=1)
    assert {block: z.shape for block, z in found.items()} == {"z_x": (3_000, 2), "z_t": (3_000, 1)}
    scores = block_r2(true, found, condition=3 * x + t, own_maps=False)
    assert 0.5 < scores.loc["z_x", "z_x"] < 0.98
    assert scores.loc["z_x", "z_t"] < 0.1
    again = supervised_latents(true, expression, 3 * x + t, seed=1)
    np.testing.assert_array_equal(again["z_x"], found["z_x"])
    noise = supervised_latents(true, rng.normal(size=(3_000, 40)), 3 * x + t)
    assert block_r2(true, noise, condition=3 * x + t).loc["z_t", "z_t"] < 0.05
