"""Questions about genes, intervals and quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_fcr import discovery, evaluation, queries
from pyro_fcr.queries import Fitted, Source

if TYPE_CHECKING:
    from pyro_fcr.data import Split


class Measures(Fitted):
    """Effects on genes, draws for ArviZ, and how good the model is."""

    def effects(
        self,
        treatments: Iterable[str] | None = None,
        *,
        n_cells: int = 500,
        level: float = 0.9,
        seed: int = 0,
    ) -> discovery.Effects:
        """Return the effect of treatments on genes in every context, whole and by latent block.

        See :func:`pyro_fcr.effects`, which takes several fits, too. Of one fit the intervals say
        how much cells differ.

        Parameters
        ----------
        treatments
            Labels; None takes all of training, each at its doses.
        n_cells
            Cells drawn for each context.
        level
            Probability of the intervals.
        seed
            Seed of the draws.

        Examples
        --------
        >>> import pyro_fcr
        >>> adata = pyro_fcr.datasets.gbm_panobinostat()
        >>> schema = pyro_fcr.Schema(
        ...     treatment_key="treatment", control="control", covariate_keys="patient"
        ... )
        >>> fcr = pyro_fcr.FCR(adata, schema)
        >>> found = fcr.effects(n_cells=50)
        >>> sorted(set(found.to_frame(["MT1X"])["effect"]))
        ['interaction', 'total', 'z_t', 'z_tx']
        """
        return discovery.effects(
            [self], treatments=treatments, n_cells=n_cells, level=level, seed=seed
        )

    def to_arviz(
        self,
        adata: Source = None,
        *,
        predictions: Mapping[str, Any] | None = None,
        genes: str | Iterable[str] | None = None,
        n_draws: int = 100,
        seed: int = 0,
    ) -> Any:
        """Draw latents and expression of cells, for ArviZ to summarise, plot and store.

        Parameters
        ----------
        adata
            The cells; None takes the model's own. A few hundred are usual: memory is 4 bytes times
            cells, kept genes and draws for each of three groups.
        predictions
            Another condition for the same cells, in the words of
            :meth:`pyro_fcr.FCR.counterfactual`: ``treatment``, ``dose``, ``covariates``, ``hold``.
            None makes no such group.
        genes
            The genes whose expression is kept, in this order; None keeps all.
        n_draws
            Draws per cell.
        seed
            Of the draws; the global random state is left alone.

        Returns
        -------
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with ArviZ 1.x, with the groups

        - ``posterior``: the latents, drawn from the guide given the cells' expression;
        - ``posterior_predictive``: ``y`` with its observation noise, given the latents of the same
          draw in ``posterior``;
        - ``log_likelihood``: ``y`` of a cell given its latents, nats, summed over **all** genes;
        - ``prior``, ``prior_predictive``: latents from their conditional priors under the cells'
          own treatment and covariates, and ``y`` given them;
        - ``predictions``: latents and ``y`` of the same cells under the other condition. What is
          held is that of the same draw in ``posterior``, so that a difference from
          ``posterior_predictive`` is one cell's own;
        - ``observed_data``: ``y``, counts or log1p values as in the schema;
        - ``constant_data``, ``predictions_constant_data``: the sites that are set (``x``, ``t``,
          ...), ``library``, and for each cell the columns of the schema, for the predictions those
          of the target with its ``extrapolated`` and ``support``. A column whose name is taken has
          ``obs_`` before it.

        Dimensions are ``chain`` (one), ``draw``, ``cell``, ``gene``, ``<latent>_dim``, ``<covariate
        site>_level``, ``t_agent`` (``t_feature`` with treatment features). A latent that all cells
        share has no ``cell``.

        Raises
        ------
        ImportError
            ArviZ is not installed.
        pyro_fcr.QueryError
            A gene, the target or ``n_draws`` is none that there is.
        pyro_fcr.SchemaError
            The cells or the target are not what the schema says.

        Notes
        -----
        The spread of ``posterior`` is what the guide leaves open about a cell, that of a predictive
        group has the observation noise in it. Weights of the networks are point estimates: their
        uncertainty is nowhere, unless the model draws them as shared latents.

        The draws are independent, from variational inference: R-hat and effective sample sizes say
        nothing (``az.summary(..., kind="stats")`` leaves them out).

        ``az.loo`` leaves out one cell at a time. Each cell has latents of its own, which the guide
        drew having read that very cell; without it they have only their prior, far from the draws.
        So most Pareto k will be high, and then the estimate is not to be trusted, in either
        direction; and the networks have seen the cell, too. To compare models, take
        :meth:`pyro_fcr.FCR.elbo` of held-out cells.

        Examples
        --------
        >>> import pyro_fcr
        >>> adata = pyro_fcr.datasets.gbm_panobinostat()
        >>> schema = pyro_fcr.Schema(
        ...     treatment_key="treatment", control="control", covariate_keys="patient"
        ... )
        >>> fcr = pyro_fcr.FCR(adata, schema)
        >>> history = fcr.fit(max_epochs=1, progress=False)
        >>> cells, genes = adata[:40].copy(), adata.var_names[:5]
        >>> target = {"treatment": "panobinostat"}
        >>> data = fcr.to_arviz(cells, genes=genes, predictions=target, n_draws=20)
        >>> dict(data.posterior_predictive["y"].sizes)
        {'chain': 1, 'draw': 20, 'cell': 40, 'gene': 5}
        >>> by_patient = data.posterior["z_x"].groupby(data.constant_data["patient"]).mean()
        >>> "patient" in by_patient.dims
        True
        """
        return queries.to_arviz(
            self, adata, predictions=predictions, genes=genes, n_draws=n_draws, seed=seed
        )

    def interval_coverage(
        self,
        adata: Source = None,
        *,
        levels: Sequence[float] = (0.5, 0.9),
        n_draws: int = 200,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Compare single cells with the predictive distribution of new cells of their condition.

        Each value (a gene in a cell) is set against what the model expects of a new cell of the
        same condition and library size: latents from their conditional priors, as the guide would
        have read the cell, then expression with its noise. It is a check of *observation*
        intervals. Of intervals of expected expression given the latents, or of parameters, it says
        nothing: these have no observed counterpart in single cells.

        Parameters
        ----------
        adata
            The cells; None takes those held out in the last fit.
        levels
            Probabilities of the central intervals.
        n_draws
            Draws per cell; they are counted and not kept.
        seed
            Of the draws, and of the places of observed counts among equal ones.

        Returns
        -------
        A row per kind and level, for :func:`pyro_fcr.plots.coverage`. ``kind`` is ``"observation"``
        or, for cells of a condition that training lacked, ``"observation, unseen condition"``;
        ``nominal`` is the level, ``observed`` the share of values inside the interval, ``n`` the
        number of values. The values of a cell depend on one another: ``observed`` is less certain
        than n suggests.

        Raises
        ------
        pyro_fcr.QueryError
            There are no cells, a level is not between 0 and 1, or there are no draws.
        pyro_fcr.SchemaError
            The cells have a level that was never seen; lists the known ones.

        Notes
        -----
        Intervals of counts hold more than their nominal share because counts are discrete; here
        ties between observed and drawn counts are broken at random instead, which is exact
        (:mod:`pyro_fcr.metrics.intervals`).

        Examples
        --------
        >>> import pyro_fcr
        >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::10].copy()
        >>> schema = pyro_fcr.Schema(
        ...     treatment_key="treatment", control="control", covariate_keys="patient"
        ... )
        >>> fcr = pyro_fcr.FCR(adata, schema)
        >>> history = fcr.fit(max_epochs=1, progress=False)
        >>> fcr.interval_coverage(n_draws=20)[["kind", "nominal", "n"]]
                  kind  nominal      n
        0  observation      0.5  15000
        1  observation      0.9  15000
        """
        return queries.interval_coverage(self, adata, levels=levels, n_draws=n_draws, seed=seed)

    def evaluate(
        self,
        adata: Source = None,
        *,
        split: Split | None = None,
        replicate_key: str | None = None,
        seed: int = 0,
    ) -> evaluation.Evaluation:
        """Measure responses, intervals, clusters, independences and identifiability. No refit.

        Parameters
        ----------
        adata
            The cells of the fit, those left out by its ``split_key`` among them; None takes the
            model's own.
        split
            Training and held-out cells as positions in ``adata``; None takes
            :meth:`pyro_fcr.FCR.split_of`.
        replicate_key
            Column of ``obs`` with the replicate (donor, library, plate), which tests of
            independence then respect.
        seed
            Seed of everything random.

        Returns
        -------
        Tables, a page and ten lines; see :func:`pyro_fcr.evaluation.evaluate`, which also takes the
        numbers of draws and cells.

        Raises
        ------
        ValueError
            It is not known which cells trained, or held-out cells are among the training cells.

        Examples
        --------
        >>> import pyro_fcr
        >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::10, :50].copy()
        >>> schema = pyro_fcr.Schema(
        ...     treatment_key="treatment", control="control", covariate_keys="patient"
        ... )
        >>> fcr = pyro_fcr.FCR(adata, schema)
        >>> history = fcr.fit(max_epochs=1, progress=False)
        >>> fcr.evaluate().scenarios
        ['seen pairs']
        """
        return evaluation.evaluate(self, adata, split=split, replicate_key=replicate_key, seed=seed)
