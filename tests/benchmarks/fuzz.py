"""Random legal programs against independent oracles, for as long as one likes.

``python tests/benchmarks/fuzz.py --minutes 60 [--seed 0]`` prints every program of which something
is wrong, by its seed, and a line at the end. ``tests/test_fuzz.py`` runs the first of them.
"""

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzzing import wrong


def main() -> None:
    """Run programs of consecutive seeds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start, seed, silent = time.monotonic(), given.seed, 0
    while time.monotonic() - start < 60 * given.minutes:
        try:
            found = wrong(seed)
        except Exception:
            found = [traceback.format_exc(limit=-2)]
        if found:
            silent += 1
            print(seed, *found, sep="\n  ", flush=True)
        seed += 1
    print(f"{seed - given.seed} programs, {silent} with an error, {given.minutes:g} minutes.")


if __name__ == "__main__":
    main()
