"""Cells that a fitted model expects: under a condition, after an intervention, or as they are.

Cells are drawn block by block, each from a seed of its own: an answer depends on the seed and on
which cells stand in which order, not on the memory that it may take.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from torch import Tensor
from tqdm.auto import tqdm

from pyro_fcr.batch import Batch
from pyro_fcr.data.encoding import Site
from pyro_fcr.data.pairs import read_layout
from pyro_fcr.draws import QueryError, Responder, block_size, new_cells
from pyro_fcr.draws.sinks import Rows
from pyro_fcr.queries.answers import Output, Part, assemble, read_part
from pyro_fcr.queries.columns import put_beside, writable
from pyro_fcr.queries.fitted import Fitted, Source, drawn_blocks, make_responder
from pyro_fcr.queries.libraries import Depth, Library, depth_of, depths, library_column
from pyro_fcr.queries.marks import condition_marks
from pyro_fcr.queries.shards import query_digest
from pyro_fcr.queries.targets import (
    Asked,
    Form,
    Query,
    intervene,
    new_condition,
)
from pyro_fcr.ranks import shows_progress
from pyro_fcr.values import check_choice, checked

logger = logging.getLogger(__name__)

_Chunks: TypeAlias = Callable[..., Iterable[tuple[Batch, slice]]]
"""Is given ``rows=`` that lie side by side, and yields these cells in chunks."""

_FED: Final = {"latent": "expected", "observation": "drawn"}


@checked(error=QueryError)
def predict(  # noqa: PLR0913 (the words of one question)
    fcr: Fitted,
    treatment: str,
    *,
    covariates: Mapping[str, str],
    dose: Any = None,
    n_cells: int = 500,
    n_draws: int = 1,
    library: Library = "target",
    output: Form | Output = "draws",
    fallback: Literal["best"] | None = None,
    seed: int = 0,
) -> AnnData:
    """Draw new cells of a condition from the model alone: latents from their priors, then y.

    Parameters
    ----------
    fcr
        A fitted model.
    treatment, dose
        The treatment or combination; the dose, where the schema has doses.
    covariates
        A level for every covariate, or :data:`pyro_fcr.AVERAGE` to average it out. A covariate that
        something causes in the model, such as a cell cycle phase that treatments change, may be
        left out: it is drawn.
    n_cells
        How many cells to draw.
    n_draws
        Draws per cell, which share nothing but the condition: ``n_cells=1, n_draws=1000,
        output="summary"`` sums the condition up in a row.
    library
        Counts per cell: a number, or one for each cell. ``"target"`` takes what the condition had
        in training, or treatment and context let expect: :func:`pyro_fcr.data.expected_depths`.
    output, seed
        As in :meth:`counterfactual`.
    fallback
        ``"best"`` answers pairs that training lacked by the best simple method where that is more
        likely to be right than the model, as :meth:`pyro_fcr.FCR.leave_pairs_out` has found: with
        control cells of the context, drawn with replacement, each shifted by the predicted change.

    Returns
    -------
    Cells with the genes of training; ``obs`` holds the condition, ``extrapolated`` and
    ``support``, ``uns["pyro_fcr"]`` the query; see :meth:`counterfactual`. With ``fallback``,
    ``uns["pyro_fcr"]["method"]`` and ``obs["method"]`` say what has answered.

    Raises
    ------
    pyro_fcr.SchemaError
        The condition has a level that was never seen; lists the known ones.
    pyro_fcr.QueryError
        ``fallback`` is asked for, but pairs were never left out, or not with drawn cells; or memory
        cannot hold the answer.
    """
    _check_fallback(fcr, fallback, output)
    query = Query(
        treatment=treatment,
        covariates=covariates,
        dose=dose,
        output=output,
        seed=seed,
        n_draws=n_draws,
    )
    asked = new_condition(fcr, query, n_cells)
    if isinstance(library, str) and library != "target":
        raise QueryError(f"library is {library!r}; expected 'target', a number, or one a cell.")
    size = depths(fcr, asked) if isinstance(library, str) else library
    column = library_column(size, n_cells)
    chunks = partial(_chunks_of_new_cells, fcr, asked.do, column)
    depth = Depth("target" if isinstance(library, str) else "given", column)
    found = answer(fcr, query, replace(asked, do={}), chunks, depth)
    return found if fallback is None else _by_the_likelier(fcr, found, column, query)


@checked(error=QueryError)
def counterfactual(  # noqa: PLR0913 (the words of one question)
    fcr: Fitted,
    adata: Source = None,
    *,
    treatment: str | None = None,
    dose: Any = None,
    covariates: Mapping[str, str] | None = None,
    hold: Iterable[str] | None = None,
    library: Library = "own",
    n_draws: int = 1,
    output: Form | Output = "draws",
    seed: int = 0,
) -> AnnData:
    """Predict what given cells would express under another treatment, dose or context.

    Abduct: what is held is drawn from the guide given the cells' expression. Act: the sites
    are set to the target. Predict: all else is drawn from the conditional priors. So what the
    target reaches is that of some cell, not of this one; :meth:`pyro_fcr.FCR.unit_counterfactual`
    keeps the cell's own noise there, too.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The source cells; None takes the model's own.
    treatment, dose, covariates
        The target; what is left out stays as it is in each cell. At least one of them. A
        covariate such as a technical batch can be set to :data:`pyro_fcr.AVERAGE`.
    hold
        Latents that cells keep; None holds every latent that the target does not cause (z_x
        for another treatment, z_t for another context). Covariates that the target causes, such as
        a cell cycle phase that treatments change, are drawn: the answer is the total effect. Name
        the site of such a covariate here to leave it as measured: the direct effect.
    library
        Counts per cell. ``"own"`` leaves the cells theirs, so that a response is none of depth;
        ``"target"`` multiplies them by what the target has more than the source's condition in
        training (:func:`pyro_fcr.data.expected_depths`), as for cells that are held against
        measured ones; or a number, or one for each cell.
    n_draws
        Draws per cell.
    output
        ``"draws"``: drawn counts, ``n_draws`` rows per cell; ``"mean"``: expected counts
        averaged over draws, and their standard deviation in ``layers["sd"]``; ``"summary"``:
        quantiles in ``layers["q05"]`` and the like, too. Or an
        :class:`pyro_fcr.Output`, for the spread of drawn counts, other quantiles, and answers
        that are written to a file within a bound of memory.
    seed
        Seed of the draws.

    Returns
    -------
    Predicted cells. ``obs`` is that of the source with the target in the schema's columns, the
    source's own values in ``source_<column>``, ``extrapolated`` (no training cell had this
    treatment in this context) and ``support`` (:func:`pyro_fcr.queries.support`);
    ``uns["pyro_fcr"]`` holds the query. Columns that are drawn are empty in ``obs``, and
    ``uns["pyro_fcr"]["drawn"]`` lists them. Of a name that the source has a column of, the
    answer's own has ``fcr_`` before it. ``uns["pyro_fcr"]["covariates"]`` is JSON. After
    :meth:`pyro_fcr.FCR.leave_pairs_out`, ``chance`` says of pairs that training lacked how likely
    the model's answer is nearer to the truth than the best simple method's.

    Raises
    ------
    pyro_fcr.SchemaError
        The target has a level that was never seen; lists the known ones.
    pyro_fcr.QueryError
        There is no target, what is held would undo it, or memory cannot hold the answer.
    """
    query = Query(
        treatment=treatment,
        covariates=covariates or {},
        dose=dose,
        output=output,
        seed=seed,
        n_draws=n_draws,
    )
    source = fcr.source(adata)
    asked = intervene(fcr, query, source.obs, hold=hold)
    depth = depth_of(fcr, asked, source, library)
    chunks = partial(fcr.chunks, source)
    return answer(fcr, query, asked, chunks, depth, world="interventional")


@checked(error=QueryError)
def posterior_predictive(
    fcr: Fitted,
    adata: Source = None,
    *,
    n_draws: int = 1,
    output: Form | Output = "draws",
    library: npt.ArrayLike | Literal["own"] = "own",
    seed: int = 0,
) -> AnnData:
    """Draw the cells again, as they are: all latents from the guide given the cell, then y.

    This shows what the model makes of cells that it has read, for checks of the model. It is not a
    prediction: expression that the guide reads is given back. For cells of another condition
    see :meth:`pyro_fcr.FCR.counterfactual`.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes the model's own.
    n_draws
        Draws per cell.
    output
        As in :meth:`pyro_fcr.FCR.counterfactual`.
    library
        Counts per cell of the answer: ``"own"``, a number, or one for each cell.
    seed
        Seed of the draws.

    Returns
    -------
    Cells with the annotation of ``adata``; see :meth:`pyro_fcr.FCR.counterfactual`.

    Raises
    ------
    pyro_fcr.SchemaError
        The cells have a level that was never seen; lists the known ones.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[:20].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(pyro_fcr.datasets.gbm_panobinostat(), schema)
    >>> again = fcr.posterior_predictive(adata, n_draws=10, output="summary")
    >>> again.shape, sorted(name for name in again.layers if name)
    ((20, 300), ['q05', 'q50', 'q95', 'sd'])
    """
    source = fcr.source(adata)
    query = Query(output=output, n_draws=n_draws, seed=seed)
    asked = Asked(obs=source.obs.copy(), held=fcr.graph.blocks)
    depth = Depth.of(library, source.n_obs)
    return answer(fcr, query, asked, partial(fcr.chunks, source), depth)


def _chunks_of_new_cells(
    fcr: Fitted, sites: Mapping[str, Site], library: Tensor, *, rows: slice
) -> Iterator[tuple[Batch, slice]]:
    """Yield cells without expression whose sites have the given values, block by block."""
    n_genes = len(fcr.registry.genes)
    size = block_size(n_genes)
    for start in range(rows.start, rows.stop, size):
        at = slice(start, min(start + size, rows.stop))
        cut = {name: site.of(at) for name, site in sites.items()}
        yield new_cells(cut, library[at], n_genes=n_genes).to(fcr.device, fcr.dtype), at


def answer(
    fcr: Fitted,
    query: Query,
    asked: Asked,
    chunks: _Chunks,
    depth: Depth,
    *,
    responder: Responder | None = None,
    **about: str,
) -> AnnData:
    """Draw what is asked of cells, and put it together in the form that the query asks for."""
    query.check_room(len(asked.obs), len(fcr.registry.genes))
    rows = query.answer.rows_of(len(asked.obs), block_size(len(fcr.registry.genes)))
    record = {**_record(query, asked, depth), **about}
    if (shard := query.answer.shard) is not None:
        record["shard"] = {"shard": shard, "query": query_digest(fcr, record, asked, depth)}
    genes = pd.DataFrame(index=pd.Index(fcr.registry.genes, dtype=str))
    obs = _annotation(fcr, query, asked, rows)
    frame = AnnData(obs=obs, var=genes, uns={"pyro_fcr": record})
    if responder is None:
        responder = make_responder(fcr, asked.held, released=asked.released)
    parts = _parts(fcr, query, (asked, chunks, depth), responder, rows)
    if (store := query.answer.store) is not None:
        sizes = rows.stop - rows.start, len(genes), query.n_draws
        logger.info("%d cells x %d genes, %d times each, are drawn into %s.", *sizes, store)
        parts = _shown(parts, n_cells=sizes[0], n_rows=len(obs))
    answer = assemble(frame, parts, store=query.answer.store)
    layer = fcr.registry.schema.layer
    if layer is not None and layer not in answer.layers and query.answer.store is None:
        answer.layers[layer] = answer.X  # where the model, and whoever joins it to the cells, looks
    return answer


def _shown(parts: Iterable[Part], *, n_cells: int, n_rows: int) -> Iterator[Part]:
    """Pass parts on, and show how many cells are done and per second."""
    with tqdm(total=n_cells, unit="cell", unit_scale=True, disable=not shows_progress()) as bar:
        for part in parts:
            yield part
            bar.update(part["X"].shape[0] * n_cells / n_rows)


def _annotation(fcr: Fitted, query: Query, asked: Asked, rows: slice) -> pd.DataFrame:
    """Return the annotation of some rows; what it says does not depend on which."""
    from pyro_fcr.queries.simple import chance_marks  # noqa: PLC0415 (reads scikit-learn)

    marks = condition_marks(asked.obs, fcr.registry, open_keys=asked.open_keys)
    if not asked.open_keys:
        marks |= chance_marks(fcr, asked.obs, marks["extrapolated"])
    obs = put_beside(asked.obs, marks)
    if query.answer.store is not None:
        obs = writable(obs, labels=fcr.registry.schema.columns)
    return _row_per_draw(obs.iloc[rows], query.n_draws if query.answer.form == "draws" else 1)


def _parts(
    fcr: Fitted,
    query: Query,
    of: tuple[Asked, _Chunks, Depth],
    responder: Responder,
    rows: slice,
) -> Iterator[Part]:
    """Draw block by block; a block whose draws do not fit into memory is drawn anew per part.

    Blocks that reach beyond the rows are drawn whole, so that their draws are those of all rows.
    """
    output, n_draws, (asked, chunks, depth) = query.answer, query.n_draws, of
    as_counts = fcr.registry.schema.expression == "counts" and output.kind == "observation"
    n_genes, n_cells = len(fcr.registry.genes), len(asked.obs)
    block = block_size(n_genes)
    whole = slice(rows.start // block * block, min(n_cells, -(-rows.stop // block) * block))
    for batch, cells, seed in drawn_blocks(fcr, chunks(rows=whole), seed=query.seed):
        do = {name: site.of(cells).to(fcr.device, fcr.dtype) for name, site in asked.do.items()}
        size = depth(batch, cells)
        wanted = range(max(cells.start, rows.start), min(cells.stop, rows.stop))
        for some in output.cuts(len(wanted), n_genes, n_draws=n_draws):
            at = slice(*(wanted.start - cells.start + each for each in (some.start, some.stop)))
            sinks = output.sinks(n_draws)
            taken = {_FED[output.kind]: [Rows(sink, at) for sink in sinks]}
            responder.feed(batch, do=do, library=size, n_draws=n_draws, seed=seed, **taken)
            yield read_part(sinks, as_counts=as_counts)


def _check_fallback(fcr: Fitted, fallback: str | None, output: Form | Output) -> None:
    if fallback is None:
        return
    check_choice("fallback", fallback, ("best",), error=QueryError)
    if fcr.chances is None:
        raise QueryError(
            "fallback='best' needs to know where the model is right: run fcr.leave_pairs_out() "
            "first."
        )
    if output != "draws":
        raise QueryError("fallback='best' answers with drawn cells: leave output= at 'draws'.")


def _by_the_likelier(fcr: Fitted, found: AnnData, library: Tensor, query: Query) -> AnnData:
    """Put a simple method's cells in the place of the model's where these are less likely right."""
    from pyro_fcr.queries.simple import SimpleAnswers  # noqa: PLC0415 (reads scikit-learn)

    assert fcr.chances is not None
    method, by_simple = "fcr", bool((found.obs["chance"] < 0.5).all())
    if by_simple:
        method = fcr.chances.simple
        layout = read_layout(found.obs, fcr.registry.schema)
        sizes = np.repeat(library.numpy().ravel(), query.n_draws)
        answers = SimpleAnswers(fcr, method)
        found.X = answers.cells(layout.pairs[0], sizes, seed=query.seed)
        if (layer := fcr.registry.schema.layer) is not None:
            found.layers[layer] = found.X
    found.obs = put_beside(found.obs, {"method": method})
    found.uns["pyro_fcr"]["method"] = method
    return found


def _row_per_draw(obs: pd.DataFrame, n_draws: int) -> pd.DataFrame:
    if n_draws == 1:
        return obs
    repeated = obs.iloc[np.repeat(np.arange(len(obs)), n_draws)]
    draw = np.tile(np.arange(n_draws), len(obs))
    names = [f"{cell}-draw{i}" for cell, i in zip(repeated.index, draw, strict=True)]
    return put_beside(repeated, {"draw": draw}).set_axis(pd.Index(names, dtype=str))


def _record(query: Query, asked: Asked, depth: Depth) -> dict[str, Any]:
    return {
        "treatment": "" if query.treatment is None else str(query.treatment),
        "dose": "" if query.dose is None else str(query.dose),
        # As text: in a file the "/" in a column's name would make a group of its own.
        "covariates": json.dumps({key: str(level) for key, level in query.covariates.items()}),
        "held": list(asked.held),
        "drawn": list(asked.open_keys),
        "library": depth.word,
        "output": query.answer.form,
        "uncertainty": query.answer.kind,
        "n_draws": query.n_draws,
        "seed": query.seed,
    }
