"""Tables of the report: numbers turned into text, and what stands out in them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DASH = "–"
CEILING = "split_half"

RESPONSE_ROWS = {
    "fcr": "the fitted model",
    "additive": "covariate effect + treatment effect, no interaction",
    "treatment_mean_shift": "mean shift of the treatment in the other contexts",
    "control_mean": "no change",
    CEILING: "one half of the real cells predicts the other",
}
RESPONSE_COLUMNS = {
    "pearson_delta_de100": ("Pearson r", "100 genes of largest real change", max),
    "mse_delta": ("mean squared error", "all genes", min),
    "cosine_logfc": ("cosine", "all genes", max),
}
COVERAGE_ROWS = {
    "observation": "held-out cells of conditions that training had",
    "observation, unseen condition": "cells of a condition that training lacked",
}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Parameters
    ----------
    text
        As shown.
    best
        Whether it is the best of its column.
    share
        Strength of the shading, between 0 and 1.
    """

    text: str
    best: bool = False
    share: float = 0.0


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Parameters
    ----------
    name, explanation
        Name as in the results, and what it is.
    cells
        Its numbers.
    is_ceiling
        Whether it is an upper bound, not a competitor.
    """

    name: str
    explanation: str
    cells: tuple[Cell, ...]
    is_ceiling: bool = False


def facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of the figures at the head of the page."""
    elbo = _number(metrics.get("heldout_elbo_per_cell"))
    return [
        ("cells", count(metrics.get("n_cells"))),
        ("genes", count(metrics.get("n_genes"))),
        ("conditions", count(metrics.get("n_conditions"))),
        ("epochs", count(metrics.get("epochs"))),
        ("fitting time", _duration(_number(metrics.get("seconds")))),
        ("held-out ELBO per cell, nats", fixed(elbo, 1)),
    ]


def nmi_table(nmi: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> list[Row]:
    """One row per block, one shaded number per label."""
    return [
        Row(
            block,
            "",
            tuple(
                Cell(fixed(value, 2), share=min(max(value or 0.0, 0.0), 1.0))
                for value in (_number(scores.get(label)) for label in labels)
            ),
        )
        for block, scores in nmi.items()
    ]


def response_table(response: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row per prediction, the best of each column marked; the ceiling last, not marked."""
    known = [name for name in RESPONSE_ROWS if name in response and name != CEILING]
    names = known + [name for name in response if name not in RESPONSE_ROWS]
    best = {column: _best(response, names, column) for column in RESPONSE_COLUMNS}
    return [
        Row(
            name,
            RESPONSE_ROWS.get(name, ""),
            tuple(_score(response[name], column, best) for column in RESPONSE_COLUMNS),
            is_ceiling=name == CEILING,
        )
        for name in names + [CEILING] * (CEILING in response)
    ]


def coverage_table(coverage: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Row]]:
    """Heads of the columns, and one row per kind: a share for each level, then how many values.

    Parameters
    ----------
    coverage
        Records of ``kind``, ``nominal``, ``observed`` and ``n``, as rows of
        `pyro_fcr.queries.coverage.interval_coverage`.
    """
    levels = sorted({entry["nominal"] for entry in coverage})
    found = {(entry["kind"], entry["nominal"]): entry for entry in coverage}
    rows = []
    for kind in dict.fromkeys(entry["kind"] for entry in coverage):
        shares = [_number(found.get((kind, level), {}).get("observed")) for level in levels]
        n = next(entry["n"] for entry in coverage if entry["kind"] == kind)
        cells = [*map(_percent, shares), count(n)]
        rows.append(Row(kind, COVERAGE_ROWS.get(kind, ""), tuple(map(Cell, cells))))
    return [f"{100 * level:g} %" for level in levels], rows


def _score(scores: Mapping[str, Any], column: str, best: Mapping[str, str | None]) -> Cell:
    text = fixed(_number(scores.get(column)), 3)
    return Cell(text, best=text == best[column])


def _best(
    response: Mapping[str, Mapping[str, Any]], names: Sequence[str], column: str
) -> str | None:
    """Text of the best value, so that values that read the same are marked alike."""
    values = [_number(response[name].get(column)) for name in names]
    defined = [value for value in values if value is not None]
    return fixed(RESPONSE_COLUMNS[column][2](defined), 3) if defined else None


def _number(value: Any) -> float | None:
    """Take nan and infinity for missing."""
    return None if value is None or not math.isfinite(value) else float(value)


def count(value: float | None) -> str:
    """Write a whole number; a dash where there is none."""
    return DASH if value is None else f"{int(value):,}"


def fixed(value: float | None, digits: int) -> str:
    """Write a number with so many digits after the point; a dash where it is undefined."""
    number = _number(value)
    return DASH if number is None else f"{number:.{digits}f}".replace("-", "−")


def p_value(value: float, smallest: float) -> str:
    """Write a p-value; the smallest that a test can show is a bound."""
    return f"≤ {smallest:.2g}" if value <= smallest * (1 + 1e-9) else f"{value:.2g}"


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.1f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
