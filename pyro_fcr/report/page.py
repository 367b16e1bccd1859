"""What was measured of a fitted model on one self-contained HTML page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from jinja2 import Environment, StrictUndefined

from pyro_fcr.files import atomic_write
from pyro_fcr.report import figures
from pyro_fcr.report.sections import facts, sections


@dataclass(frozen=True, eq=False, kw_only=True)
class Page:
    """The contents of a page.

    Styles and figures are part of the file, which loads nothing else. Text is escaped. The same
    contents give the same bytes.

    Parameters
    ----------
    title
        Heading of the page.
    tables
        Tables by name, as of :class:`pyro_fcr.Evaluation`; each has its section. Missing values
        are shown as an en dash.
    facts
        Numbers for the head of the page, as of :class:`pyro_fcr.Evaluation`, and ``seconds`` of the
        fit.
    changes
        Predicted and measured change per gene, as of :class:`pyro_fcr.Evaluation`.
    left_out
        What could not be judged, and why.
    summary
        Sentences, or named sentences, for the top of the page.
    notes
        Sentences for its foot.
    history
        One row per epoch, see `pyro_fcr.plots.loss_by_term`.
    cells
        Labels in ``obs``, ``obsm["X_fcr_<block>_umap"]`` for each block.
    color_by
        Columns of ``cells.obs`` that colour the UMAPs.
    graph_svg
        Drawing of the model's graph, a whole SVG document.
    """

    title: str
    tables: Mapping[str, pd.DataFrame]
    facts: Mapping[str, Any]
    changes: pd.DataFrame | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, str] | Sequence[str] = ()
    notes: Sequence[str] = ()
    history: pd.DataFrame | None = None
    cells: AnnData | None = None
    color_by: Sequence[str] = ()
    graph_svg: str | None = None

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; missing folders are made, an existing file is replaced.

        The file is written under another name first and then renamed, so that no reader meets half
        of it.

        Returns
        -------
        The path of the file.

        Raises
        ------
        ValueError
            A column of `color_by` is missing, or the history has no terms.
        """
        path, page = Path(path), self._render()
        with atomic_write(path) as draft:
            draft.write_text(page, encoding="utf-8")
        return path

    def _render(self) -> str:
        source = resources.files("pyro_fcr.report").joinpath("page.html.j2").read_text("utf-8")
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.from_string(source).render(
            title=self.title,
            summary=_named(self.summary),
            facts=facts(self.facts),
            notes=list(self.notes),
            left_out=list(self.left_out.items()),
            loss=None if self.history is None else figures.loss_image(self.history),
            umaps=None if self.cells is None else figures.umap_grid(self.cells, self.color_by),
            graph=figures.svg_address(self.graph_svg) if self.graph_svg else None,
            **sections(self.tables, self.changes),
        )


def _named(sentences: Mapping[str, str] | Sequence[str]) -> list[tuple[str, str]]:
    """Return sentences with their names, empty where they have none."""
    if isinstance(sentences, Mapping):
        return [(str(name), str(text)) for name, text in sentences.items()]
    return [("", str(text)) for text in sentences]
