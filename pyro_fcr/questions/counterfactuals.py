"""Questions about what cells would express."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from pyro_fcr import queries
from pyro_fcr.queries import Fitted, Form, Output, Query, Source


class Responses(Fitted):
    """Predicted cells under conditions and interventions."""

    def predict(
        self,
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
        return queries.predict(self, query, n_cells=n_cells, library=library)

    def counterfactual(  # noqa: PLR0913 (the words of one question)
        self,
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
        source = self.source(adata)
        return queries.counterfactual(self, query, source, hold=hold, library=library)

    def posterior_predictive(
        self,
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
        query = Query(output=output, n_draws=n_draws, seed=seed)
        source = self.source(adata)
        return queries.posterior_predictive(self, query, source, library=library)

    def dose_response(
        self,
        treatment: str,
        *,
        cells: AnnData | Mapping[str, str] | None = None,
        doses: Sequence[float] | None = None,
        genes: Iterable[str] | None = None,
        n_draws: int = 200,
        level: float = 0.9,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Follow a treatment over a grid of doses, in each context.

        Parameters
        ----------
        treatment
            The treatment; a combination needs ``doses``, which its parts all get.
        cells
            Whose curve. None: new cells of each context of training. A mapping with a level for
            every covariate: new cells of this context, latents from their priors. Cells (mostly
            controls): their counterfactuals, latents that the treatment is no cause of held, a
            curve for each context among them.
        doses
            The grid; None takes eight doses over the trained range, evenly on the log scale.
        genes
            Which genes; None takes all.
        n_draws
            Draws per context and dose, at least: so many new cells, or given cells each drawn often
            enough. Every dose is drawn from the same noise, so that curves are smooth.
        level
            Share of the cells within the bands.
        seed
            Of the draws.

        Returns
        -------
        A row per context, dose and gene, dose 0 first. ``estimate`` is the log fold change (natural
        logarithm) of the cells' mean expected share of counts against dose 0 in the same context;
        for log1p data the difference of means. ``lower`` and ``upper`` enclose the middle ``level``
        of single cells, as expected given their latents and against the same mean of dose 0: how
        much cells differ, without the noise of counting, and no standard error of the curve.
        ``extrapolated`` and ``support`` are those of the condition.

        Raises
        ------
        pyro_fcr.QueryError
            The model knows no doses, or none of this treatment to span a grid.
        pyro_fcr.SchemaError
            A treatment, level or dose is none that the model can take; lists the known ones.

        Examples
        --------
        >>> import numpy as np, pyro_fcr
        >>> adata = pyro_fcr.datasets.gbm_panobinostat()
        >>> treated = adata.obs["treatment"] == "panobinostat"
        >>> adata.obs["dose"] = np.where(treated, np.where(np.arange(5000) % 2, 0.1, 1.0), 0.0)
        >>> schema = pyro_fcr.Schema(
        ...     treatment_key="treatment",
        ...     control="control",
        ...     covariate_keys="patient",
        ...     dose_key="dose",
        ... )
        >>> fcr = pyro_fcr.FCR(adata, schema)
        >>> some = list(adata.var_names[:2])
        >>> curve = fcr.dose_response("panobinostat", cells={"patient": "PW030"}, genes=some)
        >>> curve.shape, sorted(set(curve["dose"]))[:2]
        ((18, 9), [0.0, 0.1])
        """
        return queries.dose_response(
            self,
            treatment,
            cells=cells,
            doses=doses,
            genes=genes,
            n_draws=n_draws,
            level=level,
            seed=seed,
        )
