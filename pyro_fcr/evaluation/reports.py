"""What a fit says of itself when it ends: in its history, in the log, and as a warning."""

import logging
import warnings
from typing import Final

import numpy as np
import pandas as pd

from pyro_fcr.evaluation.calibration import Calibration, measure_calibration
from pyro_fcr.evaluation.separation import Separation, measure_separation
from pyro_fcr.metrics.arrays import draw_rows
from pyro_fcr.queries import Fitted
from pyro_fcr.training import Aligned, Batches
from pyro_fcr.training.samples import Sizes

logger = logging.getLogger(__name__)

_JUDGED: Final = 6_000  # training cells by which a fit is told whether its blocks are apart


def report_separation(fcr: Fitted, batches: Batches, *, sizes: Sizes, seed: int) -> None:
    """Say whether the blocks of an aligned fit are apart, and warn if they are not.

    Parameters
    ----------
    fcr
        The model, whose fit has just ended.
    batches
        Its own cells.
    sizes
        Number of dimensions of each block.
    seed
        Seed of the choice of cells and of the draws.
    """
    assert fcr.history is not None
    assert fcr.split is not None
    aligned = Aligned(**fcr.history.attrs["alignment"])
    if aligned.gain is None:
        return
    rows = np.sort(fcr.split.train)[draw_rows(len(fcr.split.train), _JUDGED, seed)]
    found = measure_separation(
        (fcr.model, fcr.guide),
        batches.of(rows).in_order(),
        sizes=sizes,
        claims=fcr.claims(),
        aligned=aligned,
        seed=seed,
    )
    _report(fcr.history, "separation", found)


def report_calibration(fcr: Fitted, *, seed: int, warn: bool) -> None:
    """Say whether interventions give back what training saw, and warn if they do not.

    Parameters
    ----------
    fcr
        The model, whose fit has just ended.
    seed
        Seed of the choice of cells and of the draws.
    warn
        Whether a warning is in place: the training was no short one.
    """
    assert fcr.history is not None
    assert fcr.split is not None
    adata = fcr.source(None)
    train = np.isin(np.arange(adata.n_obs), fcr.split.train)
    found = measure_calibration(fcr, adata, train, seed=seed)
    _report(fcr.history, "calibration", found, warn=warn)


def _report(
    history: pd.DataFrame, name: str, found: Separation | Calibration, *, warn: bool = True
) -> None:
    history.attrs[name] = found.to_dict()
    logger.info("%s", found.line)
    if found.warning and warn:
        warnings.warn(found.warning, stacklevel=6)
