"""Models: the demo, training, and a look at what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_fcr.cli.options import (
    ArchitectureOptions,
    CellsPath,
    Out,
    Overwrite,
    PlanOptions,
    SchemaOptions,
    Seed,
)
from pyro_fcr.cli.shell import check_free
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.training.plan import TrainingPlan

if TYPE_CHECKING:
    from pyro_fcr.api import FCR
    from pyro_fcr.data import Registry


def demo(
    *, out: Out = Path("demo"), max_epochs: int | None = 150, seed: Seed = TrainingPlan.seed
) -> None:
    """Run the main job on bundled real cells; write report, metrics, latents, model.

    Parameters
    ----------
    max_epochs
        Passes over the training cells.
    """
    import pandas as pd

    from pyro_fcr.demo import run_demo

    metrics = run_demo(out, max_epochs=max_epochs, seed=seed)
    print(f"Predicted and real response of the held-out pair {metrics['heldout_pair']}:")
    print(pd.DataFrame(metrics["response"]).T.to_string(float_format="{:.3f}".format, na_rep="-"))


def fit(
    cells: CellsPath,
    /,
    *,
    out: Out,
    schema: SchemaOptions,
    architecture: ArchitectureOptions = Architecture(),
    plan: PlanOptions = TrainingPlan(),
    checkpoint: Path | None = None,
    resume: Path | None = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a model on cells and save it.

    Parameters
    ----------
    checkpoint
        File to write checkpoints to.
    resume
        Checkpoint to go on from.
    """
    from pyro_fcr.api import FCR

    check_free(out, overwrite=overwrite)
    if out.exists() and not (out / "model.json").is_file():
        raise FileExistsError(f"{out} holds no model, so it is not replaced.")
    model = FCR(cells, schema, architecture=architecture, seed=plan.seed)
    history = model.fit(plan, checkpoint=checkpoint, resume=resume)
    model.save(out, overwrite=overwrite)
    print(f"{len(history)} epochs ({history.attrs['stopped']}); model in {out}")


def inspect(path: Path, /, *, schema: SchemaOptions | None = None) -> None:
    """Show the conditions, graph and claims of a saved model, or check cells before training.

    Parameters
    ----------
    path
        A saved model, or cells with a schema.
    """
    from pyro_fcr.api import FCR
    from pyro_fcr.data import register

    if (path / "model.json").is_file():
        model = FCR.load(path)
        _show_registry(model.registry)
        _show_programs(model)
    elif schema is not None:
        _show_registry(register(path, schema)[0])
    else:
        raise ValueError(
            f"{path} is no saved model. To check cells, say what their columns mean: "
            "--treatment-key and --covariate-key."
        )


def _show_registry(registry: Registry) -> None:
    print(f"{len(registry.genes)} genes; agents: {', '.join(registry.agents)}")
    print(f"{'cells':>7s}  condition")
    for condition in registry.conditions:
        dose = f" {'+'.join(f'{d:g}' for d in condition.dose)}" if condition.dose else ""
        context = ", ".join(f"{k}={v}" for k, v in condition.covariates.items())
        print(f"{condition.n_cells:7d}  {condition.treatment}{dose} in {context}")
    n = registry.n_prior_conditions
    print(
        f"{n} conditions tell z_tx apart (all controls are one): at most {(n - 1) // 2} "
        "identifiable dimensions (2 n + 1 conditions for n)"
    )


def _show_programs(model: FCR) -> None:
    print(model.inspect().to_string())
    print("independences that training enforces")
    for claim in model.claims():
        print(f"  {claim}    {claim.words}")
    if model.architecture is not None:
        print(f"architecture: {json.dumps(model.architecture.__dict__)}")
