"""Effects in gene space: which pairs interact, and which latent block carries a gene's response."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pyro_fcr.plots._axes import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    check_columns,
    check_levels,
    check_unique,
    dot,
    grid,
    label_width,
    legend_beside,
    levels_of,
    name_axes,
    new_axes,
    plain,
)

_PATHS = {
    "total": ("total", INK, "D"),
    "z_t": ("through z_t", BLUE, "o"),
    "z_tx": ("through z_tx", ORANGE, "s"),
}


def interaction_ranking(
    pairs: pd.DataFrame,
    *,
    n_top: int = 20,
    level: float = 0.1,
    by: Literal["strength", "z"] = "z",
    ax: Axes | None = None,
) -> Axes:
    """Pairs of treatment and context that interact most, the clearest or the strongest on top.

    Filled dots are pairs with a ``qvalue`` of at most `level`, hollow ones the others. The title
    counts over all pairs, shown or not.

    Parameters
    ----------
    pairs
        One row per pair: ``treatment``, ``context``, ``qvalue``, the column `by` and, where there
        are, ``dose`` and, for an interval around the strength, ``lower`` and ``upper``. Pairs
        without a finite value are left out.
    n_top
        How many pairs to show.
    level
        False discovery rate at which a pair counts as found.
    by
        What is shown and sorted by: the evidence ``"z"``, or the ``"strength"``, which is of
        large effects and of noisy ones.
    ax
        Axes to draw on; None makes a figure.

    Raises
    ------
    ValueError
        If a column is missing, a pair has two rows or no pair has a value.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr import plots
    >>> pairs = pd.DataFrame(
    ...     {
    ...         "treatment": ["drug A", "drug B"],
    ...         "context": ["T cell", "monocyte"],
    ...         "z": [0.3, 4.1],
    ...         "qvalue": [0.7, 0.01],
    ...     }
    ... )
    >>> ax = plots.interaction_ranking(pairs)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['drug B in monocyte', 'drug A in T cell']
    >>> ax.get_title(loc="left")
    '1 of 2 pairs with q ≤ 0.1 (filled)'
    """
    check_columns(pairs, ["treatment", "context", "qvalue", by], name="pairs")
    keys = [key for key in ("treatment", "dose", "context") if key in pairs]
    check_unique(pairs, keys, name="pairs")
    pairs = pairs[np.isfinite(pairs[by].astype(float))]
    if pairs.empty:
        raise ValueError(f"pairs has no finite {by}: nothing to draw")
    top = pairs.sort_values(by, ascending=False, kind="stable").head(n_top)
    names = [_pair_name(pair) for pair in top[keys].to_dict("records")]
    ax = new_axes(3.0 + label_width(names), 0.8 + 0.19 * len(top)) if ax is None else ax
    _draw_ranking(ax, top, by, top["qvalue"] <= level)
    ax.set_yticks(np.arange(len(top)), names)
    ax.set_ylim(len(top) - 0.4, -0.6)
    n_found = int((pairs["qvalue"] <= level).sum())
    title = f"{n_found} of {len(pairs)} pairs with q ≤ {level:g} (filled)"
    ax.set_xlabel("strength of the interaction" if by == "strength" else "z of the interaction")
    plain(ax, title=title)
    return ax


def _pair_name(pair: Mapping[Hashable, Any]) -> str:
    dose = pair.get("dose", "")
    dose = f"{dose:g}" if isinstance(dose, float) else str(dose)
    return f"{pair['treatment']} {dose}".rstrip() + f" in {pair['context']}"


def _draw_ranking(ax: Axes, top: pd.DataFrame, by: str, found: pd.Series) -> None:
    rows = np.arange(len(top))
    if by == "strength" and {"lower", "upper"} <= set(top):
        ax.hlines(rows, top["lower"], top["upper"], color=BLUE, linewidth=1.0, alpha=0.6)
    else:
        ax.hlines(rows, 0, top[by], color=FAINT, linewidth=1.0)
    faces = np.where(found, BLUE, "white")
    ax.scatter(top[by], rows, s=26, c=faces, edgecolors=BLUE, linewidths=1.1, zorder=3)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=1)


def effect_paths(
    effects: pd.DataFrame,
    *,
    genes: Sequence[str],
    treatment: str,
    contexts: Sequence[str] | None = None,
    n_columns: int = 4,
) -> npt.NDArray[Any]:
    """Effect of a treatment on some genes, in total and through each latent block, by context.

    What flows through ``z_t`` is the response that contexts share; what flows through ``z_tx`` is
    their own. A gene whose total lies on its ``z_t`` responds alike everywhere.

    Parameters
    ----------
    effects
        One row per treatment, context, gene and effect: ``treatment``, ``context``, ``gene``,
        ``effect`` (``"total"``, ``"z_t"``, ``"z_tx"``; others are left out), ``estimate``,
        ``spread_lower`` and ``spread_upper`` as log fold changes (natural logarithm). With a column
        ``extrapolated`` (bool) what was not seen in training is hollow.
    genes
        Genes to show, a panel each, on one scale.
    treatment
        The treatment.
    contexts
        Contexts to show, from top to bottom; None takes all.
    n_columns
        Panels per row.

    Returns
    -------
    ``(n_genes,)`` axes.

    Raises
    ------
    ValueError
        If a column, gene, context or the treatment is missing, or a place has two estimates.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr import plots
    >>> effects = pd.DataFrame(
    ...     {
    ...         "treatment": "IFN-beta",
    ...         "context": ["T cell"] * 3 + ["monocyte"] * 3,
    ...         "gene": "CXCL10",
    ...         "effect": ["total", "z_t", "z_tx"] * 2,
    ...         "estimate": [0.4, 0.4, 0.0, 3.1, 0.4, 2.7],
    ...     }
    ... )
    >>> effects["spread_lower"] = effects["estimate"] - 0.2
    >>> effects["spread_upper"] = effects["estimate"] + 0.2
    >>> (ax,) = plots.effect_paths(effects, genes=["CXCL10"], treatment="IFN-beta")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['T cell', 'monocyte']
    """
    keys = ["treatment", "context", "gene", "effect"]
    check_columns(effects, [*keys, "estimate", "spread_lower", "spread_upper"], name="effects")
    check_levels(effects["treatment"], [treatment], name="effects")
    chosen = effects[(effects["treatment"] == treatment) & effects["effect"].isin(list(_PATHS))]
    check_levels(chosen["gene"], genes, name=f"effects of {treatment}")
    shown = levels_of(chosen["context"]) if contexts is None else list(contexts)
    check_levels(chosen["context"], shown, name=f"effects of {treatment}")
    chosen = chosen[chosen["gene"].isin(genes) & chosen["context"].isin(shown)]
    check_unique(chosen, keys, name="effects")
    return _paths_figure(chosen, genes, shown, n_columns)


def _paths_figure(
    effects: pd.DataFrame, genes: Sequence[str], contexts: Sequence[str], n_columns: int
) -> npt.NDArray[Any]:
    height = 0.75 + 0.36 * len(contexts)
    figure, axes = grid(len(genes), n_columns, width=1.9, height=height)
    figure.set_figwidth(figure.get_figwidth() + label_width(contexts))
    paths = {path: style for path, style in _PATHS.items() if path in set(effects["effect"])}
    low, high = min(effects["spread_lower"].min(), 0.0), max(effects["spread_upper"].max(), 0.0)
    margin = 0.06 * (high - low)
    for number, (ax, gene) in enumerate(zip(axes, genes, strict=True)):
        _draw_paths(ax, effects[effects["gene"] == gene], contexts, paths)
        ax.set(xlim=(low - margin, high + margin), ylim=(len(contexts) - 0.4, -0.6))
        first = number % n_columns == 0
        ax.set_yticks(np.arange(len(contexts)), contexts if first else [""] * len(contexts))
        plain(ax, title=gene)
    name_axes(axes, n_columns, xlabel="log fold change")
    treatment = str(effects["treatment"].iloc[0])
    legend_beside(figure, _path_handles(effects, paths), title=treatment)
    return axes


def _draw_paths(
    ax: Axes,
    effects: pd.DataFrame,
    contexts: Sequence[str],
    paths: Mapping[str, tuple[str, str, str]],
) -> None:
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=1)
    for shift, (path, (_, color, marker)) in zip((-0.22, 0.0, 0.22), paths.items(), strict=False):
        part = effects[effects["effect"] == path].set_index("context").reindex(contexts)
        rows = np.arange(len(contexts)) + shift
        ax.hlines(
            rows, part["spread_lower"], part["spread_upper"], color=color, linewidth=1.1, alpha=0.7
        )
        faces = np.where(_is_extrapolated(part), "white", color)
        style: dict[str, Any] = {"s": 18, "marker": marker, "linewidths": 1.0, "zorder": 3}
        ax.scatter(part["estimate"], rows, c=faces, edgecolors=color, **style)


def _is_extrapolated(effects: pd.DataFrame) -> npt.NDArray[np.bool_]:
    if "extrapolated" not in effects:
        return np.zeros(len(effects), dtype=bool)
    return (effects["extrapolated"] == 1).to_numpy()


def _path_handles(effects: pd.DataFrame, paths: Mapping[str, tuple[str, str, str]]) -> list[Line2D]:
    handles = [dot(label, color, marker=marker) for label, color, marker in paths.values()]
    if _is_extrapolated(effects).any():
        handles.append(dot("not seen in training", MUTED, markerfacecolor="white"))
    return handles
