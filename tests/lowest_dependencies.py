"""The lowest version of each dependency that ``pyproject.toml`` allows, as constraints for pip.

    python -m venv lowest
    python tests/lowest_dependencies.py > lowest.txt
    lowest/bin/python -m pip install --constraint lowest.txt '.[leiden]' pytest hypothesis h5netcdf
    lowest/bin/python -m pytest -o addopts= tests/test_elbo.py ...

``torch=2.13.0`` as an argument takes another version, where a machine lacks the lowest. torch 2.6.0
for Linux has the libraries of CUDA with it, 3 GB, and runs on a CPU as well.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(**instead):
    """Return ``name==version`` of every dependency, that of Leiden clusters among them."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["leiden"]]
    pairs = dict(each.split(">=") for each in dependencies)
    return [f"{name}=={version}" for name, version in {**pairs, **instead}.items()]


if __name__ == "__main__":
    print(*lowest(**dict(each.split("=", 1) for each in sys.argv[1:])), sep="\n")
