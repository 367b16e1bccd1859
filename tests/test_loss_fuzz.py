"""The loss of random programs is what brute force gives; a fixed seed.

``tests/benchmarks/fuzz_loss.py`` goes on where this ends.
"""

import logging

import loss_fuzzing
import pytest
from loss_fuzzing import check

from pyro_fcr.graph import contract
from pyro_fcr.graph.runs import Run

SEEDS = range(30)
CHAINED = (51, 89, 129)  # the guide draws a Gaussian cause from its Gaussian effect


@pytest.fixture(autouse=True)
def _no_lines():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("start", range(0, len(SEEDS), 10))
def test_random_programs(start):
    found = {seed: check(seed) for seed in SEEDS[start : start + 10]}
    assert {seed: wrong for seed, wrong in found.items() if wrong} == {}


def test_the_oracle_notices_wrong_losses(monkeypatch):
    """A scale that is overlooked, a closed form that does not hold, an arrow less."""
    seeds = range(8)
    right = Run.per_cell
    with monkeypatch.context() as patch:
        patch.setattr(
            Run, "per_cell", lambda run, node, value: right(run, {**node, "scale": 1.0}, value)
        )
        assert any("ELBO" in line for seed in seeds for line in check(seed))
    with monkeypatch.context() as patch:
        patch.setattr(
            contract, "_closed_form_obstacle", _overlooking(contract._closed_form_obstacle)
        )
        assert any("closed form where" in line for seed in CHAINED for line in check(seed))
    with monkeypatch.context() as patch:
        parents = loss_fuzzing.Recipe.parents
        patch.setattr(loss_fuzzing.Recipe, "parents", lambda r: {**parents(r), "y": {"x"}})
        assert any("into y" in line for line in check(0))


def _overlooking(obstacle):
    def overlooking(*about):
        reason = obstacle(*about)
        return None if reason and "a cause of" in reason else reason

    return overlooking
