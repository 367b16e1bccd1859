"""Cells of a context under a treatment and under none, as a fitted model predicts them."""

from functools import partial
from typing import Any, Final

import numpy as np
from anndata import AnnData, concat

from pyro_fcr.data.pairs import Mask, Pair, read_layout
from pyro_fcr.metrics.arrays import draw_rows
from pyro_fcr.metrics.profiles import Prediction, predicted_cells
from pyro_fcr.queries import Fitted, counterfactual

_N_TARGETS: Final = 20  # doses that the control cells are spread over, at most


class Arms:
    """Counterfactuals of a context's control cells under a treatment, and under none.

    Treated cells have the depth that training lets expect of the pair: real cells that they are
    compared with have theirs, and so do the conditions that baselines are made of.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        Cells, with the model's genes in its order.
    n_source
        Control cells of a context that are predicted, at most.
    n_draws
        Draws of each.
    seed
        Seed of the choice of cells and of the draws.
    """

    def __init__(
        self,
        fcr: Fitted,
        adata: AnnData,
        *,
        n_source: int,
        n_draws: int,
        seed: int,
    ) -> None:
        self.adata, self.n_source, self.n_draws, self.seed = adata, n_source, n_draws, seed
        self.schema = fcr.registry.schema
        self.layout = read_layout(adata.obs, self.schema)
        self._draw = partial(counterfactual, fcr, n_draws=n_draws, seed=seed)
        self._untreated: dict[tuple[str, ...], AnnData] = {}

    def __call__(self, pair: Pair, *, source: Mask, dosed: Mask) -> tuple[AnnData, AnnData]:
        """Predict the cells of a pair, and of its control.

        Parameters
        ----------
        pair
            The pair.
        source
            Cells of which the control cells of its context are taken, ``(n_cells,)``.
        dosed
            Cells of which those of the pair say the doses; nothing else of them is looked at.
        """
        rows = np.flatnonzero(source & (self.layout.codes == self.layout.control_of(pair)))
        cells = self.adata[rows[draw_rows(len(rows), self.n_source, self.seed)]]
        if pair.context not in self._untreated:
            self._untreated[pair.context] = self._draw(cells, treatment=self.schema.control)
        targets = self._targets(dosed, pair, cells.n_obs)
        treated = concat(
            [self._draw(cells[some], library="target", **target) for some, target in targets]
        )
        return treated, self._untreated[pair.context]

    def predict(self, pair: Pair, *, source: Mask, dosed: Mask) -> Prediction:
        """Predict the change of a pair from its two arms; see :meth:`__call__`."""
        cells = self(pair, source=source, dosed=dosed)
        expression = self.schema.expression
        return predicted_cells(*(c.X for c in cells), expression=expression, n_draws=self.n_draws)

    def _targets(
        self, dosed: Mask, pair: Pair, n_source: int
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Spread source cells over the doses that a pair's cells were given."""
        every = np.arange(n_source)
        if self.schema.dose_key is None or pair not in self.layout.pairs:
            return [(every, {"treatment": pair.treatment})]
        cells = self.adata.obs[dosed & (self.layout.codes == self.layout.pairs.index(pair))]
        given = cells[[self.schema.treatment_key, self.schema.dose_key]].sample(
            min(len(cells), n_source, _N_TARGETS), random_state=np.random.default_rng(self.seed)
        )
        numbers = given.groupby(list(given), sort=False, observed=True).ngroup().to_numpy()
        numbers, doses = numbers[every % len(numbers)], given.drop_duplicates().to_numpy()
        return [
            (np.flatnonzero(numbers == i), {"treatment": str(treatment), "dose": dose})
            for i, (treatment, dose) in enumerate(doses)
        ]
