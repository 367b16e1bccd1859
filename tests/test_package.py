"""What is packed: everything that tests and licences need, the same bytes every time."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_PACKED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__",
                                    ".*_cache", "demo", "lightning_logs")  # fmt: skip


def build(kind, source, out):
    """Build ``source`` as pip does, without a network, and return the file."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=environment, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_PACKED)
    with tarfile.open(build("sdist", folder / "source", folder)) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    return source


def test_the_source_distribution_has_what_its_tests_need(unpacked):
    for folder in ("tests", "docs", "data", "notebooks"):
        wanted = {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
            and not {"__pycache__", ".ipynb_checkpoints", "generated"} & set(path.parts)
        }
        assert len(wanted) > 3
        assert [str(path) for path in wanted if not (unpacked / path).is_file()] == []
    for name in ("setup.cfg", "constraints.txt", "Makefile", "CHANGELOG.md", "CONTRIBUTING.md"):
        assert (unpacked / name).is_file()


def test_the_wheel_is_reproducible_and_has_the_licences_of_its_data(unpacked, tmp_path):
    digests = []
    for number in range(2):
        source, out = tmp_path / f"source{number}", tmp_path / f"out{number}"
        shutil.copytree(unpacked, source)
        os.utime(source / "pyro_fcr" / "api.py", (1e9 + number, 1e9 + number))
        out.mkdir()
        wheel = build("wheel", source, out)
        digests.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    names = zipfile.ZipFile(wheel).namelist()
    tails = {re.sub(r"^pyro_fcr-[^/]*/", "", name) for name in names}
    assert {"licenses/LICENSE", "licenses/data/LICENSES.md"} <= tails
    for path in (ROOT / "pyro_fcr").rglob("*"):
        if path.suffix in (".py", ".pyi", ".j2", ".typed"):
            assert str(path.relative_to(ROOT)) in names
    for path in (ROOT / "data").glob("*.h5ad"):
        assert f"pyro_fcr/bundled/{path.name}" in names
    assert not [name for name in names if "test" in name]


def test_every_dependency_has_a_lowest_version_and_none_is_under_the_gpl():
    assert [each for each in PROJECT["dependencies"] if ">=" not in each] == []
    assert not {"igraph", "leidenalg"} & {re.split(r"\W", d)[0] for d in PROJECT["dependencies"]}
