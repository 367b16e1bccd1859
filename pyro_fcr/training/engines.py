"""How a step is taken: through Python every time, or as a graph that was traced once.

The programs know nothing of it. Every engine computes the numbers of eager mode: before a traced
step is used, and now and then afterwards, it is compared with eager mode under the same noise, and
dropped if it differs.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_fcr._torch import end_recorded_noise, tree_leaves
from pyro_fcr.batch import Batch
from pyro_fcr.graph.runs import Run
from pyro_fcr.modes import same_noise_again, seeded
from pyro_fcr.objective import Objective
from pyro_fcr.ranks import said_by_all
from pyro_fcr.training.checkpoint import random_state, set_random_state
from pyro_fcr.training.optimizer import GuardedOptimizer
from pyro_fcr.training.plan import TrainingPlan
from pyro_fcr.training.pythonic import python_state
from pyro_fcr.training.resident import Ungathered
from pyro_fcr.training.tracing import Gradients, NotTraceableError, TracedStep, eager_gradients

logger = logging.getLogger(__name__)

_STEPS_BETWEEN_COMPARISONS = 1000
_STEPS_BEFORE_RECORDING = 3


class Tolerance(NamedTuple):
    """How far a compiled step may be from eager mode under the same noise, relative."""

    loss: float
    gradient: float


_TOLERANCES = {"float32": Tolerance(2e-5, 1e-3)}  # measured: 2e-6 and 3e-6
_COARSE = Tolerance(1e-4, 1e-2)  # products are rounded at other places


@dataclass(eq=False)
class Engine(ABC):
    """Take the steps of both optimisers on a batch.

    Parameters
    ----------
    objective
        The loss.
    main, adversary
        The optimisers of the programs and of the discriminators, if any.
    plan
        How to train.
    """

    objective: Objective
    main: GuardedOptimizer
    adversary: GuardedOptimizer | None
    plan: TrainingPlan

    @abstractmethod
    def step(self, batch: Batch | Ungathered, *, number: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Take step ``number``; return the terms of the loss, ``(n_terms,)``, and the adversaries'.

        Both stay on the device, so that nothing waits for them.
        """


@dataclass(eq=False)
class EagerEngine(Engine):
    """Run the programs at every step: errors point at the line that made them."""

    def step(self, batch: Batch | Ungathered, *, number: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Take a step."""
        only_adversary = self._alternates() and epoch % 2 == 1
        with torch.set_grad_enabled(not only_adversary):
            losses = self.objective(batch.gathered())
        if not only_adversary:
            self.main.step(losses.total, number=number)
        adversary = self._step_adversary(losses.run, number=number, epoch=epoch)
        return torch.stack(list(losses.terms.values())).detach(), adversary.detach()

    def _alternates(self) -> bool:
        return self.plan.alternate == "epoch" and self.adversary is not None

    def _step_adversary(self, run: Run, *, number: int, epoch: int) -> Tensor:
        last = torch.zeros((), device=run.batch["library"].device)
        if self.adversary is None or (self._alternates() and epoch % 2 == 0):
            return last
        for _ in range(self.plan.adversary_steps):
            loss = self.objective.adversary_loss(run)
            if loss is not None:
                self.adversary.step(loss, number=number)
                last = loss
        return last


@dataclass(eq=False)
class TracedEngine(Engine):
    """Run the compiled graph of the step; see :mod:`pyro_fcr.training.tracing`.

    Parameters
    ----------
    objective, main, adversary, plan
        As in :class:`Engine`.
    batch
        Cells of the shape of all batches to come.

    Raises
    ------
    NotTraceableError
        The step cannot be traced, or differs from eager mode.
    """

    batch: InitVar[Batch | Ungathered]

    def __post_init__(self, batch: Batch | Ungathered) -> None:
        several = self.plan.alternate == "epoch" or self.plan.adversary_steps > 1
        if self.adversary is not None and several:
            raise NotTraceableError("it takes other than one step of the discriminators per batch")
        cells = batch.gathered()
        self._refuse_python_state(cells)
        self.traced = TracedStep(self.objective, cells).compiled()
        self._instead: EagerEngine | None = None
        self._compare(cells)

    def step(self, batch: Batch | Ungathered, *, number: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Take a step; in eager mode from the moment on that this turns out to differ."""
        if self._instead is None and number % _STEPS_BETWEEN_COMPARISONS == 0:
            self._compare_again(batch.gathered())
        if self._instead is not None:
            return self._instead.step(batch, number=number, epoch=epoch)
        return self._step(batch, number=number)

    def _step(self, batch: Batch | Ungathered, *, number: int | Tensor) -> tuple[Tensor, Tensor]:
        found = self.traced(batch.gathered())
        self.main.apply(found.main, found.total, number=number)
        if self.adversary is not None:
            self.adversary.apply(found.adversary, found.adversary_total, number=number)
        return found.terms, found.adversary_total

    def _compare_again(self, batch: Batch) -> None:
        try:
            self._compare(batch)
        except NotTraceableError as error:
            logger.warning("Training goes on in eager mode: of the compiled step, %s.", error)
            self._instead = EagerEngine(self.objective, self.main, self.adversary, self.plan)

    @property
    def _tolerance(self) -> Tolerance:
        return _TOLERANCES.get(self.plan.precision, _COARSE)

    def _refuse_python_state(self, batch: Batch) -> None:
        before = python_state(self.objective)
        with seeded(self.plan.seed, device=batch["library"].device):
            eager_gradients(self.objective, batch)
        after = python_state(self.objective)
        for place in after:
            if before.get(place, after[place]) != after[place]:
                raise NotTraceableError(
                    f"a step changes {place} from {before[place]} to {after[place]} in Python; "
                    "keep what changes in a buffer"
                )

    def _compare(self, batch: Batch) -> None:
        """Refuse a step that differs under each of two noises.

        Once in some thousand steps a unit of one cell lies so near the kink of its activation that
        rounding decides which side it is on. That does not happen twice; a fault does.
        """
        device = batch["library"].device
        for seed in (self.plan.seed, self.plan.seed + 1):
            with seeded(seed, device=device):
                traced = self.traced(batch)
            with seeded(seed, device=device):
                eager = eager_gradients(self.objective, batch)
            differences = said_by_all(_difference(traced, eager, self._tolerance))
            difference = next(filter(None, differences), "")
            if not difference:
                return
        raise NotTraceableError(f"under the same noise {difference}")


@dataclass(eq=False)
class GraphEngine(TracedEngine):
    """Replay a whole step, optimisers included, from one CUDA graph.

    The kernels of one step, once recorded, are launched together: with batches below a few thousand
    cells, a GPU waits for launches, not for arithmetic. The kernels read the batch, or the rows to
    gather it from, the number of the step, weights and learning rates from fixed places, and draw
    fresh noise at each replay.

    Parameters
    ----------
    objective, main, adversary, plan, batch
        As in :class:`TracedEngine`; the optimisers are made with ``recorded=True``. On the CPU
        nothing is recorded, and the same step is taken from the same places.
    """

    def __post_init__(self, batch: Batch | Ungathered) -> None:
        super().__post_init__(batch)
        self._place = batch.map(torch.clone)
        self._device = tree_leaves(batch.tensors())[0].device
        self._number = torch.zeros((), dtype=torch.long, device=self._device)
        self._replay: Callable[[], None] | None = None
        # Steps to take until everything is allocated and compiled; None where none is recorded.
        self._n_before = _STEPS_BEFORE_RECORDING if _records(self._device) else None

    def _step(self, batch: Batch | Ungathered, *, number: int | Tensor) -> tuple[Tensor, Tensor]:
        places, values = (tree_leaves(each.tensors()) for each in (self._place, batch))
        for place, value in zip(places, values, strict=True):
            if place is not None:  # sums that were not prepared
                place.copy_(value)
        self._number.fill_(number)
        if self._replay is not None:
            self._replay()
        elif self._n_before is None:
            self._take()
        elif self._n_before > 0:
            _on_another_stream(self._take, self._device)
            self._n_before -= 1
        else:
            self._record()
        return self._found

    def _take(self) -> None:
        self._found = super()._step(self._place, number=self._number)

    def _record(self) -> None:
        """Record the step and take it; without a recording if that turns out to differ."""
        written = self._written()
        before = [each.clone() for each in written]
        with same_noise_again(self._device):
            eager = eager_gradients(self.objective, self._place.gathered())
        noise = random_state(self._device)
        try:
            self._replay = _recorded(self._take, self._device)
            self._replay()
            total = (self._found[0] * self.objective.current_weights).sum()
            reason = _difference_of("total", total, eager.total, self._tolerance)
            reason = reason and f"under the same noise {reason}"
        except RuntimeError as error:  # what cannot be recorded, or no memory for it
            reason = str(error).strip().splitlines()[0]
        reason = next(filter(None, said_by_all(reason)), "")
        if not reason:
            return
        logger.warning("Compiled steps are not replayed from one CUDA graph: %s.", reason)
        end_recorded_noise(self._device)
        set_random_state(noise, self._device)
        with torch.no_grad():
            for place, value in zip(written, before, strict=True):
                place.copy_(value)
        self._replay, self._n_before = None, None
        self._take()

    def _written(self) -> list[Tensor]:
        """Return every tensor that a step writes."""
        optimizers = [each for each in (self.main, self.adversary) if each is not None]
        return [*self.objective.buffers(), *(t for each in optimizers for t in each.written())]


def _records(device: torch.device) -> bool:
    return device.type == "cuda"


def _on_another_stream(take: Callable[[], None], device: torch.device) -> None:
    """Take a step where a recording may follow: not on the stream that everything else is on."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        take()
    torch.cuda.current_stream(device).wait_stream(stream)


def _recorded(take: Callable[[], None], device: torch.device) -> Callable[[], None]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with (
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream(device)),  # also after a recording that failed
        # Meanwhile another thread may bring the next batch to the device.
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        take()
    return graph.replay


def _difference(traced: Gradients, eager: Gradients, tolerance: Tolerance) -> str:
    for name in ("total", "adversary_total"):
        loss, expected = (getattr(each, name) for each in (traced, eager))
        if difference := _difference_of(name, loss, expected, tolerance):
            return difference
    for name in ("main", "adversary"):
        mine, theirs = (_flat(getattr(each, name)) for each in (traced, eager))
        if mine.shape != theirs.shape:
            return f"the {name} gradient has other parameters than in eager mode"
        distance = float((mine - theirs).norm() / theirs.norm().clamp(min=1e-12))
        if len(mine) and not distance <= tolerance.gradient:
            return f"the {name} gradient is {distance:.2g} of its length away from eager mode's"
    return ""


def _difference_of(name: str, loss: Tensor, expected: Tensor, tolerance: Tolerance) -> str:
    mine, theirs = float(loss), float(expected)
    if abs(mine - theirs) <= tolerance.loss * max(1.0, abs(theirs)):
        return ""
    return f"{name} is {mine:.8g}, but {theirs:.8g} in eager mode"


def _flat(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients if g is not None] or [torch.zeros(0)])


COMPILED: Mapping[str, type[TracedEngine]] = {"trace": TracedEngine, "graph": GraphEngine}


def compiled_if_possible(level: str, eager: EagerEngine, batch: Batch | Ungathered) -> Engine:
    """Return the engine of a level, or the eager one, with a line in the log if it must stay."""
    if level == "eager":
        return eager
    try:
        parts = eager.objective, eager.main, eager.adversary, eager.plan
        return COMPILED[level](*parts, batch=batch)
    except NotTraceableError as error:
        reason = str(error)
    except Exception as error:  # a compiler that is not there, a handler that tracing cannot run
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    logger.warning("Training stays in eager mode, the step cannot be compiled: %s.", reason)
    return eager
