"""What was measured of a fitted model on one self-contained HTML page."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
from anndata import AnnData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler

from pyro_fcr.metrics.chances import FEATURES
from pyro_fcr.metrics.response_table import PLACE, model_title
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.report import figures
from pyro_fcr.seals import sealed

DASH: Final = "–"


def count(value: float | None) -> str:
    """Write a whole number; a dash where there is none."""
    return DASH if value is None else f"{int(value):,}"


def fixed(digits: int) -> Callable[[float | None], str]:
    """Return what writes a number with so many decimals; a dash where it is undefined."""

    def write(value: float | None) -> str:
        known = value is not None and math.isfinite(value)
        return f"{value:.{digits}f}".replace("-", "−") if known else DASH

    return write


def percent(share: float) -> str:
    """Write a share in percent; a dash where it is undefined."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else DASH


def duration(seconds: float | None) -> str:
    """Write seconds as people say them; a dash where there are none."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def p_value(value: float, smallest: float) -> str:
    """Write a p-value; the smallest that a test can show is a bound."""
    return f"≤ {smallest:.2g}" if value <= smallest * (1 + 1e-9) else f"{value:.2g}"


def shade(rgb: str, most: float, least: float = 0.0) -> Callable[[float], str]:
    """Return what colours a cell by its share, from 0 to 1."""

    def color(share: float) -> str:
        strength = least + (most - least) * min(max(share, 0.0), 1.0)
        return f"background:rgba({rgb},{strength:.2f})" if strength else ""

    return color


def code(name: object, words: str = "", *, emphasised: bool = False) -> Markup:
    """Return a name as code, with words in small letters below it."""
    label = Markup("<code>{}</code>").format(name)
    label = Markup("<em>{}</em>").format(label) if emphasised else label
    return label + (Markup("<small>{}</small>").format(words) if words else "")


def html(
    frame: pd.DataFrame | Styler,
    kind: str,
    *,
    name: str,
    formats: Mapping[Any, Any] | Callable[..., str] | None = None,
) -> Markup:
    """Turn a table into HTML; all text but markup made by :func:`code` is escaped.

    Parameters
    ----------
    frame
        The table, with shades and classes where some cells stand out.
    kind
        Class of the table in the page.
    name
        Name that its cells have in the page, of letters.
    formats
        What writes the numbers of each column, or of all columns.
    """
    style = frame.style if isinstance(frame, pd.DataFrame) else frame
    style = style.format(formats, na_rep=DASH, escape="html")
    style = style.format_index(escape, axis=0).format_index(escape, axis=1)
    return Markup(style.to_html(table_uuid=name, table_attributes=f'class="{kind}"'))


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
_SCALES: Final = {
    "mean_log1p": "Mean of log1p, cell by cell",
    "log1p_mean": "Log1p of the mean, where depth hardly enters",
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


def responses(
    tables: Mapping[str, pd.DataFrame], changes: pd.DataFrame | None
) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of each scenario's predicted responses."""
    heads = tables["headline"].query("against == 'best on average'")
    for number, (scenario, every) in enumerate(tables["responses"].groupby("scenario", sort=False)):
        by_scale = dict(iter(every.groupby("scale", sort=False)))
        rows = by_scale["mean_log1p"]
        pair, scatter = _middle(rows), None
        if changes is not None and (scenario, *pair) in changes.index.droplevel("method"):
            scatter = figures.response_image(changes.xs((scenario, *pair), level=PLACE))
        yield {
            "scenario": scenario,
            "n_pairs": len(rows[_PAIR].drop_duplicates()),
            "tables": [
                (
                    _SCALES[str(scale)],
                    _scores(own, tables["methods"], name=f"scores{number}_{scale}"),
                )
                for scale, own in by_scale.items()
            ],
            "figures": [
                (model_title(str(method)), figures.gains(own))
                for method, own in heads[heads["scenario"] == scenario].groupby(
                    "method", sort=False
                )
            ],
            "pair": " in ".join(pair),
            "scatter": scatter,
        }


def _middle(rows: pd.DataFrame) -> tuple[str, str]:
    """Return treatment and context of the pair in the middle by the first model's cosine."""
    own = rows[(rows["role"] == "model") & (rows["metric"] == "cosine_logfc")]
    own = own[own["method"] == own["method"].iloc[0]] if len(own) else rows.drop_duplicates(_PAIR)
    ordered = own.sort_values("value", kind="stable")
    treatment, context = ordered[_PAIR].iloc[(len(ordered) - 1) // 2]
    return str(treatment), str(context)


def _scores(rows: pd.DataFrame, methods: pd.DataFrame, *, name: str) -> Markup:
    """Return a row per method that all pairs define, the best of each column marked."""
    values = rows.pivot(index=["method", "metric"], columns=_PAIR, values="value")
    means = values.mean(axis=1, skipna=False).unstack("metric")
    methods = methods[methods["method"].isin(means.index)]
    means = means.reindex(index=methods["method"], columns=[s for s in SCORES if s in means])
    ceiling = (methods["role"] == "ceiling").to_numpy()
    classes = means.apply(lambda column: _best(column, ceiling))
    classes[ceiling] = "ceiling"
    labels = zip(methods["method"], methods["words"], ceiling, strict=True)
    index = [code(method, words, emphasised=bool(last)) for method, words, last in labels]
    heads = [
        Markup('<abbr title="{}">{}</abbr><small>{}</small>').format(s.words, s.title, s.scope)
        for s in (SCORES[str(name)] for name in means)
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


def clusters(table: pd.DataFrame) -> Iterator[Markup]:
    """Yield tables of NMI and ARI: a row per block, columns by encoding, cells and label."""
    table = table.assign(group=table["encoding"] + ", " + table["cells"])
    for metric, own in table.groupby("metric", sort=False):
        columns = pd.MultiIndex.from_frame(own[["group", "label"]].drop_duplicates())
        wide = own.pivot(index="block", columns=["group", "label"], values="value")
        wide = wide.reindex(index=own["block"].unique(), columns=columns)
        wide = wide.set_axis([code(block) for block in wide.index])
        wide.columns.names = [str(metric).upper(), ""]
        style = wide.style.map(shade("0,114,178", 0.6, 0.04))
        yield html(style, "clusters", name=str(metric), formats=fixed(2))


def dimensions(table: pd.DataFrame) -> Markup:
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


def tests(table: pd.DataFrame) -> Markup:
    """Return a row per claim and kind of cells: effects, p-value and what they rest on."""
    table = table.sort_values("statement", key=lambda names: pd.factorize(names)[0], kind="stable")
    words = [p_value(*each) for each in zip(table["p_value"], table["smallest_p"], strict=True)]
    names = {"statement": "claim", "shape_effect": "shape", "n_cells": "n cells"}
    frame = table.assign(p=words).rename(columns=names).set_index(["claim", "cells"])
    frame = frame[["effect", "shape", "p", "n cells", "permuted"]]
    effects = ["effect", "shape"]
    style = frame.style.map(shade("213,94,0", 0.6), subset=effects)
    formats = dict.fromkeys(effects, fixed(3)) | {"n cells": count}
    return html(style, "tests", name="tests", formats=formats)


def coverage(table: pd.DataFrame) -> Markup:
    """Return a row per kind: a share for each level, then how many values."""
    wide = table.pivot(index="kind", columns="nominal", values="observed")
    wide = wide.loc[table["kind"].unique()]
    names = [Markup("{:g} %<small>interval</small>").format(100 * level) for level in wide]
    frame = wide.set_axis(names, axis=1).map(percent)
    values = Markup("values<small>genes x cells</small>")
    frame[values] = table.groupby("kind")["n"].first().map(count)
    frame = frame.set_axis([code(kind, _COVERAGE.get(kind, "")) for kind in frame.index])
    return html(frame.rename_axis(columns="intervals of"), "intervals", name="coverage")


def calibration(table: pd.DataFrame) -> Markup:
    """Return a row per condition and scale: slope and errors."""
    place = table["treatment"].astype(str) + " in " + table["context"].astype(str)
    scale = table["scale"].map(figures.SCALE_WORDS)
    frame = table.assign(condition=place, scale=scale).set_index(["condition", "scale"])
    frame = frame.drop(columns=["treatment", "context"]).rename(
        columns=lambda c: c.replace("_", " ")
    )
    numbers = [name for name in frame if name != "n cells"]
    formats = dict.fromkeys(numbers, fixed(2)) | {"n cells": count}
    return html(frame.style, "tests calibration", name="calibration", formats=formats)


def chances(table: pd.DataFrame) -> Markup:
    """Return a row per pair: the chance, what it is learnt from, and the gain where measured."""
    table = table.assign(
        pair=table["treatment"].astype(str) + " in " + table["context"].astype(str),
        kind=table["left_out"].map({True: "left out in turn", False: "asked"}),
    )
    frame = table.set_index(["pair", "kind"])[["chance", "gain", *FEATURES]]
    heads = {
        name: Markup('<abbr title="{}">{}</abbr>').format(words, name)
        for name, words in FEATURES.items()
    }
    frame = frame.rename(columns=heads)
    formats = dict.fromkeys(frame, fixed(2)) | {"chance": percent, "gain": fixed(3)}
    style = frame.style.map(shade("0,114,178", 0.6, 0.04), subset=["chance"])
    return html(style, "tests chances", name="chances", formats=formats)


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
        """Write the page; missing folders are made, a former page is replaced.

        The file is written under another name first and then renamed, so that no reader meets half
        of it.

        Returns
        -------
        The path of the file.

        Raises
        ------
        ValueError
            A column of `color_by` is missing, or the history has no terms.
        FileExistsError
            Something stands there that is no page of ours.
        """
        path, page = Path(path), self.render()
        with sealed(path) as draft:
            draft.write_text(page, encoding="utf-8")
        return path

    def render(self) -> str:
        """Return the page as HTML."""
        environment = Environment(
            loader=PackageLoader("pyro_fcr.report", ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        parts = (
            count,
            facts,
            responses,
            chances,
            calibration,
            clusters,
            dimensions,
            tests,
            coverage,
        )
        environment.globals |= {part.__name__: part for part in parts} | {"figures": figures}
        return environment.get_template("page.html.j2").render(page=self, tables=self.tables)
