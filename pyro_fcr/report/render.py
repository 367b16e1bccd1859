"""Put the results of a run on one HTML page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from pyro_fcr.evaluation import Assessment
from pyro_fcr.files import atomic_write
from pyro_fcr.report import figures, tables
from pyro_fcr.report.evaluation import sections
from pyro_fcr.report.template import named, render

_NMI_LABELS = ("x", "t", "xt")


def write_report(  # noqa: PLR0913 - one argument per part of the page
    path: str | os.PathLike[str],
    *,
    title: str,
    metrics: Mapping[str, Any],
    history: pd.DataFrame,
    cells: AnnData,
    responses: Mapping[str, npt.ArrayLike],
    real: npt.ArrayLike | None,
    gene_names: Sequence[str],
    summary: Mapping[str, str] | Sequence[str],
    notes: Sequence[str],
    graph_svg: str | None = None,
    color_by: Sequence[str] = ("x", "t"),
    assessment: Assessment | None = None,
) -> Path:
    """Write a run's results as one self-contained HTML file.

    Styles and figures are part of the file, which loads nothing else. Text is escaped. The file is
    written under another name first and then renamed, so that no reader meets half of it; the
    same results give the same bytes.

    Parameters
    ----------
    path
        File to write; missing folders are made, an existing file is replaced.
    title
        Heading of the page.
    metrics
        ``n_cells``, ``n_genes``, ``n_conditions``, ``epochs``, ``seconds``,
        ``heldout_elbo_per_cell``; ``nmi[block][label]`` for the labels x, t and xt;
        ``response[prediction][metric]`` as from `pyro_fcr.metrics.response_metrics`, with the
        ceiling under ``split_half``; ``heldout_pair``, the held-out labels by column;
        ``coverage``, records of ``kind``, ``nominal``, ``observed`` and ``n``. Missing, None and
        nan are shown as an en dash.
    history
        One row per epoch, see `pyro_fcr.plots.loss_by_term`.
    cells
        Labels in ``obs``, ``obsm["X_fcr_<block>_umap"]`` for each block.
    responses
        Predicted change of mean log1p expression by name, ``(n_genes,)``; empty where no condition
        was held out.
    real
        Real change, ``(n_genes,)``; looked at only where there are responses.
    gene_names
        ``(n_genes,)``.
    summary
        Sentences, or named sentences, for the top of the page.
    notes
        Sentences for its foot.
    graph_svg
        Drawing of the model's graph, a whole SVG document.
    color_by
        Columns of ``cells.obs`` that colour the UMAPs.
    assessment
        From :func:`pyro_fcr.assess`: its sections in place of the table of ``nmi``.

    Returns
    -------
    The path of the file.

    Raises
    ------
    ValueError
        If a column of `color_by` is missing, or the history has no terms.
    """
    path = Path(path)
    coverage = metrics.get("coverage") or []
    levels, covered = tables.coverage_table(coverage)
    page = render(
        "report.html.j2",
        title=title,
        summary=named(summary),
        facts=tables.facts(metrics),
        graph=figures.svg_address(graph_svg) if graph_svg else None,
        loss=figures.loss_image(history),
        umaps=figures.umap_grid(cells, color_by),
        evaluation=sections(assessment) if assessment is not None else None,
        nmi=tables.nmi_table(metrics.get("nmi") or {}, _NMI_LABELS),
        nmi_labels=_NMI_LABELS,
        heldout_pair=metrics.get("heldout_pair") or {},
        response=tables.response_table(metrics.get("response") or {}),
        response_columns=tables.RESPONSE_COLUMNS,
        scatter=_scatter(responses, real, gene_names),
        coverage=covered,
        coverage_levels=levels,
        coverage_figure=figures.coverage_image(coverage) if coverage else None,
        notes=list(notes),
        dash=tables.DASH,
    )
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def _scatter(
    responses: Mapping[str, npt.ArrayLike], real: npt.ArrayLike | None, gene_names: Sequence[str]
) -> str | None:
    if not responses or real is None:
        return None
    known = [name for name in tables.RESPONSE_ROWS if name in responses]
    order = known + [name for name in responses if name not in known]
    return figures.response_image({name: responses[name] for name in order}, real, gene_names)
