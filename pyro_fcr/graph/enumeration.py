"""Discrete latents of cells, summed out of a program exactly, as ``TraceEnum_ELBO`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph.contract import ProgramError
from pyro_fcr.graph.dag import in_plate, read_graph
from pyro_fcr.modes import looking
from pyro_fcr.params import Program


class Branches(TorchDistribution):
    """A mixture over the values of a discrete latent, of any families of one shape.

    Parameters
    ----------
    log_weights
        Log-probability of each value, ``(n_values, *batch_shape)``; normalised here.
    families
        Distribution under each value.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, log_weights: Tensor, families: Sequence[Any]) -> None:
        self.log_weights = log_weights - log_weights.logsumexp(dim=0)
        self.families = tuple(families)
        shapes = families[0].batch_shape, families[0].event_shape
        super().__init__(*shapes, validate_args=False)

    @property
    def support(self) -> Any:
        """What values it takes, those of its first family."""
        return self.families[0].support

    @property
    def mean(self) -> Tensor:
        """The mean over all branches."""
        return self._average([family.mean for family in self.families])

    @property
    def variance(self) -> Tensor:
        """The variance within branches and between them."""
        squares = [family.variance + family.mean.square() for family in self.families]
        return self._average(squares) - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, summed over branches."""
        each = torch.stack([family.log_prob(value) for family in self.families])
        return (self.log_weights + each).logsumexp(dim=0)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        """Draw a branch of each cell, and a value from it."""
        shape = (*sample_shape, *self.batch_shape)
        weights = self.log_weights.exp().movedim(0, -1).expand(*shape, -1)
        branch = torch.distributions.Categorical(weights).sample()
        branch = branch.reshape(*shape, *(1,) * len(self.event_shape))
        drawn = self.families[0].sample(sample_shape)
        for number, family in enumerate(self.families[1:], start=1):
            drawn = torch.where(branch == number, family.sample(sample_shape), drawn)
        return drawn

    def expand(self, batch_shape: Any, _instance: Any = None) -> Branches:
        """Return it with a larger batch shape."""
        weights = self.log_weights.expand(len(self.families), *batch_shape)
        return Branches(weights, [family.expand(batch_shape) for family in self.families])

    def _average(self, values: Sequence[Tensor]) -> Tensor:
        weights = self.log_weights.exp()
        weights = weights.reshape(*weights.shape, *(1,) * len(self.event_shape))
        return (weights * torch.stack([*values])).sum(dim=0)


class SumOut(Program):
    """A model without one of its discrete latents: what reads it becomes a mixture.

    The density of everything else is that of the model with the latent summed out, cell by cell, as
    :class:`pyro.infer.TraceEnum_ELBO` has it, and the guide does not draw it. Of several sites that
    read it each is a mixture given those before. The program runs once for each value. Draws and
    predictions draw the latent from its prior within the mixture.

    Parameters
    ----------
    program
        The model, a module that takes a batch.
    site
        A discrete latent of each cell with few values, one number per cell (Bernoulli, Categorical,
        ...) or one-hot.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> class Responders(nn.Module):
    ...     def forward(self, batch):
    ...         with pyro.plate("cells", len(batch)):
    ...             r = pyro.sample("r", dist.Bernoulli(torch.full((len(batch),), 0.25)))
    ...             return pyro.sample("y", dist.Normal(8.0 * r, 1.0), obs=batch.get("y"))
    >>> model = SumOut(Responders(), "r")
    >>> batch = Batch({"y": torch.tensor([0.0, 8.0]), "library": torch.ones(2, 1)}, {}, {}, 2)
    >>> site = poutine.trace(model).get_trace(batch).nodes["y"]["fn"]
    >>> site.mean, model.probabilities(batch).round(decimals=2)
    (tensor([2., 2.]), tensor([[1., 0.],
            [0., 1.]]))
    """

    def __init__(self, program: nn.Module, site: str) -> None:
        super().__init__()
        self.program, self.site = program, site
        self._readers: tuple[str, ...] | None = None

    def forward(self, batch: Batch) -> Any:
        """Run the program."""
        with self._summing(batch):
            return self.program(batch)

    def probabilities(self, batch: Batch, guide: Callable | None = None) -> Tensor:
        """Return the probability of each value given everything else, ``(n_cells, n_values)``.

        Parameters
        ----------
        batch
            The cells.
        guide
            Draws the other latents, once; None draws them from the model.
        """
        with looking(), poutine.block():
            drawn = poutine.trace(guide).get_trace(batch) if guide else poutine.Trace()
            with self._summing(batch) as found:
                poutine.replay(self.program, trace=drawn)(batch)
        return found.log_weights.softmax(dim=0).movedim(0, -1)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the program."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("program"), name)

    def _summing(self, batch: Batch) -> _Summing:
        if self._readers is None:
            with poutine.block():
                graph = read_graph(self.program, batch)
            if self.site not in graph.latents:
                raise ProgramError(
                    f"{self.site} cannot be summed out: it is no latent of the program, which has "
                    f"{', '.join(graph.latents) or 'none'}."
                )
            reached = graph.descendants([self.site])
            self._readers = tuple(site for site in graph.parents if site in reached)
        return _Summing(self.program, batch, site=self.site, readers=self._readers)


class _Summing(Messenger):
    """Hide a discrete site, and make mixtures of the sites that read it."""

    def __init__(
        self, program: Callable, batch: Batch, *, site: str, readers: Sequence[str]
    ) -> None:
        super().__init__()
        self.program, self.batch, self.site, self.readers = program, batch, site, readers
        self.plates = [*_DIM_ALLOCATOR._stack]
        self.known: dict[str, Any] = {}
        self.names: dict[int, str] = {}
        self.log_weights, self.values = torch.empty(0), torch.empty(0)
        for handler in _PYRO_STACK:
            data = getattr(handler, "data", None)
            if isinstance(data, Mapping) and site in data:
                raise ProgramError(
                    f"{site} is summed out, so it cannot be set or conditioned on. Act on the "
                    "program within: model.program."
                )

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        self.names[id(msg)] = name
        if name == self.site:
            self._enumerate(msg)
        elif name in self.readers:
            others = [self._family(name, value) for value in self.values[1:]]
            msg["fn"] = Branches(self.log_weights, [msg["fn"], *others])

    def _pyro_post_sample(self, msg: Any) -> None:
        name = self.names.get(id(msg), msg["name"])
        if name == self.site:
            return
        self.known[name] = msg["value"]
        if isinstance(msg["fn"], Branches) and name in self.readers:
            each = [family.log_prob(msg["value"]) for family in msg["fn"].families]
            self.log_weights = self.log_weights + torch.stack(each)

    def _enumerate(self, msg: Any) -> None:
        family = msg["fn"]
        if msg["is_observed"] or not in_plate(msg):
            raise ProgramError(
                f"{self.site} cannot be summed out: it is observed, or not in the plate over cells."
            )
        try:
            support = family.enumerate_support(expand=False)
        except NotImplementedError:
            raise ProgramError(
                f"{self.site} cannot be summed out: {type(family).__name__} has no finite support. "
                "Use Bernoulli, Categorical or OneHotCategorical, one of each cell."
            ) from None
        self.values = support.expand(len(support), *family.batch_shape, *family.event_shape)
        self.log_weights = torch.stack([family.log_prob(value) for value in self.values])
        msg["value"], msg["done"], msg["stop"] = self.values[0], True, True

    def _family(self, reader: str, value: Tensor) -> Any:
        """Return the distribution of a site under another value of the latent."""
        again = _Again({**self.known, self.site: value}, until=reader)
        try:
            with self._outside(), poutine.block(hide_fn=_is_sample), again:
                self.program(self.batch)
        except _Reached as reached:
            return reached.family
        raise ProgramError(
            f"{reader} is a site only for some values of {self.site}. Draw it for all of them."
        )

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """Leave the plates and handlers that the program has entered, for another run of it."""
        entered, plates = _PYRO_STACK[:], _DIM_ALLOCATOR._stack
        _PYRO_STACK[:] = entered[: entered.index(self)]
        _DIM_ALLOCATOR._stack = [*self.plates]
        try:
            yield
        finally:
            _PYRO_STACK[:] = entered
            _DIM_ALLOCATOR._stack = plates


def _is_sample(msg: Any) -> bool:
    return msg["type"] == "sample"


class _Reached(Exception):  # noqa: N818 (no error)
    """The site that was asked for."""

    def __init__(self, family: Any) -> None:
        super().__init__()
        self.family = family


class _Again(Messenger):
    """Run a program on known values as far as a site, and hand out its distribution."""

    def __init__(self, values: Mapping[str, Any], *, until: str) -> None:
        super().__init__()
        self.values, self.until = values, until

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.until:
            raise _Reached(msg["fn"])
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
