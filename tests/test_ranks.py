"""Several processes train one model: the same numbers as one, decided and written once."""

import os
import signal
from functools import cache

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import SCHEMA, make_programs, simulate
from rank_jobs import in_processes
from torch import nn

from pyro_fcr import FCRLoss, Objective, ranks
from pyro_fcr.cli import app
from pyro_fcr.data import register, split_cells
from pyro_fcr.parts import Part, WholeNoise
from pyro_fcr.training import TrainingPlan, axes, fit, tracing
from pyro_fcr.training import plan as plan_module

# 20 steps in parts of 48 and 49 cells; the last batch of held-out cells has one, for both to have.
SHORT, LONG = {"max_epochs": 5}, {"max_epochs": 6, "checkpoint_every": 1, "align_at": None}
N_CELLS = 491


@cache
def _data(n_cells):
    adata = simulate(n_cells, 20)
    return register(adata, SCHEMA)[1], split_cells(adata.obs, SCHEMA, heldout_fraction=0.2)


def train(plan, *, n_cells=N_CELLS, dtype=torch.float32, seed=0, before=None, **options):
    """Train with every term; return state and history, or what was raised."""
    cells, split = _data(n_cells)
    torch.manual_seed(seed)
    batch = cells.batch(np.arange(32))
    programs = make_programs(batch, dropout=0.1)
    objective = Objective.from_programs(*programs, batch, weights={"label": 0.5}).to(dtype)
    if before is not None:
        before(objective)
    settings = {"batch_size": 97, "progress": False, "device": "cpu", "engine": "eager", **plan}
    try:
        history = fit(objective, cells, split=split, plan=TrainingPlan(**settings), **options)
    except (Exception, SystemExit) as error:
        return error
    return objective.state_dict(), history.drop(columns="seconds")


def _stop_at(step, signum, *, number):
    """Send a process a signal within a step."""

    def prepare(objective):
        seen = []

        def count(*_):
            seen.append(objective.training)
            if sum(seen) == step and ranks.rank() == number:
                os.kill(os.getpid(), signum)

        objective.register_forward_pre_hook(count)

    return prepare


def broken(signum, path):
    return train(LONG, before=_stop_at(14, signum, number=1), checkpoint=path)


def align_early():
    """Align after few steps, with short fits of the maps."""
    plan_module._STEPS_WORTH_ALIGNING = 10
    axes._STEPS = axes._REFINE_STEPS = 30
    state, history = train({**SHORT, "align_at": 0.4})
    plan_module._STEPS_WORTH_ALIGNING = 2_000
    return state, history.attrs["alignment"]


def traced():
    """Train by the traced step, which is not compiled to save time."""
    tracing.TracedStep.compiled = lambda step: step
    return train({**SHORT, "engine": "trace"}, dtype=torch.float64)


def draw_all():
    """Draw what programs may draw, for five cells and for the two or three of a part."""
    found = []
    part = Part.of_this_process(5)
    for rows in (slice(None), slice(part.start, part.stop)):
        torch.manual_seed(0)
        ones = torch.linspace(1.0, 2.0, 5)[rows, None].expand(-1, 3)
        with WholeNoise(part) if len(ones) < 5 else torch.enable_grad():
            drawn = [
                dist.Normal(ones, 1.0).rsample(),
                dist.Gamma(ones, 1.0).sample(),
                dist.Dirichlet(ones).sample(),
                dist.Categorical(ones).sample()[:, None],
                dist.Poisson(9 * ones).sample(),
                dist.Bernoulli(ones / 3).sample((4,))[3],
                nn.functional.dropout(ones, 0.5),
                torch.rand(len(ones), 1),
                torch.randn_like(ones),
                torch.normal(ones, ones),
                torch.randint(9, (len(ones), 2)),
                torch.randn(7).expand(len(ones), 7),  # what all cells share
            ]
        found.append(torch.cat([each.double() for each in drawn], dim=1))
    return torch.equal(part.own(found[0]), found[1])


def everything(folder):
    """Do all that several processes do, but lose one another."""
    ranks.join()
    found = {
        "float32": train(SHORT),
        "float64": train(SHORT, dtype=torch.float64),
        "traced": traced(),
        "aligned": align_early(),
        "noise": draw_all(),
        "whole": train(LONG),
        "resumed": train(LONG, seed=9, resume=folder / "killed.pt"),
        "terminated": broken(signal.SIGTERM, folder / "terminated.pt"),
        "went on": train(LONG, seed=9, resume=folder / "terminated.pt"),
        "other cells": train(SHORT, n_cells=N_CELLS + 50 * ranks.rank()),
        "small batches": train({"batch_size": 1}),
    }
    schema = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]
    fast = ["--max-epochs", "2", "--align-at", "none", "--decoder", "additive"]
    fast += ["--memory", "1kB"]  # the cells stay on disk
    app(["fit", f"{folder}/cells.h5ad", "--out", f"{folder}/model", *schema, *fast])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    simulate(300, 20).write_h5ad(folder / "cells.h5ad")
    return folder


@pytest.fixture(scope="module")
def killed(folder):
    return in_processes(broken, signal.SIGKILL, folder / "killed.pt")


@pytest.fixture(scope="module")
def both(folder, killed):
    found, codes = in_processes(everything, folder)
    assert codes == [0, 0]
    return found


def furthest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("run", "dtype", "bound"),
    [
        ("float32", torch.float32, 1e-4),
        ("float64", torch.float64, 1e-12),
        ("traced", torch.float64, 1e-12),
    ],
)
def test_two_processes_are_one_with_all_terms(both, run, dtype, bound):
    (mine, history), (theirs, _) = (each[run] for each in both)
    one, expected = train(SHORT, dtype=dtype)
    assert furthest(mine, theirs) == 0.0
    assert 0.0 < furthest(one, mine) <= bound
    np.testing.assert_allclose(history, expected, rtol=1e-4, atol=1e-4)


def test_what_is_decided_is_the_same_in_both(both):
    for run in ("float32", "float64", "traced", "whole"):
        np.testing.assert_array_equal(both[0][run][1], both[1][run][1])


def test_processes_are_bit_identical_after_an_aligned_fit(both):
    mine, theirs = (each["aligned"] for each in both)
    assert mine[1]["gain"] > 0
    assert mine[1] == theirs[1]
    assert furthest(mine[0], theirs[0]) == 0.0


def test_a_part_has_its_rows_of_the_noise_of_the_batch(both):
    assert [each["noise"] for each in both] == [True, True]


def test_a_killed_process_ends_the_other_in_a_line(killed):
    (error, nothing), codes = killed
    assert (nothing, codes) == (None, [0, -signal.SIGKILL])
    assert isinstance(error, ranks.ProcessLostError)
    assert str(error).startswith(
        "Process 0 of 2 reaches the others no more: one of them has ended. Start as many again"
    )


@pytest.mark.parametrize("run", ["resumed", "went on"])
def test_resumed_by_as_many_is_what_never_stopped(both, run):
    for each in both:
        assert furthest(each["whole"][0], each[run][0]) == 0.0
        np.testing.assert_array_equal(each["whole"][1], each[run][1])


def test_a_signal_to_one_process_stops_all(both):
    assert [each["terminated"].code for each in both] == [128 + signal.SIGTERM] * 2


def test_a_checkpoint_of_two_is_not_resumed_by_one(both, folder):
    alone = train(LONG, resume=folder / "killed.pt")
    assert "was trained by 2 processes, not 1. Resume with as many" in str(alone)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("other cells", "names or order of cells of process 1 and of process 0 are not the same"),
        ("small batches", "A batch has 1 cells, too few for 2 processes"),
    ],
)
def test_what_cannot_be_divided_is_refused(both, run, message):
    assert message in str(both[0][run])


def test_the_command_line_writes_one_model(both, folder):
    assert (folder / "model" / "model.json").exists()


def test_processes_that_do_not_find_one_another_are_told_how_to_start(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "Start them with torchrun --nproc-per-node 2" in str(train({}))


def test_what_trains_in_one_process_is_refused_in_several(monkeypatch, programs, batch):
    objective = Objective.from_programs(*programs, batch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="FCRLoss trains in one process, but 2 run this program"):
        FCRLoss(objective)
