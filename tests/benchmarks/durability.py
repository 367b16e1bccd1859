"""Nothing lost, nothing mistaken: kills, flipped bits, full disks and malicious models.

    python tests/benchmarks/durability.py [--kills 25] [--flips 300] [--seed 0]

Kills fits, saves, streamed answers and evaluations (``--kills`` each) at random moments: what
stands is whole, old or new; nothing is left after the next time; a fit that goes on from its
checkpoint ends with the same weights, bit by bit. Flips bits in every file of a model and in a checkpoint.
Fills a disk at nine places where commands write (needs the right to mount a tmpfs; else left out).
Loads folders that were made to do harm. Ends with 1 if anything was lost, silent, executed or
written elsewhere. The last line is JSON. Takes about 15 minutes of one core.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")

import numpy as np
from durability_suite import disk, flips, kills, malice, work


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
    found = {"kills": {}}
    for name, disturb in kills.KINDS.items():
        found["kills"][name] = disturb(folder, options.kills, rng)
        print(f"{name}: {found['kills'][name]}", file=sys.stderr, flush=True)
    found["flips"] = flips.flips(folder, options.flips, rng)
    if small := disk.mount(folder / "full"):
        try:
            os.chdir(folder)  # where results go for now
            found["disk"] = disk.full_disk(folder, small)
        finally:
            disk.unmount(small)
    bad = malice.malice(folder / "model0", folder)
    found["malice"] = {"folders": len(malice.MALICE), "harmful": bad}
    return found


def wrong(found):
    """Name what must not be."""
    bad = [k for k, v in found["kills"].items() for n in ("torn", "left", "other") if v.get(n)]
    bad += [name for name, each in found["flips"].items() if each["silent"]]
    for name, each in found.get("disk", {}).items():
        fine = each["one_line"] and each["says"] and not each["left"]
        bad += [] if fine and each.get("trained", True) and each.get("elsewhere", True) else [name]
    return bad + list(found["malice"]["harmful"])


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each kind of work")
    parser.add_argument("--flips", type=int, default=300, help="in each file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
