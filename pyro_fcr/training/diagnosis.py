"""What went wrong in a step that was not taken: which term, which cells."""

from __future__ import annotations

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_fcr.graph.runs import Run
from pyro_fcr.objective import Objective
from pyro_fcr.objective.terms import KL, Reconstruction
from pyro_fcr.training.batches import Batches


class NonFiniteError(FloatingPointError):
    """The loss or its gradient was not finite; the parameters are those before that step.

    Parameters
    ----------
    message
        Names step, terms and cells.
    is_reproduced
        Whether a term was not finite when the batch was looked at again.
    """

    def __init__(self, message: str, *, is_reproduced: bool) -> None:
        super().__init__(message)
        self.is_reproduced = is_reproduced


def non_finite_error(
    objective: Objective, batches: Batches, *, rows: Tensor, step: int
) -> NonFiniteError:
    """Look at a batch again and say what is not finite in it.

    Parameters
    ----------
    objective
        The loss, with the parameters from before the bad step.
    batches, rows
        The data set and the cells of that step.
    step
        Its number, from 0.
    """
    with torch.no_grad(), pyro.validation_enabled(is_validate=False):
        losses = objective(batches.batch(rows))
        names = batches.cells.obs_names[rows.numpy()][_bad_cells(objective, losses.run)]
    terms = [name for name, value in losses.terms.items() if not torch.isfinite(value)]
    where = f"terms not finite: {', '.join(terms)}" if terms else _GRADIENT_ONLY
    cells = f"; cells: {', '.join(names[:5])} ({len(names)} of {len(rows)})" if len(names) else ""
    return NonFiniteError(
        f"Training stopped before step {step}: {where}{cells}. The parameters are those of the "
        "step before. Look at these cells for extreme counts, or lower learning_rate.",
        is_reproduced=bool(terms),
    )


_GRADIENT_ONLY = "the terms are finite when looked at again, their gradient or their draw was not"


def _bad_cells(objective: Objective, run: Run) -> np.ndarray:
    bad = torch.zeros(len(run.batch), dtype=torch.bool)
    for term in objective.terms.values():
        if isinstance(term, Reconstruction | KL):
            density = run.prior(term.site).log_prob(run.value(term.site))
            if density.shape == bad.shape:
                bad |= ~torch.isfinite(density).cpu()
    return bad.numpy()
