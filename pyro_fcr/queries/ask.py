"""Cells that a fitted model expects: under a condition, after an intervention, or as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt
from anndata import AnnData

from pyro_fcr.draws import check_held, held_by_default
from pyro_fcr.queries.answers import Output
from pyro_fcr.queries.blockwise import Asked, answer, chunks_of_new_cells, library_column
from pyro_fcr.queries.fitted import Fitted, Source
from pyro_fcr.queries.targets import Form, Query


def predict(  # noqa: PLR0913 (the words of one question)
    fcr: Fitted,
    treatment: str,
    *,
    covariates: Mapping[str, str],
    dose: Any = None,
    n_cells: int = 500,
    n_draws: int = 1,
    library: npt.ArrayLike | None = None,
    output: Form | Output = "draws",
    seed: int = 0,
) -> AnnData:
    """Draw new cells of a condition from the model alone: latents from their priors, then y.

    Parameters
    ----------
    fcr
        A fitted model.
    treatment, dose
        The treatment or combination; the dose, where the schema has doses.
    covariates
        A level for every covariate, or :data:`pyro_fcr.AVERAGE` to average it out.
    n_cells
        How many cells to draw.
    n_draws
        Draws per cell, which share nothing but the condition: ``n_cells=1, n_draws=1000,
        output="summary"`` sums the condition up in a row.
    library
        Counts per cell: a number, or one for each cell; None takes the training median.
    output, seed
        As in :meth:`counterfactual`.

    Returns
    -------
    Cells with the genes of training; ``obs`` holds the condition, ``extrapolated`` and
    ``support``, ``uns["pyro_fcr"]`` the query; see :meth:`counterfactual`.
    """
    query = Query(
        treatment=treatment,
        covariates=covariates,
        dose=dose,
        output=output,
        seed=seed,
        n_draws=n_draws,
    )
    size = (fcr.registry.target_sum or 1.0) if library is None else library
    obs, column = query.condition_obs(fcr.registry, n_cells), library_column(size, n_cells)
    chunks = chunks_of_new_cells(fcr, fcr.registry.encode_obs(obs), column)
    return answer(fcr, query, Asked(obs=obs), chunks)


def counterfactual(  # noqa: PLR0913 (the words of one question)
    fcr: Fitted,
    adata: Source = None,
    *,
    treatment: str | None = None,
    dose: Any = None,
    covariates: Mapping[str, str] | None = None,
    hold: Iterable[str] | None = None,
    library: npt.ArrayLike | None = None,
    n_draws: int = 1,
    output: Form | Output = "draws",
    seed: int = 0,
) -> AnnData:
    """Predict what given cells would express under another treatment, dose or context.

    Abduct: what is held is drawn from the guide given the cells' expression. Act: the sites
    are set to the target. Predict: all else is drawn from the conditional priors.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The source cells; None takes the model's own.
    treatment, dose, covariates
        The target; what is left out stays as it is in each cell. At least one of them. A
        covariate such as a technical batch can be set to :data:`pyro_fcr.AVERAGE`.
    hold
        Latents that cells keep; None holds every latent that the target is no cause of (z_x
        for another treatment, z_t for another context).
    library
        Counts per cell: a number, or one for each cell; None leaves the cells their own.
    n_draws
        Draws per cell.
    output
        ``"draws"``: drawn counts, ``n_draws`` rows per cell; ``"mean"``: expected counts
        averaged over draws, and their standard deviation in ``layers["sd"]``; ``"summary"``:
        quantiles in ``layers["q05"]`` and the like, too. Or an
        :class:`pyro_fcr.Output`, for the spread of drawn counts, other quantiles, and answers
        that are written to a file within a bound of memory.
    seed
        Of the draws.

    Returns
    -------
    Predicted cells. ``obs`` is that of the source with the target in the schema's columns, the
    source's own values in ``source_<column>``, ``extrapolated`` (no training cell had this
    treatment in this context) and ``support`` (:func:`pyro_fcr.queries.support.support`);
    ``uns["pyro_fcr"]`` holds the query.

    Raises
    ------
    pyro_fcr.SchemaError
        The target has a level that was never seen; lists the known ones.
    pyro_fcr.QueryError
        There is no target, or what is held would undo it.
    """
    query = Query(
        treatment=treatment,
        covariates=covariates or {},
        dose=dose,
        output=output,
        seed=seed,
        n_draws=n_draws,
    )
    source, intervened = fcr.source(adata), query.intervened(fcr.registry.schema)
    held = held_by_default(fcr.graph, intervened) if hold is None else tuple(hold)
    check_held(fcr.graph, held, intervened)
    obs = query.target_obs(source.obs, fcr.registry)
    target = fcr.registry.encode_obs(obs)
    asked = Asked(
        obs=obs,
        held=held,
        do={name: target[name] for name in intervened},
        library=None if library is None else library_column(library, len(obs)),
    )
    return answer(fcr, query, asked, fcr.chunks(source))


def posterior_predictive(
    fcr: Fitted,
    adata: Source = None,
    *,
    n_draws: int = 1,
    output: Form | Output = "draws",
    library: npt.ArrayLike | None = None,
    seed: int = 0,
) -> AnnData:
    """Draw the cells again, as they are: all latents from the guide given the cell, then y.

    It is what the model makes of cells that it is shown, for checks of the model, and no
    prediction: expression that the guide reads is given back. For cells of another condition
    see :meth:`pyro_fcr.FCR.counterfactual`.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes the model's own.
    n_draws
        Draws per cell.
    output
        As in :meth:`pyro_fcr.FCR.counterfactual`.
    library
        Counts per cell of the answer: a number, or one for each cell; None leaves the cells
        their own.
    seed
        Of the draws.

    Returns
    -------
    Cells with the annotation of ``adata``; see :meth:`pyro_fcr.FCR.counterfactual`.

    Raises
    ------
    pyro_fcr.SchemaError
        The cells have a level that was never seen; lists the known ones.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[:20].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(pyro_fcr.datasets.gbm_panobinostat(), schema)
    >>> again = fcr.posterior_predictive(adata, n_draws=10, output="summary")
    >>> again.shape, sorted(name for name in again.layers if name)
    ((20, 300), ['q05', 'q50', 'q95', 'sd'])
    """
    source = fcr.source(adata)
    asked = Asked(
        obs=source.obs.copy(),
        held=fcr.graph.blocks,
        library=None if library is None else library_column(library, source.n_obs),
    )
    query = Query(output=output, n_draws=n_draws, seed=seed)
    return answer(fcr, query, asked, fcr.chunks(source))
