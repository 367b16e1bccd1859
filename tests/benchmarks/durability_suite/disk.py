"""A full disk at each place that a command writes to: one line, and no training is lost."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path

from durability_suite.work import COLUMNS, EPOCHS, FIT, child, command, fit
from pyro_fcr.files import remove
from pyro_fcr.saving import read_model


def full_disk(folder, full):
    """Run commands with outputs on a disk of 64 KB (``full``), where nothing large fits."""
    cells, model = folder / "cells.h5ad", folder / "asked"
    assert child(fit, folder, out=model) == 0
    asked = ["--treatment", "drug1", "--cells", cells]
    commands = {
        "fit: model": ["fit", cells, *FIT, "--n-hidden", 64, "--out", full / "m"],
        "fit: checkpoint": ["fit", cells, *FIT, "--out", folder / "m1",
                            "--checkpoint", full / "c"],
        "fit: both": ["fit", cells, *FIT, "--n-hidden", 64, "--out", full / "m",
                      "--checkpoint", full / "c"],
        "predict: h5ad": ["predict", model, *asked, "--n-draws", 9, "--out", full / "p.h5ad"],
        "predict: zarr": ["predict", model, *asked, "--n-draws", 9, "--out", full / "p.zarr"],
        "latents": ["latents", model, cells, "--out", full / "l.h5ad"],
        "effects": ["effects", model, "--out", full / "e.csv"],
        "interactions": ["interactions", cells, *COLUMNS, "--max-epochs", 2, "--n-hidden", 8,
                         "--out", full / "i"],
        "evaluate": ["evaluate", model, cells, "--out", full / "v"],
    }  # fmt: skip
    return {name: _run(each, folder, full) for name, each in commands.items()}


def _run(arguments, folder, full):
    for path in full.iterdir():
        remove(path)
    _fill(full / "fill", leave=2_000 if arguments[0] in ("effects", "interactions") else 20_000)
    said = folder / "said.txt"
    code = child(command, *arguments, said=said)
    text = said.read_text()
    found = {
        "code": code,
        "one_line": text.count("Error:") <= 1 and "Traceback" not in text,
        "says": "disk is full" in text,
        "left": [p.name for p in full.iterdir() if p.name != "fill"],
    }
    if place := re.search(r"The result is in (\S+) for now", text):
        found["elsewhere"] = Path(place[1]).exists()
    if arguments[0] == "fit":
        place = Path(place[1]) if place else arguments[arguments.index("--out") + 1]
        found["trained"] = place.exists() and len(read_model(place).history) == EPOCHS
    return found


def _fill(path, *, leave):
    """Take all space but a little."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    with path.open("rb+") as file:
        file.truncate(max(0, path.stat().st_size - leave))


def mount(folder, *, size="256k"):
    """Make a disk of that size; None where that is not allowed."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        check=False, capture_output=True,
    )  # fmt: skip
    return folder if made.returncode == 0 else None


def unmount(folder):
    subprocess.run(["umount", folder], check=True)
