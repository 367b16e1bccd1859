"""What was learnt from a data set: names, levels, dose ranges, conditions; and the encoding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from pyro_fcr.data.conditions import Condition
from pyro_fcr.data.design import Design, read_design
from pyro_fcr.data.errors import SchemaError, did_you_mean, listed
from pyro_fcr.data.io import read_cells, read_matrix
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import (
    Dose,
    Treatment,
    canonical_label,
    parse_agents,
    parse_treatment,
)

_FORMAT = 1
_DOSE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Registry:
    """What a fitted model must remember of its data; made by `Schema.register`.

    Parameters
    ----------
    schema
        Meaning of the columns.
    genes
        Names of the columns of y, in order.
    agents
        Names of the columns of t: single agents, sorted, without the control.
    doses
        Smallest and largest positive training dose of each agent; empty without doses.
    covariates
        Sorted levels of each covariate key; together, in order, the columns of x.
    conditions
        Conditions of the training cells, the control first.
    target_sum
        Median total count of the training cells; None for log1p.

    Notes
    -----
    The entry of an agent in t is 1 without doses. With doses it is
    ``log1p(dose / smallest) / log1p(largest / smallest)``: 1 at the largest training dose, 0 at
    dose 0; an agent with a single dose has 1. Combinations add up. x holds one one-hot block
    per covariate key.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from pyro_fcr.data import Schema
    >>> obs = pd.DataFrame({"drug": ["control", "control", "A", "A+B"], "line": list("uvuv")})
    >>> obs.index = ["c0", "c1", "c2", "c3"]
    >>> adata = ad.AnnData(np.ones((4, 3)), obs=obs)
    >>> schema = Schema(
    ...     treatment_key="drug", control="control", covariate_keys="line", min_cells=1
    ... )
    >>> registry = schema.register(adata)
    >>> registry.encode_treatment("B+A").tolist()
    [1.0, 1.0]
    >>> registry.encode_covariates({"line": "v"}).tolist()
    [0.0, 1.0]
    >>> registry.is_extrapolated("A+B", {"line": "u"})
    True
    >>> Registry.from_json_dict(registry.to_json_dict()) == registry
    True
    """

    schema: Schema
    genes: tuple[str, ...]
    agents: tuple[str, ...]
    doses: Mapping[str, tuple[float, float]]
    covariates: Mapping[str, tuple[str, ...]]
    conditions: tuple[Condition, ...]
    target_sum: float | None

    @property
    def widths(self) -> dict[str, int]:
        """Number of columns of each site: `"x"`, `"t"` and `"y"`."""
        n_levels = sum(len(levels) for levels in self.covariates.values())
        return {"x": n_levels, "t": len(self.agents), "y": len(self.genes)}

    @property
    def treatments(self) -> tuple[str, ...]:
        """Canonical labels of the training cells, the control first, each once."""
        return tuple(dict.fromkeys(condition.treatment for condition in self.conditions))

    @property
    def n_prior_conditions(self) -> int:
        """Number of (t, x) conditions that the prior of z_tx can tell apart.

        All controls count as one: t is zero there, and with it the product of t and x embeddings.
        """
        treated = [each for each in self.conditions if each.treatment != self.schema.control]
        return len(treated) + (len(treated) < len(self.conditions))

    def canonical(self, label: str) -> str:
        """Return the one spelling of a treatment label: `"B+A"` and `"A+B"` become `"A+B"`.

        Raises
        ------
        SchemaError
            If an agent was never seen.
        """
        return canonical_label(self._known_agents(label).agents, self.schema)

    def encode(self, adata: AnnData | str | Path) -> Cells:
        """Turn data with the registered columns into tensors; `adata` is not changed.

        Parameters
        ----------
        adata
            The registered data or new data. Genes are matched by name, whatever their order.

        Returns
        -------
        Cells
            With the columns of `genes`, `covariates` and `agents`.

        Raises
        ------
        SchemaError
            If a label was never seen, a gene is missing, or the values are not as promised.

        Warns
        -----
        UserWarning
            If there are other genes; they are dropped.
        """
        adata = read_cells(adata)
        checks.check_shape(adata)
        # Names before the matrix, which may take long to read.
        sites = self._sites(adata.obs)
        order = encoding.gene_order(self.genes, adata)
        matrix = encoding.select_genes(read_matrix(adata, self.schema), order)
        checks.check_values(matrix, self.schema, adata=adata, genes=np.asarray(self.genes))
        checks.check_cells_expressed(matrix, self.schema, adata=adata)
        return Cells(
            expression=matrix,
            library=encoding.library_column(matrix, self.schema),
            levels={name: levels for name, (levels, _) in sites.items()},
            codes={name: codes for name, (_, codes) in sites.items()},
            obs_names=np.array(adata.obs_names, dtype=str),
            genes=self.genes,
        )

    def encode_obs(self, obs: pd.DataFrame) -> dict[str, Tensor]:
        """Turn labels alone, without expression, into the matrices of the sites.

        Returns
        -------
        dict
            `"x"` (n_cells, n_levels) and `"t"` (n_cells, n_agents), float32.

        Raises
        ------
        SchemaError
            If a column is missing, or a label is empty or was never seen.
        """
        return {name: rows.index_select(0, code) for name, (rows, code) in self._sites(obs).items()}

    def only_dose(self, label: str) -> dict[str, Any]:
        """Return treatment and dose columns for a label whose agents have one trained dose each.

        Raises
        ------
        SchemaError
            If an agent was never seen, or has several doses; names their range.
        """
        agents, doses = self._treatment(label, None)
        amount: Any = (self.schema.separator or "").join(map(repr, doses))
        if len(doses) < 2:
            amount = doses[0] if doses else np.nan
        label = canonical_label(agents, self.schema)
        return {self.schema.treatment_key: label, str(self.schema.dose_key): amount}

    def encode_treatment(self, label: str, dose: Dose = None) -> npt.NDArray[np.float32]:
        """Return the row of t for one treatment.

        Parameters
        ----------
        label
            An agent, a combination in any order, or the control.
        dose
            In the unit of the dose column: one number for each part alike, or one per part as a
            string or sequence. None means the trained dose where each agent has only one.

        Returns
        -------
        numpy.ndarray
            Shape (n_agents,), float32.

        Raises
        ------
        SchemaError
            If an agent was never seen, or the dose is missing, wrong, or given without dose_key.
        """
        return self._row_of(self._treatment(label, dose))

    def encode_covariates(self, levels: Mapping[str, str]) -> npt.NDArray[np.float32]:
        """Return the row of x for one level of each covariate key.

        Returns
        -------
        numpy.ndarray
            Shape (n_levels,), float32: one-hot blocks in the order of `covariates`.

        Raises
        ------
        SchemaError
            If a key is missing or unknown, or a level was never seen.
        """
        return encoding.context_row(self._context(levels), self.covariates)

    def is_extrapolated(
        self, treatment: str, covariates: Mapping[str, str], *, dose: Dose = None
    ) -> bool:
        """Tell whether the model was never shown this treatment in this context.

        True if the pair of treatment label and covariate levels has no training cell, or if an
        agent's dose is outside its trained range.

        Raises
        ------
        SchemaError
            As `encode_treatment` and `encode_covariates`.
        """
        agents, doses = self._treatment(treatment, dose)
        pair = (canonical_label(agents, self.schema), self._context(covariates))
        return pair not in self._pairs or any(map(self._outside, agents, doses))

    def to_json_dict(self) -> dict[str, Any]:
        """Return the registry in lists, dicts, strings and numbers only."""
        schema = asdict(self.schema)
        schema["covariate_keys"] = list(self.schema.covariate_keys)
        return {
            "format": _FORMAT,
            "schema": schema,
            "genes": list(self.genes),
            "agents": list(self.agents),
            "doses": {agent: list(ends) for agent, ends in self.doses.items()},
            "covariates": {key: list(levels) for key, levels in self.covariates.items()},
            "conditions": [each.to_json_dict() for each in self.conditions],
            "target_sum": self.target_sum,
        }

    @classmethod
    def from_json_dict(cls, saved: Mapping[str, Any]) -> "Registry":
        """Rebuild a registry from `to_json_dict`.

        Raises
        ------
        SchemaError
            If it was written in another format.
        """
        if saved.get("format") != _FORMAT:
            raise SchemaError(
                f"registry of format {saved.get('format')!r}, wanted {_FORMAT}; "
                "load it with the version of the package that wrote it, or register the data again"
            )
        return cls(
            schema=Schema(**saved["schema"]),
            genes=tuple(saved["genes"]),
            agents=tuple(saved["agents"]),
            doses={agent: (low, high) for agent, (low, high) in saved["doses"].items()},
            covariates={key: tuple(levels) for key, levels in saved["covariates"].items()},
            conditions=tuple(map(Condition.from_json_dict, saved["conditions"])),
            target_sum=saved["target_sum"],
        )

    @cached_property
    def _pairs(self) -> set[tuple[str, tuple[str, ...]]]:
        return {(each.treatment, self._context(each.covariates)) for each in self.conditions}

    def _row_of(self, treatment: Treatment) -> npt.NDArray[np.float32]:
        return encoding.treatment_row(treatment, self.agents, doses=self.doses)

    def _sites(self, obs: pd.DataFrame) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the distinct rows of each site, and the row of each cell."""
        design = read_design(obs, self.schema)
        self._check_known(design, obs)
        x = [encoding.context_row(context, self.covariates) for context in design.contexts]
        t = [self._row_of(treatment) for treatment in design.treatments]
        return {"x": encoding.distinct_rows(x, design.x), "t": encoding.distinct_rows(t, design.t)}

    def _check_known(self, design: Design, obs: pd.DataFrame) -> None:
        for t, cell in enumerate(np.unique(design.t, return_index=True)[1]):
            self._check_agents(design.treatments[t], f"cell {obs.index[cell]!r}")
        for x, cell in enumerate(np.unique(design.x, return_index=True)[1]):
            where = f"cell {obs.index[cell]!r}"
            encoding.check_context(design.contexts[x], self.covariates, where=where)

    def _check_agents(self, treatment: Treatment, where: str = "the query") -> None:
        control = self.schema.control
        known = self.agents if control is None else (*self.agents, control)
        encoding.check_agents(treatment, known, key=self.schema.treatment_key, where=where)

    def _known_agents(self, label: str) -> Treatment:
        treatment = Treatment(parse_agents(label, self.schema))
        self._check_agents(treatment)
        return treatment

    def _treatment(self, label: str, dose: Dose) -> Treatment:
        treatment = self._known_agents(label)
        if self.schema.dose_key is None:
            if dose is not None:
                raise SchemaError(
                    f"dose {dose!r} of {label!r}: the data were registered without doses; leave "
                    "dose out, or register with dose_key"
                )
            return treatment
        if dose is None:
            return Treatment(treatment.agents, tuple(map(self._only_dose, treatment.agents)))
        return parse_treatment(label, self.schema, dose=dose)

    def _only_dose(self, agent: str) -> float:
        low, high = self.doses[agent]
        if low < high:
            raise SchemaError(
                f"no dose is given for {agent!r}, which was trained from {low:g} to {high:g}; "
                f"pass dose, as in dose={high:g}"
            )
        return high

    def _outside(self, agent: str, dose: float) -> bool:
        low, high = self.doses[agent]
        return not low * (1 - _DOSE_TOLERANCE) <= dose <= high * (1 + _DOSE_TOLERANCE)

    def _context(self, levels: Mapping[str, str]) -> tuple[str, ...]:
        missing = [key for key in self.covariates if key not in levels]
        if missing:
            raise SchemaError(
                f"covariates: {listed(missing)} not given; wanted a level of each of "
                f"{listed(self.covariates)}"
            )
        for key in levels:
            if key not in self.covariates:
                raise SchemaError(
                    f"covariates: {key!r} is no covariate key; keys: {listed(self.covariates)}."
                    f"{did_you_mean(key, self.covariates)} Leave it out"
                )
        context = tuple(str(levels[key]) for key in self.covariates)
        encoding.check_context(context, self.covariates, where="the query")
        return context
