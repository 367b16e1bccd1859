"""The engine of a training follows the times of its first steps on a GPU, told here by a clock."""

import logging
from types import SimpleNamespace

import pytest
import torch

from pyro_fcr.training import choice
from pyro_fcr.training.choice import Choice

SKIPPED, TIMED = choice._STEPS_TO_SETTLE, choice._TIMED_STEPS


@pytest.fixture
def hands(monkeypatch):
    """A clock whose time is set, and the engines that were compiled."""
    found = SimpleNamespace(time=0.0, compiled=[])

    def compiled(level, eager, batch):
        found.compiled.append(level)
        return f"{level} of {batch}"

    monkeypatch.setattr(choice, "now", lambda device: found.time)
    monkeypatch.setattr(choice, "compiled_if_possible", compiled)
    return found


def engines_of(hands, *, eager, replay=0.0, weighs=True, n_steps=1_000, settled=None):
    parameters = [torch.zeros(())]
    first = SimpleNamespace(main=SimpleNamespace(parameters=parameters))
    made = Choice(first, level="graph", n_steps=n_steps, weighs=weighs)
    made.settled = settled or made.settled
    taken = []
    for step in range(50):
        engine = made.engine("cells", step=step)
        taken.append("eager" if engine is first else engine)
        hands.time += eager if engine is first else replay
    return made, taken


def n_eager(taken):
    return [each == "eager" for each in taken].index(False)


def test_a_named_engine_follows_the_checked_steps(hands):
    made, taken = engines_of(hands, eager=9.0, weighs=False)
    assert taken == ["eager"] * choice.VALIDATED_STEPS + ["graph of cells"] * 47
    assert hands.compiled == ["graph"]
    assert made.settled == "graph"


@pytest.mark.parametrize(("seconds", "pays"), [(0.06, True), (0.04, False)])
def test_what_is_left_must_be_longer_than_compiling(hands, caplog, seconds, pays):
    caplog.set_level(logging.INFO, "pyro_fcr")
    made, taken = engines_of(hands, eager=seconds)  # some 990 steps are left, of 40 or 59 s
    assert hands.compiled == (["graph"] if pays else [])
    assert made.settled == ("graph" if pays else "eager")
    said = [record.message for record in caplog.records]
    assert said == ([] if pays else [f"{STAYS} 987 of 40.0 ms are left, too few to compile them."])
    if pays:
        assert n_eager(taken) == choice.VALIDATED_STEPS + TIMED
        assert set(taken[n_eager(taken) :]) == {"graph of cells"}


STAYS = "Steps stay in eager mode:"


def test_replays_that_are_slower_end(hands, caplog):
    made, taken = engines_of(hands, eager=0.1, replay=0.11)
    first = n_eager(taken)
    assert taken[first : first + SKIPPED + TIMED] == ["graph of cells"] * (SKIPPED + TIMED)
    assert set(taken[first + SKIPPED + TIMED + 1 :]) == {"eager"}
    assert "took 100.0 ms, compiled ones 110.0 ms" in caplog.text
    assert made.settled == "eager"


@pytest.mark.parametrize("settled", ["eager", "graph"])
def test_a_resumed_training_goes_on_as_was_settled(hands, settled):
    made, taken = engines_of(hands, eager=0.1, settled=settled)
    assert made.settled == settled
    assert set(taken[choice.VALIDATED_STEPS :]) == {
        "eager" if settled == "eager" else "graph of cells"
    }
