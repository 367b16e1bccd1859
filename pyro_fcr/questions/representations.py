"""Questions about the latent blocks of cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.draws import posterior_means, posterior_moments
from pyro_fcr.metrics.dimensions import dimension_use
from pyro_fcr.queries import Fitted, Source


class Latents(Fitted):
    """Latents of cells, as a fitted model encodes them."""

    def get_latent_representation(
        self, block: str, adata: Source = None, *, labelled: bool = True
    ) -> np.ndarray:
        """Return the posterior mean of a block for cells.

        Parameters
        ----------
        block
            ``"z_x"``, ``"z_t"``, ``"z_tx"``, or another latent of the model.
        adata
            The cells; None takes the model's own.
        labelled
            Whether treatment and covariates of the cells are known; if not, the guide must be one
            that reads expression only.

        Returns
        -------
        ``(n_cells, n_latent)``.
        """
        return self._latents(adata, (block,), labelled=labelled)[block]

    def add_latents_to(self, adata: AnnData) -> None:
        """Write every block's posterior mean into ``adata.obsm["X_fcr_<block>"]``."""
        for block, values in self._latents(adata, self.graph.blocks).items():
            adata.obsm[f"X_fcr_{block}"] = values

    def dimension_use(self, adata: Source = None) -> pd.DataFrame:
        """Return which dimensions of each block tell cells apart, and which stay at their prior.

        Blocks may be larger than what there is to say: training leaves the rest unused.

        Parameters
        ----------
        adata
            The cells; None takes the model's own.

        Returns
        -------
        Columns ``block, dimension, share, in_use``; see
        :func:`pyro_fcr.metrics.dimension_use`.
        """
        batches = (batch for batch, _ in self.chunks(adata))
        moments = posterior_moments(self.model, self.guide, batches, blocks=self.graph.blocks)
        return dimension_use(*moments)

    def _latents(
        self,
        adata: Source,
        blocks: tuple[str, ...],
        *,
        labelled: bool = True,
    ) -> dict[str, np.ndarray]:
        if unknown := set(blocks) - set(self.graph.blocks):
            raise ValueError(
                f"Unknown block {sorted(unknown)[0]!r}. The model's latents are "
                f"{', '.join(self.graph.blocks)}."
            )
        batches = (batch for batch, _ in self.chunks(adata, labelled=labelled))
        return posterior_means(self.model, self.guide, batches, blocks=blocks)
