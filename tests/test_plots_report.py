"""Figures hold what they were given; the report is one file, complete and escaped."""

import base64
import html
import re

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pyro_fcr import plots
from pyro_fcr.metrics.baselines import BASELINES
from pyro_fcr.metrics.scores import SCORES, change_scores
from pyro_fcr.report import Page, figures
from pyro_fcr.report.page import _best, facts, fixed

GRAPH = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
GENES = [f"GENE{i}" for i in range(40)]


def make_history():
    epochs = np.arange(30)
    return pd.DataFrame(
        {
            "epoch": epochs + 1,
            "train/loss": 500 + 400 * np.exp(-epochs),
            "train/kl_z_x": 2 + 0.01 * epochs,
            "heldout/loss": np.where(epochs % 2, 505 + 400 * np.exp(-epochs), np.nan),
            "heldout/kl_z_x": 2.1 + 0.01 * epochs,
            "heldout/elbo": -505 - 400 * np.exp(-epochs),
            "lr": 1e-3,
            "weight/kl_z_x": 1.0,
        }
    )


def make_cells():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"x": np.repeat(["l1", "<b>l2</b>"], 30), "t": np.tile(["none", "drug"], 30)},
        index=[str(i) for i in range(60)],
    )
    blocks = ("z_tx", "z_t", "z_x")
    return ad.AnnData(
        obs=obs.astype("category"),
        obsm={f"X_fcr_{block}_umap": rng.normal(size=(60, 2)) for block in blocks},
    )


def scores_of(predicted, real):
    even = np.full(len(real), 1 / len(real))
    found = change_scores(predicted, real, reference=np.zeros(len(real)), weights=even)
    return {name: float(value) for name, value in found.items()}


def make_deltas():
    rng = np.random.default_rng(1)
    real = rng.normal(size=40)
    return real, {
        "fcr": real + 0.1 * rng.normal(size=40),
        "control_mean": np.zeros(40),
        "treatment_mean_shift": np.full(40, np.nan),
        "additive": real + rng.normal(size=40),
    }


@pytest.fixture
def history():
    return make_history()


@pytest.fixture
def cells():
    return make_cells()


@pytest.fixture
def deltas():
    return make_deltas()


def test_loss_has_a_panel_per_term_and_a_line_per_split(history):
    axes = plots.loss_by_term(history)
    assert [ax.get_title(loc="left") for ax in axes] == [
        "loss",
        "elbo (higher is better)",
        "kl_z_x",
    ]
    assert [len(ax.lines) for ax in axes] == [2, 1, 2]
    evaluated = axes[0].lines[1]
    np.testing.assert_array_equal(evaluated.get_xdata(), np.arange(2, 31, 2))
    np.testing.assert_array_equal(evaluated.get_ydata(), history["heldout/loss"].dropna())


def test_loss_is_cut_only_where_the_start_flattens_the_rest(history):
    loss, _, kl = plots.loss_by_term(history)
    assert loss.get_ylim()[1] < 520
    low, high = kl.get_ylim()
    assert low <= 2.0
    assert high >= 2.39


def test_loss_refuses_a_table_without_terms():
    with pytest.raises(ValueError, match=r"train/<term>.*'lr'"):
        plots.loss_by_term(pd.DataFrame({"lr": [0.1]}))


def test_umap_colours_each_cell_by_its_level(cells):
    cells.uns["t_colors"] = ["#111111", "#eeeeee"]
    ax = plots.latent_umap(cells, "z_t", color="t")
    (cloud,) = ax.collections
    shown = dict(
        zip(
            map(tuple, np.round(cloud.get_offsets(), 6)),
            map(to_hex, cloud.get_facecolors()),
            strict=True,
        )
    )
    points = np.round(cells.obsm["X_fcr_z_t_umap"], 6)
    assert [shown[tuple(p)] for p in points] == [
        {"drug": "#111111", "none": "#eeeeee"}[t] for t in cells.obs["t"]
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["drug", "none"]


def test_umap_errors_name_what_is_missing(cells):
    with pytest.raises(ValueError, match=r"'X_fcr_z_q_umap'.*X_fcr_z_x_umap"):
        plots.latent_umap(cells, "z_q", color="t")
    with pytest.raises(ValueError, match="no column 'dose'"):
        plots.latent_umap(cells, "z_t", color="dose")


def test_category_colours_are_scanpys_and_leave_out_empty_levels(cells):
    assert plots.category_colors(cells, "t") == {"drug": "#1f77b4", "none": "#ff7f0e"}
    cells.obs["t"] = pd.Categorical(["none"] * 60, categories=["drug", "none"])
    assert plots.category_colors(cells, "t") == {"none": "#ff7f0e"}
    cells.obs["x"] = [f"level {i}" for i in range(60)]
    assert len(set(plots.category_colors(cells, "x").values())) == 60


def test_scatter_shows_every_gene_and_names_the_strongest(deltas):
    real, responses = deltas
    ax = plots.response_scatter(responses["fcr"], real, gene_names=GENES, title="fcr", n_label=5)
    shown = np.vstack([cloud.get_offsets() for cloud in ax.collections])
    assert {tuple(p) for p in shown} == set(zip(real, responses["fcr"], strict=True))
    strongest = np.argsort(-np.abs(real))[:5]
    assert {text.get_text() for text in ax.texts} == {GENES[i] for i in strongest}
    pearson = scores_of(responses["fcr"], real)["pearson_delta_de100"]
    assert ax.get_title() == f"fcr\nr = {pearson:.2f}"
    assert ax.get_xlabel() == "real change of mean log1p expression"
    assert ax.get_ylabel() == "predicted change of mean log1p expression"


def test_names_of_a_scatter_do_not_cover_one_another(deltas):
    real, responses = deltas
    ax = plots.response_scatter(responses["additive"], real, gene_names=GENES, n_label=12)
    ax.figure.draw_without_rendering()
    # Text alone: an annotation's own window extent would take in its line.
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 12
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_scatter_refuses_a_wrong_number_of_names(deltas):
    real, responses = deltas
    with pytest.raises(ValueError, match="39 gene names for 40 genes"):
        plots.response_scatter(responses["fcr"], real, gene_names=GENES[1:])


def test_panel_shares_limits_and_says_what_is_undefined(deltas):
    real, responses = deltas
    axes = plots.response_panel(responses, real, gene_names=GENES)
    assert len({ax.get_xlim() + ax.get_ylim() for ax in axes}) == 1
    titles = [ax.get_title() for ax in axes]
    assert [title.split("\n")[0] for title in titles] == list(responses)
    assert ["undefined" in title for title in titles] == [False, True, True, False]
    assert [text.get_text() for text in axes[2].texts] == ["not defined"]


def test_plots_draw_on_given_axes_and_leave_pyplot_alone(cells, deltas):
    real, responses = deltas
    one, two = Figure().subplots(1, 2)
    assert plots.latent_umap(cells, "z_x", color="x", ax=one, legend=False) is one
    assert one.get_legend() is None
    assert plots.response_scatter(responses["fcr"], real, gene_names=GENES, ax=two) is two
    assert matplotlib.pyplot.get_fignums() == []


@pytest.fixture
def contents():
    return make_contents()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "r.html"
    return Page(graph_svg=GRAPH, **make_contents()).write(path).read_text("utf-8")


def make_responses(responses, real):
    """Scores of every prediction of one pair, and of the ceiling."""
    scores = {name: scores_of(delta, real) for name, delta in responses.items()}
    scores["noise_ceiling"] = {"pearson_delta_de100": 0.9999, "mse_delta": 0.0001}
    role = {"fcr": "model", "noise_ceiling": "ceiling"}
    return pd.DataFrame(
        [
            {"scenario": "unseen pair", "treatment": "drug", "context": "<b>l2</b>",
             "method": method, "role": role.get(method, "baseline"), "scale": "mean_log1p",
             "metric": metric, "value": values.get(metric, np.nan)}
            for method, values in scores.items()
            for metric in SCORES
        ]
    )  # fmt: skip


def make_contents():
    real, responses = make_deltas()
    scores = make_responses(responses, real)
    place = ["scenario", "treatment", "context", "method"]
    changes = pd.DataFrame({"real": real, **responses}, index=GENES).T
    keys = [("unseen pair", "drug", "<b>l2</b>", name) for name in changes.index]
    changes.index = pd.MultiIndex.from_tuples(keys, names=place)
    order = ["fcr", *(name for name in BASELINES if name in responses), "noise_ceiling"]
    methods = scores[["method", "role"]].drop_duplicates().set_index("method").loc[order]
    words = [BASELINES[name].words if name in BASELINES else f"<b>{name}</b>" for name in order]
    nmi = {"z_x": {"x": 0.91, "t": 0.02, "xt": 0.63}, "z_t": {"x": 0.03, "t": 0.84, "xt": None}}
    clusters = [(b, la, value) for b, row in nmi.items() for la, value in row.items()]
    heads = {"scenario": "unseen pair", "method": "fcr", "scale": "mean_log1p",
             "metric": "mse_delta", "against": "best on average", "baseline": "additive",
             "gain": 0.1, "low": 0.0, "high": 0.2}  # fmt: skip
    coverage = [
        {"kind": "observation", "nominal": 0.9, "observed": 0.917, "n": 4000},
        {"kind": "observation", "nominal": 0.5, "observed": 0.5204, "n": 4000},
        {"kind": "<b>kind</b>", "nominal": 0.9, "observed": None, "n": 12000},
    ]
    return {
        "title": "A run & its <b>figures</b>",
        "tables": {
            "responses": scores,
            "methods": methods.assign(words=words).reset_index(),
            "headline": pd.DataFrame([heads]),
            "clustering": pd.DataFrame(clusters, columns=["block", "label", "value"]).assign(
                metric="nmi", cells="held out", encoding="labelled", n_cells=60
            ),
            "coverage": pd.DataFrame(coverage),
        },
        "facts": {"n_cells": 12345, "n_genes": 40, "n_conditions": 4, "epochs": 30,
                  "seconds": 143.2, "heldout_elbo_per_cell": -505.25},
        "changes": changes,
        "history": make_history(),
        "cells": make_cells(),
        "color_by": ("x", "t"),
        "summary": ["One <script>alert(1)</script> sentence."],
        "notes": ["A note."],
    }  # fmt: skip


def texts(page, pattern):
    """Texts of all matches, tags dropped."""
    found = re.findall(pattern, page, flags=re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", " ", text)).split() for text in found]


def test_report_loads_nothing(page):
    sources = re.findall(r"""(?:src|href|srcset|data)\s*=\s*["']?([^"'\s>]+)""", page)
    # graph, loss, three blocks by two colourings, gains, scatter, coverage
    assert len(sources) == 11
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?://", page)
    graph = next(s for s in sources if s.startswith("data:image/svg+xml"))
    assert base64.b64decode(graph.partition(",")[2]).decode() == GRAPH


def test_report_escapes_text(page):
    assert "<b>" not in page
    assert "&lt;b&gt;l2&lt;/b&gt;" in page
    assert "<title>A run &amp; its &lt;b&gt;figures&lt;/b&gt;</title>" in page


def test_report_holds_facts_tables_and_notes(page):
    found = texts(page, r"<dd>(.*?)</dd>")
    assert [" ".join(f) for f in found] == ["12,345", "40", "4", "30", "2 min 23 s", "−505.2"]
    assert [text for _, text in rows(page, "clusters")] == [
        ["0.91", "0.02", "0.63"],
        ["0.03", "0.84", "–"],
    ]
    table = rows(page, "response")
    order = ["fcr", "control_mean", "treatment_mean_shift", "additive", "noise_ceiling"]
    assert [name for name, _ in table] == order
    real, responses = make_deltas()
    scores = scores_of(responses["fcr"], real)
    shown = [f"{scores[name]:.3f}".replace("-", "−") if name in scores else "–" for name in SCORES]
    assert table[0][1] == shown
    assert table[2][1] == ["–"] * len(SCORES)
    assert table[1][1][:3] == ["–"] * 3
    for method in ("control_mean", "additive"):
        assert f"<small>{html.escape(BASELINES[method].words)}</small>" in page
    for score in SCORES.values():
        assert f"{score.title}</abbr><small>{score.scope}</small>" in page
        assert html.escape(score.words) in html.escape(html.unescape(page))
    assert "<li>A note.</li>" in page
    assert "en dash" in page


def rows(page, table):
    """First word and numbers of each row of a table's body."""
    body = re.search(rf'<table [^>]*class="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    lines = body.split("</tr>")[:-1]
    return [
        (
            texts(line, r"<th[^>]*>(.*?)</th>")[0][0],
            [c[0] for c in texts(line, r"<td.*?>(.*?)</td>")],
        )
        for line in lines
    ]


def test_report_says_how_often_intervals_hold(page):
    section = re.search(r'<section id="coverage">.*?</section>', page, re.DOTALL)[0]
    heads = texts(section, r"<th[^>]*>(.*?)</th>")[:4]
    assert [" ".join(head) for head in heads] == [
        "intervals of",
        "50 % interval",
        "90 % interval",
        "values genes x cells",
    ]
    cells = [" ".join(cell) for cell in texts(section, r"<td[^>]*>(.*?)</td>")]
    assert cells == ["52.0 %", "91.7 %", "4,000", "–", "–", "12,000"]
    assert "held-out cells of conditions that training had" in section
    assert section.count("data:image/svg+xml") == 1


def test_report_marks_the_best_but_never_the_ceiling(page):
    bold = [" ".join(cell) for cell in texts(page, r'<td [^>]*best"[^>]*>(.*?)</td>')]
    real, responses = make_deltas()
    scores = scores_of(responses["fcr"], real)
    assert bold == [f"{scores[name]:.3f}" for name in SCORES if name in scores]


def test_best_is_smallest_for_errors_and_marks_ties():
    none = float("nan")
    values = {
        "pearson_delta_de100": [0.5, -0.9, 0.4, 1.0],
        "mse_delta": [0.20004, 0.2, 0.9, 0.0],
        "cosine_logfc": [none, none, none, 1.0],
    }
    ceiling = np.array([False, False, False, True])
    best = {n: _best(pd.Series(v, name=n), ceiling).tolist() for n, v in values.items()}
    assert {name: [text == "best" for text in column] for name, column in best.items()} == {
        "pearson_delta_de100": [True, False, False, False],
        "mse_delta": [True, True, False, False],
        "cosine_logfc": [False, False, False, False],
    }
    assert fixed(3)(-0.9) == "−0.900"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3 s"), (42, "42 s"), (143.2, "2 min 23 s"), (7325, "2 h 2 min"), (None, "–")],
)
def test_durations_read_well(seconds, text):
    assert dict(facts({"seconds": seconds}))["fitting time"] == text


def test_report_rows_are_blocks_in_the_order_of_the_model(cells):
    grid = figures.umap_grid(cells, ("x", "t"))
    assert [block for block, _ in grid.rows] == ["z_x", "z_t", "z_tx"]
    assert [color for color, _ in grid.legends] == ["x", "t"]
    assert len({image for _, images in grid.rows for image in images}) == 6


def test_report_without_a_held_out_condition(tmp_path, contents):
    contents |= {"tables": {}, "facts": {"n_cells": 60}, "changes": None}
    contents["summary"] = {"Data": "Made up."}
    page = Page(**contents).write(tmp_path / "deep" / "r.html").read_text("utf-8")
    assert "No condition was held out" in page
    assert "<dt>Data</dt><dd>Made up.</dd>" in page
    assert "<table" not in page
    assert 'id="coverage"' not in page


def test_report_repeats_and_replaces_whole_files_only(tmp_path, contents, monkeypatch):
    path = Page(**contents).write(tmp_path / "r.html")
    first = path.read_bytes()
    assert Page(**contents).write(path).read_bytes() == first

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Page(**(contents | {"title": "another"})).write(path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]


def test_report_of_many_cells_stays_small(tmp_path, contents):
    rng = np.random.default_rng(0)
    labels = pd.DataFrame(
        {"x": rng.choice(list("abcde"), 5000), "t": rng.choice(["none", "drug"], 5000)},
        index=[str(i) for i in range(5000)],
    )
    umaps = {f"X_fcr_{b}_umap": rng.normal(size=(5000, 2)) for b in ("z_x", "z_t", "z_tx")}
    contents["cells"] = ad.AnnData(obs=labels, obsm=umaps)
    assert Page(**contents).write(tmp_path / "r.html").stat().st_size < 5e6
    real = rng.normal(size=2000)
    names = [f"G{i}" for i in range(2000)]
    changes = pd.DataFrame([real, real], index=["real", "fcr"], columns=names)
    few = figures.response_image(changes.iloc[:, :1000])
    assert len(figures.response_image(changes)) < len(few)


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("label-blind", "was read\nfrom expression"),
        ("labelled", "be a copy of it"),
        (None, ""),
    ],
)
def test_the_page_and_the_figure_say_how_cells_were_encoded(encoding, words, tmp_path):
    contents = make_contents()
    cells = contents["cells"].copy()
    if encoding is not None:
        cells.uns["fcr"] = {"encoding": encoding}
    page = Page(**(contents | {"cells": cells})).write(tmp_path / "r.html").read_text("utf-8")
    assert words in page
    assert ("Cells are encoded" in page) == (encoding is not None)
    title = plots.latent_umap(cells, "z_t", color="t").get_title(loc="left")
    assert (f"z_t ({encoding})" in title) == (encoding is not None)
