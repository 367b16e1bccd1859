"""The program for a card runs on a CPU, all parts of it but the recording."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "benchmarks" / "cuda.py"


def test_every_part_runs_on_a_cpu():
    command = [sys.executable, PROGRAM, "--device", "cpu", "--quick", "--engines", "eager"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    assert not [row for row in rows if row["what"] == "error"]
    found = {(row["part"], row["what"]): row["value"] for row in rows}
    assert found["bits, eager", "same seed"] is True
    assert found["bits, eager", "resumed"] is True
    assert found["questions", "latents, cells/s"] > 0
    assert "bits, eager: resumed" in done.stdout  # what was aimed at stands beside what was found
