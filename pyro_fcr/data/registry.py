"""What was learnt from a data set: names, levels, dose ranges, conditions; and the encoding."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from torch import Tensor

from pyro_fcr.data import checks, encoding
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import Condition, Design, read_design
from pyro_fcr.data.errors import SchemaError
from pyro_fcr.data.io import open_cells
from pyro_fcr.data.labels import label_text
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import Dose, TreatmentEncoding, canonical_label, dose_text

_FORMAT = 4
# 1 knew neither covariate sites nor treatment features, 2 neither further labels nor a dose of
# control, 3 no outcomes beside y.
_READABLE = (1, 2, 3, 4)


@dataclass(frozen=True)
class Registry:
    """What a fitted model must remember of its data; made by :func:`register`.

    Parameters
    ----------
    schema
        Meaning of the columns.
    genes
        Names of the columns of y, in order.
    agents
        Single agents of the training cells, sorted, without the control; without treatment
        features, the names of the columns of t.
    doses
        Smallest and largest positive training dose of each agent, and the number that stands for
        that of control, if there is one; empty without doses.
    covariates
        Sorted levels of each covariate key; those of a site's keys are, in order, its columns.
    conditions
        Conditions of the training cells, the control first.
    target_sum
        Median total count of the training cells; None for log1p.
    outcomes
        Names of the columns of each outcome beside y.

    Notes
    -----
    An agent counts 1 without doses. With doses it counts
    ``log1p(dose / smallest) / log1p(largest / smallest)``: 1 at the largest training dose, 0 at
    dose 0; an agent with a single dose has 1. That is its entry in t, or with
    `Schema.treatment_features` what its features are multiplied by; combinations add up. An agent
    that has features but was never trained has no scale of doses: it counts 1, and must have none.
    A covariate site (x by default) holds one one-hot block per covariate key.

    Examples
    --------
    >>> import anndata as ad, dataclasses, numpy as np, pandas as pd
    >>> from pyro_fcr.data import Schema, register
    >>> obs = pd.DataFrame({"drug": ["control", "control", "A", "A+B"], "line": list("uvuv")})
    >>> obs.index = ["c0", "c1", "c2", "c3"]
    >>> adata = ad.AnnData(np.ones((4, 3)), obs=obs)
    >>> schema = Schema(
    ...     treatment_key="drug", control="control", covariate_keys="line", min_cells=1
    ... )
    >>> registry, cells = register(adata, schema)
    >>> registry.encode_treatment("B+A").tolist()
    [1.0, 1.0]
    >>> registry.encode_covariates({"line": "v"})["x"].tolist()
    [0.0, 1.0]
    >>> registry.is_extrapolated("A+B", {"line": "u"})
    True
    >>> Registry.from_json_dict(registry.to_json_dict()) == registry
    True

    With features an agent without cells can be asked about, here C:

    >>> table = pd.DataFrame([[1, 0], [0, 2], [3, 3]], index=["A", "B", "C"])
    >>> registry, _ = register(adata, dataclasses.replace(schema, treatment_features=table))
    >>> registry.encode_treatment("A+C").tolist(), registry.is_extrapolated("C", {"line": "u"})
    ([4.0, 3.0], True)
    """

    schema: Schema
    genes: tuple[str, ...]
    agents: tuple[str, ...]
    doses: Mapping[str, tuple[float, float]]
    covariates: Mapping[str, tuple[str, ...]]
    conditions: tuple[Condition, ...]
    target_sum: float | None
    outcomes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """Number of columns of each site: the covariate sites (`"x"`), `"t"` and `"y"`."""
        widths = {
            site: sum(len(self.covariates[key]) for key in keys)
            for site, keys in self.schema.sites.items()
        }
        return {**widths, "t": self.t.width, "y": len(self.genes)}

    @property
    def treatments(self) -> tuple[str, ...]:
        """Canonical labels of the training cells, the control first, each once."""
        return tuple(dict.fromkeys(condition.treatment for condition in self.conditions))

    @property
    def n_prior_conditions(self) -> int:
        """Number of conditions (t and all covariates) that the prior of z_tx can tell apart.

        All controls count as one: t is zero there, and with it the product of t and x embeddings.
        """
        treated = [each for each in self.conditions if each.treatment != self.schema.control]
        return len(treated) + (len(treated) < len(self.conditions))

    def read_design(self, obs: pd.DataFrame) -> Design:
        """Read treatments, doses and covariates of cells, see :func:`read_design`."""
        t = self.t
        return read_design(obs, self.schema, untrained=t.untrained, control_dose=t.control_dose)

    def canonical(self, label: str) -> str:
        """Return the one spelling of a treatment label: `"B+A"` and `"A+B"` become `"A+B"`.

        Raises
        ------
        SchemaError
            If an agent was never seen.
        """
        return canonical_label(self.t.read_agents(label).agents, self.schema)

    def encode(
        self,
        adata: AnnData | str | Path,
        *,
        rows: slice = slice(None),
        memory: int | None = None,
    ) -> Cells:
        """Turn data with the registered columns into tensors; `adata` is not changed.

        Parameters
        ----------
        adata
            The registered data or new data. Genes are matched by name, whatever their order.
        rows
            The cells to take, which stand side by side; all, if left out.
        memory
            Bytes up to which a matrix on disk is read into memory; None stands for half of what is
            free, and 0 leaves it on disk.

        Returns
        -------
        Cells
            With a column per gene, and each site of `widths` but y in `levels` and `codes`.

        Raises
        ------
        SchemaError
            If a label was never seen (nor, for an agent, has features), a gene is missing, or the
            values are not as promised.

        Warns
        -----
        UserWarning
            If there are other genes; they are dropped.
        """
        adata = open_cells(adata)
        checks.check_shape(adata)
        # Names before the matrix, which may take long to read.
        sites = self.encode_sites(adata.obs.iloc[rows])
        return self._cells(adata, sites, rows=rows, memory=memory)

    def encode_expression(
        self,
        adata: AnnData | str | Path,
        *,
        rows: slice = slice(None),
        memory: int | None = None,
    ) -> Cells:
        """Turn cells of unknown treatment and context into tensors; `.obs` is not looked at.

        Parameters
        ----------
        adata
            New data with the registered genes, matched by name, whatever their order.
        rows, memory
            As in :meth:`encode`.

        Returns
        -------
        Cells
            Without `levels` and `codes`, so that a batch has `"y"` and `"library"` alone.

        Raises
        ------
        SchemaError
            If a gene is missing, or the values are not as promised.

        Warns
        -----
        UserWarning
            If there are other genes; they are dropped.

        Examples
        --------
        >>> import anndata as ad, numpy as np, pandas as pd
        >>> from pyro_fcr.data import Schema, register
        >>> obs = pd.DataFrame({"drug": ["control", "A"], "line": ["u", "u"]}, index=["c0", "c1"])
        >>> adata = ad.AnnData(np.ones((2, 3)), obs=obs)
        >>> schema = Schema(
        ...     treatment_key="drug", control="control", covariate_keys="line", min_cells=1
        ... )
        >>> registry, cells = register(adata, schema)
        >>> cells = registry.encode_expression(ad.AnnData(np.full((4, 3), 2.0)))
        >>> sorted(cells.batch([0, 3]).values)
        ['library', 'y']
        """
        adata = open_cells(adata)
        checks.check_shape(adata)
        return self._cells(adata, {}, rows=rows, memory=memory)

    def encode_obs(self, obs: pd.DataFrame) -> dict[str, Tensor]:
        """Turn labels alone, without expression, into the matrices of the sites.

        Returns
        -------
        dict
            Each covariate site, by default `"x"`, (n_cells, n_levels), and `"t"` (n_cells,
            n_agents or n_features), float32.

        Raises
        ------
        SchemaError
            If a column is missing, or a label is empty or was never seen (nor, for an agent, has
            features).
        """
        return {name: site.of(slice(None)) for name, site in self.encode_sites(obs).items()}

    def columns_of(self, label: str, dose: Dose = None) -> dict[str, Any]:
        """Return the columns of `.obs` for a treatment, in its one spelling.

        Without a dose, agents have their only trained one; that of an agent which was never trained
        is left empty.

        Raises
        ------
        SchemaError
            As `encode_treatment`.
        """
        agents, doses = self.t.read(label, dose)
        columns: dict[str, Any] = {self.schema.treatment_key: canonical_label(agents, self.schema)}
        if self.schema.dose_key is not None:
            amounts = [each or np.nan for each in doses] or [np.nan]
            columns[self.schema.dose_key] = dose_text(amounts, self.schema)
        return columns

    def level(self, key: str, level: Any) -> str:
        """Return the one spelling of a covariate's level.

        Raises
        ------
        SchemaError
            If the level was never seen.
        """
        text = label_text(level, where=f"{key!r} of the query")
        encoding.check_context((text,), {key: self.covariates[key]}, where="the query")
        return text

    def encode_treatment(self, label: str, dose: Dose = None) -> npt.NDArray[np.float32]:
        """Return the row of t for one treatment.

        Parameters
        ----------
        label
            An agent, a combination in any order, or the control.
        dose
            In the unit of the dose column: one number for each part alike, or one per part as a
            string or sequence. None means the trained dose where each agent has only one, and
            factor 1 for an agent that was never trained, whose doses have no scale.

        Returns
        -------
        numpy.ndarray
            Shape (n_agents,), or (n_features,) with treatment features; float32.

        Raises
        ------
        SchemaError
            If an agent was never seen (nor has features), or the dose is missing, wrong, or given
            without dose_key or for an agent that was never trained.
        """
        return self.t.row(self.t.read(label, dose))

    def encode_covariates(self, levels: Mapping[str, str]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the row of each covariate site for one level of each covariate key.

        Returns
        -------
        dict
            For each site, by default `"x"`, shape (n_levels,), float32: one-hot blocks in the
            order of the site's keys.

        Raises
        ------
        SchemaError
            If a key is missing or unknown, or a level was never seen.
        """
        context = self._context(levels)
        return encoding.context_rows(context, self.covariates, self.schema.sites)

    def mean_context(self, site: str) -> npt.NDArray[np.float32]:
        """Return where agents were seen: the mean of a covariate site over the cells given each.

        Returns
        -------
        numpy.ndarray
            Shape (n_agents, n_levels), or (n_features, n_levels) with treatment features, whose
            rows are all the mean over treated cells; float32.
        """
        treated = [each for each in self.conditions if each.treatment != self.schema.control]
        rows = [self.encode_covariates(each.covariates)[site] * each.n_cells for each in treated]
        t = [self.encode_treatment(each.treatment, each.dose or None) != 0 for each in treated]
        given = np.array(t, dtype=np.float32)
        if self.schema.treatment_features is not None:
            given = np.ones_like(given)
        cells = np.array([each.n_cells for each in treated]) @ given
        return (given.T @ np.array(rows) / np.maximum(cells, 1)[:, None]).astype(np.float32)

    def is_extrapolated(
        self, treatment: str, covariates: Mapping[str, str], *, dose: Dose = None
    ) -> bool:
        """Tell whether the model was never shown this treatment in this context.

        True if the pair of treatment label and levels of all covariates has no training cell, as
        for an agent known by its features only, or if a dose is outside its agent's trained range.

        Raises
        ------
        SchemaError
            As `encode_treatment` and `encode_covariates`.
        """
        asked = self.t.read(treatment, dose)
        pair = (canonical_label(asked.agents, self.schema), self._context(covariates))
        return pair not in self.pairs or self.t.is_outside(asked)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the registry in lists, dicts, strings and numbers only."""
        own = {"format": _FORMAT, **asdict(self), "schema": self.schema.to_json_dict()}
        return json.loads(json.dumps(own))

    @classmethod
    def from_json_dict(cls, saved: Mapping[str, Any]) -> "Registry":
        """Rebuild a registry from `to_json_dict`, of this version or an earlier one.

        Raises
        ------
        SchemaError
            If it was written in another format.
        """
        if saved.get("format") not in _READABLE:
            raise SchemaError(
                f"registry of format {saved.get('format')!r}; expected "
                f"{_READABLE[0]} to {_READABLE[-1]}; load it with the version of the package that "
                "wrote it, or register the data again"
            )
        return cls(
            schema=Schema(**saved["schema"]),
            genes=tuple(saved["genes"]),
            agents=tuple(saved["agents"]),
            doses={agent: (low, high) for agent, (low, high) in saved["doses"].items()},
            covariates={key: tuple(levels) for key, levels in saved["covariates"].items()},
            conditions=tuple(map(Condition.from_json_dict, saved["conditions"])),
            target_sum=saved["target_sum"],
            outcomes={site: tuple(each) for site, each in saved.get("outcomes", {}).items()},
        )

    @cached_property
    def t(self) -> TreatmentEncoding:
        """What each agent counts in t."""
        return TreatmentEncoding(self.schema, self.agents, self.doses)

    def among(self, pairs: Collection[tuple[str, tuple[str, ...]]]) -> "Registry":
        """Return what is known of some pairs alone: treatment, and level of each covariate key."""
        kept = [c for c in self.conditions if (c.treatment, self._context(c.covariates)) in pairs]
        return replace(self, conditions=tuple(kept))

    @cached_property
    def pairs(self) -> set[tuple[str, tuple[str, ...]]]:
        """Canonical treatment and level of each covariate key of every pair of training cells."""
        return {(each.treatment, self._context(each.covariates)) for each in self.conditions}

    def _cells(
        self,
        adata: AnnData,
        sites: encoding.Sites,
        *,
        rows: slice = slice(None),
        memory: int | None = None,
    ) -> Cells:
        some = adata if rows == slice(None) else adata[rows]
        _, outcomes = encoding.read_outcomes(some, self.schema, columns=self.outcomes)
        matrix = encoding.read_expression(adata, self.genes, self.schema, rows=rows, memory=memory)
        return encoding.make_cells(
            matrix,
            sites,
            schema=self.schema,
            genes=self.genes,
            obs_names=some.obs_names,
            outcomes=outcomes,
        )

    def encode_sites(self, obs: pd.DataFrame) -> encoding.Sites:
        """Turn labels alone, without expression, into the sites: each covariate site, and `"t"`.

        Raises
        ------
        SchemaError
            If a column is missing, or a label is empty or was never seen (nor, for an agent, has
            features).
        """
        return encoding.encode_sites(
            self.read_design(obs),
            self.schema,
            covariates=self.covariates,
            treatments=self.t,
            names=obs.index,
        )

    def _context(self, levels: Mapping[str, str]) -> tuple[str, ...]:
        return encoding.read_context(levels, self.covariates)
