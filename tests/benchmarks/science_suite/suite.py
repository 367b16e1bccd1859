"""Simulate, fit, judge: every setting, model and seed in turn."""

import logging
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_fcr.comparison import COMPARISONS, fit_comparison
from pyro_fcr.data.errors import listed
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.metrics import identifiability_table
from pyro_fcr.simulation import FCRDesign, simulate
from pyro_fcr.training import TrainingPlan
from science_suite.records import Record, Row
from science_suite.settings import SETTINGS, architecture_of, n_conditions, schema_of

logger = logging.getLogger("pyro_fcr.science")

_JUDGE = 1_000  # added to the seed, so that floors are not drawn from the stream of the latents
_PACKAGES = ("pyro-fcr", "pyro-ppl", "torch", "numpy", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Fits to be made and judged: all combinations of settings, models and seeds.

    Parameters
    ----------
    settings
        Designs of simulated cells by name.
    models
        Names of :data:`pyro_fcr.comparison.COMPARISONS`.
    seeds
        Each is the seed of the cells and of the fit.
    n_cells
        Cells of each set; None leaves that to the designs.
    fit
        Fields of :class:`pyro_fcr.TrainingPlan`, as in ``{"max_epochs": 50}``.

    >>> len(list(Suite(models=("fcr", "cvae"), seeds=range(3)).jobs()))
    12
    """

    settings: Mapping[str, FCRDesign] = field(default_factory=lambda: SETTINGS)
    models: Sequence[str] = ("fcr",)
    seeds: Sequence[int] = range(5)
    n_cells: int | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in COMPARISONS:
                hint = did_you_mean(name, COMPARISONS)
                raise ValueError(f"no model {name!r}, there are {listed(COMPARISONS, 20)}.{hint}")
        for what in ("settings", "models", "seeds"):
            if not len(getattr(self, what)):
                raise ValueError(f"no {what}: nothing to do")
        self.designs()
        TrainingPlan(**self.fit)

    def designs(self) -> dict[str, FCRDesign]:
        """Return the designs, of the wanted number of cells."""
        return {
            name: design if self.n_cells is None else replace(design, n_cells=self.n_cells)
            for name, design in self.settings.items()
        }

    def jobs(self) -> Iterator[tuple[str, str, int]]:
        """Yield setting, model and seed of every fit; all of one seed before the next."""
        for seed in self.seeds:
            for name in self.settings:
                for model in self.models:
                    yield name, model, int(seed)

    def header(self) -> dict[str, Any]:
        """Return what the results depend on beside setting, model and seed."""
        versions = {"python": platform.python_version()}
        versions |= {package: version(package) for package in _PACKAGES}
        designs = {name: _plain(design) for name, design in self.designs().items()}
        return {"versions": versions, "fit": dict(self.fit), "settings": designs}


def run_suite(suite: Suite, out: Path) -> Record:
    """Make the fits of a suite that a file does not have yet, and judge them.

    The file is written anew after each fit: a run that was interrupted goes on where it was, and a
    larger suite adds to it. A row per fit has ``n_conditions`` (all controls count as one),
    ``epochs``, ``stopped``, ``seconds`` of the fit, ``seconds_judged`` and ``scores``, all rows of
    :func:`pyro_fcr.metrics.identifiability_table` on all cells.

    Raises
    ------
    ValueError
        The file is another's, or was begun with other designs, settings of fits or versions.
    """
    header = suite.header()
    record = Record.read(out).joined(header, path=out) if out.exists() else Record(header, [])
    designs, jobs = suite.designs(), list(suite.jobs())
    left = [job for job in jobs if not record.has(*job)]
    logger.info(f"{len(left)} fits to make, {len(jobs) - len(left)} are in {out}")
    for number, (name, model, seed) in enumerate(left, start=1):
        row = judge(designs[name], model, seed=seed, fit=suite.fit)
        record.rows.append({"setting": name, "model": model, "seed": seed, **row})
        record.write(out)
        logger.info(f"{number}/{len(left)}: {name}, {model}, seed {seed} in {row['seconds']:.0f} s")
    return record


def judge(design: FCRDesign, model: str, *, seed: int, fit: Mapping[str, Any]) -> Row:
    """Simulate cells, fit one model to them and hold its latents against the true ones."""
    adata, start = simulate(design, seed=seed), time.perf_counter()
    schema, architecture = schema_of(design), architecture_of(design)
    settings = {"architecture": architecture, "seed": seed, "progress": False, **fit}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*for which the theory asks for")  # on purpose
        fcr = fit_comparison(model, adata, schema, **settings)
    fitted = time.perf_counter()
    truth = {block: adata.obsm[block] for block in ("z_x", "z_tx", "z_t")}
    labels = {"x": adata.obs["context"], "t": adata.obs["treatment"]}
    found = COMPARISONS[model].latents(fcr)
    table = identifiability_table(truth, found, **labels, seed=seed + _JUDGE)
    return {
        "n_conditions": n_conditions(design),
        "epochs": len(fcr.history),
        "stopped": fcr.history.attrs["stopped"],
        "seconds": fitted - start,
        "seconds_judged": time.perf_counter() - fitted,
        "scores": table.to_dict(orient="records"),
    }


def _plain(design: FCRDesign) -> dict[str, Any]:
    """Return the fields as JSON can hold them."""
    given, planted = dict(vars(design)), design.interactions
    given["leaks"] = {"|".join(leak): share for leak, share in design.leaks.items()}
    given["interactions"] = (
        {"|".join(pair): dict(genes) for pair, genes in planted.items()}
        if isinstance(planted, Mapping)
        else vars(planted)
    )
    return given
