"""How good a saved model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_fcr.cli.options import CellsPath, ModelPath, Out, Overwrite, Seed
from pyro_fcr.cli.shell import check_file

if TYPE_CHECKING:
    from pyro_fcr.evaluation import Assessment

_JSON, _PAGE = "evaluation.json", "evaluation.html"


def evaluate(
    model: ModelPath,
    cells: CellsPath,
    /,
    *,
    out: Out,
    replicate_key: str | None = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model: responses against baselines, clusters, independences, identifiability.

    Give the cells of the fit under their names, those that its --split-key left out among them:
    conditions that the fit lacked altogether are predicted and judged. Nothing is fitted again.

    Parameters
    ----------
    out
        Folder for evaluation.json, evaluation.html and a csv per table.
    replicate_key
        Column of obs with the replicate (donor, library, plate), which tests of independence then
        respect.
    """
    from pyro_fcr.api import FCR
    from pyro_fcr.evaluation import assess
    from pyro_fcr.evaluation.measure import TABLES

    for name in (_JSON, _PAGE, *(f"{table}.csv" for table in TABLES)):
        check_file(out / name, [".json", ".html", ".csv"], overwrite=overwrite)
    fitted = FCR.load(model, adata=cells)
    found = assess(fitted, replicate_key=replicate_key, seed=seed)
    _write(found, out, title=f"Evaluation of {model.resolve().name}")
    for scenario in found.scenarios:
        print(found.sentence(scenario))
    for what, why in found.left_out.items():
        print(f"Not judged: {what}: {why}")
    print(f"{_PAGE}, {_JSON} and {len(found.tables)} tables in {out}")


def _write(found: Assessment, out: Path, *, title: str) -> None:
    from pyro_fcr.files import atomic_write
    from pyro_fcr.report import write_evaluation

    for name, table in found.tables.items():
        with atomic_write(out / f"{name}.csv") as path:
            table.to_csv(path, index=False)
    with atomic_write(out / _JSON) as path:
        path.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    write_evaluation(out / _PAGE, found, title=title)
