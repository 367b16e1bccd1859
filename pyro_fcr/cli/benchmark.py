"""FCR and the comparison models on simulated cells of known truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_fcr.cli.options import Out, PlanOptions
from pyro_fcr.cli.shell import check_free, write_table
from pyro_fcr.training.plan import TrainingPlan

if TYPE_CHECKING:
    from pyro_fcr.science import Suite
    from pyro_fcr.simulation import FCRDesign


_FIT = ("max_epochs", "batch_size", "learning_rate", "device", "engine")


def benchmark_science(
    *,
    out: Out,
    settings: list[str] | None = None,
    models: list[str] | None = None,
    seeds: int = 5,
    first_seed: int = 0,
    cells: int | None = None,
    plan: PlanOptions = TrainingPlan(),
    conditions: bool = False,
) -> None:
    """Fit simulated cells of known latents over seeds; write scores, medians and a figure.

    What is in the folder already is not done again: an interrupted run goes on.

    Parameters
    ----------
    settings
        Simulated settings, A or B; repeatable, or A,B; both if left out.
    models
        FCR and what it is held against; repeatable, or fcr,cvae; FCR alone if left out.
    seeds
        Number of seeds, of cells and fits.
    first_seed
        The first of them.
    cells
        Cells of a set; 20,000 if left out.
    conditions
        Vary the number of conditions around 2 n_tx + 1.
    """
    from pyro_fcr.science import Suite

    check_free(out, overwrite=True)
    designs = _designs(_listed(settings or ["A", "B"]), conditions=conditions)
    suite = Suite(
        settings=designs,
        models=_listed(models or ["fcr"]),
        seeds=range(first_seed, first_seed + seeds),
        n_cells=cells,
        fit={name: getattr(plan, name) for name in _FIT},
    )
    _run(suite, out, name="conditions" if conditions else "science")


def _run(suite: Suite, out: Path, *, name: str) -> None:
    from pyro_fcr.science import headlines, run_suite, summary_table
    from pyro_fcr.science.figure import draw_sweeps

    record = run_suite(suite, out / f"{name}.json")
    summary = summary_table(record)
    write_table(summary, out / f"{name}.csv")
    print("medians over seeds [floor, ceiling]")
    print(headlines(summary).to_string())
    if name == "conditions":
        for path in draw_sweeps(record, out):
            print(f"figure in {path}")


def _designs(names: Sequence[str], *, conditions: bool) -> dict[str, FCRDesign]:
    from pyro_fcr.data.errors import did_you_mean, listed
    from pyro_fcr.science import SETTINGS, condition_sweep

    for name in names:
        if name not in SETTINGS:
            hint = did_you_mean(name, SETTINGS)
            raise ValueError(f"--settings {name!r}: there are {listed(SETTINGS)}.{hint}")
    if not conditions:
        return {name: SETTINGS[name] for name in names}
    return {
        key: design
        for name in names
        for key, design in condition_sweep(name, SETTINGS[name]).items()
    }


def _listed(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
