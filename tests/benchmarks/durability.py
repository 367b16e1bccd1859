"""Nothing lost, nothing mistaken: kills, flipped bits, full disks and malicious models.

    python tests/benchmarks/durability.py [--kills 25] [--flips 300] [--only kills,disk]

Kills fits, saves, streamed answers and evaluations (``--kills`` each) at random moments: what
stands is whole, old or new; nothing is left after the next time; a fit that goes on from its
checkpoint ends with the same weights, bit by bit. Flips bits in every file of a model and in one
of its checkpoints. Fills a disk at nine places where commands write (needs the right to mount a
tmpfs; else left out). Loads folders that were made to do harm. Ends with 1 if anything was lost,
silent, executed or written elsewhere. The last line is JSON. Takes about 15 minutes of one core.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", NUMBA_THREADING_LAYER="workqueue")

import numpy as np
from durability_suite import disk, flips, kills, malice, work

PARTS = ("kills", "flips", "disk", "malice")


def main():
    options = parse()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(prefix="durability") as folder:
        found = run(Path(folder), options, rng)
    for part, figures in found.items():
        for name, each in figures.items():
            print(f"{part:8s} {name:26s} {each}")
    print(json.dumps(found))
    sys.exit(1 if wrong(found) else 0)


def run(folder, options, rng):
    assert work.child(work.make_cells, folder) == 0
    parts = {
        "kills": lambda: {
            name: kills.KINDS[name](folder, options.kills, rng) for name in options.work
        },
        "flips": lambda: flips.flips(folder, options.flips, rng),
        "disk": lambda: full_disk(folder),
        "malice": lambda: malicious(folder),
    }
    return {name: parts[name]() for name in options.only}


def full_disk(folder):
    """Fill a disk; nothing where none can be mounted."""
    small = disk.mount(folder / "full")
    if small is None:
        return {}
    try:
        os.chdir(folder)  # where results go for now
        return disk.full_disk(folder, small)
    finally:
        os.chdir("/")
        disk.unmount(small)


def malicious(folder):
    """Try malicious models, at last: this process computes from here on, and forks no more."""
    work.fit(folder, out=folder / "model")
    bad = malice.malice(folder / "model", folder)
    return {"folders": len(malice.MALICE), "harmful": bad}


def wrong(found):
    """Name what must not be."""
    counts = [(k, v.get(n)) for k, v in found.get("kills", {}).items() for n in kills.FAULTS]
    bad = [name for name, count in counts if count]
    bad += [name for name, each in found.get("flips", {}).items() if each["silent"]]
    for name, each in found.get("disk", {}).items():
        fine = each["one_line"] and each["says"] and not each["left"]
        bad += [] if fine and each.get("trained", True) and each.get("elsewhere", True) else [name]
    return bad + list(found.get("malice", {}).get("harmful", []))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each kind of work")
    parser.add_argument("--flips", type=int, default=300, help="in each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=_names, default=PARTS)
    parser.add_argument("--work", type=_names, default=tuple(kills.KINDS), help="what to kill")
    return parser.parse_args()


def _names(text):
    return text.split(",")


if __name__ == "__main__":
    main()
