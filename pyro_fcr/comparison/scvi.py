"""scVI beside FCR: latents and counterfactual cells, for the same tables (extra ``[scvi]``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import Registry, Schema, Split, read_cells, register, split_cells
from pyro_fcr.data.treatments import canonical_label
from pyro_fcr.modes import seeded
from pyro_fcr.queries import Query, condition_marks
from pyro_fcr.ranks import check_alone
from pyro_fcr.values import checked

_TREATMENT = "treatment"


@dataclass(frozen=True, eq=False)
class ScviFit:
    """A fitted scVI: treatments are its batches, covariates its categorical covariates.

    Its encoder reads expression only, its decoder the latent, treatment and covariates, so that
    pairs never seen together get an answer.

    Parameters
    ----------
    model
        The ``scvi.model.SCVI``.
    registry
        The encoding of the data.
    adata
        The cells of training.
    """

    model: Any
    registry: Registry
    adata: AnnData

    def latents(self, adata: AnnData | str | Path | None = None) -> dict[str, np.ndarray]:
        """Return the posterior mean, which stands for all three blocks of FCR.

        Parameters
        ----------
        adata
            The cells; None takes those it was trained on.

        Returns
        -------
        ``{"z_x": (n_cells, n_latent), "z_t": ..., "z_tx": ...}``, all the same.
        """
        cells = _cells(self.adata if adata is None else read_cells(adata), self.registry)
        with seeded(0):  # the means are no draws, but scVI draws on its way to them
            latent = self.model.get_latent_representation(cells)
        return dict.fromkeys(("z_x", "z_t", "z_tx"), latent)

    def counterfactual(
        self, adata: AnnData | str | Path | None = None, *, treatment: str, seed: int = 0
    ) -> AnnData:
        """Draw the cells again with their latent kept and the treatment of the decoder changed.

        Parameters
        ----------
        adata
            The source cells; None takes those it was trained on.
        treatment
            The target, one of the treatments of training.
        seed
            Seed of the draws.

        Returns
        -------
        Drawn counts; ``obs`` as in :meth:`pyro_fcr.FCR.counterfactual`.

        Raises
        ------
        pyro_fcr.SchemaError
            If an agent or a covariate's level was never seen.
        ValueError
            If the combination of agents was never seen: scVI knows treatments by their names.
        """
        source = self.adata if adata is None else read_cells(adata)
        obs = Query(treatment=treatment).target_obs(source.obs, self.registry)
        obs = obs.assign(**condition_marks(obs, self.registry))
        target = self.registry.canonical(treatment)
        if target not in self.registry.treatments:
            raise ValueError(
                f"Unknown treatment {target!r}: scVI was not trained with it and cannot add up "
                f"agents. It knows {', '.join(self.registry.treatments)}."
            )
        with seeded(seed):
            drawn = self.model.posterior_predictive_sample(
                _cells(source, self.registry), transform_batch=target
            )
        genes = pd.DataFrame(index=pd.Index(self.registry.genes, dtype=str))
        return AnnData(drawn.to_scipy_sparse().tocsr(), obs=obs, var=genes)


@checked()
def fit_scvi(
    adata: AnnData | str | Path,
    schema: Schema,
    *,
    n_latent: int = 24,
    split: Split | None = None,
    seed: int = 0,
    **train: Any,
) -> ScviFit:
    """Fit scVI (Lopez et al. 2018, Nature Methods 15:1053) with its own defaults.

    Parameters
    ----------
    adata, schema
        As in :class:`pyro_fcr.FCR`; raw counts, without doses. The cells are copied.
    n_latent
        Number of dimensions of the latent; FCR has n_x + n_t + n_tx.
    split
        The cells to train on and to hold out, as positions; None draws them as
        :meth:`pyro_fcr.FCR.fit` does.
    seed
        Seed of initial parameters, held-out cells, batches and draws.
    **train
        As in ``scvi.model.SCVI.train``, e.g. ``max_epochs=50``.

    Raises
    ------
    ImportError
        If scvi-tools is not installed.
    ValueError
        If the schema has doses, or expression other than counts, or several processes run this
        program.

    Examples
    --------
    >>> import pyro_fcr
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> cells = pyro_fcr.datasets.gbm_panobinostat()
    >>> fit = fit_scvi(cells, schema, max_epochs=50)  # doctest: +SKIP
    >>> drawn = fit.counterfactual(cells, treatment="panobinostat")  # doctest: +SKIP
    """
    check_alone("scVI")
    _check(schema)
    scvi = _import_scvi()
    adata = read_cells(adata)
    registry = register(adata, schema)[0]
    split = split or split_cells(adata.obs, schema, seed=seed)
    cells = _cells(adata, registry)
    scvi.model.SCVI.setup_anndata(
        cells, batch_key=_TREATMENT, categorical_covariate_keys=list(schema.covariate_keys)
    )
    with seeded(seed):
        model = scvi.model.SCVI(cells, n_latent=n_latent)
        indexing = {"external_indexing": [split.train, split.heldout]}
        model.train(datasplitter_kwargs=indexing, **train)
    return ScviFit(model, registry, adata)


def _check(schema: Schema) -> None:
    if schema.expression != "counts":
        raise ValueError(
            f"scVI needs counts, but the schema has expression={schema.expression!r}. Name the "
            "layer that holds them."
        )
    if schema.dose_key is not None:
        raise ValueError(
            f"scVI knows no doses, but the schema has dose_key={schema.dose_key!r}. Leave it out, "
            "or make each dose a treatment of its own."
        )


def _import_scvi() -> Any:
    try:
        import scvi  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "scvi-tools is not installed. Install it with: pip install 'pyro-fcr[scvi]'."
        ) from error
    return scvi


def _cells(adata: AnnData, registry: Registry) -> AnnData:
    """Copy cells with the registered genes, and treatments in their one spelling."""
    schema, encoded = registry.schema, registry.encode(adata)
    design = registry.read_design(adata.obs)
    contexts = np.array(design.contexts)[design.x].T
    columns: dict[str, Any] = dict(zip(schema.covariate_keys, contexts, strict=True))
    columns[_TREATMENT] = [canonical_label(design.treatments[t].agents, schema) for t in design.t]
    obs = pd.DataFrame(columns, index=adata.obs_names)
    genes = pd.DataFrame(index=pd.Index(registry.genes, dtype=str))
    return AnnData(encoded.expression.copy(), obs=obs, var=genes)
