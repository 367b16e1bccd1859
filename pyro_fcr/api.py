"""The front: an AnnData and a schema in, a fitted model, latents and responses out."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from pyro_fcr import discovery, evaluation, queries
from pyro_fcr.batch import Batch
from pyro_fcr.data import (
    OwnCells,
    Registry,
    Schema,
    Split,
    open_cells,
    register,
    split_cells,
)
from pyro_fcr.graph import (
    Claim,
    Graph,
    adopt_programs,
    check_by_acting,
    check_programs,
    claims,
    describe_programs,
    read_graph,
)
from pyro_fcr.graph.contract import Checked
from pyro_fcr.metrics import nan_to_null
from pyro_fcr.metrics.chances import Chances
from pyro_fcr.modes import looking, seeded
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.objective import Objective, Term, Weight, importance_bound
from pyro_fcr.params import as_module, dtype_of, name_of
from pyro_fcr.programs import (
    build_programs,
    example_batch,
    foretell_unseen,
    report_conditions,
    report_independences,
)
from pyro_fcr.queries import Source
from pyro_fcr.queries.refitting import check_split
from pyro_fcr.ranks import from_first, rank
from pyro_fcr.saving import (
    RECORD,
    TRAIN,
    Saved,
    fetch_folder,
    find_split,
    load_weights,
    model_card,
    name_split,
    push_folder,
    read_model,
    reading,
    write_model,
)
from pyro_fcr.training import (
    Batches,
    Callback,
    CheckpointError,
    TrainingPlan,
    check_callbacks,
    check_checkpoint_place,
    fit,
    mean_terms,
)
from pyro_fcr.training.plan import changed_plan
from pyro_fcr.values import checked

logger = logging.getLogger(__name__)

_CHUNK = 2_048  # cells looked at together outside of training
_SAME_PROGRAMS = "Pass model= and guide= as they were built when they were saved."


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
        Pyro programs of your own in place of the shipped ones, both or none: modules or functions
        of a batch. What they train (``pyro.param``, networks) is trained and saved with them.
    seed
        Seed of the initial parameters.
    memory
        How much memory the expression may take, as ``"2GB"`` or bytes; None stands for half of what
        is free. Of a file, or a backed AnnData, that takes more, cells are read as they are needed.

    Attributes
    ----------
    model, guide
        The Pyro programs.
    registry
        The encoding of the data.
    history
        One row per epoch of the last :meth:`fit`.
    split
        Training and held-out cells of the last :meth:`fit`, as positions in :attr:`obs_names`.
    notes
        Words of your own for the card of a saved model, in Markdown: where the cells are from, what
        the model is for. Empty at first.
    chances
        Where the model's answers beat simple ones, after :meth:`leave_pairs_out`.

    Notes
    -----
    The model owns what it needs of ``adata``: a copy of the expression and of ``obs``. What is done
    to ``adata`` later does not reach it. Cells that are passed to a method are taken as they are;
    where they bear the names of the model's own but differ from them, a line in the log says so.

    Raises
    ------
    pyro_fcr.SchemaError
        The data are not what the schema says; names the culprit and the mend.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
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

    @checked()
    def __init__(
        self,
        adata: AnnData | str | Path,
        schema: Schema,
        *,
        architecture: Architecture | None = None,
        model: Callable | None = None,
        guide: Callable | None = None,
        seed: int = 0,
        memory: str | int | None = None,
    ) -> None:
        given = open_cells(adata)
        registry, cells = register(given, schema, memory=memory)
        self._set_up(registry, architecture, (model, guide), seed)
        self._own_cells: OwnCells | None = OwnCells(
            given, registry, cells=cells, obsm=self._latents_among(given)
        )

    def _set_up(
        self,
        registry: Registry,
        architecture: Architecture | None,
        programs: tuple[Callable | None, Callable | None],
        seed: int,
    ) -> None:
        model, guide = programs
        if (model is None) != (guide is None):
            raise ValueError("Give model and guide both, or neither for the shipped ones.")
        self.registry, self.architecture, self.notes = registry, architecture, ""
        if model is None or guide is None:
            self.architecture = (architecture or Architecture()).resolve(registry)
            model, guide = build_programs(registry, self.architecture, seed=seed)
        self._take_programs(model, guide)

    def _take_programs(self, model: Callable, guide: Callable) -> None:
        self.model, self.guide = as_module(model), as_module(guide)
        self.history: pd.DataFrame | None = None
        self.split: Split | None = None
        self._named_split: pd.Series | None = None
        self._graph: Graph | None = None
        self._initial: dict[str, Any] | None = None
        self.chances: Chances | None = None
        adopt_programs(
            self.model, self.guide, example_batch(self.registry).to(self.device, self.dtype)
        )

    def _latents_among(self, adata: AnnData) -> list[str]:
        """Return names in ``obsm`` that are the model's: the true latents of simulated cells."""
        return [name for name in adata.obsm if hasattr(self.model, name)]

    def __repr__(self) -> str:
        registry = self.registry
        size = "" if self._own_cells is None else f"{len(self.obs_names)} cells, "
        return (
            f"FCR: {size}{len(registry.genes)} genes, {len(registry.conditions)} conditions of "
            f"{len(registry.treatments)} treatments, {self._fitted}"
        )

    @property
    def _fitted(self) -> str:
        if self.history is None:
            return "not fitted"
        attrs = self.history.attrs
        parts = [attrs[key] for key in ("start", "stopped") if key in attrs]
        if "separation" in attrs:
            parts.append("blocks apart" if attrs["separation"]["separated"] else "blocks NOT apart")
        said = "; ".join(parts)
        return f"fitted for {len(self.history)} epochs" + (f" ({said})" if said else "")

    @property
    def obs_names(self) -> pd.Index:
        """Names of the model's own cells, in their order.

        Raises
        ------
        ValueError
            The model was loaded without data.
        """
        return self.source(None).obs_names

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self._programs.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters; cells are turned to it."""
        return dtype_of(self._programs)

    @property
    def graph(self) -> Graph:
        """The causal graph, read from the model."""
        if self._graph is None:
            self._graph = read_graph(self.model, self._example())
        return self._graph

    def claims(self) -> tuple[Claim, ...]:
        """Return the independences that the graph claims: ``str(claim)``, ``claim.words``."""
        return claims(self.graph)

    def inspect(self) -> pd.DataFrame:
        """Check both programs and show them site by site.

        Both are acted on as before a first fit: values of sites, and of cells, are set one at a
        time, and what moves must be an effect in the graph.

        Returns
        -------
        One row per site, see :func:`pyro_fcr.graph.contract.describe_programs`.
        """
        rows = describe_programs(self.model, self.guide, self._example())
        self._check_by_acting()
        return pd.DataFrame(rows).set_index("site")

    def _check_by_acting(self) -> None:
        """Act on both programs; raise where the graph that was read from them is not theirs."""
        own, cells = self._own_cells, self._example()
        if own is not None and own.is_encoded:
            n_cells = len(own.cells)
            cells = own.cells.batch(np.arange(0, n_cells, -(-n_cells // 8)))
            cells = cells.to(self.device, self.dtype)
        check_by_acting(self.model, self.graph, cells)
        check_by_acting(self.guide, read_graph(self.guide, cells), cells, reads=True)

    def with_programs(self, model: Callable, guide: Callable) -> FCR:
        """Return a model of the same cells that is not fitted, with other programs."""
        other = copy.copy(self)
        other._take_programs(model, guide)
        return other

    def to(self, device: torch.device | str) -> FCR:
        """Move both programs to a device."""
        self.model.to(device)
        self.guide.to(device)
        return self

    @checked()
    def fit(  # noqa: PLR0913 (the words of one call)
        self,
        plan: TrainingPlan | None = None,
        *,
        weights: Mapping[str, Weight] | None = None,
        enforced: Iterable[Claim] | None = None,
        extra: Iterable[Term] = (),
        heldout_fraction: float = 0.1,
        split: Split | None = None,
        warm_start: bool = False,
        callbacks: Iterable[Callback] = (),
        checkpoint: str | Path | None = None,
        resume: str | Path | None = None,
        **changes: Any,
    ) -> pd.DataFrame:
        """Train model and guide; keep the state of the best held-out ELBO.

        A model that was fitted before starts anew from its initial parameters. Under ``torchrun``
        every process calls it with the same cells, and takes its part of each batch, see
        :func:`pyro_fcr.training.fit`.

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
            Loss terms of your own, see :class:`pyro_fcr.objective.Extra`.
        heldout_fraction
            Share of the cells of every condition to hold out, where the schema's ``split_key``
            names none as ``"valid"``.
        split
            The cells to train on and to hold out, as positions in :attr:`obs_names`; None draws
            them as said above.
        warm_start
            Whether to go on from the parameters of the last fit, on the same split.
        callbacks
            Functions that are called after each epoch with its number, from 0, and its row of the
            history, in each of several processes. One that returns True ends the training.
        checkpoint, resume
            File to write checkpoints to, and one to go on from. SIGTERM writes one, and then ends
            the process with 143.
        **changes
            Fields of the plan, e.g. ``max_epochs=50``.

        Returns
        -------
        The history, see :func:`pyro_fcr.training.fit`; ``attrs["start"]`` says what it began with,
        and ``attrs["separation"]`` of aligned latents whether the blocks are apart, as a line in
        the log does, see :class:`pyro_fcr.evaluation.Separation`. There is a warning if they are
        not. ``attrs["calibration"]`` of trainings of 500 steps or more says whether counterfactuals
        give back the responses that training saw, see
        :class:`pyro_fcr.evaluation.Calibration`, with a warning from 2,000 on.

        Raises
        ------
        pyro_fcr.ProgramError
            The programs do not fit together, or depend on what their graph does not show.
        ValueError
            ``split`` is given with ``warm_start``, which keeps the split of the last fit, or lacks
            a pair of treatment and context that the model was made to know; or
            ``resume`` is no checkpoint of a run on these cells, split, programs and settings.
        OSError
            ``checkpoint`` cannot be written, or a file that is no checkpoint stands there.
        """
        plan, callbacks = changed_plan(plan, changes), check_callbacks(callbacks)
        if checkpoint is not None:
            checkpoint = from_first(partial(check_checkpoint_place, checkpoint))
        own = self._own()
        cells = own.cells
        checked = check_programs(self.model, self.guide, self._example())
        if not self._was_begun:
            self._check_by_acting()
        split = self._split_to_fit(split, heldout_fraction, warm_start=warm_start, seed=plan.seed)
        start, former = (
            self._start(warm_start=warm_start, resume=resume),
            (self.split, self.history),
        )
        self.split, self.history = split, None
        own.warn_if_changed()
        report_conditions(own.registry, checked)  # refits on parts of the cells say no more
        report_independences(checked.graph)
        with seeded(plan.seed):
            objective = Objective.of_checked(
                checked, self._example(), weights=weights, enforced=enforced, extra=extra
            )
        try:
            self.history = fit(
                objective,
                cells,
                split=split,
                plan=plan,
                callbacks=callbacks,
                checkpoint=checkpoint,
                resume=resume,
            )
        except CheckpointError:  # nothing is trained yet
            self.split, self.history = former
            raise
        foretell_unseen(self.model)
        self.history.attrs["start"] = start
        self._say_how_it_went(checked, plan)
        return self.history

    def _split_to_fit(
        self, asked: Split | None, heldout_fraction: float, *, warm_start: bool, seed: int
    ) -> Split:
        if warm_start and self._was_begun:
            if asked is not None:
                raise ValueError("warm_start keeps the split of the last fit: leave out split=.")
            return self.split_of()
        if asked is not None:
            check_split(self, asked)
            return asked
        obs, schema = self._own().adata.obs, self.registry.schema
        return split_cells(obs, schema, heldout_fraction=heldout_fraction, seed=seed)

    def _say_how_it_went(self, checked: Checked, plan: TrainingPlan) -> None:
        assert self.history is not None
        assert self.split is not None
        sizes = {site: checked.run.value(site).shape[-1] for site in checked.graph.latents}
        batches = self._batches()
        evaluation.report_separation(self, batches, sizes=sizes, seed=plan.seed)
        size = len(self.history), len(self.split.train)
        if plan.is_worth_judging(*size):
            evaluation.report_calibration(self, seed=plan.seed, warn=plan.is_full(*size))

    @property
    def _was_begun(self) -> bool:
        """Whether a fit has changed the parameters, were it one that failed."""
        return self.split is not None or self.history is not None

    @property
    def _programs(self) -> nn.ModuleDict:
        return nn.ModuleDict({"model": self.model, "guide": self.guide})

    def _initial_state(self) -> dict[str, Any]:
        """Return the parameters from before the first fit, which are copied at the first call."""
        if self._initial is None:
            self._initial = copy.deepcopy(self._programs.state_dict())
        return self._initial

    def _start(self, *, warm_start: bool, resume: str | Path | None) -> str:
        """Put the parameters to where a fit begins, and say where that is."""
        initial = self._initial_state()
        if resume is not None:
            return f"resumed from {resume}"
        if not self._was_begun:
            return "from initial parameters"
        n_epochs = 0 if self.history is None else len(self.history)
        if warm_start:
            return f"went on from {n_epochs} epochs"
        self._programs.load_state_dict(initial)
        logger.info(
            "The model was fitted before, for %d epochs. This fit starts anew from its initial "
            "parameters; fit(warm_start=True) would go on.",
            n_epochs,
        )
        return "anew from initial parameters"

    # Questions: functions of the rooms below, of which the model is the first argument.
    get_latent_representation = queries.get_latent_representation
    add_latents_to = queries.add_latents_to
    label_blind_latents = queries.label_blind_latents
    dimension_use = queries.dimension_use
    predict = queries.predict
    counterfactual = queries.counterfactual
    unit_counterfactual = queries.unit_counterfactual
    posterior_predictive = queries.posterior_predictive
    dose_response = queries.dose_response
    interval_coverage = queries.interval_coverage
    to_arviz = queries.to_arviz
    effects = discovery.effects

    def evaluate(self, adata: Source = None, **settings: Any) -> evaluation.Evaluation:
        """Measure the model; see :func:`pyro_fcr.evaluation.evaluate` for the settings."""
        return evaluation.evaluate(self, adata, **settings)

    def leave_pairs_out(self, **settings: Any) -> evaluation.PairsOut:
        """Predict each pair by fits that lack it; keep where the model beats simple methods.

        This model is not refitted. Its predictions then hold ``chance`` in ``obs``, and
        :meth:`predict` knows when to fall back on the simple method.

        Parameters
        ----------
        **settings
            As in :func:`pyro_fcr.evaluation.leave_pairs_out`, those of :meth:`fit` among them.
        """
        found = evaluation.leave_pairs_out(self, **settings)
        self.chances = found.chances
        return found

    @checked()
    def elbo(self, adata: Source = None, *, seed: int = 0) -> float:
        """Return the evidence lower bound of cells, nats per cell (higher is better).

        Parameters
        ----------
        adata
            The cells; None takes the held-out cells of the last fit, or all of the model's own.
        seed
            Seed of the draws of the latents.
        """
        batches = self._judged(adata)
        only = {"structure": 0.0, "permutation": 0.0, "label": 0.0}
        with seeded(seed):
            loss = Objective.from_programs(self.model, self.guide, self._example(), weights=only)
        return mean_terms(loss, batches, seed=seed)["elbo"]

    def log_evidence(self, n_particles: int = 100, adata: Source = None, *, seed: int = 0) -> float:
        """Return an importance-weighted bound of the log evidence, nats per cell.

        It is the ELBO for one particle and rises to the evidence with their number: what it is
        above :meth:`elbo` is what the guide's family loses (Burda et al. 2016).

        Parameters
        ----------
        n_particles
            Number of draws of each cell's latents.
        adata, seed
            As in :meth:`elbo`.
        """
        batches, bounds = self._judged(adata), []
        with looking(self.model, self.guide, seed=seed, device=self.device):
            for batch in batches.in_order():
                bound = importance_bound(self.model, self.guide, batch, n_particles)
                bounds.append(bound.item() * len(batch))
        return sum(bounds) / len(batches.rows)

    def _judged(self, adata: Source) -> Batches:
        """Return given cells, or the held-out ones of the last fit, or all."""
        batches = self._batches(adata)
        if adata is None and self.split is not None and len(self.split.heldout):
            batches.rows = torch.as_tensor(self.split.heldout)
        return batches

    @checked()
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder; of several processes the first one does.

        Parameters
        ----------
        folder
            The folder to be; with ``overwrite`` a model that stands there is replaced, and nothing
            else is. Readers find the former model or the new one, whatever happens meanwhile.
        overwrite
            Whether that may be.

        Returns
        -------
        The folder, with ``model.json``, ``weights.safetensors``, a model card (``README.md``: data,
        design, checks, questions, limits and :attr:`notes`) and, of a fitted model,
        ``history.csv`` and ``split.csv.gz`` (names of the training and held-out cells; no
        expression). In a folder that held a model their names have a digest, as ``model.json``
        says.

        Raises
        ------
        FileExistsError
            A model stands there, without ``overwrite``, or something else does.
        OSError
            Nothing can be written there, or the disk is full. The model is still at hand: save it
            elsewhere.
        """
        if rank() > 0:
            return Path(folder)
        record = {
            "versions": {name: version(name) for name in ("pyro-fcr", "pyro-ppl", "torch")},
            "programs": {"model": name_of(self.model), "guide": name_of(self.guide)},
            "architecture": None if self.architecture is None else asdict(self.architecture),
            "registry": self.registry.to_json_dict(),
            "notes": str(self.notes),
            "chances": None if self.chances is None else nan_to_null(self.chances.to_dict()),
        }
        weights = {"model": self.model.state_dict(), "guide": self.guide.state_dict()}
        card = model_card(self.registry, record, self.history)
        saved = Saved(record, weights, self.history, self._split_by_name(), card)
        return write_model(folder, saved, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Save the model to a repository of the Hugging Face Hub, which shows its card.

        ``split.csv.gz`` holds the names of the cells, and the history what training logged; no
        expression is uploaded.

        Parameters
        ----------
        repo_id
            The repository, as ``"lab/screen"``; it is made if it is not there.
        private
            Whether a new repository is private.
        token, endpoint
            Access token and address of the Hub; None takes those of huggingface_hub.

        Returns
        -------
        The address of the commit.

        Raises
        ------
        ImportError
            The extra ``hub`` is not installed.
        """
        with tempfile.TemporaryDirectory() as folder:
            place = self.save(Path(folder) / "model")
            return push_folder(place, repo_id, private=private, token=token, endpoint=endpoint)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        **loading: Any,
    ) -> FCR:
        """Read a model from a repository of the Hugging Face Hub; its files hold no code.

        Parameters
        ----------
        repo_id
            The repository, as ``"lab/screen"``.
        revision
            Branch, tag or commit; None takes the newest.
        token, endpoint
            As in :meth:`push_to_hub`.
        **loading
            As in :meth:`load`: ``adata``, ``model``, ``guide``.

        Raises
        ------
        ImportError
            The extra ``hub`` is not installed.
        ValueError, FileNotFoundError
            As :meth:`load`: the repository holds no model, or a damaged one.
        """
        folder = fetch_folder(repo_id, revision=revision, token=token, endpoint=endpoint)
        return cls.load(folder, **loading)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        adata: Source = None,
        model: Callable | None = None,
        guide: Callable | None = None,
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

        Raises
        ------
        FileNotFoundError
            The folder holds no model.
        ValueError
            A file of the model is missing, damaged or of another model, a later version wrote it,
            or it holds programs of your own, which differ from those that are passed.
        """
        saved, path, own = read_model(folder), Path(folder) / RECORD, model is not None
        with reading(path):
            record = saved.record
            registry = Registry.from_json_dict(record["registry"])
            architecture = record["architecture"] and Architecture(**record["architecture"])
            chances = record.get("chances") and Chances.from_dict(record["chances"])
            names = [str(record["programs"][program]) for program in ("model", "guide")]
        if architecture is None and (model is None or guide is None):
            raise ValueError(
                f"{folder} holds programs of your own, {names[0]} and {names[1]}: build them and "
                "pass load(..., model=, guide=)."
            )
        self = cls.__new__(cls)
        with nullcontext() if own else reading(path):
            self._set_up(registry, architecture, (model, guide), 0)
        self._initial_state()
        with reading(path.parent, mend=_SAME_PROGRAMS) if own else reading(path.parent):
            load_weights(self.model, saved.weights["model"])
            load_weights(self.guide, saved.weights["guide"])
        self.model.eval()
        self.guide.eval()
        self.history, self._named_split = saved.history, saved.split
        if self.history is not None:
            foretell_unseen(self.model)
        self._own_cells, self.notes = None, str(record.get("notes", ""))
        self.chances = chances or None
        self._own_cells = None
        if adata is not None:
            given = open_cells(adata)
            self._own_cells = OwnCells(given, self.registry, obsm=self._latents_among(given))
        return self

    def split_of(self, adata: Source = None) -> Split:
        """Find the cells of the last fit among given ones, by name.

        Parameters
        ----------
        adata
            The cells; None takes the model's own.

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
        if self.split is not None and self._is_own(adata):
            return self.split
        names, named = self.source(adata).obs_names, self._split_by_name()
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
        if self.split is None:
            return self._named_split
        return name_split(self.split, self.obs_names)

    def source(self, adata: Source) -> AnnData:
        """Return the cells that a question is about; None stands for the model's own.

        Raises
        ------
        ValueError
            The model was loaded without data.
        """
        return self._own().adata if adata is None else open_cells(adata)

    def _own(self) -> OwnCells:
        if self._own_cells is None:
            raise ValueError("The model was loaded without data: pass adata= here or to load().")
        return self._own_cells

    def _is_own(self, adata: Source) -> bool:
        return adata is None or (self._own_cells is not None and adata is self._own_cells.adata)

    def chunks(
        self, adata: Source = None, *, labelled: bool = True, rows: slice = slice(None)
    ) -> Iterator[tuple[Batch, slice]]:
        """Yield cells in order, a few thousand at a time, with their positions.

        Parameters
        ----------
        adata
            The cells; None takes the model's own. What is on disk is read a chunk at a time.
        labelled
            Whether treatment and covariates of the cells are known.
        rows
            The cells to take, which stand side by side; all, if left out.
        """
        source = self.source(adata)
        start, _, _ = rows.indices(source.n_obs)
        for batch in self._batches(source, labelled=labelled, rows=rows).in_order():
            yield batch, slice(start, start + len(batch))
            start += len(batch)

    @property
    def _n_train(self) -> int:
        """Cells in a pass of training, by which what all cells share is divided; 0 if unknown."""
        if self.split is not None:
            return len(self.split.train)
        return 0 if self._named_split is None else int((self._named_split == TRAIN).sum())

    def _batches(
        self, adata: Source = None, *, labelled: bool = True, rows: slice = slice(None)
    ) -> Batches:
        """Return cells, a few thousand at a time; given ones on disk stay there."""
        source, own, some = self.source(adata), self._own_cells, slice(None)
        if not labelled:
            cells = self.registry.encode_expression(source, rows=rows, memory=0)
        elif own is not None and self._is_own(source):
            cells, some = own.cells, rows
        else:
            encode = self.registry.encode if own is None else own.encode_others
            cells = encode(source, rows=rows, memory=0)
        cells = replace(cells, n_total=self._n_train)
        at = np.arange(len(cells))[some]
        return Batches(cells, at, batch_size=_CHUNK, device=self.device, dtype=self.dtype)

    def _example(self) -> Batch:
        own = self._own_cells
        levels = own.cells.n_levels if own is not None and own.is_encoded else None
        return example_batch(self.registry, n_levels=levels).to(self.device, self.dtype)
