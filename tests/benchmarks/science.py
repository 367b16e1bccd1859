"""FCR and the comparison models on simulated cells of known truth, over seeds.

    python tests/benchmarks/science.py --out science
    python tests/benchmarks/science.py --out science --conditions --settings A --seeds 3

Writes scores of every fit (JSON), medians over seeds (csv) and, with ``--conditions``, a figure;
prints the few numbers to look at first. What is in the folder already is not done again: an
interrupted run goes on, and more seeds, models or settings are added.
"""

import argparse
import logging
from itertools import chain
from pathlib import Path

import torch
from science_suite.figure import draw_sweeps
from science_suite.settings import SETTINGS, condition_sweep
from science_suite.suite import Suite, run_suite
from science_suite.tables import headlines, summary_table

from pyro_fcr.data.errors import listed
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.files import atomic_write
from pyro_fcr.training import TrainingPlan


def parser_of_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all files")
    parser.add_argument("--settings", type=names, action="append", help="repeatable, or A,B")
    parser.add_argument("--models", type=names, action="append", help="repeatable, or fcr,cvae")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, of cells and fits")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cells", type=int, default=None, help="cells of a set; None: 20,000")
    parser.add_argument("--max-epochs", type=int, default=None)
    for name in ("batch_size", "learning_rate", "device", "engine"):
        default = getattr(TrainingPlan(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--conditions", action="store_true", help="vary their number around 2n+1")
    return parser


def names(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def suite_of(options):
    settings = list(chain(*options.settings or [["A", "B"]]))
    models = list(chain(*options.models or [["fcr"]]))
    for name in settings:
        if name not in SETTINGS:
            hint = did_you_mean(name, SETTINGS)
            raise ValueError(f"--settings {name!r}: there are {listed(SETTINGS)}.{hint}")
    designs = {name: SETTINGS[name] for name in settings}
    if options.conditions:
        swept = [condition_sweep(name, design) for name, design in designs.items()]
        designs = {name: design for sweep in swept for name, design in sweep.items()}
    told = ("max_epochs", "batch_size", "learning_rate", "device", "engine")
    fit = {name: getattr(options, name) for name in told}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    return Suite(settings=designs, models=models, seeds=seeds, n_cells=options.cells, fit=fit)


def main(arguments=None):
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pyro_fcr").setLevel(logging.INFO)
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    name = "conditions" if options.conditions else "science"
    try:
        check_device(options.device)
        suite = suite_of(options)
        options.out.mkdir(parents=True, exist_ok=True)
        record = run_suite(suite, options.out / f"{name}.json")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    summary = summary_table(record)
    with atomic_write(options.out / f"{name}.csv") as draft:
        summary.to_csv(draft, index=False)
    print("medians over seeds [floor, ceiling]", headlines(summary).to_string(), sep="\n")
    for path in draw_sweeps(record, options.out) if options.conditions else ():
        print(f"figure in {path}")


def check_device(name):
    if name not in ("auto", "cpu") and not name.startswith("cuda"):
        raise ValueError(f"Unknown --device {name!r}; expected auto, cpu or cuda.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name!r}: torch sees no CUDA. Leave --device out.")


if __name__ == "__main__":
    main()
