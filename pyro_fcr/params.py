"""Parameters of Pyro programs: they belong to a module, which trains, saves and moves them.

Pyro keeps parameters in one global store, by name: a second model with the same names gets those of
the first, and what is not in the store is not trained. Here a program is a module. What it uses
without holding it (``pyro.param``, networks of a plain function) is taken into the module; what
Pyro's own losses train is entered into the store under names that no other object has.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_fcr.modes import outside_param_store


class Program(nn.Module):
    """A Pyro program that Pyro's own losses train: ``SVI(model, guide, Adam(...), Trace_ELBO())``.

    Pyro trains what passes through its store, and plain modules do not. A program of this class
    enters its parameters there, but only while one of Pyro's losses asks for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(_register_if_asked)


def _register_if_asked(program: nn.Module, _: Any) -> None:
    if any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
        register(program)


def register(module: nn.Module) -> None:
    """Enter the parameters of a module into Pyro's store, under names of this object alone."""
    store = pyro.get_param_store()
    for name, parameter in module.named_parameters():
        own = f"{type(module).__name__}_{id(module):x}.{name}"
        if own in store and store[own] is not parameter:  # of a module that is no more
            del store[own]
        if parameter.requires_grad:
            pyro.param(own, parameter)


class AsModule(nn.Module):
    """A plain function, or a program under handlers, as a module.

    Parameters
    ----------
    function
        The program. The networks that it runs become parts of the module, see :func:`adopt`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """Run the program."""
        return self.function(*inputs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the one network that handlers stand around."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            adopted = self._modules.get(_ADOPTED)
            networks = list(adopted.networks) if isinstance(adopted, Adopted) else []
            if len(networks) != 1:
                raise
            return getattr(networks[0], name)


def as_module(program: Callable[..., Any]) -> nn.Module:
    """Return a program as a module; a module is returned as it is."""
    return program if isinstance(program, nn.Module) else AsModule(program)


def name_of(program: nn.Module) -> str:
    """Return the name of a program's class, or of its function."""
    named = program.function if isinstance(program, AsModule) else type(program)
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{named.__module__}.{named.__qualname__}"


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the precision of a module's first parameter that is not a whole number."""
    kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(kinds, torch.float32)


_ADOPTED = "adopted"


class Adopted(nn.Module):
    """What a program trains without holding it.

    Parameters
    ----------
    networks
        Modules that the program runs and that are no parts of it.
    """

    def __init__(self, networks: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.constraints: dict[str, Constraint] = {}
        self.answers = _Answers(self)

    def take(self, name: str, unconstrained: Tensor, constraint: Constraint) -> None:
        """Make a ``pyro.param`` a parameter of this module."""
        if not isinstance(unconstrained, nn.Parameter):
            unconstrained = nn.Parameter(unconstrained.detach().clone())
        self.register_parameter(_key(name), unconstrained)
        self.constraints[name] = constraint

    def unconstrained(self, name: str) -> Tensor:
        """Return the tensor that is trained."""
        return getattr(self, _key(name))


def _key(name: str) -> str:
    """Name a parameter so that it may have dots and is no attribute of a module."""
    return "/" + name.replace(".", "/")


class _Answers(Messenger):
    """Answer ``pyro.param`` from a module in place of Pyro's store."""

    def __init__(self, adopted: Adopted) -> None:
        super().__init__()
        self.adopted = adopted

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.adopted.constraints:
            leaf = self.adopted.unconstrained(msg["name"])
            value = transform_to(self.adopted.constraints[msg["name"]])(leaf.view_as(leaf))
            value.unconstrained = weakref.ref(leaf)
            msg["value"], msg["done"] = value, True


def _enter(program: Any, _: Any) -> None:
    program.adopted.answers.__enter__()


def _leave(program: Any, _: Any, __: Any) -> None:
    program.adopted.answers.__exit__(None, None, None)


class ParameterError(ValueError):
    """A program trains what nobody would find; the message says what and the mend."""


def adopt(program: nn.Module, batch: Any, *, beside: Iterable[nn.Module] = ()) -> None:
    """Run a program once and take in what it trains without holding it.

    Parameters
    ----------
    program
        A model or guide. It is changed in place where it has to be.
    batch
        A few cells.
    beside
        Programs that share parameters of the same name.

    Raises
    ------
    ParameterError
        The program computes with a tensor that asks for a gradient and belongs to nothing.
    """
    with outside_param_store():
        # Once before: an autoguide runs the model, and keeps its tensors, in its first run.
        _run(program, batch)
        with torch.enable_grad(), _listening() as ran:
            leaves = list(_leaves(poutine.trace(program).get_trace(batch)))
        state = pyro.get_param_store().get_state()
    networks = _outermost(module for module in ran if module not in set(program.modules()))
    held = {id(p) for module in (program, *networks) for p in module.parameters()}
    found = {name: leaf for name, leaf in state["params"].items() if id(leaf) not in held}
    strangers = [leaf for leaf in leaves if id(leaf) not in held | set(map(id, found.values()))]
    if strangers:
        raise ParameterError(
            f"{type(program).__name__} computes with a tensor of shape "
            f"{tuple(strangers[0].shape)} that asks for a gradient and is a parameter of no "
            "module, so that nothing would train or save it. Make it an nn.Parameter of the "
            "program, or a pyro.param."
        )
    if networks or found:
        adopted = _adopted_by(program, networks)
        for name, leaf in found.items():
            others = [a for other in beside if (a := _adopted(other)) and name in a.constraints]
            shared = others[0].unconstrained(name) if others else leaf
            adopted.take(name, shared, state["constraints"][name])


def _run(program: nn.Module, batch: Any) -> None:
    tracing = poutine.trace(program)
    try:
        tracing.get_trace(batch)
    except RuntimeError as error:
        if (told := _weight_of_each_cell(tracing.trace)) is not None:
            raise told from error
        raise


@contextmanager
def _listening() -> Iterator[Collection[nn.Module]]:
    """Note the modules that run."""
    ran: dict[nn.Module, None] = {}
    handle = register_module_forward_pre_hook(lambda module, _: ran.setdefault(module))
    try:
        yield ran.keys()
    finally:
        handle.remove()


def _weight_of_each_cell(trace: poutine.Trace) -> ParameterError | None:
    """Return what to say of a ``PyroSample`` weight that was first read within a plate."""
    nodes: dict[str, Any] = trace.nodes
    for name, node in nodes.items():
        if node["type"] == "sample" and "." in name and node["cond_indep_stack"]:
            return ParameterError(
                f"{name} is drawn within the plate {node['cond_indep_stack'][0].name!r}, a weight "
                f"for each of its cells. Read it before the plate: `self.{name}` as the first line "
                "of forward draws it once, and Pyro keeps it for the call."
            )
    return None


def _outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    found = list(modules)
    inner = {part for module in found for part in module.modules() if part is not module}
    return [module for module in found if module not in inner]


def _adopted(program: nn.Module) -> Adopted | None:
    found = getattr(program, _ADOPTED, None)
    return found if isinstance(found, Adopted) else None


def _adopted_by(program: nn.Module, networks: list[nn.Module]) -> Adopted:
    if (adopted := _adopted(program)) is None:
        adopted = Adopted()
        setattr(program, _ADOPTED, adopted)
        program.register_forward_pre_hook(_enter)
        program.register_forward_hook(_leave, always_call=True)
    adopted.networks.extend(networks)
    return adopted


def _leaves(trace: poutine.Trace) -> Iterator[Tensor]:
    """Yield the tensors by which a trace's densities and values can be differentiated."""
    nodes: Iterable[Any] = trace.nodes.values()
    roots = [node["fn"].log_prob(node["value"]) for node in nodes if node["type"] == "sample"]
    roots += [value for node in nodes if isinstance(value := node.get("value"), Tensor)]
    waiting, seen = [root.grad_fn for root in roots if root.grad_fn is not None], set()
    yield from (root for root in roots if root.requires_grad and root.grad_fn is None)
    while waiting:
        step: Any = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        waiting.extend(before for before, _ in step.next_functions)
        if hasattr(step, "variable"):
            yield step.variable


def obstacle_to_copies(program: nn.Module) -> str:
    """Return why a program has no copies of its own, or an empty string.

    A function finds its networks outside itself: its copy would compute with the same ones.
    """
    adopted = _adopted(program)
    function = program.function if isinstance(program, AsModule) else None
    while isinstance(function, partial):  # a handler of Pyro is one of a handler and a program
        handled = function.func.__module__.startswith("pyro.") and len(function.args) > 1
        function = function.args[1] if handled else function.func
    if isinstance(function, FunctionType):
        return f"{function.__name__} is a plain function, which has no copies: write an nn.Module"
    if not isinstance(program, AsModule) and adopted is not None and len(adopted.networks):
        return f"{type(program).__name__} runs networks that are no attributes of it"
    return ""
