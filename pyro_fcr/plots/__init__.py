"""Figures of a fitted model: its training, its latents, its responses, effects and interactions.

Every function returns axes and leaves pyplot alone: without `ax` it makes a figure of its own, to
be had as ``ax.figure`` and saved with ``ax.figure.savefig(path)``. What is drawn are plain tables
and arrays; no figure knows a model.
"""

from pyro_fcr.plots.doses import dose_response
from pyro_fcr.plots.effect_sizes import effect_paths, interaction_ranking
from pyro_fcr.plots.heatmaps import effect_heatmap
from pyro_fcr.plots.history import loss_by_term
from pyro_fcr.plots.latents import category_colors, latent_umap
from pyro_fcr.plots.predictive import coverage, ppc, ppc_counts
from pyro_fcr.plots.responses import response_panel, response_scatter

__all__ = [
    "category_colors",
    "coverage",
    "dose_response",
    "effect_heatmap",
    "effect_paths",
    "interaction_ranking",
    "latent_umap",
    "loss_by_term",
    "ppc",
    "ppc_counts",
    "response_panel",
    "response_scatter",
]
