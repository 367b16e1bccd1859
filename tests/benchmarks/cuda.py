"""Everything that has to be seen on a card, in one run of under five minutes.

    python tests/benchmarks/cuda.py
    python tests/benchmarks/cuda.py --device cpu --quick     # the same but recording

Is each engine's step eager mode's, replays included, how long is a step (ours on every engine,
Pyro's own SVI, the same networks by hand and recorded), how many kernels has it, what memory does
it take, how long is a whole fit, are bits those of the seed and of a resumed run, and how fast are
questions. What matters most comes first. A part that fails says so and does not hide the next.
Prints rows as they come, what was aimed at, and JSON as the last line.
"""

import argparse
import gc
import json
import logging
import os
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
from pyro_fcr.training import engines, trainer
from pyro_fcr.training.checkpoint import write_checkpoint
from pyro_fcr.training.tracing import eager_gradients

GBM = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="patient")


class Report:
    """Rows of what was found; one line a row, as soon as it is there."""

    def __init__(self):
        self.rows = []

    def part(self, name, function, *arguments):
        """Run a part; whatever goes wrong in it is a row."""
        gc.collect()  # no recording of an earlier part takes memory
        start = time.perf_counter()
        try:
            found = function(*arguments)
        except Exception as error:  # the next part is worth its own try
            found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}
        found["seconds of this part"] = time.perf_counter() - start
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


def is_card(device):
    """Whether a device is a GPU."""
    return device.type == "cuda"


def waited(device):
    """Wait for a device, for a clock says nothing before."""
    if is_card(device):
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
    if not is_card(device):
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        waited(device)
    return sum(event.device_type.name == "CUDA" for event in profile.events())


def trainer_on(data, size, engine, device, **objective):
    """Set up a training past its validated steps; on a card its cells are not gathered yet."""
    ours = make_trainer(
        data,
        batch_size=size,
        engine=engine,
        device=str(device),
        max_epochs=10**6,
        architecture=SIZES,
        **objective,
    )
    ours.step = 10
    return ours, next(ours.train.shuffled(0, 0))


def distance(one, other):
    """Length of the difference of two gradients, relative to the second."""
    return float((one - other).norm() / other.norm())


def flat(gradients):
    """Join gradients."""
    return torch.cat([g.flatten() for g in gradients if g is not None])


def agreement(data, size, engine, device):
    """How far compiled steps, and replays of one, are from eager mode under the same noise."""
    ours, batch = trainer_on(data, size, engine, device)
    objective, main = ours.objective, ours.main
    start = time.perf_counter()
    with pyro.validation_enabled(is_validate=False):
        built = engines.COMPILED[engine](objective, main, ours.adversary, ours.plan, batch=batch)
        for number in range(6):  # three before it is recorded, the recording, two replays
            built.step(batch, number=number + 1, epoch=0)
        waited(device)
        seconds = time.perf_counter() - start
        with seeded(7, device=device):
            eager = eager_gradients(objective, batch.gathered())
        expected = flat(eager.main)
        with seeded(7, device=device):
            terms, _ = built.step(batch, number=9, epoch=0)
    total = float((terms * objective.current_weights).sum())
    expected *= min(1.0, main.gradient_clip / float(expected.norm()))
    return {
        "loss, relative": abs(total / float(eager.total) - 1),
        "gradient, relative": distance(flat([p.grad for p in main.parameters]), expected),
        "seconds to compile": seconds,
        **(
            {"recorded": built._replay is not None} if engine == "graph" and is_card(device) else {}
        ),
    }


def recorded(step, device):
    """Record a step in a CUDA graph, after three steps beside; on a CPU it stays as it is."""
    if not is_card(device):
        return step
    for _ in range(3):
        engines._on_another_stream(step, device)
    return engines._recorded(step, device)


def step_of(data, size, way, device):
    """Give one of the ways of taking a step; "ELBO" is without penalties, as all but ours are."""
    if way in ("eager", "trace", "graph"):
        ours, batch = trainer_on(data, size, way, device)
        return lambda: train_step(ours, batch)
    engine = "graph" if way == "graph, ELBO" else "eager"
    ours, batch = trainer_on(data, size, engine, device, weights=NO_PENALTIES)
    if way == "graph, ELBO":
        return lambda: train_step(ours, batch)
    programs, cells = (ours.objective.model, ours.objective.guide), batch.gathered()
    if way == "by hand, recorded":
        step = hand_step(programs, by_library, cells, compiled=True, recorded=is_card(device))
        return recorded(step, device)
    return stock_step(programs, cells, lean=False)


def speed(data, size, way, device, n_steps):
    """Time of a step, its kernels and the memory it takes."""
    said = Said()
    logging.getLogger("pyro_fcr").addHandler(said)
    try:
        if is_card(device):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        step = step_of(data, size, way, device)
        time_of_step = microseconds(step, device, n_steps=n_steps)
        found = {"us a step": time_of_step, "million cells/s": size / time_of_step}
        found["kernels"] = kernels(step, device)
        if is_card(device):
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
    """Seconds of a whole fit, or of some epochs of it and what as many more would take."""
    seconds = fitted(engine, device, epochs)[1]
    return {f"seconds of {epochs} epochs": seconds, "seconds of 150 epochs": seconds * 150 / epochs}


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


def whole_bits(device, epochs):
    """Does a seed give the same bits through the alignment, too?"""
    one, other = (fitted("graph", device, epochs)[0] for _ in range(2))
    return {"same seed": is_same(one, other)}


def questions(device, n_cells):
    """Cells per second of questions to a fitted model."""
    fcr, _ = fitted("eager", device, 1, align_at=None)
    adata = pyro_fcr.datasets.gbm_panobinostat()
    cells = adata[adata.obs["treatment"] == "control"][:n_cells].copy()
    asked = {
        "latents, cells/s": (1, lambda: fcr.get_latent_representation("z_x", cells)),
        "counterfactual, draws/s": (
            10,
            lambda: fcr.counterfactual(cells, treatment="panobinostat", n_draws=10),
        ),
        "summary, draws/s": (
            100,
            lambda: fcr.counterfactual(
                cells, treatment="panobinostat", n_draws=100, output="summary"
            ),
        ),
        "effects, cells/s": (1, lambda: fcr.effects(n_cells=n_cells)),
    }
    found = {}
    for name, (n_draws, ask) in asked.items():
        ask()
        waited(device)
        start = time.perf_counter()
        ask()
        waited(device)
        found[name] = cells.n_obs * n_draws / (time.perf_counter() - start)
    return found


QUESTIONS = ("latents, cells/s", "counterfactual, draws/s", "summary, draws/s", "effects, cells/s")


def against_targets(rows):
    """Print what was aimed at beside what was found; what was not measured is left out."""
    found = {(row["part"], row["what"]): row["value"] for row in rows}

    def ratio(one, other):
        return one / other if one is not None and other else None

    def us(way, size):
        return found.get((f"{way}, B = {size}", "us a step"))

    aims = [
        *((f"{e}: {of}", found.get((f"{e} against eager", f"{of}, relative")), "<=", most)
          for e in engines.COMPILED for of, most in (("loss", 1e-5), ("gradient", 1e-4))),
        ("graph is recorded", found.get(("graph against eager", "recorded")), ">=", 1),
        ("us a step, B = 256", us("graph", 256), "<=", 350),
        ("us a step, B = 4,096", us("graph", 4_096), "<=", 500),
        ("stock SVI / graph, B = 256", ratio(us("stock SVI", 256), us("graph", 256)), ">=", 50),
        ("stock SVI / graph, B = 4,096", ratio(us("stock SVI", 4_096), us("graph", 4_096)), ">=",
         20),
        *((f"graph / by hand, ELBO, B = {size}",
           ratio(us("graph, ELBO", size), us("by hand, recorded", size)), "<=", 1.05)
          for size in (256, 4_096)),
        ("seconds to compile", found.get(("graph against eager", "seconds to compile")), "<=", 25),
        ("seconds of a fit", found.get(("fit, auto", "seconds of 150 epochs")), "<=", 20),
        ("fit: CPU / GPU", ratio(found.get(("fit on the CPU, auto", "seconds of 150 epochs")),
                                 found.get(("fit, auto", "seconds of 150 epochs"))), ">=", 1),
        *((f"{part}: {what}", found.get((part, what)), ">=", 1)
          for part in ("bits, eager", "bits, graph") for what in ("same seed", "resumed")),
        ("bits of a whole fit", found.get(("bits of a whole fit", "same seed")), ">=", 1),
        *((f"GPU / CPU: {name}", ratio(found.get(("questions", name)),
                                       found.get(("questions on the CPU", name))), ">=", 10)
          for name in QUESTIONS),
    ]  # fmt: skip
    for name, value, sign, aim in aims:
        if value is not None:
            met = value <= aim if sign == "<=" else value >= aim
            print(f"{name:44s} {float(value):10.4g} {sign} {aim:<8g} {'' if met else 'MISSED'}")


def on_a_card(report, data, device, ways):
    """What comes last, and takes a card: the same on its CPU, large batches, whole fits again."""
    torch.set_num_threads(os.cpu_count())
    cpu = torch.device("cpu")
    report.part("fit on the CPU, auto", whole_fit, "eager", cpu, 15)
    report.part("questions on the CPU", questions, cpu, 2_000)
    torch.set_num_threads(1)
    for way in [*(each for each in ways if each != "trace"), "stock SVI"]:
        report.part(f"{way}, B = 16384", speed, data, 16_384, way, device, 20)
    report.part("bits of a whole fit", whole_bits, device, 150)


def main():
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--engines", default="eager,trace,graph", type=lambda text: text.split(","))
    options = parser.parse_args()
    device, quick, ways = torch.device(options.device), options.quick, options.engines
    sizes, n_genes, n_steps = ([64], 100, 2) if quick else ([256, 4_096], 2_000, 20)
    data = encode(make_cells(n_cells=300 if quick else 16_600, n_genes=n_genes))
    # As every fit does: torch's compiler looks whether it was set, and would compile once more.
    torch.set_float32_matmul_precision(torch.get_float32_matmul_precision())
    name = torch.cuda.get_device_name(device) if is_card(device) else "CPU"
    report = Report()
    report.part("card", lambda: {"name": name, "torch": torch.__version__})
    compiled = [each for each in ways if each in engines.COMPILED]
    for engine in compiled:
        report.part(f"{engine} against eager", agreement, data, sizes[0], engine, device)
    for engine in [each for each in ways if each != "trace"]:
        report.part(f"bits, {engine}", bits, engine, device, 2 if quick else 4)
    by_hand = ["by hand, recorded"] if quick else ["graph, ELBO", "by hand, recorded"]
    others = [*(by_hand if "graph" in ways else []), "stock SVI"]
    for size in sizes:
        for way in [*(each for each in ways if each != "trace" or size == sizes[0]), *others]:
            report.part(f"{way}, B = {size}", speed, data, size, way, device, n_steps)
    report.part("fit, auto", whole_fit, "auto", device, 2 if quick else 150)
    if not quick:  # which is eager with "auto"
        report.part("fit, eager", whole_fit, "eager", device, 15)
    report.part("questions", questions, device, 50 if quick else 2_000)
    if is_card(device) and not quick:
        on_a_card(report, data, device, ways)
    against_targets(report.rows)
    print(json.dumps(report.rows))


if __name__ == "__main__":
    main()
