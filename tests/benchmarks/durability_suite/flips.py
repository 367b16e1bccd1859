"""Flipped bits: told by name, or without any effect."""

import anndata as ad

from durability_suite.work import child, command, fit
from pyro_fcr.saving import read_model
from pyro_fcr.seals import check_seal
from pyro_fcr.training import CheckpointError, TrainingPlan
from pyro_fcr.training.checkpoint import read_checkpoint

_RESULTS = (".h5ad", ".zarr", ".csv")


def flips(folder, n, rng):
    """Flip n bits, one at a time, in every file of a model, in a checkpoint and in results."""
    place, checkpoint = folder / "flipped", folder / "flipped.c"
    assert child(fit, folder, out=place, checkpoint=checkpoint) == 0
    found, results = {}, [*_results(folder, place)]
    for path in (*sorted(place.iterdir()), checkpoint, *results):
        whole, counts = path.read_bytes(), {"told": 0, "no_effect": 0, "silent": 0}
        read = _checkpoint if path == checkpoint else _result if path in results else _model
        wanted = read(path)
        for bit in rng.integers(8 * len(whole), size=n):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(broken)
            counts[_outcome(read, path, wanted)] += 1
        path.write_bytes(whole)
        found[path.name] = counts
    return found


def _results(folder, model):
    """Yield the files of results, of a store its largest."""
    asked = ["--cells", folder / "cells.h5ad", "--treatment", "drug1"]
    out = folder / "results"
    for arguments, name in (
        (["predict", model, *asked], "p.h5ad"),
        (["predict", model, *asked], "p.zarr"),
        (["effects", model], "e.csv"),
    ):
        assert child(command, *arguments, "--out", out / name) == 0
    yield from (out / "p.h5ad", out / "e.csv")
    yield max((out / "p.zarr").rglob("[0-9]*"), key=lambda path: path.stat().st_size)


def _result(path):
    (result,) = (each for each in (path, *path.parents) if each.suffix in _RESULTS)
    check_seal(result)
    return path.read_bytes() if result.suffix != ".h5ad" else ad.read_h5ad(result).X.sum()


def _outcome(read, path, wanted):
    try:
        return "no_effect" if read(path) == wanted else "silent"
    except (ValueError, CheckpointError) as error:
        said = str(error)
        return "told" if "\n" not in said and path.parent.name in said else "silent"


def _model(path):
    saved = read_model(path.parent)
    weights = {f"{p}.{k}": v.tolist() for p, s in saved.weights.items() for k, v in s.items()}
    return weights, saved.history.to_csv(), saved.split.to_csv(), dict(saved.record)


def _checkpoint(path):
    plan = TrainingPlan(max_epochs=1, device="cpu")
    try:
        read_checkpoint(path, plan, n_epochs=-1, digests={})
    except CheckpointError as error:
        if "was trained with" not in str(error):  # the plan is not read of a damaged file
            raise
    return True
