"""Figures of doses, effects, interactions and checks hold what they were given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import sparse

from pyro_fcr import plots

GENES = [f"GENE{i}" for i in range(40)]
CONTEXTS = ["T cell", "B cell", "monocyte"]


def texts(labels):
    return [label.get_text() for label in labels]


def make_curve():
    rows = [
        {"treatment": "drug", "line": line, "donor": 1, "dose": dose, "gene": gene}
        | {"estimate": scale * dose, "extrapolated": dose > 10}
        for line, scale in (("A", 1.0), ("B", -1.0))
        for gene in ("MYC", "FOS")
        for dose in (100.0, 10.0, 1.0, 0.0)
    ]
    curve = pd.DataFrame(rows)
    return curve.assign(lower=curve["estimate"] - 1, upper=curve["estimate"] + 1, support="seen")


def make_effects(treatments=("drug",), genes=("ISG15", "CXCL10")):
    rows = [
        {"treatment": t, "context": x, "gene": g, "effect": e, "extrapolated": x == "monocyte"}
        for t in treatments
        for x in CONTEXTS
        for g in genes
        for e in ("interaction", "total", "z_t", "z_tx")
    ]
    estimate = np.linspace(-1, 2, len(rows))
    return pd.DataFrame(rows).assign(
        estimate=estimate, sd=0.1, spread_lower=estimate - 0.2, spread_upper=estimate + 0.2
    )


def make_pairs(n=30):
    strength = np.linspace(0.1, 3, n)
    return pd.DataFrame(
        {
            "treatment": [f"drug{i}" for i in range(n)],
            "context": "T cell",
            "strength": strength,
            "lower": strength - 0.05,
            "upper": strength + 0.3,
            "z": strength[::-1],
            "pvalue": 0.01,
            "qvalue": np.where(np.arange(n) >= n - 3, 0.05, 0.5),
        }
    )


# Predicted against real with intervals


def test_scatter_draws_intervals_of_named_genes_only():
    real = np.linspace(-1, 2, 40)
    lower, upper = 0.9 * real - 0.3, 0.9 * real + 5
    lower[39] = np.nan
    ax = plots.response_scatter(
        0.9 * real, real, gene_names=GENES, n_label=3, intervals=[lower, upper]
    )
    (bars,) = [c for c in ax.collections if hasattr(c, "get_segments")]
    drawn = [segment for segment in bars.get_segments() if len(segment) == 2]
    np.testing.assert_allclose(
        drawn, [[(real[i], lower[i]), (real[i], upper[i])] for i in (38, 37)]
    )
    assert ax.get_ylim()[1] > upper[38]
    assert set(texts(ax.texts)) == {"GENE37", "GENE38", "GENE39"}


def test_scatter_refuses_intervals_of_another_shape():
    with pytest.raises(ValueError, match=r"\(40, 2\); expected \(2, 40\)"):
        plots.response_scatter(
            np.zeros(40), np.ones(40), gene_names=GENES, intervals=np.zeros((40, 2))
        )


# Doses


def test_dose_lines_are_sorted_and_dashed_where_extrapolated():
    axes = plots.dose_response(make_curve(), genes=["FOS", "MYC"])
    assert [ax.get_title(loc="left") for ax in axes] == ["FOS", "MYC"]
    dashed, solid = axes[0].lines[:2]
    np.testing.assert_array_equal(dashed.get_xdata(), [0, 1, 10, 100])
    np.testing.assert_array_equal(solid.get_ydata(), [0, 1, 10, np.nan])
    assert dashed.get_linestyle() == "--"
    assert solid.get_linestyle() == "-"
    assert axes[0].get_xscale() == "symlog"
    assert texts(axes[0].get_xticklabels()) == ["0", "1", "10", "100"]
    (legend,) = axes[0].figure.legends
    assert texts(legend.get_texts()) == ["A, 1", "B, 1", "not seen in training"]


def test_dose_axis_follows_the_doses():
    curve = make_curve()
    above = curve[curve["dose"] > 0]
    assert plots.dose_response(above, genes=["MYC"])[0].get_xscale() == "log"
    narrow = curve[curve["dose"] < 10]
    assert plots.dose_response(narrow, genes=["MYC"])[0].get_xscale() == "linear"
    # A dense grid from 3 on: only 0 and the powers of ten that are not in the linear part.
    dense = curve.iloc[[0] * 30].assign(dose=[0, *np.geomspace(3, 900, 29)], gene="MYC")
    (ax,) = plots.dose_response(dense, genes=["MYC"])
    np.testing.assert_allclose(ax.get_xticks(), [0, 10, 100])
    # Every dose has a tick, but a name only where there is room for it.
    near = curve.iloc[[0] * 5].assign(dose=[0, 1, 1.5, 30, 100], gene="MYC")
    (ax,) = plots.dose_response(near, genes=["MYC"])
    assert texts(ax.get_xticklabels()) == ["0", "1", "", "30", "100"]


def test_dose_points_have_the_colour_of_their_context():
    real = pd.DataFrame(
        {"dose": [0, 1.0, 1.0, 5.0], "gene": ["MYC", "MYC", "FOS", "MYC"], "value": [0, 2, 9, 7]}
    ).assign(line=["A", "B", "B", "elsewhere"])
    (ax,) = plots.dose_response(make_curve(), genes=["MYC"], real=real.assign(donor=1))
    clouds = [c for c in ax.collections if len(c.get_offsets()) and c.get_edgecolor().size]
    shown = {
        to_hex(c.get_edgecolor()[0]): c.get_offsets().tolist() for c in clouds if c.get_sizes().size
    }
    colors = [line.get_color() for line in ax.lines[::2]]
    assert texts(ax.get_xticklabels()) == ["0", "1", "10", "100"]  # no 5
    assert shown == {colors[0]: [[0, 0]], colors[1]: [[1, 2]]}


def test_dose_draws_on_given_axes():
    axes = Figure().subplots(1, 2)
    drawn = plots.dose_response(make_curve(), genes=["MYC", "FOS"], axes=axes)
    assert list(drawn) == list(axes)
    assert texts(axes[1].get_legend().get_texts())[0] == "A, 1"
    with pytest.raises(ValueError, match="2 axes for 1 genes"):
        plots.dose_response(make_curve(), genes=["MYC"], axes=axes)


def test_dose_refuses_what_it_cannot_place():
    curve = make_curve()
    with pytest.raises(ValueError, match=r"curve has no column 'lower', found .*'estimate'"):
        plots.dose_response(curve.drop(columns="lower"), genes=["MYC"])
    with pytest.raises(ValueError, match=r"Unknown gene 'myc'; curve.*Did you mean 'MYC'"):
        plots.dose_response(curve, genes=["myc"])
    with pytest.raises(ValueError, match="No gene is chosen"):
        plots.dose_response(curve, genes=[])
    both = pd.concat([curve, curve.assign(treatment="other")])
    with pytest.raises(ValueError, match="2 treatments, 'drug', 'other'"):
        plots.dose_response(both, genes=["MYC"])
    with pytest.raises(ValueError, match=r"2 rows for .*they differ in 'line'"):
        plots.dose_response(curve, genes=["MYC"], context="donor")
    real = pd.DataFrame({"dose": [0], "gene": ["MYC"], "value": [0], "line": ["A"]})
    with pytest.raises(ValueError, match="real has no column 'donor'"):
        plots.dose_response(curve, genes=["MYC"], real=real)


# Heat maps


def total_of(effects, gene="ISG15"):
    return effects[(effects["effect"] == "total") & (effects["gene"] == gene)]


def test_heatmap_places_each_effect_and_greys_the_rest():
    effects = total_of(make_effects(["drug b", "drug a"])).copy()
    effects.loc[effects.index[0], "estimate"] = np.inf
    ax = plots.effect_heatmap(effects.drop(index=effects.index[5]))
    values = ax.collections[0].get_array()
    wanted = effects["estimate"].to_numpy().reshape(2, 3)
    np.testing.assert_array_equal(values.mask, [[True, False, False], [False, False, True]])
    np.testing.assert_allclose(values.compressed(), wanted[~values.mask])
    assert texts(ax.get_yticklabels()) == ["drug b", "drug a"]
    assert texts(ax.get_xticklabels()) == CONTEXTS
    assert ax.yaxis_inverted()
    assert ax.get_title(loc="left") == "ISG15, total"
    assert "grey: no value" in ax.get_xlabel()


def test_heatmap_marks_what_was_not_seen_and_what_is_significant():
    effects = total_of(make_effects(["drug a", "drug b"])).assign(
        qvalue=[0.5, 0.05, np.nan, 0.1, 0.2, 0.3]
    )
    ax = plots.effect_heatmap(effects)
    unseen = ax.collections[1].get_offsets()
    np.testing.assert_array_equal(unseen, [(3, 0), (3, 1)])  # upper right corners
    assert [text.get_position() for text in ax.texts] == [(1.5, 0.5), (0.5, 1.5)]
    assert ax.get_xlabel().split("\n") == ["○ not seen in training", "* q ≤ 0.1"]


def test_heatmap_colours_are_centred_for_changes_only():
    effects = total_of(make_effects(["drug a", "drug b"]))
    effects = effects.assign(estimate=effects["estimate"].abs(), strength=[1, 2, 3, 4, 5, 6])
    change = plots.effect_heatmap(effects).collections[0]
    assert change.get_clim() == (-effects["estimate"].max(), effects["estimate"].max())
    assert plots.effect_heatmap(effects, value="strength").collections[0].get_clim() == (0, 6)
    assert plots.effect_heatmap(effects, limit=7).collections[0].get_clim() == (-7, 7)


def test_heatmap_of_genes_follows_the_order_of_categories():
    effects = make_effects().query("effect == 'z_tx'")
    effects = effects.assign(gene=pd.Categorical(effects["gene"], ["CXCL10", "none", "ISG15"]))
    ax = plots.effect_heatmap(effects.assign(dose="0.1"), rows="gene")
    assert texts(ax.get_yticklabels()) == ["CXCL10", "ISG15"]
    first = effects[effects["gene"] == "CXCL10"]["estimate"]
    np.testing.assert_allclose(ax.collections[0].get_array()[0], first)
    assert ax.get_title(loc="left") == "drug, dose 0.1, z_tx"


def test_heatmap_refuses_two_effects_for_one_cell():
    with pytest.raises(ValueError, match=r"8 rows for treatment 'drug', context 'T cell'.*'gene'"):
        plots.effect_heatmap(make_effects())
    with pytest.raises(ValueError, match=r"effects has no column 'strength', found .*'estimate'"):
        plots.effect_heatmap(make_effects(), value="strength")
    with pytest.raises(ValueError, match="effects has no rows"):
        plots.effect_heatmap(make_effects().iloc[:0])


def test_heatmap_without_any_value_is_grey():
    ax = plots.effect_heatmap(total_of(make_effects()).assign(estimate=np.nan))
    assert ax.collections[0].get_array().mask.all()


# Interactions


def test_ranking_puts_the_strongest_on_top_and_fills_what_was_found():
    pairs = make_pairs().sample(frac=1, random_state=0)
    pairs.loc[29, "qvalue"] = np.nan
    ax = plots.interaction_ranking(pairs, by="strength", n_top=4)
    assert texts(ax.get_yticklabels()) == [f"drug{i} in T cell" for i in (29, 28, 27, 26)]
    assert ax.yaxis_inverted()
    bars, dots = ax.collections
    np.testing.assert_allclose(dots.get_offsets()[:, 0], np.linspace(0.1, 3, 30)[:25:-1])
    filled = [to_hex(face) != "#ffffff" for face in dots.get_facecolors()]
    assert filled == [False, True, True, False]
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [2.95, 3.3])
    assert ax.get_title(loc="left").startswith("2 of 30 pairs with q ≤ 0.1")


def test_ranking_without_intervals_finds_or_values():
    pairs = make_pairs().drop(columns=["lower", "upper"]).assign(qvalue=0.9)
    pairs.loc[29, "strength"] = np.nan
    ax = plots.interaction_ranking(pairs, by="strength")
    assert ax.get_title(loc="left").startswith("0 of 29 pairs")
    assert len(ax.get_yticks()) == 20
    np.testing.assert_allclose(ax.collections[0].get_segments()[0][:, 0], [0, 2.9])


def test_ranking_by_z_draws_no_interval_of_the_strength():
    ax = plots.interaction_ranking(make_pairs(), n_top=1)
    assert texts(ax.get_yticklabels()) == ["drug0 in T cell"]
    np.testing.assert_allclose(ax.collections[0].get_segments()[0][:, 0], [0, 3])
    assert ax.get_xlabel() == "z of the interaction"


def test_ranking_names_doses_where_there_are():
    pairs = pd.concat([make_pairs(1).assign(dose=dose) for dose in (0.1, "1+10")])
    ax = plots.interaction_ranking(pairs)
    assert texts(ax.get_yticklabels()) == ["drug0 0.1 in T cell", "drug0 1+10 in T cell"]


def test_ranking_errors_name_what_is_missing():
    with pytest.raises(ValueError, match=r"pairs has no column 'qvalue', found .*'strength'"):
        plots.interaction_ranking(make_pairs().drop(columns="qvalue"))
    with pytest.raises(ValueError, match="no finite strength"):
        plots.interaction_ranking(make_pairs().assign(strength=np.nan), by="strength")
    with pytest.raises(ValueError, match="2 rows for treatment 'drug0', context 'T cell'"):
        plots.interaction_ranking(pd.concat([make_pairs(), make_pairs()]))


# Paths


def test_paths_show_each_block_in_each_context():
    effects = make_effects(["other", "drug"])
    axes = plots.effect_paths(
        effects, genes=["CXCL10", "ISG15"], treatment="drug", contexts=["monocyte", "T cell"]
    )
    assert [ax.get_title(loc="left") for ax in axes] == ["CXCL10", "ISG15"]
    assert texts(axes[0].get_yticklabels()) == ["monocyte", "T cell"]
    shown = effects[(effects["treatment"] == "drug") & (effects["gene"] == "CXCL10")]
    by = shown.set_index(["effect", "context"])
    dots = axes[0].collections[1::2]
    for path, cloud in zip(("total", "z_t", "z_tx"), dots, strict=True):
        estimates = [by.loc[(path, context), "estimate"] for context in ("monocyte", "T cell")]
        np.testing.assert_allclose(cloud.get_offsets()[:, 0], estimates)
        np.testing.assert_array_equal(np.round(cloud.get_offsets()[:, 1]), [0, 1])
        assert [to_hex(c) == "#ffffff" for c in cloud.get_facecolors()] == [True, False]
    bar = axes[0].collections[0].get_segments()[1][:, 0]
    np.testing.assert_allclose(bar, by.loc[("total", "T cell"), ["spread_lower", "spread_upper"]])
    (legend,) = axes[0].figure.legends
    names = ["total", "through z_t", "through z_tx", "not seen in training"]
    assert texts(legend.get_texts()) == names
    assert legend.get_title().get_text() == "drug"


def test_paths_share_their_scale_and_leave_out_absent_blocks():
    effects = make_effects().query("effect != 'z_tx'")
    axes = plots.effect_paths(effects, genes=["CXCL10", "ISG15"], treatment="drug")
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert len(axes[0].collections) == 4
    assert texts(axes[0].figure.legends[0].get_texts())[:2] == ["total", "through z_t"]


def test_paths_refuse_what_is_not_there():
    effects = make_effects()
    with pytest.raises(ValueError, match="Unknown treatment 'drag'; effects.*Did you mean 'drug'"):
        plots.effect_paths(effects, genes=["ISG15"], treatment="drag")
    with pytest.raises(ValueError, match="Unknown gene 'ACTB'; effects of drug"):
        plots.effect_paths(effects, genes=["ACTB"], treatment="drug")
    with pytest.raises(ValueError, match="Unknown context 'NK cell'; effects of drug"):
        plots.effect_paths(effects, genes=["ISG15"], treatment="drug", contexts=["NK cell"])
    with pytest.raises(ValueError, match="no column 'effect'"):
        plots.effect_paths(effects.drop(columns="effect"), genes=["ISG15"], treatment="drug")
    doses = pd.concat([effects.assign(dose=dose) for dose in (0.1, 1.0)])
    with pytest.raises(ValueError, match="2 rows for treatment 'drug'.*differ in 'dose'"):
        plots.effect_paths(doses, genes=["ISG15"], treatment="drug")


# Checks


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 2.0, size=40)
    rate[0] = 0.0
    return rng.poisson(rate, (60, 40)), rng.poisson(rate, (25, 60, 40))


@pytest.mark.parametrize(
    ("statistic", "function"),
    [
        ("mean", lambda values, axis: values.mean(axis)),
        ("variance", lambda values, axis: values.var(axis)),
        ("zeros", lambda values, axis: (values == 0).mean(axis)),
    ],
)
def test_ppc_compares_every_gene_with_its_interval(counts, statistic, function):
    observed, draws = counts
    draws = draws + (np.arange(40) == 7)  # one gene is predicted too high
    ax = plots.ppc(observed, draws, statistic=statistic, level=0.8)
    real, predicted = function(observed, 0), function(draws, 1)
    lower, middle, upper = np.quantile(predicted, [0.1, 0.5, 0.9], axis=0)
    inside = (lower <= real + 1e-12) & (real <= upper + 1e-12)
    assert 0 < inside.sum() < 40
    bars, dots = ax.collections[::2], ax.collections[1::2]
    shown = np.vstack([cloud.get_offsets() for cloud in dots])
    order = np.concatenate([np.flatnonzero(inside), np.flatnonzero(~inside)])
    np.testing.assert_allclose(shown, np.column_stack([real, middle])[order])
    ends = np.concatenate([bar.get_segments() for bar in bars if bar.get_segments()])[..., 1]
    np.testing.assert_allclose(ends, np.column_stack([lower, upper])[order])
    assert ax.get_title(loc="left") == f"{inside.mean():.0%} of genes inside their 80% interval"
    assert ax.get_xscale() == ("linear" if statistic == "zeros" else "symlog")


@pytest.mark.parametrize("statistic", ["mean", "variance", "zeros"])
def test_ppc_takes_equal_counts_for_equal_whatever_their_order_and_type(counts, statistic):
    observed = counts[0][:, :20]
    rng = np.random.default_rng(1)
    draws = np.stack([rng.permutation(observed) for _ in range(3)]).astype(np.float32)
    ax = plots.ppc(sparse.csr_matrix(observed), draws, statistic=statistic)
    assert ax.get_title(loc="left") == "100% of genes inside their 90% interval"


def test_ppc_of_one_gene_counts_cells():
    observed = np.array([0, 0, 0, 1, 3])
    draws = np.array([[0, 0, 1, 1, 3], [0, 0, 0, 0, 2], [0, 0, 1, 2, 2]])
    ax = plots.ppc_counts(observed, draws, gene="ISG15")
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.6, 0.2, 0, 0.2])
    np.testing.assert_allclose(ax.collections[1].get_offsets()[:, 1], [0.4, 0.2, 0.2, 0])
    assert ax.get_xlabel() == "count"


def test_ppc_of_one_gene_gathers_rare_large_counts():
    rng = np.random.default_rng(0)
    observed, draws = rng.poisson(50, 2000), rng.poisson(50, (5, 2000))
    observed[0] = 10_000
    ax = plots.ppc_counts(observed, draws)
    heights = [bar.get_height() for bar in ax.patches]
    assert len(heights) <= 31
    np.testing.assert_allclose(sum(heights), 1)
    last = ax.patches[-1]
    start = round(last.get_x() + last.get_width() / 2)
    assert ax.get_xlabel() == f"count (last bar: {start} or more)"
    np.testing.assert_allclose(heights[-1], (observed >= start).mean())


def test_ppc_refuses_shapes_that_do_not_fit(counts):
    observed, draws = counts
    with pytest.raises(
        ValueError, match=r"\(60, 39\) and draws \(25, 60, 40\); expected \(n_cells"
    ):
        plots.ppc(observed[:, :39], draws)
    with pytest.raises(ValueError, match="1 draw; an interval needs 2"):
        plots.ppc(observed, draws[:1])
    with pytest.raises(ValueError, match="Unknown statistic 'median'; expected mean"):
        plots.ppc(observed, draws, statistic="median")
    with pytest.raises(ValueError, match=r"expected \(n_cells\) and \(n_draws, n_cells\)"):
        plots.ppc_counts(observed, draws)


def test_coverage_has_a_line_per_kind_in_order():
    table = pd.DataFrame(
        {
            "nominal": [0.9, 0.5, 0.9, 0.5],
            "observed": [0.8, 0.4, 0.95, np.nan],
            "kind": ["draws", "draws", "bootstrap", "bootstrap"],
        }
    )
    ax = plots.coverage(table)
    diagonal, draws, bootstrap = ax.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [(0, 0), (1, 1)])
    np.testing.assert_array_equal(draws.get_xydata(), [(0.5, 0.4), (0.9, 0.8)])
    np.testing.assert_array_equal(bootstrap.get_xydata(), [(0.9, 0.95)])
    assert texts(ax.get_legend().get_texts()) == ["draws", "bootstrap"]
    with pytest.raises(ValueError, match="table has no column 'kind', found 'nominal', 'observed'"):
        plots.coverage(table[["nominal", "observed"]])


# All of them


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.effect_heatmap(total_of(make_effects()), ax=ax),
        lambda ax: plots.interaction_ranking(make_pairs(), ax=ax),
        lambda ax: plots.ppc(np.ones((3, 2)), np.ones((2, 3, 2)), ax=ax),
        lambda ax: plots.ppc_counts(np.ones(3), np.ones((2, 3)), ax=ax),
        lambda ax: plots.coverage(
            pd.DataFrame({"nominal": [0.5], "observed": [0.5], "kind": "a"}), ax=ax
        ),
    ],
)
def test_figures_draw_on_given_axes_and_leave_pyplot_and_tables_alone(draw):
    figure = Figure(layout="constrained")
    ax = figure.subplots(1, 2)[0]
    assert draw(ax) is ax
    figure.draw_without_rendering()
    assert matplotlib.pyplot.get_fignums() == []


def test_tables_are_left_alone():
    for make, draw in (
        (make_curve, lambda t: plots.dose_response(t, genes=["MYC"])),
        (make_effects, lambda t: plots.effect_paths(t, genes=["ISG15"], treatment="drug")),
        (make_pairs, plots.interaction_ranking),
    ):
        table = make()
        draw(table)
        pd.testing.assert_frame_equal(table, make())


@pytest.mark.parametrize("name", plots.__all__)
def test_every_figure_has_an_example(name):
    assert ">>> " in getattr(plots, name).__doc__
