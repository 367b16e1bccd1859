"""The figure of the families: recovery, leak and MCC of every fit."""

import numpy as np

from families_suite.tables import GOOD, with_shares
from pyro_fcr.plots._axes import BLUE, FAINT, INK, MUTED, grid, plain
from pyro_fcr.simulation import FAMILIES

PANELS = {
    "share": "smallest block R2, as a share of the ceiling",
    "found_leak": "largest leak between blocks",
    "found_mcc": "MCC of z_tx",
}


def draw_families(rows):
    """A panel per score; a line per family, a dot per seed, hollow where the fit warned."""
    rows = with_shares(rows[rows["fit"] == "default"])
    names = [name for name in FAMILIES if name in set(rows["family"])]
    figure, axes = grid(len(PANELS), len(PANELS), width=3.4, height=0.32 * len(names) + 0.9)
    for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
        target = GOOD[column.removeprefix("found_")]
        ax.axvline(target, color=INK, linewidth=0.8, linestyle="--")
        for place, name in enumerate(names):
            own = rows[rows["family"] == name]
            ax.axhline(place, color=FAINT, linewidth=0.6, zorder=0)
            if column == "found_mcc":
                ax.plot(own["floor_mcc"].median(), place, "|", color=MUTED, markersize=9)
            spread = np.linspace(-0.18, 0.18, len(own)) if len(own) > 1 else np.zeros(1)
            filled = [BLUE if not warned else "none" for warned in own["warned"]]
            values = own[column].clip(0.0, 1.1)
            ax.scatter(values, place + spread, s=16, c=filled, edgecolors=BLUE, linewidths=0.8)
        kinds = {name: "" if FAMILIES[name].kind == "identified" else "*" for name in names}
        ax.set_yticks(range(len(names)), [name + kinds[name] for name in names])
        ax.invert_yaxis()
        ax.set_title(title, fontsize=8.5)
        plain(ax)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    return figure
