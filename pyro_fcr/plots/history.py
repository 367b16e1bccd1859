"""Terms of the objective over the epochs of a fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pyro_fcr.plots._axes import BLUE, grid, name_axes, plain

_SPLITS = {"train": ("train", "#8f8f8f", 1.2), "heldout": ("held out", BLUE, 1.6)}


def loss_by_term(history: pd.DataFrame, *, n_columns: int = 4) -> npt.NDArray[Any]:
    """One small panel per term of the objective over epochs, train and held-out lines.

    Values are unweighted, in nats per cell. A panel is cut to the range after the first fifth of
    the epochs where the start alone would flatten the rest; the line then enters from outside.

    Parameters
    ----------
    history
        One row per epoch with columns ``train/<term>`` and ``heldout/<term>``; other columns are
        left out. The epoch is the column ``epoch`` where there is one, else the index. Missing
        entries (epochs that were not evaluated) are skipped.
    n_columns
        Panels per row.

    Returns
    -------
    ``(n_terms,)`` axes in the order of the terms, `loss` and `elbo` first.

    Raises
    ------
    ValueError
        If no column is called ``train/<term>`` or ``heldout/<term>``.

    Examples
    --------
    >>> from pyro_fcr import plots
    >>> history = pd.DataFrame({"train/loss": [3.0, 2.0, 1.5], "train/kl_z_t": [0.1, 0.2, 0.2]})
    >>> [ax.get_title(loc="left") for ax in plots.loss_by_term(history)]
    ['loss', 'kl_z_t']
    """
    terms = _terms(history)
    if not terms:
        raise ValueError(
            f"history has no train/<term> or heldout/<term>, found {list(history.columns)}"
        )
    figure, axes = grid(len(terms), n_columns, width=2.55, height=1.85)
    for ax, term in zip(axes, terms, strict=True):
        _draw_term(ax, history, term)
    name_axes(axes, n_columns, xlabel="epoch", ylabel="nats per cell")
    handles = [
        Line2D([], [], color=color, linewidth=width, label=label)
        for label, color, width in _SPLITS.values()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    return axes


def _terms(history: pd.DataFrame) -> list[str]:
    names = [str(column).partition("/") for column in history.columns]
    found = list(dict.fromkeys(term for split, _, term in names if split in _SPLITS))
    return sorted(found, key=lambda term: {"loss": 0, "elbo": 1}.get(term, 2))


def _draw_term(ax: Axes, history: pd.DataFrame, term: str) -> None:
    epochs = history["epoch"] if "epoch" in history else pd.Series(history.index, history.index)
    shown = []
    for split, (_, color, width) in _SPLITS.items():
        if f"{split}/{term}" in history:
            values = history[f"{split}/{term}"].dropna()
            ax.plot(epochs[values.index], values, color=color, linewidth=width)
            shown.append(values)
    _cut_to_late_range(ax, shown)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    plain(ax, title=f"{term} (higher is better)" if term == "elbo" else term)


def _cut_to_late_range(ax: Axes, lines: Sequence[pd.Series]) -> None:
    late = np.concatenate([line.to_numpy(float)[len(line) // 5 :] for line in lines])
    every = np.concatenate([line.to_numpy(float) for line in lines])
    late, every = late[np.isfinite(late)], every[np.isfinite(every)]
    if late.size and 0 < np.ptp(late) < np.ptp(every) / 3:
        margin = 0.08 * np.ptp(late)
        ax.set_ylim(late.min() - margin, late.max() + margin)
