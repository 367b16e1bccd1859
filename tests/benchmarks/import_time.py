"""What importing pyro_fcr costs beyond what it is built on, and how soon the command line answers.

    python tests/benchmarks/import_time.py

Fresh processes in turns; every ratio is one of CPU time to that of importing torch, Pyro and
AnnData alone (``..._wall``: wall time). ``--slowest 15`` lists the modules that a package import
spends most time in, as ``python -X importtime`` finds them. The last line is JSON. Takes about a
minute and a half.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from speed_cells import Times, report

# isort: split
import time

import numpy as np
import pandas as pd

PYTHON = sys.executable
COMMANDS = {
    "dependencies": [PYTHON, "-c", "import torch, pyro, anndata"],
    "pyro_fcr": [PYTHON, "-c", "import pyro_fcr; pyro_fcr.FCR"],
    "help": [str(Path(PYTHON).with_name("pyro-fcr")), "--help"],
    "python": [PYTHON, "-c", "pass"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--slowest", type=int, default=0, help="list so many modules")
    options = parser.parse_args()
    times = measure(options.repeats)
    numbers = {}
    for name, each in times.items():
        cpu, wall = each.over(times["dependencies"])
        numbers |= {name: round(cpu, 3), f"{name}_wall": round(wall, 3)}
    rows = {name: each.median for name, each in times.items()}
    table = pd.DataFrame(rows, index=["cpu_s", "wall_s"]).T
    table["ratio"] = [numbers[name] for name in rows]
    if options.slowest:
        print(slowest_modules(options.slowest).to_string(), end="\n\n")
    report(table, numbers)


def measure(repeats):
    """Run each command once to fill the file cache, then in turns."""
    for command in COMMANDS.values():
        run(command)
    seconds = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            seconds[name].append(run(command))
    return {name: Times(*np.array(rows).T) for name, rows in seconds.items()}


def run(command):
    """Run a command; give the CPU and wall seconds of its process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def slowest_modules(n):
    """List the modules of ``import pyro_fcr`` after the dependencies, by their time with others."""
    begin = f"{COMMANDS['dependencies'][2]}, sys; sys.stderr.write('begin\\n')"
    code = f"{begin}; {COMMANDS['pyro_fcr'][2]}"
    command = [PYTHON, "-X", "importtime", "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    lines = output.partition("\nbegin\n")[2].splitlines()
    fields = [line.removeprefix("import time:").split("|") for line in lines if "|" in line]
    rows = [(name.strip(), int(own) / 1e3, int(total) / 1e3) for own, total, name in fields]
    table = pd.DataFrame(rows, columns=["module", "own_ms", "with_others_ms"])
    return table.nlargest(n, "with_others_ms").set_index("module")


if __name__ == "__main__":
    main()
