"""SIGKILL at random moments: what stands is whole, old or new, and a run goes on bit by bit."""

import json
import shutil
import time

import anndata as ad
import numpy as np
import pandas as pd

from durability_suite.work import child, fit, leftovers, seconds
from pyro_fcr import FCR, Output
from pyro_fcr.saving import read_model
from pyro_fcr.seals import check_seal

FAULTS = ("torn", "left", "other")  # what must not be


def weights_of(place):
    """The digest of the weights of a model that is whole."""
    return read_model(place).record["files"]["weights"]["sha256"]


def fitted(folder, *, seed=0):
    """Return a model that is fitted in a child where it is not there yet."""
    place = folder / f"model{seed}"
    if not place.exists():
        assert child(fit, folder, seed=seed, out=place) == 0
        (folder / "started").unlink()
    return place


def during_fit(folder, n, rng):
    """Kill fits; each is resumed from its last checkpoint, and ends as one never killed."""
    started = folder / "started"
    first = folder / "first.c"
    longest = seconds(started, fit, folder, out=folder / "whole", checkpoint=first)
    wanted, found = weights_of(folder / "whole"), {"killed": 0, "resumed": 0, "other": 0}
    for number, moment in enumerate(rng.uniform(0.0, longest, n)):
        out, checkpoint = folder / f"fit{number}", folder / f"c{number}"
        settings = {"out": out, "checkpoint": checkpoint}
        code = child(fit, folder, **settings, kill_after=moment, started=started)
        found["killed"] += code == -9
        if checkpoint.exists():
            settings["resume"] = checkpoint
            found["resumed"] += 1
        ended = child(fit, folder, **settings) == 0
        found["other"] += not ended or weights_of(out) != wanted or bool(leftovers(out))
        found["other"] += any(f".c{number}." in path.name for path in leftovers(folder))
    return {"kills": n, **found}


def during_save(folder, n, rng):
    """Kill saves with overwrite=True."""
    models = [fitted(folder, seed=seed) for seed in (0, 1)]
    known, found = {weights_of(each) for each in models}, {"torn": 0, "left": 0}
    place = folder / "saved"
    shutil.copytree(models[0], place)
    seen = set()

    def save_often():
        both = [FCR.load(each) for each in models]
        (folder / "saving").touch()
        while True:
            for each in both:
                each.save(place, overwrite=True)

    for moment in rng.uniform(0.0, 0.3, n):
        child(save_often, kill_after=moment, started=folder / "saving")
        seen.add(weights_of(place))
        found["torn"] += weights_of(place) not in known
        child(lambda: FCR.load(models[0]).save(place, overwrite=True))
        found["left"] += len(list(place.iterdir())) != 5
    return {"kills": n, "versions_seen": len(seen), **found}


def during_store(folder, n, rng):
    """Kill answers that are written part by part."""

    asking, model = folder / "asking", fitted(folder)

    def ask(path):
        chosen = Output("mean", store=path, memory=2**16)
        cells, fcr = ad.read_h5ad(folder / "cells.h5ad"), FCR.load(model)
        asking.touch()
        fcr.counterfactual(cells, treatment="drug1", n_draws=60, output=chosen)

    longest = seconds(asking, ask, folder / "whole.h5ad")
    found = {"killed": 0, "torn": 0, "left": 0}
    wanted = ad.read_h5ad(folder / "whole.h5ad").X
    for number, moment in enumerate(rng.uniform(0.0, longest, n)):
        path = folder / "stores" / f"answer{'.h5ad' if number % 2 else '.zarr'}"
        path.parent.mkdir(exist_ok=True)
        found["killed"] += child(ask, path, kill_after=moment, started=asking) == -9
        if not path.exists():
            found["torn"] += child(ask, path) != 0
        read = ad.read_h5ad if path.suffix == ".h5ad" else ad.read_zarr
        found["torn"] += not np.array_equal(read(path).X, wanted)
        found["left"] += len(leftovers(path.parent)) - len(leftovers(path))
        shutil.rmtree(path.parent)
    return {"kills": n, **found}


def during_evaluate(folder, n, rng):
    """Kill evaluations while they replace the files of a former one."""
    out, writing, model = folder / "evaluation", folder / "writing", fitted(folder)
    found = {"torn": 0, "left": 0}

    def evaluate(*, again):
        fcr = FCR.load(model, adata=folder / "cells.h5ad")
        measured = fcr.evaluate(n_permutations=9, n_draws=2)
        writing.touch()
        while True:
            measured.to_folder(out, title=f"Killed at {time.time()}", overwrite=True)
            if not again:
                return

    assert child(evaluate, again=False) == 0
    writing.unlink()
    for moment in rng.uniform(0.0, 1.0, n):
        child(evaluate, again=True, kill_after=moment, started=writing)
        try:
            json.loads((out / "evaluation.json").read_text())
            tables = [pd.read_csv(path) for path in out.glob("*.csv")]
            whole = (out / "evaluation.html").read_text().rstrip().endswith("</html>")
            found["torn"] += not whole or len(tables) < 5 or not check_seal(out)
        except (OSError, ValueError):
            found["torn"] += 1
    assert child(evaluate, again=False) == 0
    found["left"] += len(leftovers(out))
    return {"kills": n, **found}


KINDS = {
    "fit": during_fit,
    "save": during_save,
    "store": during_store,
    "evaluate": during_evaluate,
}
