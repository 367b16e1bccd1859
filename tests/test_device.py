"""Steps and questions on a device that is not the CPU: torch's meta device, which has no values.

What reads a value there, or copies one from there, raises; what is made elsewhere is seen.
"""

import inspect
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from conftest import make_programs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_fcr import distributions
from pyro_fcr.draws import Responder
from pyro_fcr.draws.sinks import Moments, Quantiles
from pyro_fcr.draws.sites import Sampler
from pyro_fcr.graph import read_graph
from pyro_fcr.objective import Objective, penalties
from pyro_fcr.training import engines
from pyro_fcr.training.resident import ResidentCells
from pyro_fcr.training.tracing import TracedStep, eager_gradients

META = torch.device("meta")


class Meetings(TorchDispatchMode):
    """Names operations in which tensors of several devices meet."""

    def __init__(self):
        super().__init__()
        self.count, self.found = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {each.device.type for each in leaves if isinstance(each, torch.Tensor)}
        self.count += META.type in devices
        self.found += [function.name()] if len(devices) > 1 else []
        return result


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(penalties, "_adds_in_any_order", lambda *_: True)
    monkeypatch.setattr(distributions, "get_proxy_mode", lambda: True)
    with pyro.validation_enabled(is_validate=False):
        yield


@pytest.mark.parametrize("way", ["eager", "traced"])
def test_a_step_stays_on_its_device(cells, as_on_a_gpu, way):
    batch = cells.batch(np.arange(32))
    objective = Objective.from_programs(*make_programs(batch), batch).to(META)
    resident, rows = ResidentCells(cells, META), torch.zeros(32, dtype=torch.long, device=META)
    evaluate = lambda: eager_gradients(objective, resident.batch(rows))  # noqa: E731
    if way == "traced":
        step = TracedStep(objective, resident.batch(rows))
        evaluate = lambda: step(resident.batch(rows))  # noqa: E731
    with Meetings() as meetings:
        found = evaluate()
    assert meetings.found == []
    assert meetings.count > 500
    assert {each.device for each in [found.total, *found.adversary]} == {META}


@pytest.mark.parametrize("hold", [(), ("z_x",)])
def test_draws_of_an_answer_are_not_read(cells, as_on_a_gpu, hold):
    batch = cells.batch(np.arange(32))
    there = batch.to(META)
    model, guide = (program.to(META) for program in make_programs(batch))
    sinks = [Moments(), Quantiles((0.05, 0.5), size=4)]
    with Meetings() as meetings:
        Responder(model, guide, hold=hold).feed(there, expected=sinks, n_draws=12)
    assert meetings.found == []
    assert meetings.count > 300
    assert {each.device for sink in sinks for each in sink.result().values()} == {META}


def test_all_sites_of_a_draw_stay_on_the_device(cells, as_on_a_gpu):
    batch = cells.batch(np.arange(32))
    model, guide = make_programs(batch)
    graph, there = read_graph(model, batch), batch.to(META)
    genes = torch.tensor([3, 0], device=META)
    sampler = Sampler(
        model=model.to(META), guide=guide.to(META), graph=graph, genes=genes, n_draws=2
    )
    with Meetings() as meetings:
        found = sampler.groups(there, do={"t": there["t"]}, hold=("z_x",))
    assert meetings.found == []
    assert set(found) == {"posterior", "prior", "predictions"}
    for draws in found.values():
        assert {draws.y.device, draws.latents["z_t"].device} == {META}


class Card:
    """Stands for torch.cuda: notes which contexts are open when a step is taken."""

    def __init__(self):
        self.open, self.seen = [], []

    def context(self, name):
        real = inspect.signature(getattr(torch.cuda, name))

        @contextmanager
        def opened(*arguments, **options):
            real.bind(*arguments, **options)
            self.open.append((name, *arguments, *options.values()))
            try:
                yield
            finally:
                self.open.pop()

        return opened

    def take(self):
        self.seen.append([each[0] for each in self.open])


@pytest.fixture
def card(monkeypatch):
    card, waited = Card(), []
    there = SimpleNamespace(wait_stream=waited.append)
    for name in ("stream", "device", "graph"):
        monkeypatch.setattr(torch.cuda, name, card.context(name))
    recording = SimpleNamespace(replay=card.take)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: there)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: there)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: recording)
    return card


def test_a_step_is_recorded_on_a_stream_of_its_device(card):
    device = torch.device("cuda:1")
    engines._on_another_stream(card.take, device)
    engines._recorded(card.take, device)()
    assert card.seen == [["stream"], ["device", "stream", "graph"], []]


def test_a_recording_that_fails_closes_what_it_opened(card):
    def fails():
        assert [each[0] for each in card.open] == ["device", "stream", "graph"]
        assert "thread_local" in card.open[-1]
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        engines._recorded(fails, torch.device("cuda:1"))
    assert card.open == []
