"""Flipped bits: told by name, or without any effect."""

from durability_suite.work import child, fit
from pyro_fcr.saving import read_model
from pyro_fcr.training import CheckpointError, TrainingPlan
from pyro_fcr.training.checkpoint import read_checkpoint


def flips(folder, n, rng):
    """Flip n bits, one at a time, in every file of a model and in a checkpoint."""
    place, checkpoint = folder / "flipped", folder / "flipped.c"
    assert child(fit, folder, out=place, checkpoint=checkpoint) == 0
    found = {}
    for path in (*sorted(place.iterdir()), checkpoint):
        whole, counts = path.read_bytes(), {"told": 0, "no_effect": 0, "silent": 0}
        read = _checkpoint if path == checkpoint else _model
        wanted = read(path)
        for bit in rng.integers(8 * len(whole), size=n):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(broken)
            counts[_outcome(read, path, wanted)] += 1
        path.write_bytes(whole)
        found[path.name] = counts
    return found


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
