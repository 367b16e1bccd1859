"""What is said of how fast a training goes."""

import re

import pytest
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, Architecture
from pyro_fcr.training import pace


def test_the_pace_is_told_after_the_first_batches_and_beside_the_bar(caplog, monkeypatch, capsys):
    monkeypatch.setattr(pace, "_TELLING", 0.0)
    monkeypatch.setattr(pace, "_BETWEEN", 0.0)
    fcr = FCR(simulate(1000), SCHEMA, architecture=Architecture(decoder="additive", dropout=0.0))
    with caplog.at_level("INFO", logger="pyro_fcr.training"):
        fcr.fit(max_epochs=2, batch_size=128, align_at=None, progress=True)
    words = r"(\d+) cells per second: an epoch takes about ([\d.]+) s, all 2 up to ([\d.]+)"
    ((rate, epoch, both),) = re.findall(words, caplog.text)
    assert float(epoch) == pytest.approx(7 * 128 / float(rate), abs=0.06)
    assert float(both) == pytest.approx(2 * float(epoch), abs=0.2)
    assert re.search(r"\d+ cells/s, held-out ELBO", capsys.readouterr().err)


def test_the_pace_leaves_out_the_first_batches(monkeypatch):
    clock = iter([0.0, *(100.0 + i for i in range(4)), *(103.5, 104.0)])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    found = pace.Pace(n_batches=10, batch_size=8)
    for _ in range(4):
        assert not found.take(epochs_left=1)
    assert not found.take(epochs_left=1)
    assert found.take(epochs_left=1)
    assert found.cells_per_second == 16.0
