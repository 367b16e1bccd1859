"""Callbacks of a training, and the recipes of docs/logging.md, which are run as they stand."""

import contextlib
import importlib
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SCHEMA

import pyro_fcr
from pyro_fcr import FCR, Architecture

PAGE = (Path(__file__).parents[1] / "docs" / "logging.md").read_text()
SIZES = Architecture(n_x=2, n_t=2, n_tx=2, n_hidden=8, decoder="additive", dropout=0.0)
PLAN = {"max_epochs": 4, "align_at": None, "progress": False, "batch_size": 256}


@pytest.fixture
def fcr(adata):
    return FCR(adata, SCHEMA, architecture=SIZES)


def test_callbacks_hear_the_history_and_change_nothing(fcr, adata):
    rows = []

    def nosy(epoch, terms):
        rows.append({"epoch": epoch, **terms, "draw": torch.rand(()).item()})
        fcr.get_latent_representation("z_x", adata[:5].copy())
        fcr.predict("drug1", n_cells=3, covariates={"line": "line0"})
        terms.clear()

    history = fcr.fit(**PLAN, callbacks=[nosy])
    heard = pd.DataFrame(rows).set_index("epoch").drop(columns="draw")
    pd.testing.assert_frame_equal(heard, history, check_flags=False)
    alone = FCR(adata, SCHEMA, architecture=SIZES)
    alone.fit(**PLAN)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, fcr.model.state_dict()[name]), name


def test_true_ends_the_training_and_nothing_else_does(fcr):
    calls = []
    others = [lambda epoch, terms: "yes", lambda epoch, terms: calls.append(epoch)]
    history = fcr.fit(**PLAN, callbacks=[lambda epoch, terms: epoch == 1, *others])
    assert calls == [0, 1]
    assert len(history) == 2
    assert history.attrs["stopped"] == "a callback asked for it"
    assert not fcr.model.training


def test_an_error_goes_through(fcr):
    def fail(epoch, terms):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fcr.fit(**PLAN, callbacks=[fail])
    assert fcr.history is None


@pytest.mark.parametrize("wrong", [print, 3, None, [print, "log"]])
def test_what_cannot_be_called_is_refused_before_training(fcr, wrong):
    with pytest.raises(ValueError, match=r"^callbacks (is|holds) .*expected .*functions"):
        fcr.fit(**PLAN, callbacks=wrong)
    assert fcr.split is None


def recipe(title):
    """The code of a section of the page, for a short training."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    code = re.findall(r"```py\n(.*?)```", section, flags=re.DOTALL)[0]
    return code.replace("max_epochs=150", "max_epochs=2")


def run(code, folder, **names):
    scope = {"pyro_fcr": pyro_fcr, **names}
    with contextlib.chdir(folder):
        exec(compile(code, "logging.md", "exec"), scope)
    return scope


def test_the_recipe_for_tensorboard_logs_terms_and_a_figure(fcr, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    history = run(recipe("TensorBoard"), tmp_path, fcr=fcr)["history"]
    log = events.EventAccumulator(str(tmp_path / "runs" / "first")).Reload()
    assert set(log.Tags()["scalars"]) == set(history.columns)
    logged = [event.value for event in log.Scalars("heldout/elbo")]
    assert logged == pytest.approx(history["heldout/elbo"].tolist(), rel=1e-5)
    assert log.Tags()["images"] == ["terms"]


def test_the_recipe_for_optuna_gives_up_trials_that_are_behind(adata, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna", reason="pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    small = recipe("A search that gives up early: Optuna")
    small = small.replace("max_epochs=60", "max_epochs=4, align_at=None, progress=False")
    small = small.replace("n_trials=20", "n_trials=5").replace("1e-3, 1e-2", "1e-6, 1e-2")
    sampler = "sampler=optuna.samplers.RandomSampler(seed=0), direction="
    study = run(small.replace("direction=", sampler), tmp_path, adata=adata[:300], schema=SCHEMA)[
        "study"
    ]
    states = [trial.state.name for trial in study.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    best = max(t.value for t in study.trials if t.state.name == "COMPLETE")
    assert study.best_value == best
