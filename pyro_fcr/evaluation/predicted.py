"""Cells that any tool has predicted, read by the layouts in which tools publish them.

| tool | cells it writes | where the prediction stands |
|---|---|---|
| scGen (also pertpy's) | control cells of a context, labels unchanged | ``X``, log1p |
| CPA (cpa-tools 0.8) | the cells that were asked for, labels as asked | ``obsm["CPA_pred"]`` |
| STATE | real cells, or control cells under other labels | ``X``, or ``obsm["X_hvg"]`` |
| CellFlow | control cells under new labels | ``layers["X_recon"]``, log1p |
| GEARS | a mean per condition, ``A+ctrl``, ``A+B`` | ``X``, log1p |
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.data import Schema, SchemaError
from pyro_fcr.data.errors import listed
from pyro_fcr.data.io import layer_names, read_cells, read_matrix
from pyro_fcr.data.pairs import Layout, Pair, read_layout
from pyro_fcr.data.scenarios import cell_prints
from pyro_fcr.data.schema import Expression
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.metrics.judge import Fit
from pyro_fcr.metrics.profiles import (
    SCALES,
    Scale,
    TreatedOnly,
    Values,
    log_values,
    predicted_cells,
    profile,
    values_of,
)

_PLACES: Final = ("obsm/CPA_pred", "layers/CPA_pred", "layers/X_recon", "obsm/X_state_pred")
_MOST_RATIO: Final = 1.4  # of averages of predicted and of real cells
_LARGEST_LOG = np.log1p(1e4)  # of cells that are scaled to 10,000 counts


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predicted cells, and how to read them.

    Parameters
    ----------
    source
        AnnData, ``.h5ad`` or ``.zarr``. Rows are predicted cells, or one mean per condition. Labels
        are in the columns that the schema of the real cells names; a covariate that the real cells
        have one level of may be missing. Rows labelled as control are the method's own control.
    at
        Where the prediction stands: ``"X"``, ``"layers/NAME"`` or ``"obsm/NAME"`` (columns in the
        order of the genes). None takes the place that CPA, CellFlow or STATE write to, if the file
        has it, and ``X`` otherwise.
    expression
        Its scale, ``"counts"`` (drawn or expected) or ``"log1p"``. None takes that of the schema,
        and refuses values that look like the other one.
    treatment
        Treatment of all rows, whatever their label is: scGen hands back the control's.

    Examples
    --------
    >>> Predicted(source="cpa.h5ad", expression="log1p").at is None
    True
    """

    source: AnnData | str | Path
    at: str | None = None
    expression: Expression | None = None
    treatment: str | None = None


class PredictedPairs:
    """Predictions of one method, by pair.

    Parameters
    ----------
    name
        The method.
    given
        Its predicted cells.
    real
        The real cells.
    schema
        Names their columns; predicted cells need the same, without dose and split.

    Raises
    ------
    pyro_fcr.SchemaError
        The file cannot be read as a prediction of the real cells; the message begins with the
        method and says which column, gene or matrix, and the mend.
    """

    def __init__(self, name: str, given: Predicted, real: AnnData, schema: Schema) -> None:
        self.name, self._given, self._real = name, given, real
        # All doses of a treatment are one pair.
        self._schema = replace(schema, dose_key=None, split_key=None)
        self.adata = read_cells(given.source)
        if not self.adata.n_obs:
            raise self._error("has no cells")
        self._matrix, self.genes = self._stored()
        self.expression = given.expression or schema.expression
        self._check_scale()
        self._check_labels()

    @property
    def pairs(self) -> list[Pair]:
        """The treated pairs that real cells have, too."""
        real = set(self._real_layout.treated().values())
        return [pair for pair in self._layout.treated().values() if pair in real]

    @property
    def left_out(self) -> dict[str, str]:
        """What of the file is not used, and why."""
        own = set(self._layout.treated().values()) - set(self.pairs)
        unmet = {f"{pair} ({self.name})": "no real cells of it" for pair in sorted(own)}
        lacks = set(self._real.var_names) - set(self.genes)
        some = (
            f"{len(lacks)} of {self._real.n_vars} are not in it, such as {min(lacks, default='')}"
        )
        return unmet | ({f"genes ({self.name})": some} if lacks else {})

    def predict(self, genes: pd.Index) -> dict[Pair, Fit]:
        """Return the prediction of each pair, on some genes in their order."""
        columns = pd.Index(self.genes).get_indexer(genes)
        values = log_values(self._matrix[:, columns], expression=self.expression)
        self._check_height(values, genes)
        controls = self._own_controls(values)
        rows = {pair: values[self._layout.codes == i] for i, pair in self._layout.treated().items()}
        return {
            pair: self._prediction(own, controls.get(pair.context))
            for pair, own in rows.items()
            if pair in set(self.pairs)
        }

    def _check_height(self, values: Values, genes: pd.Index) -> None:
        """Warn where log values are on another log scale than the real ones."""
        if self.expression == "counts":
            return  # scaled here
        real = values_of(self._real[:, genes], self._schema)
        ratio = values.mean() / max(real.mean(), 1e-12)
        if not 1 / _MOST_RATIO < ratio < _MOST_RATIO:
            warnings.warn(
                f"{self.name!r}: predicted log1p values are {ratio:.2g} times those of the real "
                "cells on average; scores compare natural logarithms of cells that are scaled to "
                "10,000 counts over the same genes",
                UserWarning,
                stacklevel=2,
            )

    def _prediction(self, treated: Values, control: Values | None) -> Fit:
        cells = treated if treated.shape[0] > 1 else None
        scales = SCALES if cells is not None else self._scale_of_means
        if control is not None and cells is not None and control.shape[0] > 1:
            return predicted_cells(treated, control, expression="log1p")
        mean = {scale: profile(treated, scale) for scale in scales}
        if control is not None and cells is None:
            base = {scale: profile(control, scale) for scale in scales}
            return TreatedOnly(mean).against(base)
        return TreatedOnly(mean, cells)

    @property
    def _scale_of_means(self) -> tuple[Scale, ...]:
        """A mean of log1p says nothing of the mean of counts, nor the other way round."""
        return ("mean_log1p",) if self.expression == "log1p" else ("log1p_mean",)

    def _own_controls(self, values: Values) -> dict[tuple[str, ...], Values]:
        """Return control cells by context, without contexts whose are real cells, copied."""
        found = {}
        for i in np.flatnonzero(self._layout.is_control).tolist():
            context = self._layout.pairs[i].context
            rows = np.flatnonzero(self._layout.codes == i)
            position = self._real_layout.control_of(Pair("", context))
            if position is None or not self._copies(rows, self._real_layout.codes == position):
                found[context] = values[rows]
        return found

    @cached_property
    def _layout(self) -> Layout:
        obs = self.adata.obs.copy()
        if self._given.treatment is not None:
            obs[self._schema.treatment_key] = self._given.treatment
        for key in self._schema.covariate_keys:
            levels = list(self._real.obs[key].unique()) if key in self._real.obs else []
            if key not in obs and len(levels) == 1:
                obs[key] = levels[0]
        for key in (self._schema.treatment_key, *self._schema.covariate_keys):
            if key not in obs:
                raise self._error(
                    f"has no obs column {key!r}; columns: {listed(obs)}."
                    f"{did_you_mean(key, map(str, obs))} Write the labels of the predicted cells "
                    "there, as the real cells have them"
                )
        try:
            return read_layout(obs, self._schema)
        except ValueError as error:
            raise self._error(f"has labels that cannot be read: {error}") from error

    @cached_property
    def _real_layout(self) -> Layout:
        return read_layout(self._real.obs, self._schema)

    def _check_labels(self) -> None:
        """Check that there are treated cells, that real ones match, and that none is a copy."""
        key = self._schema.treatment_key
        if not self._layout.treated():
            raise self._error(
                f"has control cells only, by obs column {key!r}; scGen hands back labels of the "
                "control cells: say what they were predicted under, with treatment"
            )
        if not self.pairs:
            known = sorted(map(str, self._real_layout.treated().values()))
            named = [str(pair) for pair in self._layout.treated().values()]
            columns = listed((key, *self._schema.covariate_keys))
            raise self._error(
                f"predicts {listed(named, 3, quoted=False)}, of which there are no real cells; "
                f"known: {listed(known, 5, quoted=False)}. Spell {columns} as the real cells do"
            )
        for i, pair in self._layout.treated().items():
            if pair in self.pairs:
                place = self._real_layout.pairs.index(pair)
                rows = np.flatnonzero(self._layout.codes == i)
                if self._copies(rows, self._real_layout.codes == place):
                    raise self._error(
                        f"has real cells of {pair} in {self._place!r}, not predicted ones; say "
                        f"where the prediction stands, with at; places: {listed(self._places)}"
                    )

    def _copies(self, rows: np.ndarray, real: np.ndarray) -> bool:
        """Tell whether one of the rows is a real cell, value by value, on the genes of both."""
        if self.expression != self._schema.expression:
            return False
        shared = self._real.var_names.intersection(self.genes)
        own = self._matrix[:, pd.Index(self.genes).get_indexer(shared)]
        theirs = self._real_matrix[:, self._real.var_names.get_indexer(shared)]
        known = {row for _, row in cell_prints(theirs, np.flatnonzero(real))}
        return any(row in known for _, row in cell_prints(own, rows))

    @cached_property
    def _real_matrix(self) -> Any:
        return read_matrix(self._real, self._schema)

    @property
    def _places(self) -> list[str]:
        layers = [f"layers/{name}" for name in layer_names(self.adata)]
        return ["X", *layers, *(f"obsm/{name}" for name in self.adata.obsm)]

    @cached_property
    def _place(self) -> str:
        if self._given.at is not None:
            if self._given.at not in self._places:
                raise self._error(
                    f"has no {self._given.at!r}; places: {listed(self._places)}."
                    f"{did_you_mean(self._given.at, self._places)}"
                )
            return self._given.at
        found = [place for place in _PLACES if place in self._places]
        if len(found) > 1 and set(found) != {"obsm/CPA_pred", "layers/CPA_pred"}:
            raise self._error(f"has predictions at {listed(found)}; say which, with at")
        return found[0] if found else "X"

    def _stored(self) -> tuple[Any, list[str]]:
        """Return the predicted matrix and the genes of its columns."""
        kind, _, key = self._place.partition("/")
        values: Any = getattr(self.adata, kind)[key] if key else self.adata.X
        if values is None:
            raise self._error(f"has an empty X; say where the prediction stands, of {self._places}")
        genes = list(map(str, self.adata.var_names))
        if isinstance(values, pd.DataFrame):
            values, genes = values.to_numpy(), list(map(str, values.columns))
        values = values if sparse.issparse(values) else np.asarray(values)
        if values.shape[1] != len(genes):
            raise self._error(
                f"has {values.shape[1]} columns in {self._place!r} for {len(genes)} genes in var; "
                "keep the genes of the prediction only, in its order"
            )
        if not pd.Index(genes).is_unique:
            raise self._error("names a gene twice in var_names; call adata.var_names_make_unique()")
        if not self._real.var_names.isin(genes).any():
            raise self._error(
                f"has no gene of the real cells: it has {listed(genes, 2)}, they have "
                f"{listed(self._real.var_names, 2)}; use the same names in var_names"
            )
        return (sparse.csr_matrix(values) if sparse.issparse(values) else values), genes

    def _check_scale(self) -> None:
        """Refuse values that cannot be of their scale, or look like the other one."""
        values = self._matrix.data if sparse.issparse(self._matrix) else self._matrix
        if not np.isfinite(values).all():
            raise self._error(
                f"has values in {self._place!r} that are not finite; drop those cells"
            )
        whole, most = bool((values == np.rint(values)).all()), float(values.max(initial=0.0))
        if self.expression == "counts" and (values < 0).any():
            raise self._error(
                f"has negative values in {self._place!r}, which are no counts; say "
                "expression='log1p' if they are on a log scale"
            )
        if self._given.expression is not None:
            return
        other = "log1p" if self.expression == "counts" else "counts"
        looks_log = not whole and most <= _LARGEST_LOG
        if (looks_log and self.expression == "counts") or (
            self.expression == "log1p" and (whole or most > 2 * _LARGEST_LOG)
        ):
            kind = "whole" if whole else "not whole"
            raise self._error(
                f"has values in {self._place!r} that are {kind} and at most {most:.3g}: are they "
                f"{other}? Say expression={other!r}, or expression={self.expression!r} if they are "
                "what the schema says"
            )

    def _error(self, message: str) -> SchemaError:
        return SchemaError(f"{self.name!r} {message}.")


def shared_genes(real: AnnData, schema: Schema, given: Mapping[str, PredictedPairs]) -> pd.Index:
    """Return the genes of the real cells that all methods predict, in their order.

    Raises
    ------
    pyro_fcr.SchemaError
        Genes are missing where a scale depends on them: log1p values were scaled over the genes of
        a whole cell, counts are scaled over those that are left.
    """
    genes = real.var_names
    for name, each in given.items():
        if each.expression != schema.expression and not genes.isin(each.genes).all():
            raise SchemaError(
                f"{name!r} has {genes.isin(each.genes).sum()} of {len(genes)} genes on the scale "
                f"{each.expression}, but the real cells are {schema.expression}, which are scaled "
                "over all genes. Give real cells on the same scale, with the schema's layer and "
                "expression."
            )
        genes = genes[genes.isin(each.genes)]
    if not len(genes):
        raise SchemaError(f"No gene is predicted by all of {listed(given)}.")
    return genes
