"""Is a training step slower than at another commit? Two versions take steps in turns.

    git worktree add /tmp/before 69320ab
    python tests/benchmarks/step_against.py /tmp/before --engine eager --runs 6

Two processes with the package of either tree train on the bundled glioblastoma cells (all terms,
additive decoder, batches of 256) and wait for one another after every five steps, so that what
else the machine does falls on both. Printed is the CPU time of a step here over that of the other
tree, without the loader's thread, the median over turns, for each run: two processes differ by a
hundredth by where they lie in memory, so several runs are needed. The last line is JSON. Half a
minute of one core a run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
STEPS, WARM_UP, DISCARDED = 5, 60, 4

# Runs with either package, so it may only use what both have.
WORKER = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import pyro_fcr
from pyro_fcr.training.trainer import Trainer
taken, seconds, step = 0, 0.0, Trainer._step
def in_turns(self, batch):
    global taken, seconds
    if taken >= {warm_up} and (taken - {warm_up}) % {steps} == 0:
        os.write({pipe}, b"%.7f\\n" % seconds)
        sys.stdin.readline()
        seconds = 0.0
    start = time.thread_time()
    step(self, batch)
    seconds += time.thread_time() - start
    taken += 1
Trainer._step = in_turns
schema = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="patient")
architecture = pyro_fcr.Architecture(decoder="additive", dropout=0.0)
fcr = pyro_fcr.FCR(pyro_fcr.datasets.gbm_panobinostat(), schema, architecture=architecture)
plan = pyro_fcr.TrainingPlan(engine="{engine}", align_at=None, progress=False, max_epochs=5000)
fcr.fit(plan)
"""


class Worker:
    """A process that trains with the package of a tree, some steps at a time."""

    def __init__(self, tree, engine):
        read, write = os.pipe()
        code = WORKER.format(engine=engine, pipe=write, warm_up=WARM_UP, steps=STEPS)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(write,), text=True, cwd=tempfile.gettempdir(),
            env={**os.environ, **threads, "PYTHONPATH": str(tree)},
        )  # fmt: skip
        os.close(write)
        self.answers = os.fdopen(read)
        if not self.answers.readline():  # until warm
            raise SystemExit(f"The package in {tree} does not train with engine={engine!r}.")

    def turn(self):
        """CPU seconds of the next steps."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.answers.readline())


def compare(other, engine, n_turns):
    """Time of a step here over that of the other tree."""
    workers = [Worker(tree, engine) for tree in (HERE, other)]
    ratios = []
    try:
        for number in range(n_turns):
            times = {}
            for which in (0, 1) if number % 2 else (1, 0):
                times[which] = workers[which].turn()
            ratios.append(times[0] / times[1])
    finally:
        for worker in workers:
            worker.process.kill()
    return statistics.median(ratios[DISCARDED:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a tree with another version of the package")
    parser.add_argument("--engine", default="eager", help='of both; at 69320ab also "trace"')
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--turns", type=int, default=60)
    options = parser.parse_args()
    runs = []
    for _ in range(options.runs):
        runs.append(round(compare(options.other, options.engine, options.turns), 4))
        print(runs[-1], flush=True)
    print(json.dumps({"engine": options.engine, "ratio": statistics.median(runs), "runs": runs}))


if __name__ == "__main__":
    main()
