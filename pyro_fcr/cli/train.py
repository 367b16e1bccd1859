"""Models: the demo, training, a look at what was trained, and how good it is."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

import pyro_fcr
from pyro_fcr.cli import shell
from pyro_fcr.data.schema import Expression, Schema
from pyro_fcr.files import locate
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.seals import check_seal
from pyro_fcr.training.plan import TrainingPlan

if TYPE_CHECKING:
    from pyro_fcr.data import Registry
    from pyro_fcr.evaluation import Evaluation


def demo(
    *,
    out: shell.Out = Path("demo"),
    max_epochs: int | None = 150,
    seed: shell.Seed = TrainingPlan.seed,
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
    cells: shell.CellsPath,
    /,
    *,
    out: shell.Out,
    schema: shell.SchemaOptions,
    architecture: shell.ArchitectureOptions = Architecture(),
    plan: shell.PlanOptions = TrainingPlan(),
    heldout_fraction: float = 0.1,
    checkpoint: Path | None = None,
    resume: Path | None = None,
    memory: str | None = None,
    overwrite: shell.Overwrite = False,
) -> None:
    """Train a model on cells and save it, under torchrun in several processes.

    Parameters
    ----------
    heldout_fraction
        Share of the cells of every condition to hold out, where --split-key names none.
    checkpoint
        File to write checkpoints to, outside of --out. SIGTERM writes one, too.
    resume
        Checkpoint to go on from.
    memory
        How much memory the expression may take, such as 2GB; of a larger file, cells are read as
        they are needed. Half of what is free if left out.
    """
    from pyro_fcr import ranks

    place = ranks.from_first(lambda: _check_places(out, checkpoint, overwrite=overwrite))
    if ranks.rank() > 0:
        shell.be_quiet()
    model = pyro_fcr.FCR(cells, schema, architecture=architecture, seed=plan.seed, memory=memory)
    history = model.fit(
        plan, heldout_fraction=heldout_fraction, checkpoint=checkpoint, resume=resume
    )
    stopped = history.attrs["stopped"]
    if stopped == "interrupted" and place.exists():
        print(f"The former model stays in {out}. {_how_to_go_on(checkpoint)}", file=sys.stderr)
    elif ranks.rank() == 0:
        shell.put(out, lambda path: model.save(path, overwrite=overwrite))
        print(f"{len(history)} epochs ({stopped}); model in {out}")
    if stopped == "interrupted":
        raise SystemExit(128 + signal.SIGINT)


def _check_places(out: Path, checkpoint: Path | None, *, overwrite: bool) -> Path:
    """Refuse places that cannot be written; return that of the model."""
    from pyro_fcr.saving import check_model_place
    from pyro_fcr.training import check_checkpoint_place

    shell.check_untaken(out, overwrite=overwrite)
    place = check_model_place(out, overwrite=overwrite)
    if checkpoint is not None:
        written = check_checkpoint_place(checkpoint)
        if place in (written, *written.parents):
            raise ValueError(
                f"--checkpoint {checkpoint} lies in --out {out}, where the model will stand. Give "
                "it another place."
            )
    return place


def _how_to_go_on(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "With --checkpoint this run could have been resumed."
    return f"To go on: --resume {checkpoint}"


def inspect(path: Path, /, *, schema: shell.SchemaOptions | None = None) -> None:
    """Show a saved model, check cells before training, or check that a result is whole.

    Parameters
    ----------
    path
        A saved model (conditions, graph and claims), cells with a schema (conditions), or a file or
        folder that a command wrote (its sha256).
    """
    if (locate(path) / "model.json").is_file():
        model = pyro_fcr.FCR.load(path)
        _show_registry(model.registry)
        _show_programs(model)
    elif schema is not None:
        _show_registry(pyro_fcr.data.register(path, schema)[0])
    elif locate(path).exists() and check_seal(path):
        print(f"{path} is what pyro-fcr wrote.")
    else:
        raise ValueError(
            f"{path} is not a saved model, and no result. To check cells, say what their columns "
            "mean: --treatment-key and --covariate-key."
        )


def evaluate(
    model: shell.ModelPath | None = None,
    cells: shell.CellsPath | None = None,
    *,
    out: shell.Out,
    predictions: Annotated[list[str] | None, Parameter("--predictions")] = None,
    predicted_at: str | None = None,
    predicted_expression: Expression | None = None,
    predicted_treatment: str | None = None,
    schema: shell.SchemaOptions | None = None,
    replicate_key: str | None = None,
    seed: shell.Seed = 0,
    overwrite: shell.Overwrite = False,
) -> None:
    """Measure a model, or predictions of any tool: responses against baselines, and more.

    Give the cells of the fit under their names, those that its --split-key left out among them:
    conditions that the fit lacked altogether are predicted and judged. Nothing is fitted again. Of
    a model, clusters, independences and identifiability are measured, too.

    With --predictions there is no model: predicted cells of CPA, scGen, STATE, CellFlow, GEARS or
    any other tool are held against real --cells, whose columns --treatment-key, --control and
    --covariate-key name; --split-key says which cells the tools had.

    Parameters
    ----------
    out
        Folder of its own for evaluation.json, evaluation.html and a csv per table.
    predictions
        Predicted cells as h5ad or zarr, or NAME=FILE; repeatable, side by side.
    predicted_at
        Where predictions stand: X, layers/NAME or obsm/NAME. Where the tool writes them if left
        out.
    predicted_expression
        Scale of the predictions; that of the cells if left out.
    predicted_treatment
        Treatment of all predicted cells, whatever their label: scGen hands back the control's.
    replicate_key
        Column of obs with the replicate (donor, library, plate), which tests of independence then
        respect.
    """
    shell.check_free(out, overwrite=overwrite)
    if predictions:
        read = {
            "at": predicted_at,
            "expression": predicted_expression,
            "treatment": predicted_treatment,
        }
        files = _named_files(predictions)
        found = _evaluate_files(files, read, model, cells, schema, seed=seed)
        title = f"Predictions of {', '.join(files)}"
    elif model is None or cells is None:
        raise ValueError(
            "Give a model and its cells, or --predictions and --cells with --treatment-key, "
            "--control and --covariate-key."
        )
    else:
        found = pyro_fcr.FCR.load(model, adata=cells).evaluate(
            replicate_key=replicate_key, seed=seed
        )
        title = f"Evaluation of {model.resolve().name}"
    shell.put(out, lambda folder: found.to_folder(folder, title=title, overwrite=overwrite))
    print(found)
    print(f"evaluation.html, evaluation.json and {len(found.tables)} tables in {out}")


def _named_files(given: list[str]) -> dict[str, Path]:
    """Read NAME=FILE; a file alone is named after itself."""
    pairs = [text.split("=", 1) if "=" in text else [Path(text).stem, text] for text in given]
    files = {name: Path(path) for name, path in pairs}
    if len(files) < len(pairs):
        raise ValueError(f"--predictions has a name twice, of {list(files)}; use NAME=FILE.")
    return files


def _evaluate_files(
    files: Mapping[str, Path],
    read: Mapping[str, Any],
    model: Path | None,
    cells: Path | None,
    schema: Schema | None,
    *,
    seed: int,
) -> Evaluation:
    from pyro_fcr.evaluation import Predicted, evaluate_predictions

    if model is not None:
        raise ValueError(
            f"{model}: --predictions are judged without a model; to have it beside them, write its "
            "cells with `pyro-fcr predict` and give them as one of the --predictions."
        )
    if cells is None or schema is None:
        raise ValueError(
            "--predictions are held against real cells: give --cells, and --treatment-key, "
            "--control and --covariate-key."
        )
    given = {name: Predicted(source=path, **read) for name, path in files.items()}
    return evaluate_predictions(cells, schema, given, seed=seed)


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


def _show_programs(model: pyro_fcr.FCR) -> None:
    print(model.inspect().to_string())
    print("independences that training enforces")
    for claim in model.claims():
        print(f"  {claim}    {claim.words}")
    if model.architecture is not None:
        print(f"architecture: {json.dumps(model.architecture.__dict__)}")
