"""Graphs that users edit take the same steps on every engine, or stay eager with a word."""

import numpy as np
import pyro
import pytest
import test_outcomes
import torch
from edits import EDITS, Edit

from pyro_fcr.data import Split, register
from pyro_fcr.modes import seeded
from pyro_fcr.objective import Objective
from pyro_fcr.training import Trainer, TrainingPlan, engines
from pyro_fcr.training.engines import compiled_if_possible
from pyro_fcr.training.tracing import TracedStep

PLAN = {"max_epochs": 9, "batch_size": 64, "progress": False, "align_at": None}
TWO_OUTCOMES = Edit(
    lambda _: tuple(test_outcomes.programs().values()),
    [],
    test_outcomes.cells,
    test_outcomes.SCHEMA,
)
N_STEPS = 6  # of the engine "graph" two are replays


def trainer_of(edit, device, engine):
    adata = edit.data()
    registry, cells = register(adata, edit.schema)
    torch.manual_seed(0)
    model, guide = edit.build(registry)
    objective = Objective.from_programs(model, guide, cells.batch(np.arange(64)))
    split = Split(np.arange(len(cells)), np.arange(0))
    plan = TrainingPlan(**PLAN, device=device, engine=engine)
    return Trainer(objective, cells, split=split, plan=plan)


def trained_by(engine, edit, device):
    trainer = trainer_of(edit, device, engine)
    batches = list(trainer.train.shuffled(0, 0))[:N_STEPS]
    with seeded(3, device=trainer.device), pyro.validation_enabled(is_validate=False):
        made = compiled_if_possible(engine, trainer.choice.eager, batches[0])
        for number, batch in enumerate(batches, start=1):
            terms, adversary = made.step(batch, number=number, epoch=0)
    return made, [terms, adversary, *trainer.objective.state_dict().values()]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [(EDITS["f_flow"], "depends on data"), (EDITS["g_bayesian"], ""), (TWO_OUTCOMES, "")],
    ids=["a flow", "a shared latent of an autoguide", "two outcomes"],
)
def test_every_engine_takes_the_steps_of_eager_mode(edit, reason, device, caplog, monkeypatch):
    monkeypatch.setattr(TracedStep, "compiled", lambda self: self)
    if device == "cpu":
        monkeypatch.setattr(engines, "_records", lambda device: True)
        monkeypatch.setattr(engines, "_on_another_stream", lambda take, device: take())
        monkeypatch.setattr(engines, "_recorded", lambda take, device: take)
    eager, expected = trained_by("eager", edit, device)
    for engine, kind in engines.COMPILED.items():
        made, found = trained_by(engine, edit, device)
        assert type(made) is (type(eager) if reason else kind)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    said = [r.message for r in caplog.records if r.name.startswith("pyro_fcr.training")]
    assert len(said) == (2 if reason else 0)
    assert all("stays in eager mode" in each and reason in each for each in said)
