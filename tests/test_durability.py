"""The small version of ``tests/benchmarks/durability.py``: malicious models, and some kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from durability_suite import malice, work

PROGRAM = Path(__file__).parent / "benchmarks" / "durability.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malice")
    work.make_cells(folder)
    work.fit(folder, out=folder / "model")
    return folder / "model"


@pytest.mark.parametrize("name", malice.MALICE)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_model_does_nothing(model, tmp_path, name):
    assert malice.attack(model, tmp_path, name) == []


def test_killed_work_loses_nothing():
    asked = ["--kills", "1", "--flips", "5", "--only", "kills,flips", "--work", "fit"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *asked], check=True, text=True, capture_output=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"]["fit"]["kills"] == 1
    assert sum(each["told"] for each in found["flips"].values()) > 20
