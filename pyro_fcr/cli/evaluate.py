"""How good a saved model is."""

from __future__ import annotations

from pyro_fcr.cli.options import CellsPath, ModelPath, Out, Overwrite, Seed
from pyro_fcr.cli.shell import check_file

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
    from pyro_fcr import evaluation
    from pyro_fcr.api import FCR
    from pyro_fcr.evaluation.result import TABLES
    from pyro_fcr.files import atomic_write

    for name in (_JSON, _PAGE, *(f"{table}.csv" for table in TABLES)):
        check_file(out / name, [".json", ".html", ".csv"], overwrite=overwrite)
    fitted = FCR.load(model, adata=cells)
    found = evaluation.evaluate(fitted, replicate_key=replicate_key, seed=seed)
    for name, table in found.tables.items():
        with atomic_write(out / f"{name}.csv") as path:
            table.to_csv(path, index=False)
    found.to_json(out / _JSON)
    found.to_html(out / _PAGE, title=f"Evaluation of {model.resolve().name}")
    print(found)
    print(f"{_PAGE}, {_JSON} and {len(found.tables)} tables in {out}")
