"""Check a graph by acting on its program: set one value alone, and see whose distribution moves.

Provenance sees what tensor operations pass on. It does not see writes into a tensor, numbers that
leave torch, and values that a program takes from the batch in place of a site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph.contract import ProgramError
from pyro_fcr.graph.dag import Graph, in_plate, log_density
from pyro_fcr.modes import looking, outside_param_store

_CELLS = 8
_FREE = ("library",)  # what a program may read from the batch without a site
_Values = Mapping[str, Tensor]


def check_by_acting(program: Callable, graph: Graph, batch: Batch, *, reads: bool = False) -> None:
    """Set each site, and each value of the batch, alone; nothing but its effects may move.

    All other sites are held at their values, so that what moves is a direct effect. Parameters are
    moved a little beforehand and put back, as an effect may be zero at the start of a training.

    Parameters
    ----------
    program
        A model or guide that takes a batch.
    graph
        Its graph, as it was read.
    batch
        Some cells.
    reads
        Whether sites may read the batch themselves, as those of guides do.

    Raises
    ------
    ProgramError
        Something else moved; names site, value and mend.

    Examples
    --------
    >>> import torch
    >>> from pyro_fcr import Architecture, Batch
    >>> from pyro_fcr.graph import read_graph
    >>> model, _ = Architecture(n_tx=2).build({"y": 5, "x": 3, "t": 1}, target_sum=1e4)
    >>> values = {"y": torch.ones(3, 5), "library": torch.full((3, 1), 5.0)}
    >>> batch = Batch({**values, "x": torch.eye(3), "t": torch.zeros(3, 1)}, {}, {}, n_total=3)
    >>> check_by_acting(model, read_graph(model, batch), batch)  # finds nothing
    """
    cells = _varied(batch)
    with outside_param_store(), looking(*_modules(program)), _moved(program):
        act = _Act(program, graph, cells)
        for site in graph.parents:
            for moved in sorted(act.sites_moved_by(site)):
                if site not in graph.parents[moved]:
                    raise ProgramError(_LOST.format(site=moved, cause=site))
        if not reads:
            _check_batch(act, graph, cells)


def _check_batch(act: "_Act", graph: Graph, cells: Batch) -> None:
    for field, values in (("values", cells.values), ("codes", cells.codes)):
        for key in (k for k in values if k not in _FREE):
            own = {key} & {*graph.exogenous}  # an experiment that sets the value which it observes
            for moved in sorted(act.moved_by_batch(field, key) - own):
                place = f"batch[{key!r}]" if field == "values" else f"batch.codes[{key!r}]"
                mend = _USE if key in graph.parents else _MAKE
                raise ProgramError(_READ.format(site=moved, place=place) + mend.format(key=key))
    for moved in act.moved_by_other_cells():
        raise ProgramError(_MIXED.format(site=moved))


_LOST = (
    "{site} depends on {cause}, but the graph that was read from the program has no arrow from "
    "{cause} to {site}: claims, penalties and interventions would be those of another graph. A "
    "write into a tensor (`out[mask] = ...`), a number or array taken out of torch (`.item()`, "
    "`.numpy()`) or a value kept on a module hides the arrow. Compute {site} from the value that "
    "`pyro.sample({cause!r}, ...)` returned by functions of tensors, e.g. torch.where."
)
_READ = "{site} reads {place} itself, so that an intervention on it would have no effect. "
_USE = "Use the value that `pyro.sample({key!r}, ...)` returned."
_MAKE = (
    "Make it a site and use its value: "
    "`pyro.sample({key!r}, Exogenous(batch[{key!r}]), obs=batch[{key!r}])`."
)
_MIXED = (
    "{site} of a cell depends on the other cells of its batch: a mean over cells, or a batch norm, "
    "makes answers depend on who is asked with whom. Compute {site} row by row (LayerNorm)."
)
_UNSTEADY = (
    "{site} has another distribution when the program is run again on the same values under the "
    "same noise: it counts its calls, or draws with numpy or random. Let counts rise only while "
    "`self.training`, and draw with torch or pyro.sample."
)


class _Act:
    """The program, the values of its sites, and the densities of these values."""

    def __init__(self, program: Callable, graph: Graph, cells: Batch) -> None:
        self.program, self.graph, self.cells = program, graph, cells
        nodes = poutine.trace(program).get_trace(cells).nodes
        self.nodes: dict[str, Any] = {site: nodes[site] for site in graph.parents}
        self.values: _Values = {site: node["value"] for site, node in self.nodes.items()}
        self.densities = self._densities(cells, self.values)
        if unsteady := self._moved(self._densities(cells, self.values)):
            raise ProgramError(_UNSTEADY.format(site=unsteady[0]))

    def sites_moved_by(self, site: str) -> set[str]:
        """Return the other sites whose distribution moves with the value of a site."""
        moved: set[str] = set()
        for value in self._others(site):
            moved |= {*self._after(self.cells, {**self.values, site: value})} - {site}
        return moved

    def moved_by_batch(self, field: str, key: str) -> set[str]:
        """Return the sites whose distribution moves with a tensor of the batch."""
        held: dict[str, Tensor] = getattr(self.cells, field)
        moved: set[str] = set()
        for value in _alternatives(held[key]):
            change: dict[str, Any] = {field: {**held, key: value}}
            moved |= {*self._after(replace(self.cells, **change))}
        return moved

    def moved_by_other_cells(self) -> list[str]:
        """Return the sites of the first cell whose distribution moves with the other cells."""
        others = (torch.arange(_CELLS, device=self.cells["library"].device) > 0).long()
        per_cell = [s for s, node in self.nodes.items() if in_plate(node)]
        each = {s: self.values[s] for s in per_cell if self.values[s].shape[:1] == (_CELLS,)}
        values = {**self.values, **{s: value[others] for s, value in each.items()}}
        after = self._densities(self.cells.take(others), values)
        return [s for s in per_cell if _differ(after[s][..., 0], self.densities[s][..., 0])]

    def _others(self, site: str) -> Iterator[Tensor]:
        """Yield other values of a site: draws of a latent, rows of a known one."""
        if site not in self.graph.observed:
            drawn = self.nodes[site]["fn"].sample()
            yield drawn
            if drawn.is_floating_point():
                yield drawn + 2.0 * torch.randn_like(drawn)
        elif site not in self.graph.conditioned:
            yield from _alternatives(self.values[site])

    def _after(self, cells: Batch, values: _Values | None = None) -> list[str]:
        try:
            return self._moved(self._densities(cells, self.values if values is None else values))
        except (IndexError, RuntimeError, ValueError):
            return []  # no value for this program, such as a row that no embedding has

    def _densities(self, cells: Batch, values: _Values) -> dict[str, Tensor]:
        with looking():
            nodes = poutine.trace(_Held(values)(self.program)).get_trace(cells).nodes
            held = {site: {**nodes[site], "value": self.values[site]} for site in self.values}
            return {site: log_density(node).nan_to_num() for site, node in held.items()}

    def _moved(self, densities: Mapping[str, Tensor]) -> list[str]:
        return [site for site, each in densities.items() if _differ(each, self.densities[site])]


def _differ(one: Tensor, two: Tensor) -> bool:
    return one.shape != two.shape or not torch.allclose(one, two, rtol=1e-5, atol=1e-4)


class _Held(Messenger):
    """Hold sites at values, observed ones too, without drawing."""

    def __init__(self, values: _Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _alternatives(value: Tensor) -> Iterator[Tensor]:
    """Yield other values of labels and expression: of other cells, each level, other sizes."""
    yield value.roll(1, dims=0)
    if value.is_floating_point():
        yield _levels(value).roll(1, dims=0)
        yield torch.ones_like(value)
        yield value * 3.0 + 1.0


def _levels(value: Tensor) -> Tensor:
    """Return rows of which each has one feature, in turn."""
    n, width = value.shape[0], value[0].numel()
    rows = torch.eye(width, device=value.device, dtype=value.dtype)
    return rows[torch.arange(n, device=value.device) % width].reshape(value.shape)


def _varied(batch: Batch) -> Batch:
    """Return a few cells whose labels differ, also where those of the batch do not."""
    rows = torch.arange(_CELLS, device=batch["library"].device)
    cells = batch.take(rows % len(batch))
    values = {k: v if k in _FREE else _spread(v) for k, v in cells.values.items()}
    codes = {
        k: c if (c != c[0]).any() else rows % cells.n_levels[k] for k, c in cells.codes.items()
    }
    return replace(cells, values=values, codes=codes)


def _spread(value: Tensor) -> Tensor:
    if not value.is_floating_point() or (value != value[:1]).any():
        return value
    rows = _levels(value)
    rows[::4] = 0  # without treatment
    return value + rows


def _modules(program: Any) -> list[nn.Module]:
    return [program] if isinstance(program, nn.Module) else []


@contextmanager
def _moved(program: Any) -> Iterator[None]:
    parameters = [p for module in _modules(program) for p in module.parameters()]
    before = [p.clone() for p in parameters]
    try:
        for p in parameters:
            p.add_(0.05 * torch.randn_like(p))
        yield
    finally:
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
