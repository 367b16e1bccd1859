"""What the sections of a page show of the tables of an evaluation."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
from markupsafe import Markup

from pyro_fcr.metrics.response_table import PLACE
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.report import figures
from pyro_fcr.report.styled import code, count, duration, fixed, html, p_value, percent, shade

_FACTS: Final[Mapping[str, tuple[str, Any]]] = {
    "n_cells": ("cells", count),
    "n_training": ("training cells", count),
    "n_heldout": ("held-out cells", count),
    "n_left_out": ("cells left out", count),
    "n_genes": ("genes", count),
    "n_conditions": ("conditions", count),
    "epochs": ("epochs", count),
    "seconds": ("fitting time", duration),
    "heldout_elbo_per_cell": ("held-out ELBO per cell, nats", fixed(1)),
}
_SCENARIOS: Final = {
    "unseen pair": "Training had the treatment in other contexts, but not in this one.",
    "unseen treatment": "Training lacked the treatment in every context.",
    "unseen context": "Training had control cells of the context only.",
    "seen pairs": "No whole condition was kept from training. These are pairs that training had, "
    "judged on cells that it lacked: no test of what is unseen. condition_mean, the pair's own "
    "training cells, is what a table of means would answer.",
}
_COVERAGE: Final = {
    "observation": "held-out cells of conditions that training had",
    "observation, unseen condition": "cells of a condition that training lacked",
}
_PAIR: Final = ["treatment", "context"]


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of the figures at the head of the page."""
    shown = ((found[key], *words) for key, words in _FACTS.items() if key in found)
    return [(name, write(value)) for value, name, write in shown]


def sections(tables: Mapping[str, pd.DataFrame], changes: pd.DataFrame | None) -> dict[str, Any]:
    """Return what the template shows of the tables; a table that is missing has no section."""
    shown = {"dimensions": _dimensions, "independence": _tests, "coverage": _coverage}
    rank, truth = tables.get("prior_rank"), tables.get("identifiability")
    return {
        "responses": _responses(tables, changes) if "responses" in tables else [],
        **{name: make(tables[name]) if name in tables else None for name, make in shown.items()},
        **(_clusters(tables["clustering"]) if "clustering" in tables else {"clusters": []}),
        "coverage_figure": figures.coverage_image(tables["coverage"])
        if "coverage" in tables
        else None,
        "ranks": [] if rank is None else [f"{r.block}: {r.sentence}" for r in rank.itertuples()],
        "rank_figure": None
        if rank is None
        else figures.singular_values(tables["singular_values"], rank["tolerance"].max()),
        "truth_figure": None if truth is None else figures.truth(truth),
    }


def _responses(
    tables: Mapping[str, pd.DataFrame], changes: pd.DataFrame | None
) -> list[dict[str, Any]]:
    heads = tables["headline"].query("against == 'best on average'")
    own = tables["responses"].query("scale == 'mean_log1p'")
    parts = []
    for number, (scenario, rows) in enumerate(own.groupby("scenario", sort=False)):
        pair = _middle(rows)
        place = (scenario, *pair)
        known = changes is not None and place in changes.index.droplevel("method")
        parts.append(
            {
                "scenario": scenario,
                "explanation": _SCENARIOS[str(scenario)],
                "n_pairs": len(rows[_PAIR].drop_duplicates()),
                "table": _scores(rows, tables["methods"], name=f"scores{number}"),
                "figure": figures.gains(heads[heads["scenario"] == scenario]),
                "pair": " in ".join(pair),
                "scatter": figures.response_image(changes.xs(place, level=PLACE))
                if changes is not None and known
                else None,
            }
        )
    return parts


def _middle(rows: pd.DataFrame) -> tuple[str, str]:
    """Return treatment and context of the pair in the middle by the model's cosine."""
    own = rows[(rows["role"] == "model") & (rows["metric"] == "cosine_logfc")]
    ordered = own.sort_values("value", kind="stable")
    treatment, context = ordered[_PAIR].iloc[(len(ordered) - 1) // 2]
    return str(treatment), str(context)


def _scores(rows: pd.DataFrame, methods: pd.DataFrame, *, name: str) -> Markup:
    """Return a row per method that all pairs define, the best of each column marked."""
    values = rows.pivot(index=["method", "metric"], columns=_PAIR, values="value")
    means = values.mean(axis=1, skipna=False).unstack("metric")
    methods = methods[methods["method"].isin(means.index)]
    means = means.reindex(index=methods["method"], columns=list(SCORES))
    ceiling = (methods["role"] == "ceiling").to_numpy()
    classes = means.apply(lambda column: _best(column, ceiling))
    classes[ceiling] = "ceiling"
    labels = zip(methods["method"], methods["words"], ceiling, strict=True)
    index = [code(method, words, emphasised=bool(last)) for method, words, last in labels]
    heads = [
        Markup('<abbr title="{}">{}</abbr><small>{}</small>').format(s.words, s.title, s.scope)
        for s in SCORES.values()
    ]
    shown, classes = (each.set_axis(index).set_axis(heads, axis=1) for each in (means, classes))
    shown = shown.rename_axis(columns="prediction")
    return html(shown.style.set_td_classes(classes), "response", name=name, formats=fixed(3))


def _best(column: "pd.Series[float]", ceiling: Any) -> "pd.Series[str]":
    """Return the class of each value; values that read the same are marked alike."""
    known = column[~ceiling].dropna()
    pick = known.max() if SCORES[str(column.name)].higher_is_better else known.min()
    texts, best = column.map(fixed(3)), fixed(3)(pick)
    return texts.map(lambda text: "best" if len(known) and text == best else "")


def _clusters(table: pd.DataFrame) -> dict[str, Any]:
    """Return tables of NMI and ARI: a row per block, columns by encoding, cells and label."""
    table = table.assign(group=table["encoding"] + ", " + table["cells"])
    shown = []
    for metric, own in table.groupby("metric", sort=False):
        columns = pd.MultiIndex.from_frame(own[["group", "label"]].drop_duplicates())
        wide = own.pivot(index="block", columns=["group", "label"], values="value")
        wide = wide.reindex(index=own["block"].unique(), columns=columns)
        wide = wide.set_axis([code(block) for block in wide.index])
        wide.columns.names = [str(metric).upper(), ""]
        style = wide.style.map(shade("0,114,178", 0.6, 0.04))
        shown.append(html(style, "clusters", name=str(metric), formats=fixed(2)))
    n_cells = count(table["n_cells"].iloc[0])
    return {"clusters": shown, "cluster_labels": table["label"].unique(), "n_clustered": n_cells}


def _dimensions(table: pd.DataFrame) -> Markup:
    """Return a row per block: how many dimensions are in use, and the shares, largest first."""
    rows = {
        code(block): {
            "in use": f"{int(own['in_use'].sum())} of {len(own)}",
            "shares": ", ".join(map(fixed(2), sorted(own["share"], reverse=True))),
        }
        for block, own in table.groupby("block", sort=False)
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="block")
    return html(frame, "tests dimensions", name="dimensions")


def _tests(table: pd.DataFrame) -> Markup:
    order = {name: place for place, name in enumerate(table["statement"].unique())}
    table = table.sort_values("statement", key=lambda names: names.map(order), kind="stable")
    words = [p_value(*each) for each in zip(table["p_value"], table["smallest_p"], strict=True)]
    columns = {
        "effect": "effect",
        "shape_effect": "shape",
        "p": "p",
        "n_cells": "n cells",
        "permuted": "permuted",
    }
    frame = table.assign(p=words).set_index(["statement", "cells"])[list(columns)]
    frame = frame.rename(columns=columns).rename_axis(index=["claim", "cells"])
    effects = ["effect", "shape"]
    style = frame.style.map(shade("213,94,0", 0.6), subset=effects)
    formats = dict.fromkeys(effects, fixed(3)) | {"n cells": count}
    return html(style, "tests", name="tests", formats=formats)


def _coverage(table: pd.DataFrame) -> Markup:
    """Return a row per kind: a share for each level, then how many values."""
    wide = table.pivot(index="kind", columns="nominal", values="observed")
    wide = wide.loc[table["kind"].unique()]
    names = [Markup("{:g} %<small>interval</small>").format(100 * level) for level in wide]
    frame = wide.set_axis(names, axis=1).map(percent)
    values = Markup("values<small>genes x cells</small>")
    frame[values] = table.groupby("kind")["n"].first().map(count)
    frame = frame.set_axis([code(kind, _COVERAGE.get(kind, "")) for kind in frame.index])
    return html(frame.rename_axis(columns="intervals of"), "intervals", name="coverage")
