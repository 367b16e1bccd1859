"""One step of a Pyro program as a plain graph of tensor operations.

Plates, messengers and distributions are Python; the numbers they lead to are not. Running loss and
gradient once under proxy tensors leaves only the tensor operations, which a compiler fuses. What a
graph cannot hold is refused by name: a number read from the device, a shape that depends on data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call
from torch.fx import GraphModule

from pyro_fcr._torch import (
    SAME_NOISE,
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    OperationMode,
    compiles_noise,
    make_fx,
    tree_map_only,
    validates_by_default,
)
from pyro_fcr.batch import Batch
from pyro_fcr.modes import in_full
from pyro_fcr.objective import Objective
from pyro_fcr.training.noise import Draw, GivenNoise, ListedDraws

State = Mapping[str, Tensor]


class Gradients(NamedTuple):
    """What a training step needs of a batch.

    Parameters
    ----------
    total, adversary_total
        The two losses, scalars; that of the adversaries is 0 without adversaries.
    terms
        Each term of the loss, ``(n_terms,)``.
    main, adversary
        Gradients of the losses by the parameters of either optimiser, in their order; None where a
        parameter is not used.
    """

    total: Tensor
    terms: Tensor
    main: list[Tensor | None]
    adversary_total: Tensor
    adversary: list[Tensor | None]


class NotTraceableError(RuntimeError):
    """A program does what a graph of tensor operations cannot hold; the message says what."""


class _BothLosses(nn.Module):
    """The loss and that of its adversaries, of one run of the programs."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        losses = self.objective(batch)
        terms = torch.stack(list(losses.terms.values()))
        return losses.total, terms, self.objective.adversary_loss(losses.run)


class TracedStep:
    """Losses and gradients of an objective as a graph, for batches of one shape.

    Parameters
    ----------
    objective
        The loss. Its parameters and buffers stay its own: they are read at each call.
    batch
        Cells like those to come.

    Notes
    -----
    Noise is drawn before each call, in eager mode's order, and is an input of the graph. If one
    draw depends on values, as ``torch.bernoulli(p)`` does, all of them stay in the graph.

    Raises
    ------
    NotTraceableError
        The programs read numbers from the device, or have shapes that depend on data.

    Examples
    --------
    ``TracedStep(objective, batch).compiled()(batch)`` returns :class:`Gradients`.
    """

    def __init__(self, objective: Objective, batch: Batch) -> None:
        self._both = _BothLosses(objective)
        adversarial = {id(p) for p in objective.adversary_parameters()}
        named = dict(self._both.named_parameters())
        self._parameters: State = named
        self._main = [name for name, p in named.items() if id(p) not in adversarial]
        self._adversary = [name for name, p in named.items() if id(p) in adversarial]
        # A network of two programs is one module, and one parameter may be in two modules.
        first = {id(parameter): name for name, parameter in named.items()}
        self._places = {
            f"{at}.{name}" if at else name: first[id(parameter)]
            for at, module in self._both.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        # Looking for the buffers at each step would take a hundredth of its time.
        self._buffers = [
            (f"{at}.{name}" if at else name, module, name)
            for at, module in self._both.named_modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._batch = batch
        self._draws: list[Draw] = []
        self._function: Callable = self._trace()

    def __call__(self, batch: Batch) -> Gradients:
        """Evaluate the graph; noise is drawn anew from torch's own generators."""
        # The graph holds the precision that each operation was traced in.
        with torch.no_grad(), in_full(batch["library"].device):
            noise = [draw() for draw in self._draws]
            return Gradients(*self._function(*self._inputs(batch), noise))

    def compiled(self) -> TracedStep:
        """Have the graph compiled at its first call."""
        if self._draws_inside and not compiles_noise():
            raise NotTraceableError("it draws by values, and torch up to 2.10 compiles other draws")
        options = SAME_NOISE if self._draws_inside else {}
        compiled = torch.compile(self._function, dynamic=False, fullgraph=True, options=options)
        self._function = _keeping_validation(compiled)
        return self

    def _inputs(self, batch: Batch) -> tuple[State, State, dict[str, Any]]:
        buffers = {name: module.get_buffer(own) for name, module, own in self._buffers}
        return self._parameters, buffers, batch.tensors()

    def _trace(self) -> GraphModule:
        listed = ListedDraws()
        self._traced(self._losses, lambda _: listed, [])
        self._draws_inside = None in listed.draws
        if not self._draws_inside:  # or those before would not be drawn in eager mode's order
            self._draws = [draw for draw in listed.draws if draw is not None]
        return self._traced(self._evaluate, GivenNoise, self._draws)

    def _traced(
        self,
        function: Callable[..., Any],
        mode: Callable[[Sequence[Tensor]], OperationMode],
        draws: Sequence[Draw],
    ) -> GraphModule:
        def evaluate(*inputs: Any) -> Any:
            *of_step, noise = inputs
            with mode(noise):
                return function(*of_step)

        # Tensors without values: what asks for a value raises, and nothing is computed.
        without_values = FakeTensorMode(allow_non_fake_inputs=True)
        inputs = tree_map_only(Tensor, without_values.from_tensor, self._inputs(self._batch))
        try:
            with pyro.validation_enabled(is_validate=False), without_values:
                return make_fx(evaluate)(*inputs, [draw() for draw in draws])
        except DataDependentOutputException as error:
            raise NotTraceableError(f"it reads a number from the device ({error})") from error
        except DynamicOutputShapeException as error:
            raise NotTraceableError(f"it has a shape that depends on data ({error})") from error

    def _losses(
        self, parameters: State, buffers: State, tensors: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        batch = self._batch.with_tensors(tensors)
        placed = {place: parameters[name] for place, name in self._places.items()}
        return functional_call(self._both, {**placed, **buffers}, (batch,), tie_weights=False)

    def _evaluate(self, parameters: State, buffers: State, tensors: dict[str, Any]) -> Gradients:
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        losses = self._losses(leaves, buffers, tensors)
        main, adversary = (
            [leaves[name] for name in names] for names in (self._main, self._adversary)
        )
        return _differentiated(losses, main, adversary)


def eager_gradients(objective: Objective, batch: Batch) -> Gradients:
    """Evaluate losses and gradients without a graph and without touching ``.grad``."""
    parameters = objective.main_parameters(), objective.adversary_parameters()
    return _differentiated(_BothLosses(objective)(batch), *parameters)


def _differentiated(
    losses: tuple[Tensor, Tensor, Tensor | None],
    main: Sequence[Tensor],
    adversary: Sequence[Tensor],
) -> Gradients:
    total, terms, adversary_total = losses
    gradients = _gradients(total, main), _gradients(adversary_total, adversary)
    adversary_total = torch.zeros_like(total) if adversary_total is None else adversary_total
    return Gradients(
        total.detach(), terms.detach(), gradients[0], adversary_total.detach(), gradients[1]
    )


def _gradients(loss: Tensor | None, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    if loss is None:
        return []
    with in_full(loss.device):  # as every operation of the loss was
        return list(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))


def _keeping_validation(function: Callable) -> Callable:
    """Put the validation of distributions back, which compilation switches off."""

    def call(*inputs: Any) -> Any:
        before = validates_by_default()
        try:
            return function(*inputs)
        finally:
            Distribution.set_default_validate_args(before)

    return call
