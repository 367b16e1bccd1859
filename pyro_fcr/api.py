"""The front: an AnnData and a schema in, a fitted model, latents and responses out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from pyro_fcr import queries
from pyro_fcr.batch import Batch
from pyro_fcr.data import Cells, Registry, Schema, Split, read_cells, split_cells
from pyro_fcr.draws import posterior_means, posterior_moments
from pyro_fcr.graph import Claim, Graph, claims, read_graph
from pyro_fcr.graph.contract import check_programs, describe_programs
from pyro_fcr.metrics.dimensions import dimension_use
from pyro_fcr.modes import seeded
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.objective import Objective
from pyro_fcr.objective.schedules import Weight
from pyro_fcr.objective.terms import Term
from pyro_fcr.programs import build_programs, example_batch, report_conditions
from pyro_fcr.queries import Form, Query
from pyro_fcr.queries.answers import Output
from pyro_fcr.saving import Saved, find_split, name_split, read_model, write_model
from pyro_fcr.training import Batches, TrainingPlan, fit, mean_terms

_FORMAT = 1
_CHUNK = 2_048  # cells looked at together outside of training


class FCR:
    """Factorized causal representation of perturbed cells.

    Parameters
    ----------
    adata
        The cells, or the path of an h5ad file or zarr store.
    schema
        What its columns mean.
    architecture
        Sizes and likelihood of the shipped programs; what it leaves at None is chosen by the data.
    model, guide
        Pyro programs of your own in place of the shipped ones, both or none.
    seed
        Of the initial parameters.

    Attributes
    ----------
    model, guide
        The Pyro programs.
    registry
        The encoding of the data.
    history
        One row per epoch of the last :meth:`fit`.
    split
        Training and held-out cells of the last :meth:`fit`, as positions in ``adata``.

    Raises
    ------
    pyro_fcr.SchemaError
        The data are not what the schema says; names the culprit and the mend.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.data.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1, progress=False)
    >>> fcr.get_latent_representation("z_x").shape
    (5000, 8)
    >>> source = adata[adata.obs["treatment"] == "control"]
    >>> treated = fcr.counterfactual(source, treatment="panobinostat")
    >>> treated.shape
    (2500, 300)
    """

    def __init__(
        self,
        adata: AnnData | str | Path,
        schema: Schema,
        *,
        architecture: Architecture | None = None,
        model: nn.Module | None = None,
        guide: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        self.adata: AnnData | None = read_cells(adata)
        self._set_up(schema.register(self.adata), architecture, (model, guide), seed)
        self._own_cells: Cells | None = self.registry.encode(self.adata)

    def _set_up(
        self,
        registry: Registry,
        architecture: Architecture | None,
        programs: tuple[nn.Module | None, nn.Module | None],
        seed: int,
    ) -> None:
        self.registry, self.architecture = registry, architecture
        self.history: pd.DataFrame | None = None
        self.split: Split | None = None
        self._named_split: pd.Series | None = None
        self._graph: Graph | None = None
        model, guide = programs
        if (model is None) != (guide is None):
            raise ValueError("Give model and guide both, or neither for the shipped ones.")
        if model is None or guide is None:
            self.architecture = (architecture or Architecture()).resolve(registry)
            model, guide = build_programs(registry, self.architecture, seed=seed)
        self.model, self.guide = model, guide

    def __repr__(self) -> str:
        epochs = 0 if self.history is None else len(self.history)
        return (
            f"FCR: {len(self.registry.genes)} genes, {len(self.registry.conditions)} conditions of "
            f"{len(self.registry.treatments)} treatments, trained for {epochs} epochs"
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    @property
    def graph(self) -> Graph:
        """The causal graph, read from the model."""
        if self._graph is None:
            self._graph = read_graph(self.model, self._example())
        return self._graph

    def claims(self) -> tuple[Claim, ...]:
        """Give the independences that the graph claims: ``str(claim)``, ``claim.words``."""
        return claims(self.graph)

    def inspect(self) -> pd.DataFrame:
        """Check both programs and show them site by site.

        Returns
        -------
        One row per site, see :func:`pyro_fcr.graph.contract.describe_programs`.
        """
        rows = describe_programs(self.model, self.guide, self._example())
        return pd.DataFrame(rows).set_index("site")

    def to(self, device: torch.device | str) -> FCR:
        """Move both programs to a device."""
        self.model.to(device)
        self.guide.to(device)
        return self

    def fit(
        self,
        plan: TrainingPlan | None = None,
        *,
        weights: Mapping[str, Weight] | None = None,
        enforced: Iterable[Claim] | None = None,
        extra: Iterable[Term] = (),
        heldout_fraction: float = 0.1,
        split: Split | None = None,
        checkpoint: str | Path | None = None,
        resume: str | Path | None = None,
        **changes: Any,
    ) -> pd.DataFrame:
        """Train model and guide; keep the state of the best held-out ELBO.

        Parameters
        ----------
        plan
            How to train; None takes the defaults of :class:`pyro_fcr.TrainingPlan`.
        weights
            Weights or schedules of loss terms by name or kind, e.g. ``{"structure": 2.0,
            "kl_z_tx": Ramp(1.0)}``; others keep :data:`pyro_fcr.objective.DEFAULT_WEIGHTS`.
        enforced
            The independences to enforce; None takes :meth:`claims`. A weight of 0 drops one, too.
        extra
            Loss terms of your own, see :class:`pyro_fcr.objective.terms.Extra`.
        heldout_fraction
            Share of the cells of every condition to hold out, where the schema's ``split_key``
            names none as ``"valid"``.
        split
            The cells to train on and to hold out, as positions; None draws them as said above.
        checkpoint, resume
            File to write checkpoints to, and one to go on from.
        **changes
            Fields of the plan, e.g. ``max_epochs=50``.

        Returns
        -------
        The history, see :func:`pyro_fcr.training.fit`.
        """
        plan = replace(plan or TrainingPlan(), **changes)
        cells, adata = self._cells(None), queries.source_cells(self, None)
        self.split = split or split_cells(
            adata.obs, self.registry.schema, heldout_fraction=heldout_fraction, seed=plan.seed
        )
        report_conditions(self.registry, check_programs(self.model, self.guide, self._example()))
        objective = self._objective(weights, enforced, extra, plan.seed)
        self.history = fit(
            objective, cells, split=self.split, plan=plan, checkpoint=checkpoint, resume=resume
        )
        return self.history

    def _objective(
        self,
        weights: Mapping[str, Weight] | None,
        enforced: Iterable[Claim] | None,
        extra: Iterable[Term],
        seed: int,
    ) -> Objective:
        with seeded(seed):
            return Objective.from_programs(
                self.model,
                self.guide,
                self._example(),
                weights=weights,
                enforced=enforced,
                extra=extra,
            )

    def get_latent_representation(
        self, block: str, adata: AnnData | str | Path | None = None, *, labelled: bool = True
    ) -> np.ndarray:
        """Give the posterior mean of a block for cells.

        Parameters
        ----------
        block
            ``"z_x"``, ``"z_t"``, ``"z_tx"``, or another latent of the model.
        adata
            The cells; None takes those of training.
        labelled
            Whether treatment and covariates of the cells are known; if not, the guide must be one
            that reads expression only.

        Returns
        -------
        ``(n_cells, n_latent)``.
        """
        return self._latents(adata, (block,), labelled=labelled)[block]

    def dimension_use(self, adata: AnnData | str | Path | None = None) -> pd.DataFrame:
        """Say which dimensions of each block tell cells apart, and which stay at their prior.

        Blocks may be larger than what there is to say: training leaves the rest unused.

        Parameters
        ----------
        adata
            The cells; None takes those of training.

        Returns
        -------
        Columns ``block, dimension, share, in_use``; see
        :func:`pyro_fcr.metrics.dimension_use`.
        """
        batches = self._batches(self._cells(adata)).in_order()
        moments = posterior_moments(self.model, self.guide, batches, blocks=self.graph.blocks)
        return dimension_use(*moments)

    def add_latents_to(self, adata: AnnData) -> None:
        """Write every block's posterior mean into ``adata.obsm["X_fcr_<block>"]``."""
        for block, values in self._latents(adata, self.graph.blocks).items():
            adata.obsm[f"X_fcr_{block}"] = values

    def _latents(
        self,
        adata: AnnData | str | Path | None,
        blocks: tuple[str, ...],
        *,
        labelled: bool = True,
    ) -> dict[str, np.ndarray]:
        if unknown := set(blocks) - set(self.graph.blocks):
            raise ValueError(
                f"block {sorted(unknown)[0]!r} is no latent of the model; these are: "
                f"{', '.join(self.graph.blocks)}."
            )
        if labelled:
            cells = self._cells(adata)
        else:
            cells = self.registry.encode_expression(queries.source_cells(self, adata))
        batches = self._batches(cells).in_order()
        return posterior_means(self.model, self.guide, batches, blocks=blocks)

    def elbo(self, adata: AnnData | str | Path | None = None, *, seed: int = 0) -> float:
        """Give the evidence lower bound of cells, nats per cell (higher is better).

        Parameters
        ----------
        adata
            The cells; None takes the held-out cells of the last fit, or all of training.
        seed
            Of the draws of the latents.
        """
        batches = self._batches(self._cells(adata))
        if adata is None and self.split is not None and len(self.split.heldout):
            batches.rows = torch.as_tensor(self.split.heldout)
        only = {"structure": 0.0, "permutation": 0.0, "label": 0.0}
        return mean_terms(self._objective(only, None, (), seed), batches, seed=seed)["elbo"]

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
        adata: AnnData | str | Path | None = None,
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
            The source cells; None takes all cells of training.
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
        source = queries.source_cells(self, adata)
        return queries.counterfactual(self, query, source, hold=hold, library=library)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder.

        Parameters
        ----------
        folder
            The folder to be; with ``overwrite`` a model that stands there is replaced.
        overwrite
            Whether that may be.

        Returns
        -------
        The folder, with ``model.json``, ``weights.pt`` and, of a fitted model, ``history.csv`` and
        ``split.csv.gz`` (names of the training and held-out cells; no expression).
        """
        record = {
            "format": _FORMAT,
            "versions": {name: version(name) for name in ("pyro-fcr", "pyro-ppl", "torch")},
            "programs": {"model": _class_name(self.model), "guide": _class_name(self.guide)},
            "architecture": None if self.architecture is None else asdict(self.architecture),
            "registry": self.registry.to_json_dict(),
        }
        weights = {"model": self.model.state_dict(), "guide": self.guide.state_dict()}
        saved = Saved(record, weights, self.history, self._split_by_name())
        return write_model(folder, saved, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        adata: AnnData | str | Path | None = None,
        model: nn.Module | None = None,
        guide: nn.Module | None = None,
    ) -> FCR:
        """Read a model that :meth:`save` wrote, onto the CPU; no data are needed.

        Parameters
        ----------
        folder
            Where it is.
        adata
            Cells that ``adata=None`` will stand for; None if there are none.
        model, guide
            Programs of the saved classes, if they were your own.
        """
        saved = read_model(folder)
        record = saved.record
        if record["architecture"] is None and (model is None or guide is None):
            raise ValueError(
                f"{folder} holds programs of your own, {record['programs']['model']} and "
                f"{record['programs']['guide']}: build them and pass load(..., model=, guide=)."
            )
        architecture = record["architecture"] and Architecture(**record["architecture"])
        self = cls.__new__(cls)
        self._set_up(Registry.from_json_dict(record["registry"]), architecture, (model, guide), 0)
        # An autoguide has no parameters before its first run.
        check_programs(self.model, self.guide, example_batch(self.registry))
        self.model.load_state_dict(saved.weights["model"])
        self.guide.load_state_dict(saved.weights["guide"])
        self.model.eval()
        self.guide.eval()
        self.adata = None if adata is None else read_cells(adata)
        self._own_cells, self.history, self._named_split = None, saved.history, saved.split
        return self

    def split_of(self, adata: AnnData | str | Path | None = None) -> Split:
        """Find the cells of the last fit among given ones, by name.

        Parameters
        ----------
        adata
            The cells; None takes those of training.

        Returns
        -------
        Positions of training and held-out cells in ``adata``; cells in neither were left out of the
        fit, or came after it.

        Raises
        ------
        ValueError
            The model was never fitted or saved by an earlier version, or no training cell is among
            the cells.
        """
        if self.split is not None and (adata is None or adata is self.adata):
            return self.split
        names, named = queries.source_cells(self, adata).obs_names, self._split_by_name()
        if named is None:
            raise ValueError(
                "The model does not know which cells it was fitted to: it was never fitted, or "
                "saved by an earlier version. Pass split=, or fit and save it again."
            )
        found = find_split(named, names)
        if not len(found.train):
            raise ValueError(
                f"None of the {len(names)} cells, such as {names[0]!r}, has the name of a training "
                f"cell, such as {named.index[0]!r}: give the cells of the fit under their names."
            )
        return found

    def _split_by_name(self) -> pd.Series | None:
        if self.split is None or self.adata is None:
            return self._named_split
        return name_split(self.split, self.adata.obs_names)

    def _cells(self, adata: AnnData | str | Path | None) -> Cells:
        if adata is not None and adata is not self.adata:
            return self.registry.encode(adata)
        if self._own_cells is None:
            self._own_cells = self.registry.encode(queries.source_cells(self, None))
        return self._own_cells

    def chunks(self, adata: AnnData | str | Path | None = None) -> Iterator[tuple[Batch, slice]]:
        """Give all cells in order, a few thousand at a time, with their positions.

        Parameters
        ----------
        adata
            The cells; None takes those of training.
        """
        start = 0
        for batch in self._batches(self._cells(adata)).in_order():
            yield batch, slice(start, start + len(batch))
            start += len(batch)

    def _batches(self, cells: Cells) -> Batches:
        return Batches(cells, np.arange(len(cells)), batch_size=_CHUNK, device=self.device)

    def _example(self) -> Batch:
        levels = None if self._own_cells is None else self._own_cells.n_levels
        return example_batch(self.registry, n_levels=levels).to(self.device)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
