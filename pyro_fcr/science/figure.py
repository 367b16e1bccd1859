"""The figure of a condition sweep."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pyro_fcr.files import atomic_write
from pyro_fcr.plots._axes import grid
from pyro_fcr.plots.conditions import mcc_by_conditions
from pyro_fcr.science.records import Record
from pyro_fcr.science.tables import score_table

_PANELS = {"mcc_pearson": "", "mcc_within_pearson": ", within conditions"}


def draw_sweeps(record: Record, folder: str | Path) -> list[Path]:
    """Write a figure per swept setting: MCC of z_tx against the number of conditions.

    Parameters
    ----------
    record
        Of a suite of :func:`pyro_fcr.science.condition_sweep` designs.
    folder
        Where ``conditions_<setting>.png`` come to stand.

    Returns
    -------
    The files.

    Raises
    ------
    ValueError
        The record has no rows.
    """
    scores, written = score_table(record), []
    swept = scores["setting"].str.split(" ").str[0]
    for setting, rows in scores.groupby(swept, sort=False):
        n_tx = record.header["settings"][rows["setting"].iloc[0]]["n_tx"]
        written.append(Path(folder) / f"conditions_{setting}.png")
        with atomic_write(written[-1]) as draft:
            _sweep(rows, n_tx=n_tx).savefig(draft, dpi=200)
    return written


def _sweep(scores: pd.DataFrame, *, n_tx: int) -> Figure:
    """Draw a row of panels per model."""
    models = list(dict.fromkeys(scores["model"]))
    figure, axes = grid(2 * len(models), 2, width=4.2, height=3.0)
    panels = [(model, metric) for model in models for metric in _PANELS]
    for ax, (model, metric) in zip(axes, panels, strict=True):
        chosen = (scores["model"] == model) & (scores["metric"] == metric)
        title = f"{model}: MCC of z_tx{_PANELS[metric]}"
        rows = scores[chosen & (scores["block"] == "z_tx")]
        mcc_by_conditions(rows, n_latent=n_tx, title=title, ax=ax)
    return figure
