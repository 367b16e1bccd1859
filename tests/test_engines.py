"""Traced steps give eager mode's numbers; what cannot be traced is named and stays eager."""

import itertools
import logging
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from conftest import NO_PENALTIES, make_programs
from edits import EDITS
from operations import Operations
from pyro.poutine import runtime
from torch._dynamo.utils import counters
from torch.distributions import Distribution

from pyro_fcr._torch import compiles_noise
from pyro_fcr.data import register
from pyro_fcr.modes import in_precision, seeded
from pyro_fcr.objective import Objective, penalties
from pyro_fcr.objective.terms import Extra
from pyro_fcr.training import Trainer, TrainingPlan, engines, fit
from pyro_fcr.training.batches import Batches
from pyro_fcr.training.engines import GraphEngine, TracedEngine
from pyro_fcr.training.optimizer import GuardedOptimizer
from pyro_fcr.training.resident import ResidentCells
from pyro_fcr.training.tracing import NotTraceableError, TracedStep, eager_gradients

OLD_TORCH_DIFFERS = pytest.mark.skipif(
    not compiles_noise(), reason="bfloat16 of torch up to 2.10 is another one"
)
NEEDS_COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
CPU = torch.device("cpu")
# What a graph of tensor operations cannot hold, and why.
NOT_TRACEABLE = {"f_flow": "depends on data"}  # a spline looks its knots up


def first_batch(cells, size=64):
    return Batches.for_training(cells, np.arange(len(cells)), batch_size=size, device=CPU).batch(
        torch.arange(size)
    )


def fresh(cells, *, weights=None, extra=(), **sizes):
    torch.manual_seed(0)
    batch = first_batch(cells, 32)
    programs = make_programs(batch, **sizes)
    objective = Objective.from_programs(*programs, batch, weights=weights, extra=extra)
    objective.set_progress(1.0)
    return objective


def both(objective, batch, *, seed=5):
    step = TracedStep(objective, batch)
    with pyro.validation_enabled(is_validate=False):
        with seeded(seed):
            eager = eager_gradients(objective, batch)
        with seeded(seed):
            traced = step(batch)
    return traced, eager


# torch 2.6 orders a traced sum in another way; of what lies between nobody has looked.
EXACTLY = {"rtol": 0.0, "atol": 0.0} if torch.__version__ >= "2.13" else {}


def assert_agree(traced, eager, **tolerance):
    for mine, theirs in zip(traced, eager, strict=True):
        torch.testing.assert_close(mine, theirs, **{"rtol": 1e-4, "atol": 1e-6, **tolerance})


@pytest.mark.parametrize("edit", EDITS)
def test_every_graph_can_be_traced_and_gives_the_same_numbers(edit):
    case = EDITS[edit]
    adata = case.data()
    registry = register(adata, case.schema)[0]
    batch = first_batch(registry.encode(adata))
    torch.manual_seed(0)
    model, guide = case.build(registry)
    objective = Objective.from_programs(model, guide, batch, extra=case.extra(model))
    objective.set_progress(1.0)
    if edit in NOT_TRACEABLE:
        with pytest.raises(NotTraceableError, match=NOT_TRACEABLE[edit]):
            TracedStep(objective, batch)
        return
    assert_agree(*both(objective, batch), **EXACTLY)


def test_parameters_weights_and_batches_are_read_at_each_call(cells):
    objective, batch = fresh(cells, weights=NO_PENALTIES), first_batch(cells)
    step = TracedStep(objective, batch)
    other = replace(first_batch(cells), values={**batch.values, "y": batch["y"].flip(0)})
    with seeded(1):
        before = step(batch).total
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.01)
    objective.current_weights.fill_(0.5)
    for cells_of_step in (batch, other):
        with seeded(1):
            traced = step(cells_of_step)
        with seeded(1):
            eager = eager_gradients(objective, cells_of_step)
        torch.testing.assert_close(traced.total, eager.total)
    assert traced.total != before


def test_noise_is_fresh_at_each_call_and_follows_the_seed(cells):
    objective, batch = fresh(cells), first_batch(cells)
    step = TracedStep(objective, batch)
    with seeded(1):
        first, second = step(batch).total, step(batch).total
    with seeded(1):
        again = step(batch).total
    assert first == again
    assert first != second
    tags = [getattr(node.target, "tags", ()) for node in step._function.graph.nodes]
    assert not [each for each in tags if torch.Tag.nondeterministic_seeded in each]
    assert len(step._draws) == 5  # inputs of the graph: three latents, two exchanges of cells


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda run: torch.tensor(run.value("z_x").mean().item()), "reads a number"),
        (lambda run: run.value("z_x")[run.value("z_x") > 0].mean(), "depends on data"),
    ],
)
def test_what_a_graph_cannot_hold_is_named(cells, function, reason):
    objective = fresh(cells, extra=[Extra("mine", function)])
    with pytest.raises(NotTraceableError, match=reason):
        TracedStep(objective, first_batch(cells))


def plan(**changes):
    settings = {"max_epochs": 3, "batch_size": 128, "progress": False, "device": "cpu"}
    return TrainingPlan(**{**settings, "align_at": None, **changes})


@NEEDS_COMPILER
def test_compiled_training_is_eager_training(cells, split, caplog, monkeypatch):
    results, before, taken = {}, Distribution._validate_args, []

    def noted(self, batch):
        taken.append(len(batch))
        return evaluate(self, batch)

    evaluate = TracedStep.__call__
    monkeypatch.setattr(TracedStep, "__call__", noted)
    for engine in ("eager", "trace"):
        objective = fresh(cells)
        history = fit(objective, cells, split=split, plan=plan(engine=engine))
        ours = [r for r in caplog.records if r.name != "torch.utils.cpp_extension"]  # no CUDA here
        assert not [r for r in ours if r.levelno >= logging.WARNING]
        assert all(p.grad is None for p in objective.parameters())  # nor what a recording holds
        results[engine] = history.drop(columns="seconds"), objective.state_dict()
    (eager, eager_state), (traced, traced_state) = results["eager"], results["trace"]
    np.testing.assert_allclose(traced, eager, rtol=1e-3, atol=1e-4)
    assert list(traced_state) == list(eager_state)
    assert Distribution._validate_args == before
    n_steps = 3 * (len(split.train) // 128)
    assert taken == [128] * (n_steps - 3 + 1)  # the first three are eager, one is a comparison
    counters.clear()
    fit(fresh(cells), cells, split=split, plan=plan(engine="trace", max_epochs=1))
    caches = counters["inductor"]  # a second fit finds what was compiled
    assert (caches["fxgraph_cache_hit"], caches["fxgraph_cache_miss"]) == (1, 0)


def fitted_with(cells, split, caplog, plan_of, **objective):
    with caplog.at_level(logging.WARNING, logger="pyro_fcr"):
        history = fit(fresh(cells, **objective), cells, split=split, plan=plan_of)
    return history, [record.message for record in caplog.records]


def test_training_goes_on_eagerly_and_says_why(cells, split, caplog):
    term = Extra("mine", lambda run: torch.tensor(run.value("z_x").mean().item()))
    history, messages = fitted_with(cells, split, caplog, plan(engine="trace"), extra=[term])
    assert len(history) == 3
    assert len(messages) == 1
    assert "reads a number from the device" in messages[0]


def test_several_steps_of_the_discriminators_are_eager(cells, split, caplog):
    asked = plan(engine="trace", adversary_steps=2)
    assert "one step of the discriminators" in fitted_with(cells, split, caplog, asked)[1][0]


@pytest.mark.parametrize("field", ["total", "main"])
def test_a_step_that_differs_from_eager_mode_is_not_taken(cells, split, caplog, monkeypatch, field):
    def wrong(self, batch):
        found = eager_gradients(self._both.objective, batch)
        if field == "total":
            return found._replace(total=found.total * 1.01)
        return found._replace(main=[None if g is None else g * 1.1 for g in found.main])

    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    monkeypatch.setattr(TracedStep, "__call__", wrong)
    _, messages = fitted_with(cells, split, caplog, plan(engine="trace"), weights=NO_PENALTIES)
    assert "under the same noise" in messages[0]


def test_a_difference_that_other_noise_does_not_show_is_rounding(cells, split, caplog, monkeypatch):
    asked = []

    def wrong_once(self, batch):
        asked.append(len(batch))
        found = eager_gradients(self._both.objective, batch)
        return found._replace(total=found.total * (1.01 if len(asked) == 1 else 1.0))

    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    monkeypatch.setattr(TracedStep, "__call__", wrong_once)
    _, messages = fitted_with(cells, split, caplog, plan(engine="trace"), weights=NO_PENALTIES)
    assert messages == []
    assert len(asked) > 2  # the steps are those of the traced engine


class Annealed:
    """A term that counts, with the count where programs keep such things."""

    def __init__(self):
        self.calls = 0

    def __call__(self, run):
        self.calls += 1
        return self.calls * run.value("z_x").square().mean()


def closed_over():
    calls = [0]

    def term(run):
        calls[0] += 1
        return calls[0] * run.value("z_x").square().mean()

    return term


CALLS = [0]


def in_a_global(run):
    CALLS[0] += 1
    return CALLS[0] * run.value("z_x").square().mean()


def in_an_iterator():
    numbers = itertools.count()
    return lambda run: next(numbers) * run.value("z_x").square().mean()


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (Annealed(), "function.calls"),
        (Annealed().__call__, "function.calls"),
        (closed_over(), "calls[0]"),
        (in_a_global, "CALLS[0]"),
        (in_an_iterator(), "numbers"),
    ],
    ids=["object", "method", "closure", "global", "iterator"],
)
def test_what_changes_in_python_is_named_and_stays_eager(cells, split, caplog, function, place):
    mine = {"extra": [Extra("mine", function)], "weights": NO_PENALTIES}
    _, messages = fitted_with(cells, split, caplog, plan(engine="trace"), **mine)
    assert len(messages) == 1
    assert re.search(rf"a step changes _terms.mine.*{re.escape(place)} from \S+ to ", messages[0])


class Slotted:
    """Holds a number where nobody looks."""

    __slots__ = ("weight",)


@pytest.mark.parametrize("kind", [TracedEngine, GraphEngine])
def test_a_compiled_step_is_compared_again(cells, split, caplog, monkeypatch, kind):
    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    monkeypatch.setattr(engines, "_STEPS_BETWEEN_COMPARISONS", 3)
    held = Slotted()
    held.weight = 1.0
    term = Extra("mine", lambda run: held.weight * run.value("z_x").square().mean())
    objective = fresh(cells, extra=[term], weights=NO_PENALTIES)
    trainer = Trainer(objective, cells, split=split, plan=plan(engine="eager"))
    parts = (trainer.objective, trainer.main, trainer.adversary, trainer.plan)
    batches = list(trainer.train.shuffled(0, 0))[:6]
    at = list(trainer.objective.terms).index("mine")
    with caplog.at_level(logging.WARNING, "pyro_fcr"), pyro.validation_enabled(is_validate=False):
        engine = kind(*parts, batch=batches[0])
        for number, batch in enumerate(batches, start=1):
            held.weight = 1.0 if number < 2 else 50.0
            terms, _ = engine.step(batch, number=number, epoch=0)
            assert (terms[at] > 10) == (number >= 3)
    assert [r.message.split(": of")[0] for r in caplog.records] == [
        "Training goes on in eager mode"
    ]


def test_short_trainings_stay_eager():
    assert plan().engine_for(100, CPU) == "eager"
    assert plan().engine_for(8_000, CPU) == "trace"
    assert plan().engine_for(2_000, torch.device("cuda")) == "graph"
    assert plan().engine_for(100, torch.device("cuda")) == "eager"
    assert plan(engine="eager").engine_for(8_000, CPU) == "eager"
    assert plan(engine="graph").engine_for(10, CPU) == "trace"
    assert plan(engine="graph").engine_for(10, torch.device("cuda")) == "graph"
    with pytest.raises(
        ValueError, match="Unknown engine 'jit'; expected auto, eager, trace or graph"
    ):
        plan(engine="jit")


# What is prepared of a batch matters to the likelihood: penalties are in one case.
@pytest.mark.parametrize(
    ("prepared", "weights"),
    [("tails", {}), *((name, NO_PENALTIES) for name in ("sums", "nothing", "rows"))],
    ids=["tails", "sums", "nothing", "rows"],
)
def test_a_step_from_fixed_places_is_the_traced_step(cells, split, monkeypatch, prepared, weights):
    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    found = []
    for kind in (TracedEngine, GraphEngine):
        objective = fresh(cells, weights=weights)
        trainer = Trainer(objective, cells, split=split, plan=plan(engine="eager"))
        batches = prepared_batches(trainer, cells, prepared)[:3]
        parts = (trainer.objective, trainer.main, trainer.adversary, trainer.plan)
        with seeded(3), pyro.validation_enabled(is_validate=False):
            engine = kind(*parts, batch=batches[0])
            for number, batch in enumerate(batches):
                terms, adversary = engine.step(batch, number=number, epoch=0)
        found.append([terms, adversary, *trainer.objective.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def recorded_late(monkeypatch, recorded):
    """Have the graph engine record, as on CUDA, by a function of its step."""
    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    monkeypatch.setattr(engines, "_records", lambda device: True)
    monkeypatch.setattr(engines, "_on_another_stream", lambda take, device: take())
    monkeypatch.setattr(engines, "_recorded", recorded)


def no_recording(take, device):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def stale(take, device):
    def replay():
        take()
        engine = take.__self__
        engine._found = (engine._found[0] * 1.01, engine._found[1])
        with torch.no_grad():
            engine.main.parameters[0].fill_(7.0)
            engine.main._bad_step.fill_(3)

    return replay


@pytest.mark.parametrize(
    ("recorded", "reason", "weights"),
    [
        (lambda take, device: take, "", {}),
        (no_recording, "capturing", NO_PENALTIES),
        (stale, "under the same noise total", NO_PENALTIES),
    ],
    ids=["recorded", "refused", "stale"],
)
def test_a_replay_that_differs_is_given_up(
    cells, split, caplog, monkeypatch, recorded, reason, weights
):
    recorded_late(monkeypatch, recorded)
    found = []
    for kind in (TracedEngine, GraphEngine):
        objective = fresh(cells, weights=weights)
        trainer = Trainer(objective, cells, split=split, plan=plan(engine="eager"))
        batches = list(trainer.train.shuffled(0, 0))[:6]
        parts = (trainer.objective, trainer.main, trainer.adversary, trainer.plan)
        with seeded(3), pyro.validation_enabled(is_validate=False), caplog.at_level("WARNING"):
            engine = kind(*parts, batch=batches[0])
            for number, batch in enumerate(batches):
                terms, adversary = engine.step(batch, number=number, epoch=0)
        found.append([terms, adversary, *trainer.objective.state_dict().values()])
        assert trainer.main.bad_step() is None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    said = [record.message for record in caplog.records]
    assert len(said) == bool(reason)
    assert all("not replayed from one CUDA graph" in each and reason in each for each in said)


@pytest.mark.parametrize("prepared", ["sums", "nothing", "rows"])
def test_a_step_holds_nothing_that_cannot_be_recorded(cells, split, monkeypatch, prepared):
    """Optimisers, guards and places included; a graph on a card holds the same operations."""
    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    monkeypatch.setattr(penalties, "_adds_in_any_order", lambda *_: True)
    trainer = Trainer(fresh(cells), cells, split=split, plan=plan(engine="graph"))
    batches = prepared_batches(trainer, cells, prepared)[:2]
    parts = (trainer.objective, trainer.main, trainer.adversary, trainer.plan)
    with pyro.validation_enabled(is_validate=False):
        engine = GraphEngine(*parts, batch=batches[0])
        engine.step(batches[0], number=1, epoch=0)
        with Operations() as operations:
            engine.step(batches[1], number=2, epoch=0)
    assert operations.count > 100
    assert operations.unrecordable == []
    assert operations.unordered == []  # the same seed gives the same bits


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.ones(3)[torch.ones(3) > 0], "index"),
        (lambda x: x.item(), "_local_scalar_dense"),
        (lambda x: torch.ones(3).masked_fill_(torch.ones(3) > 0, x), "masked_fill_"),
        (lambda x: x + torch.tensor([1.0]), "lift_fresh"),
        (torch.nonzero, "nonzero"),
    ],
)
def test_what_cannot_be_recorded_is_seen(function, name):
    with Operations() as operations:
        function(torch.tensor(2.0))
    assert name in operations.unrecordable


def prepared_batches(trainer, cells, prepared):
    """On a GPU counts are not tabulated, or gathered there; log1p values have no sums at all."""
    if prepared == "rows":
        trainer.train._resident = ResidentCells(cells, CPU)
    batches = list(trainer.train.shuffled(0, 0))
    if prepared == "nothing":
        return [replace(each, counts=None) for each in batches]
    if prepared == "sums":
        return [replace(each, counts=each.counts._replace(tails=None)) for each in batches]
    return batches


def test_the_number_of_a_bad_step_is_found_in_its_fixed_place(cells, split, monkeypatch):
    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    objective = fresh(cells, weights=NO_PENALTIES)
    trainer = Trainer(objective, cells, split=split, plan=plan(engine="eager"))
    good, bad = list(trainer.train.shuffled(0, 0))[:2]
    parts = (trainer.objective, trainer.main, trainer.adversary, trainer.plan)
    with pyro.validation_enabled(is_validate=False):
        engine = GraphEngine(*parts, batch=good)
        engine.step(good, number=7, epoch=0)
        assert trainer.main.bad_step() is None
        bad = replace(bad, values={**bad.values, "library": bad["library"] * torch.nan})
        for number in (8, 9):
            engine.step(bad, number=number, epoch=0)
    assert trainer.main.bad_step() == 8


@pytest.mark.parametrize("was_recorded", [True, False])
def test_a_resumed_learning_rate_is_where_recorded_steps_read_it(was_recorded):
    weight = torch.nn.Parameter(torch.ones(3))
    before = GuardedOptimizer([weight], learning_rate=0.5, recorded=was_recorded)
    ours = GuardedOptimizer([weight], learning_rate=0.1, recorded=True)
    (group,) = ours.torch.param_groups
    place = group["lr"]
    schedule = ours.scheduler("cosine", n_steps=10)
    ours.load_state_dict(before.torch.state_dict())
    (group,) = ours.torch.param_groups
    assert group["capturable"]
    assert group["lr"] is place
    assert place == 0.5
    ours.torch.step()
    schedule.step()
    assert place < 0.5


@pytest.mark.parametrize("largest", [200, 300, 40_000])
def test_resident_counts_give_the_same_batches(cells, largest):
    counts = np.minimum(cells.expression, 100).astype(np.uint16)
    counts[5, 3] = largest
    cells = replace(cells, expression=counts)
    rows = torch.tensor([5, 2, 900])
    resident, gathered = ResidentCells(cells, CPU).batch(rows), cells.batch(rows)
    assert resident["y"].dtype == torch.float32
    for name, value in gathered.values.items():
        assert torch.equal(resident[name], value), name
    for name, value in gathered.codes.items():
        assert torch.equal(resident.codes[name], value), name
    expected = torch.lgamma(gathered["y"].double() + 1.0).sum()
    assert resident.counts.log_factorial.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (
        ResidentCells(cells, CPU)._all["y"].dtype
        == {200: torch.uint8, 300: torch.int16, 40_000: torch.int32}[largest]
    )


def test_rows_of_resident_cells_are_the_batches_of_an_epoch(cells):
    made = Batches.for_training(cells, np.arange(1_000, 80, -1), batch_size=256, device=CPU)
    expected = list(made.shuffled(3, 1, start=1))
    assert not made.is_resident
    made._resident = ResidentCells(cells, CPU)
    assert made.is_resident
    picked = list(made.shuffled(3, 1, start=1))
    assert len(picked) == len(expected) == 2
    for some, batch in zip(picked, expected, strict=True):
        assert list(some.tensors()) == ["rows"]  # gathered where the step is taken
        assert torch.equal(some.gathered()["y"], batch["y"])


def test_the_loss_of_resident_counts_is_that_of_gathered_ones(cells):
    objective, rows = fresh(cells), torch.arange(64)
    gathered = eager_gradients_of(objective, first_batch(cells))
    resident = eager_gradients_of(objective, ResidentCells(cells, CPU).batch(rows))
    assert_agree(resident, gathered)


def eager_gradients_of(objective, batch):
    with seeded(2), pyro.validation_enabled(is_validate=False):
        return eager_gradients(objective, batch)


@pytest.fixture
def messages(monkeypatch):
    sent = []

    def counted(message):
        sent.append(message["name"])
        return apply_stack(message)

    apply_stack = runtime.apply_stack
    monkeypatch.setattr(runtime, "apply_stack", counted)
    monkeypatch.setattr(pyro.primitives, "apply_stack", counted, raising=False)
    return sent


@pytest.mark.parametrize(
    ("weights", "kernels"), [(NO_PENALTIES, 442), ({}, 968)], ids=["elbo", "all terms"]
)
def test_a_lean_step(cells, split, weights, kernels, messages):
    objective = fresh(cells, weights=weights)
    trainer = Trainer(objective, cells, split=split, plan=plan(engine="eager"))
    batches = iter(trainer.train.shuffled(0, 0))
    with pyro.validation_enabled(is_validate=False):
        trainer._step(next(batches))
        batch = next(batches)
        messages.clear()
        with Operations() as operations:
            trainer._step(batch)
    assert operations.reads == []
    assert 9 <= len(messages) <= 12
    assert 100 < operations.count <= kernels


@OLD_TORCH_DIFFERS
def test_products_in_bfloat16_are_near_those_in_float32(cells):
    objective, batch = fresh(cells), first_batch(cells)
    exact = eager_gradients_of(objective, batch)
    with in_precision("bf16", CPU):
        near = eager_gradients_of(objective, batch)
    assert near.total != exact.total
    torch.testing.assert_close(near.total, exact.total, rtol=1e-4, atol=0)
    torch.testing.assert_close(near.terms, exact.terms, rtol=1e-3, atol=1e-3)
    one, other = (torch.cat([g.flatten() for g in each.main]) for each in (near, exact))
    assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("way", ["eager", "traced"])
def test_only_hidden_layers_are_in_bfloat16(cells, way):
    objective, batch = fresh(cells), first_batch(cells)
    step, dtypes = lambda cells: eager_gradients(objective, cells), []
    with in_precision("bf16", CPU), pyro.validation_enabled(is_validate=False):
        run = objective(batch).run
        for site in ("z_x", "z_tx", "z_t"):
            dtypes += [run.prior(site).mean.dtype, run.posterior(site).mean.dtype]
        dtypes += [run.prior("y").mean.dtype, *(t.dtype for t in objective(batch).terms.values())]
        if way == "traced":
            step = TracedStep(objective, batch)
        with Operations() as operations:
            step(batch)
    assert set(dtypes) == {torch.float32}
    n = Counter(operations.products)
    assert n["addmm", torch.bfloat16] > 10
    full = n["addmm", torch.float32]  # last layers and priors, two products backwards for each
    assert full > 5
    assert n["mm", torch.float32] >= 2 * full


def test_precision_is_the_trainings_own(cells, split):
    before, elbos = torch.get_float32_matmul_precision(), {}
    for precision in ("float32", "tf32", "bf16"):
        objective = fresh(cells, weights=NO_PENALTIES)
        history = fit(objective, cells, split=split, plan=plan(precision=precision))
        elbos[precision] = history["heldout/elbo"].iloc[-1]
        assert {p.dtype for p in objective.parameters()} == {torch.float32}
        assert torch.get_float32_matmul_precision() == before
        assert not torch.is_autocast_enabled("cpu")
    assert elbos["bf16"] == pytest.approx(elbos["float32"], rel=1e-2)
    assert elbos["bf16"] != elbos["float32"]
