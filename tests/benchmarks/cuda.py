"""Everything that has to be seen on a card, in one run of under five minutes.

    python tests/benchmarks/cuda.py
    python tests/benchmarks/cuda.py --device cpu --quick     # the same but recording, in a minute

Is each engine's loss eager mode's, how long is a step (ours on every engine, Pyro's own SVI, the
same networks by hand), how many kernels has it, what memory does it take, how long is a whole fit,
are bits those of the seed and of a resumed run, and how fast are questions. A part that fails says
so and does not hide the next. Prints a table and, as the last line, JSON.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from unittest import mock

from speed_cells import NO_PENALTIES, SIZES, encode, make_cells, make_trainer, train_step

# isort: split
import numpy as np
import pyro
import torch
from step_speed import by_library, hand_step, stock_step

import pyro_fcr
from pyro_fcr.modes import seeded
from pyro_fcr.training import trainer
from pyro_fcr.training.checkpoint import write_checkpoint
from pyro_fcr.training.engines import COMPILED
from pyro_fcr.training.tracing import eager_gradients

GBM = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="patient")


class Report:
    """Rows of what was found; one line a row, as soon as it is there."""

    def __init__(self):
        self.rows = []

    def part(self, name, function, *arguments):
        """Run a part; whatever goes wrong in it is a row."""
        try:
            found = function(*arguments)
        except Exception as error:  # the next part is worth its own try
            found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}
        for key, value in found.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{name:34s} {key:28s} {shown}", flush=True)
            self.rows.append({"part": name, "what": key, "value": value})


class Said(logging.Handler):
    """Keeps what the library logs about engines."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def waited(device):
    """Wait for a device, for a clock says nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def microseconds(step, device, *, n_steps):
    """Median time of a step, of five runs of several."""
    for _ in range(5):  # compiled and recorded by then
        step()
    times = []
    for _ in range(5):
        waited(device)
        start = time.perf_counter()
        for _ in range(n_steps):
            step()
        waited(device)
        times.append((time.perf_counter() - start) / n_steps * 1e6)
    return float(np.median(times))


def kernels(step, device):
    """Number of kernels that a step launches, on a card."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        waited(device)
    return sum(event.device_type.name == "CUDA" for event in profile.events())


def trainer_on(data, size, engine, device, **objective):
    """Set up a training past its validated steps."""
    ours = make_trainer(
        data, batch_size=size, engine=engine, device=str(device), max_epochs=10**6, **objective
    )
    ours.step = 10
    return ours, ours.train.batch(torch.arange(size))


def agreement(data, size, engine, device):
    """How far a compiled step is from eager mode under the same noise."""
    ours, batch = trainer_on(data, size, engine, device, architecture=SIZES)
    parts = (ours.objective, ours.main, ours.adversary, ours.plan)
    start = time.perf_counter()
    with pyro.validation_enabled(is_validate=False):
        built = COMPILED[engine](*parts, batch=batch)
        found = []
        for evaluate in (built.traced, lambda cells: eager_gradients(ours.objective, cells)):
            with seeded(7, device=device):
                found.append(evaluate(batch))
    waited(device)
    mine, theirs = (torch.cat([g.flatten() for g in each.main if g is not None]) for each in found)
    loss = abs(float(found[0].total) / float(found[1].total) - 1)
    return {
        "loss, relative": loss,
        "gradient, relative": float((mine - theirs).norm() / theirs.norm()),
        "seconds to compile": time.perf_counter() - start,
    }


def step_of(data, size, way, device):
    """Give one of the ways of taking a step."""
    if way in ("eager", "trace", "graph"):
        ours, batch = trainer_on(data, size, way, device, architecture=SIZES)
        return lambda: train_step(ours, batch)
    ours, batch = trainer_on(data, size, "eager", device, architecture=SIZES, weights=NO_PENALTIES)
    programs = ours.objective.model, ours.objective.guide
    if way == "by hand, compiled":
        return hand_step(programs, by_library, batch, compiled=True)
    return stock_step(programs, batch, lean=False)


def speed(data, size, way, device, n_steps):
    """Time of a step, its kernels and the memory it takes."""
    said = Said()
    logging.getLogger("pyro_fcr").addHandler(said)
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = step_of(data, size, way, device)
        time_of_step = microseconds(step, device, n_steps=n_steps)
        found = {"us a step": time_of_step, "million cells/s": size / time_of_step}
        found["kernels"] = kernels(step, device)
        if device.type == "cuda":
            found["peak GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    finally:
        logging.getLogger("pyro_fcr").removeHandler(said)
    return {**found, **({"said": "; ".join(said.lines)} if said.lines else {})}


def fitted(engine, device, epochs, **options):
    """Fit the bundled cells; give the model and the seconds that took."""
    adata = pyro_fcr.datasets.gbm_panobinostat()
    fcr = pyro_fcr.FCR(adata, GBM)
    start = time.perf_counter()
    fcr.fit(max_epochs=epochs, engine=engine, device=str(device), progress=False, **options)
    waited(device)
    return fcr, time.perf_counter() - start


def whole_fit(engine, device, epochs):
    """Seconds of a whole fit, alignment and held-out cells included."""
    return {"seconds": fitted(engine, device, epochs)[1]}


def states(fcr):
    """Every parameter and buffer of a model."""
    return [*fcr.model.state_dict().values(), *fcr.guide.state_dict().values()]


def is_same(one, other):
    """Return whether two models are the same to the last bit."""
    return all(
        torch.equal(a.cpu(), b.cpu()) for a, b in zip(states(one), states(other), strict=True)
    )


def if_none_is_there(path, state, plan):
    """Keep the first checkpoint, of a training that is not at its end."""
    if not path.exists():
        write_checkpoint(path, state, plan)


def bits(engine, device, epochs):
    """Does a seed give the same bits, and a resumed training those of one that never stopped?"""
    options = {"align_at": None}
    whole, _ = fitted(engine, device, epochs, **options)
    again, _ = fitted(engine, device, epochs, **options)
    with tempfile.TemporaryDirectory() as folder:
        place, every = Path(folder) / "checkpoint.pt", max(1, epochs // 2)
        with mock.patch.object(trainer, "write_checkpoint", if_none_is_there):
            fitted(engine, device, epochs, **options, checkpoint=place, checkpoint_every=every)
        resumed, _ = fitted(engine, device, epochs, **options, resume=place)
    return {"same seed": is_same(whole, again), "resumed": is_same(whole, resumed)}


def questions(device, n_cells):
    """Cells per second of questions to a fitted model."""
    fcr, _ = fitted("eager", device, 1)
    adata = pyro_fcr.datasets.gbm_panobinostat()
    cells = adata[adata.obs["treatment"] == "control"][:n_cells].copy()
    asked = {
        "latents, cells/s": lambda: fcr.get_latent_representation("z_x", cells),
        "counterfactual, draws/s": lambda: fcr.counterfactual(
            cells, treatment="panobinostat", n_draws=10
        ),
    }
    found = {}
    for name, ask in asked.items():
        ask()
        waited(device)
        start = time.perf_counter()
        ask()
        waited(device)
        found[name] = cells.n_obs * (10 if "draws" in name else 1) / (time.perf_counter() - start)
    return found


def main():
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute in all")
    parser.add_argument("--engines", default="eager,trace,graph", type=lambda text: text.split(","))
    options = parser.parse_args()
    device = torch.device(options.device)
    sizes, n_genes, n_steps = ([64], 100, 2) if options.quick else ([256, 4_096, 16_384], 2_000, 20)
    data = encode(make_cells(n_cells=max(sizes) + 200, n_genes=n_genes))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report = Report()
    report.part("card", lambda: {"name": name, "torch": torch.__version__})
    compiled = [each for each in options.engines if each in COMPILED]
    for engine in compiled:
        report.part(f"{engine} against eager", agreement, data, sizes[0], engine, device)
    others = ["stock SVI", *(["by hand, compiled"] if compiled else [])]
    for size in sizes:
        for way in [*options.engines, *others]:
            report.part(f"{way}, B = {size}", speed, data, size, way, device, n_steps)
    epochs = 2 if options.quick else 150
    for engine in options.engines:
        report.part(f"fit, {engine}", whole_fit, engine, device, epochs)
        report.part(f"bits, {engine}", bits, engine, device, 2 if options.quick else 8)
    report.part("questions", questions, device, 50 if options.quick else 2_000)
    print(json.dumps(report.rows))


if __name__ == "__main__":
    main()
