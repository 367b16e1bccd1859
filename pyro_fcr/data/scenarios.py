"""What is kept from training to be predicted: splits as data, made from the design and checked.

A *pair* is a treatment in a context; all doses of a treatment count as one and are held out
together. Control cells of a held-out context stay in training: a context that is never seen in
any state cannot be told from any other, so it is known by its controls.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.data.design import Codes, random_rank
from pyro_fcr.data.errors import listed
from pyro_fcr.data.io import whole_matrix
from pyro_fcr.data.pairs import FEWEST_CONTROLS, Layout, Mask, Pair, read_layout
from pyro_fcr.data.schema import Schema

Kind = Literal["unseen pair", "unseen treatment", "unseen context", "random", "seen pairs"]

# Pairs that are alike in this are held out together.
_HELD_OUT: Final[Mapping[Kind, Callable[[Pair], Hashable]]] = {
    "unseen pair": attrgetter("treatment", "context"),
    "unseen treatment": attrgetter("treatment"),
    "unseen context": attrgetter("context"),
}
_TELLING: Final = 10  # genes that a cell must express before an equal row says that it is the same


@dataclass(frozen=True, eq=False)
class Scenario:
    """Cells to train on, and cells of the pairs to be predicted.

    Parameters
    ----------
    kind
        What of the pairs training lacked; or `"random"` and `"seen pairs"`, of which it lacked the
        test cells only.
    pairs
        Pairs whose response is to be predicted, none of them a control.
    train
        Cells that fitting may see, shape (n_cells,).
    test
        Cells that the prediction is held against, shape (n_cells,). Cells in neither are left out.

    Raises
    ------
    ValueError
        If the masks differ in length, share a cell, or one of them is empty.

    Examples
    --------
    >>> scenario = Scenario(
    ...     "unseen pair", (Pair("A", ("u",)),), np.array([True, False]), np.array([False, True])
    ... )
    >>> scenario.labels.tolist()
    ['train', 'test']
    """

    kind: Kind
    pairs: tuple[Pair, ...]
    train: Mask
    test: Mask

    def __post_init__(self) -> None:
        masks = self.train, self.test
        if len({mask.shape for mask in masks}) > 1 or any(mask.dtype != bool for mask in masks):
            raise ValueError(
                "train and test must be boolean masks over the same cells, got "
                + " and ".join(f"{mask.dtype} {mask.shape}" for mask in masks)
            )
        if shared := int((self.train & self.test).sum()):
            raise self._error(f"{shared} test cells are among the training cells")
        for name in ("train", "test"):
            if not getattr(self, name).any():
                raise self._error(f"no cell in {name}")

    @property
    def name(self) -> str:
        """Kind and what is held out, in words."""
        if self.of_seen:
            return f"{self.kind}: cells of {len(self.pairs)} pairs"
        return f"{self.kind}: {listed(self.pairs, 3, quoted=False)}"

    @property
    def of_seen(self) -> bool:
        """Whether training had other cells of the pairs."""
        return self.kind in ("random", "seen pairs")

    @property
    def labels(self) -> npt.NDArray[np.str_]:
        """Split column: `"train"`, `"test"` or `"left out"`, shape (n_cells,).

        As `schema.split_key` it keeps all but `"train"` from fitting.
        """
        return np.where(self.train, "train", np.where(self.test, "test", "left out"))

    def check(self, adata: AnnData, schema: Schema) -> None:
        """Look for leaks in the cells themselves.

        Parameters
        ----------
        adata
            The cells that the masks are over.
        schema
            Names the columns.

        Raises
        ------
        ValueError
            If something leaks or is missing, which the message names: training cells of what is
            held out; test cells of other pairs; no control cells of a pair's context in training; a
            cell that is in training and in test under one name or with equal expression (of cells
            with ten expressed genes or more).
        """
        if len(self.train) != adata.n_obs:
            raise self._error(f"made for {len(self.train)} cells, but adata has {adata.n_obs}")
        layout = read_layout(adata.obs, schema)
        self._check_pairs(layout)
        if not self.of_seen:
            self._check_heldout(layout)
        self._check_duplicates(adata, schema)

    def _check_pairs(self, layout: Layout) -> None:
        """Check that exactly the pairs are tested, each with control cells in training.

        Controls of a pair's context may be among the test cells.
        """
        found = {layout.pairs[i] for i in np.flatnonzero(layout.n_cells(self.test))}
        contexts, trained = {pair.context for pair in self.pairs}, layout.n_cells(self.train)
        controls = {layout.pairs[i]: trained[i] for i in np.flatnonzero(layout.is_control)}
        allowed = {*self.pairs, *(pair for pair in controls if pair.context in contexts)}
        if extra := sorted(found - allowed):
            said = listed(extra, 3, quoted=False)
            raise self._error(f"there are test cells of {said}, which is not held out")
        if missing := sorted(set(self.pairs) - found):
            raise self._error(f"there are no test cells of {listed(missing, 3, quoted=False)}")
        if lacking := sorted(contexts - {pair.context for pair, n in controls.items() if n}):
            raise self._error(
                f"no control cells of {' / '.join(lacking[0])} are in training; a context is "
                "known by its controls"
            )

    def _check_heldout(self, layout: Layout) -> None:
        """Check that no training cell is of the pairs, of their treatment, or of their context."""
        held, seen = _HELD_OUT[self.kind], layout.n_cells(self.train)
        out = {held(pair) for pair in self.pairs}
        for i, pair in layout.treated().items():
            if seen[i] and held(pair) in out:
                raise self._error(
                    f"{seen[i]} training cells are of {pair}, which is held out; take them out of "
                    "training"
                )

    def _check_duplicates(self, adata: AnnData, schema: Schema) -> None:
        """Check that no test cell is in training too, under its own name or another."""
        names = adata.obs_names.to_numpy()
        if shared := sorted(set(names[self.train]) & set(names[self.test])):
            raise self._error(
                f"{len(shared)} cell names are in training and in test, such as {shared[0]!r}; if "
                "they are the same cells, drop one of each, else call adata.obs_names_make_unique()"
            )
        matrix = whole_matrix(adata, schema)
        train, test = np.flatnonzero(self.train), np.flatnonzero(self.test)
        seen = {row: names[i] for i, row in cell_prints(matrix, train)}
        twice = [(names[i], seen[row]) for i, row in cell_prints(matrix, test) if row in seen]
        if twice:
            pairs = ", ".join(f"{cell!r} = {other!r}" for cell, other in twice[:3])
            raise self._error(
                f"{len(twice)} test cells have the expression of a training cell gene by gene "
                f"({pairs}): duplicates leak; keep one of each"
            )

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self.name}: {message}")


def cell_prints(matrix: Any, positions: Codes) -> Iterator[tuple[int, bytes]]:
    """Yield cells with what identifies their expression; cells of few genes are left out."""
    rows = sparse.csr_matrix(matrix[positions], dtype=np.float64, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    for i, start, end in zip(positions, rows.indptr[:-1], rows.indptr[1:], strict=True):
        if end - start >= _TELLING:
            yield i, rows.indices[start:end].tobytes() + rows.data[start:end].tobytes()


class Scenarios(NamedTuple):
    """Scenarios that the data allow, and what they do not.

    Attributes
    ----------
    made
        A scenario for each pair, treatment or context in turn.
    left_out
        The reason for each pair that cannot be judged.
    """

    made: tuple[Scenario, ...]
    left_out: dict[str, str]


def unseen_pairs(
    obs: pd.DataFrame, schema: Schema, *, controls: float = 0.0, seed: int = 0
) -> Scenarios:
    """Hold out each pair of treatment and context in turn.

    A pair needs two cells or more, four control cells of its context, and its treatment in another
    context.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.
    controls
        Share of the control cells of each context that is asked for to hold out, too: its response
        is then measured against cells that no method has seen.
    seed
        Seed of the draw of these.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "A"] * 8, "line": ["u"] * 8 + ["v"] * 8})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> [scenario.name for scenario in unseen_pairs(obs, schema).made]
    ["unseen pair: 'A' in u", "unseen pair: 'A' in v"]
    """
    return _hold_out_each("unseen pair", obs, schema, controls, seed)


def unseen_treatments(
    obs: pd.DataFrame, schema: Schema, *, controls: float = 0.0, seed: int = 0
) -> Scenarios:
    """Hold out each treatment in turn, in all contexts.

    Each of its agents must be known otherwise: from another treatment (a combination, or a part of
    one), or from `schema.treatment_features`. Each pair needs cells and controls as in
    :func:`unseen_pairs`.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.
    controls
        Share of the control cells of each context that is asked for to hold out, too: its response
        is then measured against cells that no method has seen.
    seed
        Seed of the draw of these.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "A", "B", "A+B"] * 4, "line": "u"})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> [scenario.name for scenario in unseen_treatments(obs, schema).made]
    ["unseen treatment: 'A' in u", "unseen treatment: 'A+B' in u", "unseen treatment: 'B' in u"]
    """
    return _hold_out_each("unseen treatment", obs, schema, controls, seed)


def unseen_contexts(
    obs: pd.DataFrame, schema: Schema, *, controls: float = 0.0, seed: int = 0
) -> Scenarios:
    """Hold out the treated cells of each context in turn; its control cells stay in training.

    Judged are the treatments that other contexts had; cells of other treatments are left out.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.
    controls
        Share of the control cells of each context that is asked for to hold out, too: its response
        is then measured against cells that no method has seen.
    seed
        Seed of the draw of these.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "A"] * 8, "line": ["u"] * 8 + ["v"] * 8})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> unseen_contexts(obs, schema).made[0].labels[:2].tolist()
    ['train', 'test']
    """
    return _hold_out_each("unseen context", obs, schema, controls, seed)


def random_cells(
    obs: pd.DataFrame, schema: Schema, *, share: float = 0.2, seed: int = 0
) -> Scenarios:
    """Hold out a random share of the cells of every pair, of controls too.

    A pair is judged if it and its control have two test cells and two training cells or more;
    cells of other pairs are all in training.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.
    share
        Part of each pair's cells to hold out, above 0 and below 1.
    seed
        Seed of the draw.

    Raises
    ------
    ValueError
        If `share` is out of range.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none"] * 10 + ["A"] * 20, "line": "u"})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> random_cells(obs, schema).made[0].test.sum()
    np.int64(6)
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected a number above 0 and below 1")
    layout = read_layout(obs, schema)
    size = layout.n_cells()
    n_test = np.floor(share * size + 0.5).astype(np.int64)
    treated, reason = layout.treated(), "fewer than 2 cells, or controls, for training or for test"
    short = [i for i in treated if layout.lacks(i, n_test) or layout.lacks(i, size - n_test)]
    judged = [i for i in treated if i not in short]
    kept = layout.with_controls(judged)
    n_test[np.setdiff1d(np.arange(len(size)), kept)] = 0
    test = random_rank(layout.codes, seed) < n_test[layout.codes]
    pairs = tuple(treated[i] for i in judged)
    left_out = dict.fromkeys((str(treated[i]) for i in short), reason)
    return Scenarios((Scenario("random", pairs, ~test, test),) if pairs else (), left_out)


def _hold_out_each(
    kind: Kind, obs: pd.DataFrame, schema: Schema, controls: float, seed: int
) -> Scenarios:
    if not 0 <= controls < 1:
        raise ValueError(f"controls is {controls}; expected a share of 0 or more and below 1")
    layout = read_layout(obs, schema)
    rank, size = random_rank(layout.codes, seed), layout.n_cells()
    described = {agent for agent, _ in schema.treatment_features or ()}
    groups: dict[Hashable, list[int]] = {}
    for i, pair in layout.treated().items():
        groups.setdefault(_HELD_OUT[kind](pair), []).append(i)
    made: list[Scenario] = []
    left_out: dict[str, str] = {}
    for heldout in groups.values():
        seen = np.setdiff1d(np.arange(len(layout.pairs)), heldout)
        lacks = {i: _lacks(kind, layout, i, seen, described) for i in heldout}
        left_out |= {str(layout.pairs[i]): reason for i, reason in lacks.items() if reason}
        if judged := [i for i in heldout if not lacks[i]]:
            asked = np.setdiff1d(layout.with_controls(judged), judged)
            out = np.isin(layout.codes, asked) & (rank < controls * size[layout.codes])
            train = ~np.isin(layout.codes, heldout) & ~out
            made.append(predicted(kind, layout, judged, train=train, controls=out))
    return Scenarios(tuple(made), left_out)


def predicted(
    kind: Kind,
    layout: Layout,
    judged: Sequence[int],
    *,
    train: Mask,
    controls: Mask | bool = False,
) -> Scenario:
    """Make the scenario in which all cells of the judged pairs, by position, are predicted.

    Control cells of their contexts may be held out beside them.
    """
    pairs = tuple(layout.pairs[i] for i in judged)
    return Scenario(kind, pairs, train, np.isin(layout.codes, judged) | controls)


def _lacks(kind: Kind, layout: Layout, position: int, seen: Codes, described: set[str]) -> str:
    """Say what a held-out pair lacks to be predicted and judged; nothing if all is there."""
    if reason := layout.lacks(position, layout.n_cells(), controls=FEWEST_CONTROLS):
        return reason
    treatment = layout.pairs[position].treatment
    if kind == "unseen treatment":
        agents = {agent for i in seen for agent in layout.agents[i]} | described
        if missing := sorted(set(layout.agents[position]) - agents):
            return f"no other treatment has {missing[0]!r}, and no features describe it"
    elif treatment not in {layout.pairs[i].treatment for i in seen}:
        return f"no other context has {treatment!r}"
    return ""
