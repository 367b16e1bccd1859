"""SIGKILL at random moments: what stands is whole, old or new, and a run goes on bit by bit."""

import shutil
import time

import anndata as ad
import numpy as np
import scanpy as sc

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
    """Kill fits, every second one after its first epoch.

    Each is resumed from its last checkpoint, and ends as one never killed.
    """
    started, trained, first = (folder / name for name in ("started", "trained", "first.c"))
    longest = seconds(started, fit, folder, out=folder / "whole", checkpoint=first)
    later = time.time() - trained.stat().st_mtime
    wanted, found = weights_of(folder / "whole"), {"killed": 0, "resumed": 0, "other": 0}
    for number in range(n):
        out, checkpoint = folder / f"fit{number}", folder / f"c{number}"
        settings = {"out": out, "checkpoint": checkpoint}
        trained.unlink(missing_ok=True)
        mark, most = (trained, later) if number % 2 else (started, longest)
        moment = rng.uniform(0.0, most)
        code = child(fit, folder, **settings, kill_after=moment, started=mark)
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
    """Kill evaluations from their start to their end, and every second time while they write.

    What stands is the former evaluation or the new one; in every third place there was none.
    """
    writing, model, cells = folder / "writing", fitted(folder), folder / "cells.h5ad"
    found = {"killed": 0, "new": 0, "torn": 0, "left": 0, "other": 0}
    given = {path: path.read_bytes() for path in (*sorted(model.iterdir()), cells)}

    def evaluate(seed, out):
        measured = FCR.load(model, adata=cells).evaluate(n_permutations=9, n_draws=2, seed=seed)
        writing.touch()
        measured.to_folder(out, title="Killed", overwrite=True)

    _compile_neighbours()
    began = time.time()
    wanted = {seed: _evaluated(folder, evaluate, seed) for seed in (0, 1)}
    longest = (time.time() - began) / 2
    took = time.time() - writing.stat().st_mtime
    writing.unlink()
    for number in range(n):
        out, while_writing = folder / "evaluations" / "killed", number % 2 == 0
        former = None if number % 3 == 0 else 0
        if former is not None:
            shutil.copytree(folder / "evaluated0", out)
        moment = rng.uniform(0.0, took if while_writing else longest)
        started = writing if while_writing else None
        found["killed"] += child(evaluate, 1, out, kill_after=moment, started=started) == -9
        writing.unlink(missing_ok=True)
        stands = _stands(out)
        found["new"] += stands == wanted[1]
        found["torn"] += stands not in (wanted[1], None if former is None else wanted[0])
        found["other"] += child(evaluate, 1, out) != 0 or _stands(out) != wanted[1]
        writing.unlink(missing_ok=True)
        found["left"] += len(leftovers(out.parent))
        shutil.rmtree(out.parent)
    found["other"] += any(path.read_bytes() != data for path, data in given.items())
    return {"kills": n, **found}


def _compile_neighbours():
    """Compile, in this process, what each of its children would compile again for ten seconds."""
    points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    sc.pp.neighbors(ad.AnnData(points), n_neighbors=15, use_rep="X", transformer="sklearn")


def _evaluated(folder, evaluate, seed):
    assert child(evaluate, seed, folder / f"evaluated{seed}") == 0
    return _stands(folder / f"evaluated{seed}")


def _stands(out):
    """Return what an evaluation says, without when and where it was; None where there is none."""
    if not out.exists():
        return None
    try:
        assert check_seal(out)
        assert (out / "evaluation.html").read_text().rstrip().endswith("</html>")
        tables = {path.name: path.read_bytes() for path in sorted(out.glob("*.csv"))}
    except (OSError, ValueError, AssertionError) as error:
        return repr(error)
    return tables


KINDS = {
    "fit": during_fit,
    "save": during_save,
    "store": during_store,
    "evaluate": during_evaluate,
}
