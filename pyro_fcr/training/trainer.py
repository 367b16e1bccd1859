"""The training loop."""

import copy
import logging
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from tqdm.auto import tqdm

from pyro_fcr.batch import Batch
from pyro_fcr.data import Cells, Split
from pyro_fcr.modes import in_precision, seeded
from pyro_fcr.objective import Objective
from pyro_fcr.params import dtype_of
from pyro_fcr.ranks import (
    copy_from_first,
    from_first,
    join,
    largest,
    n_processes,
    rank,
    said_by_all,
    shows_progress,
    together,
)
from pyro_fcr.training.alignment import Aligned, align
from pyro_fcr.training.batches import Batches, prefetched
from pyro_fcr.training.callbacks import Callback, ask_to_stop, check_callbacks
from pyro_fcr.training.checkpoint import (
    check_checkpoint_place,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from pyro_fcr.training.choice import VALIDATED_STEPS, Choice
from pyro_fcr.training.digests import digests_of
from pyro_fcr.training.divided import check_divisible, check_same
from pyro_fcr.training.engines import EagerEngine
from pyro_fcr.training.heldout import mean_terms, report_passed_peak
from pyro_fcr.training.interrupt import Interrupt
from pyro_fcr.training.optimizer import GuardedOptimizer, NonFiniteError, non_finite_error
from pyro_fcr.training.pace import Pace
from pyro_fcr.training.plan import TrainingPlan
from pyro_fcr.training.resident import Ungathered

logger = logging.getLogger(__name__)

_STEPS_BETWEEN_LOOKS = 100  # at the non-finite flag, which the host has to fetch


def fit(
    objective: Objective,
    cells: Cells,
    *,
    split: Split,
    plan: TrainingPlan | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
) -> pd.DataFrame:
    """Train a model and its guide, alone or in several processes together.

    Under ``torchrun``, or in a process group of torch, every process calls it with the same cells.
    Each takes its part of every batch, and all end with the same parameters and history, those of
    one process but for rounding. The first process writes the checkpoints.

    Parameters
    ----------
    objective
        The loss, which holds both programs. It is moved to the plan's device, trained in place and
        left in evaluation mode with the state of the best held-out ELBO.
    cells
        The resident data set.
    split
        The cells to train on and to hold out.
    plan
        How to train; None takes the defaults of :class:`TrainingPlan`.
    callbacks
        Functions that are called after each epoch with its number, from 0, and its row of the
        result. One that returns True ends the training; an error goes through to the caller.
    checkpoint
        File to write checkpoints to; one that stands there must be a checkpoint. Where one cannot
        be written, a line in the log says so and training goes on.
    resume
        Checkpoint to go on from; the result is bit-identical to that of a run that never stopped.

    Returns
    -------
    One row per epoch: ``train/<term>`` and ``heldout/<term>`` (unweighted, nats per cell),
    ``heldout/elbo``, ``weight/<term>``, ``lr`` and ``seconds``. ``attrs["stopped"]`` says why
    training ended, ``attrs["best_epoch"]`` from which epoch the parameters are, and
    ``attrs["alignment"]`` what the alignment did, the fields of
    :class:`pyro_fcr.training.alignment.Aligned`.

    Raises
    ------
    pyro_fcr.training.NonFiniteError
        Loss or gradient became NaN or infinite; names step, terms and cells.
    pyro_fcr.training.CheckpointError
        ``resume`` does not fit.
    OSError
        ``checkpoint`` cannot be written, or is another file; raised before training.
    ValueError
        Several processes do not find one another, or have other cells, programs or settings.
    pyro_fcr.ranks.ProcessLostError
        One of several processes has ended.
    SystemExit
        SIGTERM or SIGHUP came and nobody else handles it; the checkpoint is written.
    """
    plan, callbacks = plan or TrainingPlan(), check_callbacks(callbacks)
    join()
    with together(_how_to_go_on(checkpoint)):
        if checkpoint is not None:
            checkpoint = from_first(partial(check_checkpoint_place, checkpoint))
        trainer = Trainer(
            objective, cells, split=split, plan=plan, callbacks=callbacks, checkpoint=checkpoint
        )
        trainer.start_together()
        with seeded(plan.seed, device=trainer.device):
            if resume is not None:
                trainer.load_state_dict(from_first(partial(trainer.read, resume)))
            return trainer.run()


def _how_to_go_on(checkpoint: str | Path | None) -> str:
    if checkpoint is None:
        return "With a checkpoint this training could have been resumed."
    return f"Start as many again and resume from {checkpoint}."


class Trainer:
    """The state of a training run; use :func:`fit`.

    Parameters
    ----------
    objective, cells, split, plan, callbacks, checkpoint
        As in :func:`fit`.
    """

    def __init__(
        self,
        objective: Objective,
        cells: Cells,
        *,
        split: Split,
        plan: TrainingPlan,
        callbacks: Iterable[Callback] = (),
        checkpoint: str | Path | None = None,
    ) -> None:
        self.device, self.cells, self.split = plan.torch_device(), cells, split
        self.objective, self.plan, self.checkpoint = objective.to(self.device), plan, checkpoint
        cells = replace(cells, n_total=len(split.train))  # held-out cells are counted as these are
        self.train = Batches.for_training(
            cells,
            split.train,
            batch_size=plan.batch_size,
            device=self.device,
            dtype=dtype_of(objective),
        )
        self.heldout = self.train.of(split.heldout) if len(split.heldout) else None
        self.n_epochs = plan.epochs(len(split.train))
        self.patience = plan.patience_for(len(split.train))
        self.align_epoch = plan.align_epoch(len(split.train))
        self.aligned = Aligned()
        self.n_steps = self.n_epochs * len(self.train)
        self.epoch, self.batch_number, self.step = 0, 0, 0
        self.sums = torch.zeros(len(objective.terms) + 1, dtype=torch.float32, device=self.device)
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"elbo": -float("inf"), "epoch": -1, "state": {}}
        self.callbacks, self.asked_to_stop = tuple(callbacks), False
        self.pace = Pace(n_batches=len(self.train), batch_size=plan.batch_size)
        self._interrupt, self._between_steps = Interrupt(), True
        self._build_optimizers()

    def _build_optimizers(self) -> None:
        plan, adversary = self.plan, self.objective.adversary_parameters()
        self.level = plan.engine_for(self.n_steps, self.device)
        recorded, shared = self.level == "graph", self.train.is_divided
        self.main = GuardedOptimizer(
            self.objective.main_parameters(),
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
            gradient_clip=plan.gradient_clip,
            recorded=recorded,
            shared=shared,
        )
        self.adversary = (
            GuardedOptimizer(
                adversary, learning_rate=plan.adversary_lr, recorded=recorded, shared=shared
            )
            if adversary
            else None
        )
        self.scheduler = self.main.scheduler(
            plan.lr_schedule, n_steps=self.n_steps, patience=self.patience
        )
        self.choice = Choice(
            EagerEngine(self.objective, self.main, self.adversary, plan),
            level=self.level,
            n_steps=self.n_steps,
            weighs=plan.engine == "auto" and recorded,
        )

    def start_together(self) -> None:
        """Have all processes begin with the parameters of the first, if they are of one training.

        Raises
        ------
        ValueError
            They are not, or the programs would not be the same in all.
        """
        if self.train.is_divided:
            check_divisible(self.objective, self.train)
            check_same({**asdict(replace(self.plan, progress=None)), **self.digests})
            copy_from_first(self.objective.state_dict().values())

    def run(self) -> pd.DataFrame:
        """Train to an end and keep the best state, whatever the end is."""
        stopped = "all epochs done"
        if self.plan.align_at is not None and self.align_epoch is None:
            logger.warning(
                "A training of %d steps is too short for the alignment, without which blocks may "
                "hold one another's variation: leave out max_epochs, or make it %d.",
                *(self.n_steps, self.plan.epochs_to_align(len(self.train.rows))),
            )
        logger.info(
            "%d cells in batches of %d, %d steps (%s); %d genes; cells and a batch take %.0f MB%s.",
            len(self.train.rows),
            self.plan.batch_size,
            self.n_steps,
            self.level,
            self.cells.n_genes,
            self.train.nbytes / 1e6,
            ", beside two pools of cells from disk" if self.train.is_stored else "",
        )
        try:
            with self.bar as bar, self._interrupt:
                while self.epoch < self.n_epochs and not self._why_to_stop():
                    if self.epoch == self.align_epoch and self.batch_number == 0:
                        bar.set_postfix_str("aligning latents with their priors")
                        self._align()
                    self._run_epoch()
                    bar.update()
                    bar.set_postfix_str(self._postfix())
            stopped = self._why_to_stop() if self.epoch < self.n_epochs else stopped
        except KeyboardInterrupt as error:
            self._interrupt.take_over(error)
            stopped = self._interrupt.word
        if self._between_steps:
            self._write_checkpoint()
        if stopped == self._interrupt.word:
            message = (
                f"{stopped.capitalize()} in epoch {self.epoch}; the best state so far is kept."
            )
            warnings.warn(message, stacklevel=3)
        history = self._finish(stopped)
        self._interrupt.deliver()
        return history

    @cached_property
    def bar(self) -> tqdm:
        """What shows the progress, where it is shown."""
        shown = shows_progress(asked=self.plan.progress)
        return tqdm(total=self.n_epochs, initial=self.epoch, disable=not shown, unit="epoch")

    def _run_epoch(self) -> None:
        start = time.perf_counter()
        self.pace.begin()
        self.objective.train()
        batches = self.train.shuffled(self.plan.seed, self.epoch, start=self.batch_number)
        for batch in batches if self.train.is_resident else prefetched(batches):
            self._between_steps = False
            self._validated_step(batch)
            self._between_steps = True
            self._interrupt.raise_together()
            self._keep_pace()
        self._raise_if_bad()
        self._record(time.perf_counter() - start)
        self.epoch, self.batch_number = self.epoch + 1, 0
        if self.epoch % self.plan.checkpoint_every == 0:
            self._write_checkpoint()
        asked = ask_to_stop(
            self.callbacks, self.epoch - 1, self.rows[-1], seed=self.plan.seed, device=self.device
        )
        self.asked_to_stop = bool(largest(int(asked)))  # in any process

    def _keep_pace(self) -> None:
        """Count a batch; a GPU is only known to be done with its steps where it is looked at."""
        n = 1 if self.device.type == "cpu" else _STEPS_BETWEEN_LOOKS
        if self.step % n == 0 and self.pace.take(n, epochs_left=self.n_epochs - self.epoch):
            self.bar.set_postfix_str(self._postfix())

    def _align(self) -> None:
        calm = pyro.validation_enabled(is_validate=False)
        with seeded(self.plan.seed, device=self.device), calm:
            self.aligned = align(
                self.objective,
                self.train,
                teach_steps=max(1, self.n_steps // 10),
                learning_rate=self.plan.learning_rate,
                after_step=self._interrupt.raise_if_requested,
                after_shared_step=self._interrupt.raise_together,
            )
        if self.aligned.obstacle:
            logger.info("Latents are not aligned with their priors: %s.", self.aligned.obstacle)
        else:
            logger.info("Alignment with the priors gained %.2f nats per cell.", self.aligned.gain)

    def _validated_step(self, batch: Batch | Ungathered) -> None:
        validate = self.step < VALIDATED_STEPS
        try:
            in_plan = in_precision(self.plan.precision, self.device)
            with pyro.validation_enabled(validate), in_plan:
                self._step(batch)
        except ValueError as error:
            found = self._diagnose(self.step)
            raise found if found.is_reproduced else error from error

    def _step(self, batch: Batch | Ungathered) -> None:
        self.objective.set_progress(self.step / self.n_steps)
        engine = self.choice.engine(batch, step=self.step)
        terms, adversary = engine.step(batch, number=self.step, epoch=self.epoch)
        self.sums += torch.cat([terms, adversary.reshape(1)])
        self.step, self.batch_number = self.step + 1, self.batch_number + 1
        if self.plan.lr_schedule == "cosine":
            self.scheduler.step()
        if self.step % _STEPS_BETWEEN_LOOKS == 0:
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        for optimizer in (self.main, self.adversary):
            step = None if optimizer is None else optimizer.bad_step()
            if step is not None:
                raise self._diagnose(step)

    def _diagnose(self, step: int) -> NonFiniteError:
        epoch, number = divmod(step, len(self.train))
        rows = self.train.shuffled_rows(self.plan.seed, epoch)[number]
        return non_finite_error(self.objective, self.train, rows=rows, step=step)

    def _record(self, seconds: float) -> None:
        names = [*self.objective.terms, "adversary"]
        means = self._sums_of_all().sum(dim=0) / len(self.train)
        row = {f"train/{n}": value for n, value in zip(names, means.tolist(), strict=True)}
        self.sums.zero_()
        weights = zip(self.objective.terms, self.objective.current_weights.tolist(), strict=True)
        row |= {f"weight/{name}": value for name, value in weights}
        row |= {"lr": float(self.main.torch.param_groups[0]["lr"]), "seconds": seconds}
        if self.heldout is not None:
            heldout = mean_terms(self.objective, self.heldout, seed=self.plan.seed)
            row |= {f"heldout/{name}": value for name, value in heldout.items()}
        row = self._agreed(row)
        if self.heldout is not None:
            self._keep_if_best(row["heldout/elbo"])
        self.rows.append(row)

    def _sums_of_all(self) -> torch.Tensor:
        """Return the sums of the terms in each process, ``(n_processes, n_terms + 1)``."""
        return torch.tensor(said_by_all(self.sums.tolist()))

    def _agreed(self, row: dict[str, float]) -> dict[str, float]:
        """Return what the first process found, which decides, and go on with its random state."""
        if not self.train.is_divided:
            return row
        row, state = from_first(lambda: (row, random_state(self.device)))
        set_random_state(state, self.device)
        return row

    def _keep_if_best(self, elbo: float) -> None:
        if self.plan.lr_schedule == "plateau":
            self.scheduler.step(elbo)
        aligned = self.align_epoch is None or self.epoch >= self.align_epoch
        settled = aligned and self.step >= self.objective.settled_after * self.n_steps
        if settled and elbo > self.best["elbo"]:
            state = copy.deepcopy(self.objective.state_dict())
            self.best = {"elbo": elbo, "epoch": self.epoch, "state": state}

    def _why_to_stop(self) -> str:
        """Return why training should end before its last epoch; empty if it should go on."""
        if self.asked_to_stop:
            return "a callback asked for it"
        impatient = self.best["epoch"] >= 0 and self.epoch - 1 - self.best["epoch"] >= self.patience
        return f"no better held-out ELBO for {self.patience} epochs" if impatient else ""

    def _postfix(self) -> str:
        elbo = self.rows[-1].get("heldout/elbo") if self.rows else None
        found = "" if elbo is None else f", held-out ELBO {elbo:.2f} nats/cell"
        return f"{self.pace.cells_per_second:.0f} cells/s{found}"

    def _finish(self, stopped: str) -> pd.DataFrame:
        self.choice.release()
        self.objective.zero_grad()  # gradients may lie in the memory of a recorded step
        if self.best["state"]:
            self.objective.load_state_dict(self.best["state"])
        self.objective.eval()
        history = pd.DataFrame(self.rows).rename_axis("epoch")
        best = self.best["epoch"] if self.best["state"] else self.epoch - 1
        report_passed_peak(history, best)
        history.attrs.update(stopped=stopped, best_epoch=best, alignment=self.aligned._asdict())
        return history

    def _write_checkpoint(self) -> None:
        if self.checkpoint is None:
            return
        state = self.state_dict()
        if rank() > 0:
            return
        try:
            write_checkpoint(self.checkpoint, state, self.plan)
        except OSError as error:
            logger.warning("No checkpoint in epoch %d; training goes on. %s", self.epoch, error)

    @cached_property
    def digests(self) -> dict[str, str]:
        """What the run is of."""
        return digests_of(self.objective, self.cells, self.split)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming needs: states, position, history and generators."""
        return {
            "objective": self.objective.state_dict(),
            "main": self.main.torch.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.torch.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "position": [self.epoch, self.batch_number, self.step, self.n_epochs],
            "sums": self._sums_of_all(),
            "rows": self.rows,
            "best": self.best,
            "aligned": list(self.aligned),
            "random": random_state(self.device),
            "engine": self.choice.settled,
            "digests": self.digests,
            "n_processes": n_processes(),
        }

    def read(self, checkpoint: str | Path) -> dict[str, Any]:
        """Read the state of this run from a checkpoint; raises if it is of another one."""
        return read_checkpoint(checkpoint, self.plan, n_epochs=self.n_epochs, digests=self.digests)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        self.objective.load_state_dict(state["objective"])
        self.main.load_state_dict(state["main"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.epoch, self.batch_number, self.step, _ = state["position"]
        self.objective.set_progress(max(0, self.step - 1) / self.n_steps)  # as in the last step
        self.sums.copy_(state["sums"].reshape(-1, len(self.sums))[rank()])
        self.rows, self.best = state["rows"], state["best"]
        self.aligned = Aligned(*state["aligned"])
        if self.choice.settled is None:
            self.choice.settled = state.get("engine")
        set_random_state(state["random"], self.device)
