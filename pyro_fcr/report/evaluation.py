"""A page about how good a fitted model is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from pyro_fcr.evaluation import Assessment
from pyro_fcr.files import atomic_write
from pyro_fcr.metrics.scoring import SCORES
from pyro_fcr.report import evaluation_figures, figures, tables
from pyro_fcr.report.tables import Cell, Row
from pyro_fcr.report.template import named, render

_SHOWN: Final = {
    "cosine_logfc": ("cosine", "all genes"),
    "pearson_delta_de100": ("Pearson r", "100 genes of largest change"),
    "pearson_vs_treated": ("Pearson r", "beyond the mean response"),
    "mse_delta": ("squared error", "all genes"),
    "discrimination": ("discrimination", "0.5 is chance"),
    "e_distance": ("E‑distance", "of populations"),
}
_SCENARIOS: Final = {
    "unseen pair": "Training had the treatment in other contexts, but not in this one.",
    "unseen treatment": "Training lacked the treatment in every context.",
    "unseen context": "Training had control cells of the context only.",
    "seen pairs": "No whole condition was kept from training. These are pairs that training had, "
    "judged on cells that it lacked: no test of what is unseen. condition_mean, the pair's own "
    "training cells, is what a table of means would answer.",
}
_METHODS: Final = {
    **tables.RESPONSE_ROWS,
    "context_mean_shift": "mean change of the context's other treatments",
    "ridge": "ridge regression on treatment and context",
    "condition_mean": "the pair's own training cells",
}


@dataclass(frozen=True)
class ResponsePart:
    """What the page shows of one scenario: see the template."""

    scenario: str
    explanation: str
    n_pairs: int
    columns: Sequence[tuple[str, str, str]]
    methods: Sequence[Row]
    figure: str


def write_evaluation(
    path: str | os.PathLike[str],
    assessment: Assessment,
    *,
    title: str,
    summary: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write an assessment as one self-contained HTML file, as :func:`write_report` does.

    Parameters
    ----------
    path
        File to write; missing folders are made, an existing file is replaced.
    assessment
        From :func:`pyro_fcr.assess`.
    title, summary, notes
        Heading, sentences for the top (what FCR gains over the best baseline follows), sentences
        for the foot.

    Returns
    -------
    The path of the file.
    """
    path = Path(path)
    page = render(
        "evaluation.html.j2",
        title=title,
        summary=named([*summary, *map(assessment.sentence, assessment.scenarios)]),
        facts=_facts(assessment.facts),
        evaluation=sections(assessment),
        notes=list(notes),
    )
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def sections(assessment: Assessment) -> dict[str, Any]:
    """Give what the sections of an evaluation show, for the template."""
    rank, truth = assessment.prior_rank, assessment.identifiability
    tolerance = float(rank["tolerance"].max()) if len(rank) else 0.0
    return {
        "responses": _responses(assessment),
        "dimensions": _dimensions(assessment.dimensions),
        **_clusters(assessment.clustering),
        "tests": _tests(assessment.independence),
        "ranks": [f"{row.block}: {row.sentence}" for row in rank.itertuples()],
        "rank_figure": figures.svg(
            evaluation_figures.singular_values(assessment.singular_values, tolerance)
        )
        if len(rank)
        else None,
        "truth_figure": figures.svg(evaluation_figures.truth(truth)) if len(truth) else None,
        "left_out": list(assessment.left_out.items()),
    }


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = {
        "training cells": "n_training",
        "held-out cells": "n_heldout",
        "cells left out": "n_left_out",
        "genes": "n_genes",
        "conditions": "n_conditions",
        "epochs": "epochs",
    }
    elbo = tables.fixed(facts.get("heldout_elbo_per_cell"), 1)
    shown = [(name, tables.count(facts.get(key))) for name, key in counts.items()]
    return [*shown, ("held-out ELBO per cell, nats", elbo)]


def _responses(assessment: Assessment) -> list[ResponsePart]:
    if not len(assessment.responses):
        return []
    parts = []
    for scenario, rows in assessment.responses.groupby("scenario", sort=False):
        head = assessment.headline.query("scenario == @scenario and against == 'best on average'")
        own = rows[rows["scale"] == "mean_log1p"]
        parts.append(
            ResponsePart(
                scenario=str(scenario),
                explanation=_SCENARIOS[str(scenario)],
                n_pairs=len(own[["treatment", "context"]].drop_duplicates()),
                columns=[(SCORES[name].words, *words) for name, words in _SHOWN.items()],
                methods=_methods(own),
                figure=figures.svg(evaluation_figures.gains(head)),
            )
        )
    return parts


def _methods(rows: pd.DataFrame) -> list[Row]:
    """One row per method that all pairs define, the best of each column marked; ceiling last."""
    pairs = ["treatment", "context"]
    values = rows.set_index(["method", *pairs, "metric"])["value"].unstack(pairs)
    means = values.mean(axis=1, skipna=False).unstack("metric")
    order = [name for name in _METHODS if name in means.index and name != tables.CEILING]
    best = {}
    for metric in _SHOWN:
        known = means.loc[order, metric].dropna()
        pick = known.max() if SCORES[metric].higher_is_better else known.min()
        best[metric] = tables.fixed(pick, 3) if len(known) else None
    ceiling = [tables.CEILING] * (tables.CEILING in means.index)
    return [
        Row(
            name,
            _METHODS[name],
            tuple(
                Cell(text, best=name != tables.CEILING and text == best[metric])
                for metric in _SHOWN
                for text in [tables.fixed(means.loc[name, metric], 3)]
            ),
            is_ceiling=name == tables.CEILING,
        )
        for name in order + ceiling
    ]


def _clusters(table: pd.DataFrame) -> dict[str, Any]:
    """Tables of NMI and ARI: a row per block, a group of columns per encoding and cells."""
    if not len(table):
        return {"clusters": [], "cluster_labels": [], "n_clustered": ""}
    labels = list(dict.fromkeys(table["label"]))
    groups = list(dict.fromkeys(zip(table["encoding"], table["cells"], strict=True)))
    found = table.set_index(["metric", "block", "encoding", "cells", "label"])["value"]
    rows = {
        metric: [
            Row(
                block,
                "",
                tuple(_shade(found[metric, block, *g, la]) for g in groups for la in labels),
            )
            for block in dict.fromkeys(table["block"])
        ]
        for metric in dict.fromkeys(table["metric"])
    }
    return {
        "clusters": [(m.upper(), [", ".join(g) for g in groups], r) for m, r in rows.items()],
        "cluster_labels": labels,
        "n_clustered": tables.count(table["n_cells"].iloc[0]),
    }


def _dimensions(table: pd.DataFrame) -> list[Row]:
    """One row per block: how many dimensions are in use, and the shares, largest first."""
    rows: list[Row] = []
    for block, own in table.groupby("block", sort=False) if len(table) else ():
        shares = ", ".join(tables.fixed(share, 2) for share in sorted(own["share"], reverse=True))
        in_use = f"{int(own['in_use'].sum())} of {len(own)}"
        rows.append(Row(str(block), "", (Cell(in_use), Cell(shares))))
    return rows


def _shade(value: float) -> Cell:
    return Cell(tables.fixed(value, 2), share=min(max(value, 0.0), 1.0))


def _tests(table: pd.DataFrame) -> list[Row]:
    if not len(table):
        return []
    ordered = table.sort_values("statement", key=lambda s: s.map(_place(table)), kind="stable")
    return [
        Row(
            row.statement,
            "",
            (
                Cell(row.cells),
                Cell(tables.fixed(row.effect, 3), share=min(max(row.effect, 0.0), 1.0)),
                Cell(tables.fixed(row.shape_effect, 3), share=min(max(row.shape_effect, 0.0), 1.0)),
                Cell(tables.p_value(row.p_value, row.smallest_p)),
                Cell(tables.count(row.n_cells)),
                Cell(row.permuted),
            ),
        )
        for row in ordered.itertuples()
    ]


def _place(table: pd.DataFrame) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(table["statement"]))}
