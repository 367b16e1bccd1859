"""Random legal programs against brute force, for as long as you like.

    python tests/benchmarks/fuzz_loss.py --minutes 60 --start 1000

Every program's ELBO is compared with the densities that Pyro's own traces hold, its closed forms
with draws, its gradient with finite differences, and its arrows with those it was made of.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from loss_fuzzing import check


def main():
    """Run until the time is up; print what is wrong, and the count as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--start", type=int, default=1000, help="first seed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    seed, end = options.start, time.monotonic() + 60.0 * options.minutes
    silent, crashed = {}, {}
    while time.monotonic() < end:
        try:
            if wrong := check(seed):
                silent[seed] = wrong
        except Exception as error:  # a legal program that is refused
            crashed[seed] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        seed += 1
    for number, lines in {**silent, **crashed}.items():
        print(number, lines)
    print(
        json.dumps(
            {"programs": seed - options.start, "silent": len(silent), "crashed": len(crashed)}
        )
    )


if __name__ == "__main__":
    main()
