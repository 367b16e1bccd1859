"""The same cells in another world: counterfactuals of single cells, with their noise kept."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from anndata import AnnData

from pyro_fcr.draws import Noise, QueryError, TwinResponder
from pyro_fcr.queries.answers import Output
from pyro_fcr.queries.ask import answer
from pyro_fcr.queries.fitted import Fitted, Source
from pyro_fcr.queries.libraries import Library, depth_of
from pyro_fcr.queries.targets import Form, Query, intervene
from pyro_fcr.values import check_choice, checked


@checked(error=QueryError)
def unit_counterfactual(  # noqa: PLR0913 (the words of one question)
    fcr: Fitted,
    adata: Source = None,
    *,
    treatment: str | None = None,
    dose: Any = None,
    covariates: Mapping[str, str] | None = None,
    hold: Iterable[str] | None = None,
    outcome_noise: Noise = "drawn",
    library: Library = "own",
    n_draws: int = 1,
    output: Form | Output = "draws",
    seed: int = 0,
) -> AnnData:
    """Predict what these very cells would express, had their treatment been another one.

    The three steps of Pearl in twin worlds. Abduct: all latents are drawn from the guide given the
    cell, and with them the noise that made them of the cell's own causes. Act: the sites are set to
    the target. Predict: the same noise makes the latents of their new causes. A cell that lies a
    standard deviation above the mean of its condition in z_t does so under the target, where
    :meth:`pyro_fcr.FCR.counterfactual` draws z_t anew. Under the cell's own treatment nothing
    changes (consistency): the answer is that of :meth:`pyro_fcr.FCR.posterior_predictive`.

    How far the noise of a cell and its response belong together is not in the data, where no cell
    has been seen twice: it is the family of the priors that says so. Means over many cells are
    those of :meth:`pyro_fcr.FCR.counterfactual` as far as the guide is right.

    Parameters
    ----------
    fcr
        A fitted model.
    adata, treatment, dose, covariates, library, n_draws, output, seed
        As in :meth:`pyro_fcr.FCR.counterfactual`.
    hold
        Labels that stay as measured though the target would change them, by their sites.
    outcome_noise
        What becomes of the noise of expression, beyond the latents. ``"drawn"``: it is drawn anew,
        or left out of expected expression, so that an own treatment gives the cell back up to this
        noise. ``"kept"``: it is abducted, too, and an own treatment gives back the measured values;
        for likelihoods whose noise can be read off a value, as of a Normal on log1p data.

    Returns
    -------
    Predicted cells, as from :meth:`pyro_fcr.FCR.counterfactual`; ``uns["pyro_fcr"]["world"]`` is
    ``"twin"``.

    Raises
    ------
    pyro_fcr.SchemaError
        The target has a level that was never seen; lists the known ones.
    pyro_fcr.QueryError
        There is no target, or the noise of a site cannot be read off a value; names the site.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> cells = adata[adata.obs["treatment"] == "control"][:20].copy()
    >>> treated = fcr.unit_counterfactual(cells, treatment="panobinostat", output="mean")
    >>> treated.shape, treated.uns["pyro_fcr"]["world"]
    ((20, 300), 'twin')
    """
    query = Query(
        treatment=treatment,
        covariates=covariates or {},
        dose=dose,
        output=output,
        seed=seed,
        n_draws=n_draws,
    )
    check_choice("outcome_noise", outcome_noise, get_args(Noise), error=QueryError)
    labels = tuple(hold or ())
    if latents := [site for site in labels if site not in fcr.graph.known]:
        raise QueryError(
            f"hold: {latents[0]!r} is no label. The noise of all latents is kept anyway."
        )
    source = fcr.source(adata)
    asked = replace(intervene(fcr, query, source.obs, hold=labels or None), held=labels)
    twins = TwinResponder(fcr.model, fcr.guide, fcr.graph, hold=labels, noise=outcome_noise)
    depth, about = depth_of(fcr, asked, source, library), {"world": "twin", "noise": outcome_noise}
    chunks = partial(fcr.chunks, source)
    return answer(fcr, query, asked, chunks, depth, responder=twins, **about)
