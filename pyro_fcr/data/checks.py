"""What must hold before anything is trained; each function checks one thing."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from pyro_fcr.data.design import Codes, Mask
from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.io import Matrix, layer_names
from pyro_fcr.data.labels import is_balanced, utf8_text
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.spelling import did_you_mean, look_alikes
from pyro_fcr.data.stored import Expression, StoredMatrix, blocks_of, survey_of
from pyro_fcr.data.treatments import canonical_label

_BLOCK = 2**22
_LARGEST_LOG1P = 20.0  # log1p of 5e8, more than a cell's library size
_TOO_MANY = 2.0**24  # counts of one gene in one cell, from where on float32 has gaps
_LIKE_CONTROL = re.compile(
    "(?i)(neg(ative)?[-_ ]?)?(control|ctrl)|dmso|vehicle|untreated|unstimulated|unperturbed|mock|"
    "(non|safe)[-_ ]?targeting|nt|pbs|none"
)


def check_shape(adata: AnnData) -> None:
    """Check that there are cells and genes, and that each has a name of its own, in UTF-8."""
    for count, what in ((adata.n_obs, "cells"), (adata.n_vars, "genes")):
        if count == 0:
            raise SchemaError(f"adata has no {what}; look at the filter that came before")
    for names, axis in ((adata.var_names, "var"), (adata.obs_names, "obs")):
        for name in names:
            utf8_text(name, where=f"adata.{axis}_names")
        twice = names[names.duplicated()].unique()
        if len(twice):
            raise SchemaError(
                f"adata.{axis}_names has repeated names: {listed(twice, 5)}; expected each once; "
                f"make them differ: adata.{axis}_names_make_unique()"
            )


def check_control(counts: Mapping[str, int], schema: Schema) -> None:
    """Check that the control label is there, and something to compare it with."""
    key = schema.treatment_key
    if schema.control is not None and schema.control not in counts:
        raise SchemaError(
            f"control {schema.control!r} is not a label of any training cell in obs column "
            f"{key!r}; labels: {listed(counts, 20)}.{did_you_mean(schema.control, counts)} "
            "Pass control=None if there are no untreated cells"
        )
    if len(counts) < 2:
        raise SchemaError(
            f"obs column {key!r} has one label only, {listed(counts)}, in the training cells; "
            "expected control and treated cells, or several treatments"
        )


def warn_no_control(labels: Iterable[str], schema: Schema) -> None:
    """Warn if a label looks like that of untreated cells, but is not among the controls."""
    like = [each for each in labels if _LIKE_CONTROL.fullmatch(each) and each != schema.control]
    if like:
        wanted = f"control={like[0]!r}" if schema.control is None else f"other_controls={like!r}"
        warnings.warn(
            f"obs column {schema.treatment_key!r}: {listed(like)} looks like a label of untreated "
            f"cells, but is taken as a treatment; to make it a control, pass {wanted}",
            stacklevel=4,
        )


def warn_look_alikes(labels: Iterable[str], *, key: str) -> None:
    """Warn about labels that may be spellings of one."""
    groups = look_alikes(labels)
    if groups:
        shown = "; ".join(" and ".join(map(ascii, group)) for group in groups[:5])
        more = f"; ... ({len(groups)} such groups)" if len(groups) > 5 else ""
        kept, *others = map(ascii, groups[0])
        warnings.warn(
            f"obs column {key!r} has labels that look alike and are taken as different: {shown}"
            f"{more}; if they are one, rename them: adata.obs[{key!r}] = adata.obs[{key!r}]"
            f".replace({others[0]}, {kept})",
            stacklevel=4,
        )


def check_combinations(treatments: Sequence[tuple[str, ...]], schema: Schema) -> None:
    """Check that labels with a separator are combinations, not names that have one in them.

    Parameters
    ----------
    treatments
        The agents of each distinct treatment.
    schema
        Has the separator, and the column to name.

    Raises
    ------
    SchemaError
        A part that never occurs alone has a bracket without its partner.

    Warns
    -----
    UserWarning
        No part of any combination occurs in another label.
    """
    distinct = sorted({agents for agents in treatments if len(agents) > 1})
    alone = {agents[0] for agents in treatments if len(agents) == 1}
    mend = "rename it, or pass another separator (None takes every label as one agent)"
    for agents in distinct:
        if broken := [a for a in agents if a not in alone and not is_balanced(a)]:
            raise SchemaError(
                f"obs column {schema.treatment_key!r}: {canonical_label(agents, schema)!r} reads "
                f"as a combination of {listed(agents)}, but {broken[0]!r} never occurs alone and "
                f"has a bracket without its partner; {mend}"
            )
    times = Counter(agent for agents in {*distinct, *((a,) for a in alone)} for agent in agents)
    if distinct and all(times[agent] == 1 for agents in distinct for agent in agents):
        warnings.warn(
            f"obs column {schema.treatment_key!r}: "
            f"{listed(canonical_label(agents, schema) for agents in distinct)} read as "
            f"combinations, but their parts, such as {listed(distinct[0])}, occur in no other "
            f"label; if it is the name of one agent, {mend}",
            stacklevel=4,
        )


def check_features(agents: set[str], schema: Schema) -> None:
    """Check that each agent has features, if any has, and that they are not those of control."""
    features = schema.treatment_features
    if features is None:
        return
    place, table = f"obs column {schema.treatment_key!r}", dict(features)
    lost = sorted(agents - set(table))
    if lost:
        raise SchemaError(
            f"{place}: {listed(lost)} without a row in treatment_features, which has rows of "
            f"{listed(table, 20)}.{did_you_mean(lost[0], table)} Add rows to the table, or rename "
            "or drop the cells"
        )
    zero = sorted(agent for agent in agents if not any(table[agent]))
    if zero and schema.control is not None:
        raise SchemaError(
            f"{place}: {listed(zero)} with zeros only in treatment_features, which is what the "
            f"control {schema.control!r} has; correct the table, drop the cells, or tell treated "
            "cells from control by one more feature that is 1 in all rows"
        )


def check_learnable(
    everywhere: set[str], trained: set[str], *, key: str, lesson: str = "nothing"
) -> None:
    """Check that nothing occurs in left-out cells alone."""
    lost = sorted(everywhere - trained)
    if lost:
        raise SchemaError(
            f"obs column {key!r}: {listed(lost)} only in cells that are left out of training, so "
            f"{lesson} can be learnt there; label some of the cells 'train', or drop them all"
        )


def check_enough(counts: Mapping[str, int], schema: Schema, *, key: str) -> None:
    """Check that each level has enough training cells."""
    few = {level: count for level, count in counts.items() if count < schema.min_cells}
    if few:
        shown = listed(f"{level}: {count}" for level, count in few.items())
        level = next(iter(few))
        raise SchemaError(
            f"obs column {key!r}: too few training cells in {shown}; expected {schema.min_cells} "
            f"or more each; drop them, as in adata = adata[adata.obs[{key!r}] != {level!r}].copy()"
            ", or lower min_cells"
        )


def warn_uncontrolled(levels: set[str], controlled: set[str], *, key: str) -> None:
    """Warn about covariate levels in which nothing was left untreated."""
    alone = sorted(levels - controlled)
    if alone:
        warnings.warn(
            f"obs column {key!r}: {listed(alone)} without control cells; counterfactual baselines "
            "and effects against control have no data to rest on there",
            stacklevel=4,
        )


def check_values(
    matrix: Matrix, schema: Schema, *, adata: AnnData, genes: npt.NDArray, first: int = 0
) -> None:
    """Check that the matrix holds the promised scale.

    Parameters
    ----------
    matrix
        Shape (n_cells, n_genes), as `read_matrix` returns it.
    schema
        Makes the promise.
    adata
        Names the cells and the layers there are.
    genes
        Names of the columns, shape (n_genes,).
    first
        Position of the matrix's first row among the cells.

    Raises
    ------
    SchemaError
        At the first value that is not finite or, for counts, negative or no whole number.
    """
    flat = _flat(matrix)
    bad = _first(flat, _no_count if schema.expression == "counts" else _no_log1p)
    if bad is not None:
        cell, gene = _place(matrix, bad)
        place = (
            f"{schema.source}, cell {adata.obs_names[first + cell]!r}, gene {str(genes[gene])!r}"
        )
        found = flat[bad]
        raise SchemaError(f"{place}: found {found:g}, {_mend(found, flat, schema, adata)}")


def warn_other_scale(matrix: Expression, schema: Schema) -> None:
    """Warn if values promised as log1p are whole numbers, z-scores or residuals."""
    if schema.expression != "log1p":
        return
    survey = survey_of(matrix)
    if survey.is_whole:
        warnings.warn(
            f"{schema.source} has whole numbers only, though expression='log1p'; if they are "
            "counts, pass expression='counts' or call sc.pp.log1p first",
            stacklevel=3,
        )
    elif survey.least < 0 and survey.is_centred:
        warnings.warn(
            f"{schema.source} has negative values and genes of mean 0, as z-scores and residuals "
            "have, though expression='log1p'; name the layer with log1p values",
            stacklevel=3,
        )


def check_expressed(matrix: Expression, schema: Schema, *, adata: AnnData) -> None:
    """Check that every gene has a value other than zero somewhere."""
    zero = np.flatnonzero(_nonzero(matrix, axis=0) == 0)
    if len(zero):
        mend = "sc.pp.filter_genes(adata, min_cells=1)"
        if schema.layer is not None:
            mend = f"adata = adata[:, {_layer_sums(schema, axis=0)} > 0].copy()"
        raise SchemaError(
            f"{schema.source}: {len(zero)} of {adata.n_vars} genes are zero in all cells, "
            f"first {listed(adata.var_names[zero[:5]])}; drop them: {mend}"
        )


def check_cells_expressed(matrix: Expression, schema: Schema, *, adata: AnnData) -> None:
    """Check that every cell has a value other than zero somewhere."""
    zero = np.flatnonzero(_nonzero(matrix, axis=1) == 0)
    if len(zero):
        least = "min_counts=1" if schema.expression == "counts" else "min_genes=1"
        mend = f"sc.pp.filter_cells(adata, {least})"
        if schema.layer is not None:
            mend = f"adata = adata[{_layer_sums(schema, axis=1)} > 0].copy()"
        if matrix.shape[1] < adata.n_vars:
            mend = f"adata = adata[:, list(registry.genes)].copy(), then {mend}"
        raise SchemaError(
            f"{schema.source}: {len(zero)} of {adata.n_obs} cells are zero in all "
            f"{matrix.shape[1]} genes, first {listed(adata.obs_names[zero[:5]])}; "
            f"drop them: {mend}"
        )


def counts_of(levels: list[str], codes: Codes) -> dict[str, int]:
    """Count the cells of each level that has any; different codes may share a level."""
    totals: Counter[str] = Counter()
    counts = np.bincount(codes, minlength=len(levels)).tolist()
    for level, count in zip(levels, counts, strict=True):
        totals[level] += count
    return dict(+totals)


def _layer_sums(schema: Schema, *, axis: int) -> str:
    return f"np.asarray({schema.source}.sum(axis={axis})).ravel()"


def _flat(matrix: Matrix) -> npt.NDArray:
    return matrix.reshape(-1) if isinstance(matrix, np.ndarray) else matrix.data


def _first(flat: npt.NDArray, bad: Callable[[npt.NDArray], Mask]) -> int | None:
    for start in range(0, len(flat), _BLOCK):
        found = bad(flat[start : start + _BLOCK])
        if found.any():
            return start + int(found.argmax())
    return None


def _no_log1p(values: npt.NDArray) -> Mask:
    return ~(np.isfinite(values) & (values <= _LARGEST_LOG1P))


def _no_count(values: npt.NDArray) -> Mask:
    return ~((values >= 0) & (values == np.rint(values)) & (values < _TOO_MANY))


def _place(matrix: Matrix, position: int) -> tuple[int, int]:
    if isinstance(matrix, np.ndarray):
        return divmod(position, matrix.shape[1])
    cell = int(np.searchsorted(matrix.indptr, position, side="right")) - 1
    return cell, int(matrix.indices[position])


def _mend(found: np.float32, flat: npt.NDArray, schema: Schema, adata: AnnData) -> str:
    layers = f"layers: {listed(layer_names(adata))}"
    if not np.isfinite(found):
        return (
            f"expected finite numbers; fill or drop the cells and genes with NaN or inf ({layers})"
        )
    if schema.expression == "log1p":
        return (
            f"expected log1p values, none of which is above {_LARGEST_LOG1P:g} "
            "(expression='log1p'); the values look normalised but not logged: call "
            f"sc.pp.log1p(adata), or name the layer with log1p values ({layers})"
        )
    if found >= _TOO_MANY:
        return (
            "expected counts below 2**24, the whole numbers of float32; correct the value, drop "
            f"the cell, or name the layer with raw counts ({layers})"
        )
    expected = "expected raw counts, whole numbers of 0 or more (expression='counts')"
    if found < 0:
        return f"{expected}; the values look scaled: name the layer with raw counts ({layers})"
    if flat.max() < _LARGEST_LOG1P:
        return (
            f"{expected}; the values look log-normalised: pass expression='log1p', "
            f"or name the layer with raw counts ({layers})"
        )
    return (
        f"{expected}; the values look normalised or corrected: name the layer with raw counts "
        f"({layers}), or round corrected counts with np.rint"
    )


def _nonzero(matrix: Expression, *, axis: int) -> npt.NDArray[np.int64]:
    """Count stored values per gene (axis 0) or cell (axis 1); `read_matrix` stores no zeros."""
    if isinstance(matrix, StoredMatrix):
        return matrix.survey.n_shown if axis == 1 else matrix.survey.n_cells
    if isinstance(matrix, np.ndarray):
        return np.count_nonzero(matrix, axis=axis)
    if axis == 1:
        return np.diff(matrix.indptr)
    genes = (block.indices for _, block in blocks_of(matrix))
    found = np.zeros(matrix.shape[1], np.int64)
    for each in genes:
        found += np.bincount(each, minlength=len(found))
    return found
