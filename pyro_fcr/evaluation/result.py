"""What was measured of a fitted model, or of predictions: tables, a page, and ten lines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
from anndata import AnnData

from pyro_fcr.data.errors import listed
from pyro_fcr.evaluation.calibration import Calibration
from pyro_fcr.metrics.arrays import nan_to_null
from pyro_fcr.metrics.response_table import MODEL, model_title
from pyro_fcr.metrics.scores import SCORES
from pyro_fcr.report import Page
from pyro_fcr.seals import sealed

TABLES: Final = (
    "headline", "responses", "methods", "chances", "calibration", "coverage", "dimensions",
    "clustering", "independence", "prior_rank", "singular_values", "identifiability",
)  # fmt: skip


_COUNTS: Final = {
    "n_training": "training",
    "n_heldout": "held-out",
    "n_left_out": "left-out cells",
    "n_genes": "genes",
    "n_conditions": "conditions",
    "epochs": "epochs",
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Evaluation:
    """What was measured of a model or of predictions. A table that could not be made has no rows.

    Parameters
    ----------
    facts
        Numbers of cells, genes, conditions and epochs, held-out ELBO (nats per cell), seed; what is
        known of them.
    headline
        Each model minus the best baseline, see :func:`pyro_fcr.metrics.headline`.
    responses
        Scores of predicted responses beside all baselines and the ceiling, see
        :func:`pyro_fcr.metrics.response_table`. ``scenario`` says what was predicted: conditions
        that training lacked altogether (``"unseen pair"`` and the like) or, if there are none,
        ``"seen pairs"``: cells that training lacked of conditions that it had.
    methods
        Every method of the responses: ``method``, ``role``, and ``words`` that say what it is.
    chances
        How likely FCR beats the best simple method on each unseen pair, and on those that were left
        out of fits in turn (``left_out``), after :meth:`pyro_fcr.FCR.leave_pairs_out`; see
        :class:`pyro_fcr.metrics.chances.Chances`.
    calibration
        Whether counterfactuals give back the responses that training saw, see
        :class:`pyro_fcr.evaluation.Calibration`.
    coverage
        How often predictive intervals hold values of cells that training lacked, see
        :meth:`pyro_fcr.FCR.interval_coverage`; of 500 cells at most of each kind.
    dimensions
        How much of each latent dimension is known of the cells, and whether it is in use; see
        :func:`pyro_fcr.metrics.dimension_use`.
    clustering
        NMI and ARI of each block's clusters with the labels, see
        :func:`pyro_fcr.metrics.cluster_agreement`, by ``cells`` (``"training"``,
        ``"held out"``; equally many) and ``encoding`` (``"labelled"``, or ``"label-blind"``:
        :meth:`pyro_fcr.FCR.label_blind_latents`).
    independence
        Every independence that the graph claims, tested within strata on the dimensions in use, by
        ``cells``; see :func:`pyro_fcr.metrics.independence_table`.
    prior_rank, singular_values
        What the fitted prior identifies, by block; see :class:`pyro_fcr.metrics.PriorRank`.
    identifiability
        Dimensions in use against the true latents, where ``adata.obsm`` holds these; see
        :func:`pyro_fcr.metrics.identifiability_table`.
    changes
        Predicted and measured change of mean log1p expression of the judged pairs: a row per
        scenario, treatment, context and method (``"real"`` is the measured one), a column per gene.
    left_out
        What could not be judged, and why.
    seconds
        Seconds that each part took.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :40].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1)
    >>> found = fcr.evaluate(n_permutations=20, n_draws=20)
    >>> found.scenarios, len(str(found).splitlines()) <= 10
    (['seen pairs'], True)
    """

    facts: Mapping[str, Any]
    headline: pd.DataFrame
    responses: pd.DataFrame
    methods: pd.DataFrame
    chances: pd.DataFrame = field(default_factory=pd.DataFrame)
    calibration: pd.DataFrame = field(default_factory=pd.DataFrame)
    coverage: pd.DataFrame = field(default_factory=pd.DataFrame)
    dimensions: pd.DataFrame = field(default_factory=pd.DataFrame)
    clustering: pd.DataFrame = field(default_factory=pd.DataFrame)
    independence: pd.DataFrame = field(default_factory=pd.DataFrame)
    prior_rank: pd.DataFrame = field(default_factory=pd.DataFrame)
    singular_values: pd.DataFrame = field(default_factory=pd.DataFrame)
    identifiability: pd.DataFrame = field(default_factory=pd.DataFrame)
    changes: pd.DataFrame = field(default_factory=pd.DataFrame)
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        elbo = self.facts.get("heldout_elbo_per_cell")
        known = [
            f"{self.facts[key]:,} {words}"
            for key, words in _COUNTS.items()
            if self.facts.get(key) is not None
        ]
        lines = [
            f"Evaluation of {', '.join(known)}",
            "" if elbo is None else f"Held-out ELBO: {elbo:.1f} nats a cell",
            *self.sentences,
            *self._glances(),
            f"Not judged: {'; '.join(self.left_out)}" if self.left_out else "",
            f"Tables: {', '.join(self.tables)}",
        ]
        return "\n".join(line if len(line) < 200 else f"{line[:200]} ..." for line in lines if line)

    def _glances(self) -> list[str]:
        """Return a line each on independence, dimensions in use and coverage, where measured."""
        lines = [] if self.calibration.empty else [Calibration(self.calibration).line]
        asked = self.chances.query("not left_out") if len(self.chances) else self.chances
        if len(asked):
            some = [f"{r.treatment!r} in {r.context} {r.chance:.0%}" for r in asked.itertuples()]
            best = asked["against"].iloc[0]
            lines.append(f"Chance that FCR beats {best}: {listed(some, 3, quoted=False)}")
        if len(table := self.independence):
            worst = table.loc[table["effect"].idxmax()]
            rejected = (table["p_value"] <= 0.05).sum()
            lines.append(
                f"Independence: {rejected} of {len(table)} tests reject at 0.05; largest effect "
                f"{worst['effect']:.3f} ({worst['statement']}, {worst['cells']} cells)"
            )
        if len(self.dimensions):
            blocks = self.dimensions.groupby("block", sort=False)["in_use"].agg(["sum", "size"])
            used = (f"{name} {row['sum']} of {row['size']}" for name, row in blocks.iterrows())
            lines.append(f"Dimensions in use: {', '.join(used)}")
        for kind, own in self.coverage.groupby("kind", sort=False) if len(self.coverage) else ():
            found = [f"{row.observed:.1%} in {row.nominal:.0%}" for row in own.itertuples()]
            lines.append(f"Coverage ({kind}): {', '.join(found)} intervals")
        return lines

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, by name."""
        found: dict[str, pd.DataFrame] = {name: getattr(self, name) for name in TABLES}
        return {name: table for name, table in found.items() if len(table)}

    @property
    def scenarios(self) -> list[str]:
        """What was predicted: the distinct ``scenario`` of the responses."""
        return list(dict.fromkeys(self.headline["scenario"])) if len(self.headline) else []

    @property
    def sentences(self) -> list[str]:
        """What :meth:`sentence` says of every scenario and method."""
        if self.headline.empty:
            return []
        cosines = self.headline.query("metric == 'cosine_logfc'")
        asked = cosines[["scenario", "method"]].drop_duplicates().itertuples(index=False)
        return [self.sentence(scenario, method=method) for scenario, method in asked]

    def sentence(self, scenario: str, metric: str = "cosine_logfc", *, method: str = MODEL) -> str:
        """Say in a line how a method fares against the best baseline.

        On mean log1p expression, or where it has none, on log1p of the mean.

        Parameters
        ----------
        scenario
            One of :attr:`scenarios`.
        metric
            A name of :data:`pyro_fcr.metrics.SCORES`.
        method
            A model among the methods.

        Raises
        ------
        ValueError
            The headline has no such row.
        """
        rows = self.headline.query("against == 'best on average'")
        asked = {"scenario": scenario, "metric": metric, "method": method}
        for key, value in asked.items():
            rows = rows[rows[key] == value]
        if not len(rows):
            raise ValueError(f"The headline has no {metric!r} of {scenario!r} for {method!r}.")
        row = rows.sort_values("scale", ascending=False).iloc[0]
        verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided"
        words = f"{SCORES[metric].title}, {SCORES[metric].scope}"
        return (
            f"{model_title(method)} minus best baseline ({row['baseline']}), {words}, {scenario} "
            f"({row['n_pairs']}): {row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], "
            f"{verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return facts and tables (lists of records) in what JSON can hold; nan is None."""
        tables = {name: getattr(self, name).to_dict("records") for name in TABLES}
        about = {name: dict(getattr(self, name)) for name in ("facts", "left_out", "seconds")}
        return nan_to_null({**about, **tables})

    def to_json(self, path: str | Path) -> Path:
        """Write facts and all tables as JSON, beside it its sha256, and return the path.

        Raises
        ------
        FileExistsError
            Something stands there that no evaluation wrote; a former JSON is replaced.
        """
        with sealed(path) as draft:
            draft.write_text(self._json())
        return Path(path)

    def to_html(
        self,
        path: str | Path,
        *,
        title: str = "Evaluation",
        summary: Sequence[str] = (),
        notes: Sequence[str] = (),
        history: pd.DataFrame | None = None,
        cells: AnnData | None = None,
        color_by: Sequence[str] = (),
    ) -> Path:
        """Write everything as one self-contained HTML page; a former page is replaced.

        Parameters
        ----------
        path
            File to write; missing folders are made.
        title, summary, notes
            Heading, sentences for the top (what FCR gains over the best baseline follows),
            sentences for the foot.
        history
            History of the fit, for its loss by term.
        cells, color_by
            Cells with UMAPs in ``obsm["X_fcr_<block>_umap"]``, and the columns of ``obs`` that
            colour them.

        Returns
        -------
        The path of the file.

        Raises
        ------
        FileExistsError
            Something stands there that is no page of ours.
        """
        about = {"summary": [*summary, *self.sentences], "notes": notes}
        page = self._page(title=title, history=history, cells=cells, color_by=color_by, **about)
        return page.write(path)

    def to_folder(self, path: str | Path, *, title: str, overwrite: bool = False) -> Path:
        """Write page, JSON and a csv per table as one folder, which takes its place whole.

        Parameters
        ----------
        path
            Folder to write, with ``evaluation.html``, ``evaluation.json``, the tables and the
            sha256 of each.
        title
            Heading of the page.
        overwrite
            Whether a former evaluation is replaced.

        Returns
        -------
        The path of the folder.

        Raises
        ------
        FileExistsError
            Something stands there that must not be replaced.
        """
        with sealed(path, overwrite=overwrite) as draft:
            draft.mkdir()
            for name, table in self.tables.items():
                table.to_csv(draft / f"{name}.csv", index=False)
            (draft / "evaluation.json").write_text(self._json())
            page = self._page(title=title, summary=self.sentences)
            (draft / "evaluation.html").write_text(page.render(), encoding="utf-8")
        return Path(path)

    def _json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def _page(self, **about: Any) -> Page:
        """Return a page with what was measured, and a title and the like."""
        measured = {"facts": self.facts, "changes": self.changes, "left_out": self.left_out}
        return Page(tables=self.tables, **measured, **about)
