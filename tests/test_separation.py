"""A fit says whether its blocks are apart."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SCHEMA, make_batch, make_programs, simulate
from pyro.distributions import Normal
from torch import nn

from pyro_fcr import FCR, Architecture
from pyro_fcr.evaluation import measure_separation
from pyro_fcr.graph import claims, read_graph
from pyro_fcr.training import Aligned
from pyro_fcr.training.heldout import report_passed_peak

SIZES = {"z_x": 1, "z_tx": 1, "z_t": 1}


class Told(nn.Module):
    """A guide's encoder that returns latents which the batch carries."""

    def __init__(self, latents):
        super().__init__()
        self.latents = latents

    def forward(self, y, *_):
        return Normal(self.latents[y[:, 0].long()], 0.1).to_event(1)


def cells_of(shuffle=None, leak=0.0, n=4_000):
    """Programs whose guide knows latents of three blocks, and the cells in batches."""
    torch.manual_seed(0)
    batch = make_batch(n, n_genes=5, n_x=4, n_t=3)
    model, guide = make_programs(batch, n_x=1, n_tx=1, n_t=1)
    x, t = batch["x"].argmax(1), batch["t"] @ torch.arange(1.0, 4.0)
    noise = torch.randn(n, 3)
    effect = torch.tensor([[0.0, 2.0, -2.0, 1.0], [0.0, -2.0, 2.0, 3.0], [0.0, 2.0, 1.0, -3.0]])
    pair = (effect[:, x].T * torch.nn.functional.one_hot(t.long() % 3, 3)).sum(1) * (t > 0)
    truth = torch.stack([x * 1.5, pair, t * 1.5], dim=1) + noise
    truth[:, 0] += leak * t
    columns = [0, 1, 2] if shuffle is None else shuffle
    batch.values["y"][:, 0] = torch.arange(n)
    for place, site in enumerate(("z_x", "z_tx", "z_t")):
        setattr(guide, site, Told(truth[:, [columns[place]]]))
    guide.features = First()
    return model, guide, batch


class First(nn.Module):
    """Features that are the expression itself."""

    def forward(self, y, library):
        return y


def measured(model, guide, batch):
    graph = read_graph(model, batch)
    return measure_separation(
        (model, guide), [batch], sizes=SIZES, claims=claims(graph), aligned=Aligned(gain=1.0)
    )


def test_blocks_that_are_apart_pass():
    found = measured(*cells_of())
    assert found.is_clean, found.line
    assert found.warning == ""
    assert found.line.startswith("Blocks are apart: dimensions in use: 1 of z_x / 1 of z_tx / 1 of")
    assert (found.dimensions["margin"] > 0.05).all()
    assert json.loads(json.dumps(found.to_dict()))["in_use"] == SIZES


def test_swapped_dimensions_are_named():
    found = measured(*cells_of(shuffle=[0, 2, 1]))
    assert not found.is_clean
    assert set(found.unclear["block"]) == {"z_tx", "z_t"}
    assert "z_tx[0] may belong to another block" in found.warning
    assert "fit again with another seed=" in found.warning
    assert found.line.startswith("Blocks are NOT apart")


def test_a_block_that_holds_a_label_which_is_no_cause_is_named():
    found = measured(*cells_of(leak=0.6))
    assert "z_x ⟂ t | x" in set(found.dependent["statement"])
    assert "z_x ⟂ t | x does not hold" in found.warning


def test_nothing_is_claimed_of_a_block_that_is_not_in_use():
    model, guide, batch = cells_of()
    guide.z_tx.latents = torch.zeros(4_000, 1)
    found = measured(model, guide, batch)
    assert found.in_use == {"z_x": 1, "z_tx": 0, "z_t": 1}
    assert set(found.independence["statement"]) == {"z_x ⟂ t | x", "z_t ⟂ x | t"}
    assert found.untested["z_tx ⟂ z_t | t"] == "no dimension of z_tx is in use"
    assert found.is_clean


@pytest.fixture
def short(monkeypatch):
    """Few steps suffice to be aligned."""
    monkeypatch.setattr("pyro_fcr.training.plan._STEPS_WORTH_ALIGNING", 0)
    for name in ("axes._STEPS", "axes._REFINE_STEPS", "places._STEPS"):
        monkeypatch.setattr(f"pyro_fcr.training.{name}", 20)


PLAN = {"max_epochs": 4, "batch_size": 64, "progress": False, "device": "cpu"}


@pytest.mark.filterwarnings("ignore:The latent blocks are not separated")
def test_a_fit_keeps_what_it_found_and_so_does_a_saved_model(short, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fcr = FCR(simulate(400, n_genes=12), SCHEMA, architecture=Architecture(n_x=2, n_t=2, n_tx=2))
    history = fcr.fit(**PLAN)
    found = history.attrs["separation"]
    assert found["line"] in caplog.text
    assert set(found["in_use"]) == {"z_x", "z_tx", "z_t"}
    assert found["alignment"]["n_starts"] >= 4
    word = "apart" if found["separated"] else "NOT apart"
    assert f"blocks {word}" in repr(fcr)
    again = FCR.load(fcr.save(tmp_path / "model"))
    assert again.history.attrs["separation"]["line"] == found["line"]
    assert again.history.attrs["stopped"] == history.attrs["stopped"]


def test_a_fit_warns_where_blocks_are_not_apart(short, monkeypatch):
    monkeypatch.setattr("pyro_fcr.evaluation.separation._LEAST_MARGIN", 1e3)
    fcr = FCR(simulate(400, n_genes=12), SCHEMA, architecture=Architecture(n_x=2, n_t=2, n_tx=2))
    with pytest.warns(UserWarning, match="not separated: .*may belong to another block"):
        fcr.fit(**PLAN)


def test_a_training_too_short_to_be_aligned_says_so(caplog):
    fcr = FCR(simulate(400, n_genes=12), SCHEMA, architecture=Architecture(n_x=2, n_t=2, n_tx=2))
    history = fcr.fit(**PLAN)
    assert "A training of 20 steps is too short for the alignment" in caplog.text
    assert "make it 400" in caplog.text
    assert "separation" not in history.attrs
    caplog.clear()
    fcr.fit(**PLAN, align_at=None)  # which was asked for
    assert "too short" not in caplog.text


def test_a_peak_before_the_alignment_is_reported(caplog):
    history = pd.DataFrame({"heldout/elbo": [-10.0, -5.0, -9.0]})
    report_passed_peak(history, 2)
    assert "4.0 nats per cell higher in epoch 1 than in epoch 2" in caplog.text
    caplog.clear()
    report_passed_peak(history, 1)
    report_passed_peak(history[["heldout/elbo"]] * np.nan, 1)
    report_passed_peak(pd.DataFrame({"lr": [0.1]}), 0)
    assert not caplog.text
