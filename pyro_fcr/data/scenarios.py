"""What is kept from training to be predicted: splits as data, made from the design and checked.

A *pair* is a treatment in a context; all doses of a treatment count as one and are held out
together. Control cells of a held-out context stay in training: a context that is never seen in
any state cannot be told from any other, so it is known by its controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from pyro_fcr.data.design import Codes, random_rank
from pyro_fcr.data.errors import listed
from pyro_fcr.data.leaks import check_duplicates, check_pairs
from pyro_fcr.data.pairs import Layout, Mask, Pair, read_layout
from pyro_fcr.data.schema import Schema

Kind = Literal["unseen pair", "unseen treatment", "unseen context", "random", "seen pairs"]


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
        The masks are not of one length, share a cell, or one of them is empty.

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
            raise ValueError(f"{self.name}: {shared} test cells are among the training cells")
        for name, mask in (("train", self.train), ("test", self.test)):
            if not mask.any():
                raise ValueError(f"{self.name}: no cell in {name}")

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
        """Return a split column: `"train"`, `"test"` or `"left out"`, shape (n_cells,).

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
            Names what leaks or lacks: training cells of what is held out; test cells of other
            pairs; no control cells of a pair's context in training; a cell that is in training and
            in test under one name or with equal expression (of cells with ten expressed genes or
            more).
        """
        if len(self.train) != adata.n_obs:
            raise ValueError(
                f"{self.name}: made for {len(self.train)} cells, but adata has {adata.n_obs}"
            )
        layout = read_layout(adata.obs, schema)
        check_pairs(layout, self.pairs, train=self.train, test=self.test, name=self.name)
        if not self.of_seen:
            self._check_heldout(layout)
        check_duplicates(adata, schema.layer, train=self.train, test=self.test, name=self.name)

    def _check_heldout(self, layout: Layout) -> None:
        """No training cell of the pairs, of the treatment anywhere, or treated in the context."""
        treatments = {pair.treatment for pair in self.pairs}
        contexts = {pair.context for pair in self.pairs}
        out = {
            "unseen pair": lambda pair: pair in self.pairs,
            "unseen treatment": lambda pair: pair.treatment in treatments,
            "unseen context": lambda pair: pair.context in contexts,
        }[self.kind]
        seen = layout.n_cells(self.train)
        for i, pair in layout.treated().items():
            if seen[i] and out(pair):
                raise ValueError(
                    f"{self.name}: {seen[i]} training cells are of {pair}, which is "
                    "held out; take them out of training"
                )


class Scenarios(NamedTuple):
    """Scenarios that the data allow, and what they do not.

    Attributes
    ----------
    made
        One for each pair, treatment or context in turn.
    left_out
        Reason for each that cannot be judged.
    """

    made: tuple[Scenario, ...]
    left_out: dict[str, str]


def unseen_pairs(obs: pd.DataFrame, schema: Schema) -> Scenarios:
    """Hold out each pair of treatment and context in turn.

    A pair needs two cells or more, two control cells of its context, and its treatment in another
    context.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "A"] * 8, "line": ["u"] * 8 + ["v"] * 8})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> [scenario.name for scenario in unseen_pairs(obs, schema).made]
    ["unseen pair: 'A' in u", "unseen pair: 'A' in v"]
    """
    layout = read_layout(obs, schema)
    return _hold_out_each("unseen pair", layout, [[i] for i in layout.treated()])


def unseen_treatments(obs: pd.DataFrame, schema: Schema) -> Scenarios:
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

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "A", "B", "A+B"] * 3, "line": "u"})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> [scenario.name for scenario in unseen_treatments(obs, schema).made]
    ["unseen treatment: 'A' in u", "unseen treatment: 'A+B' in u", "unseen treatment: 'B' in u"]
    """
    layout = read_layout(obs, schema)
    described = frozenset(agent for agent, _ in schema.treatment_features or ())
    groups = _grouped({i: pair.treatment for i, pair in layout.treated().items()})
    return _hold_out_each("unseen treatment", layout, groups, described=described)


def unseen_contexts(obs: pd.DataFrame, schema: Schema) -> Scenarios:
    """Hold out the treated cells of each context in turn; its control cells stay in training.

    Judged are the treatments that other contexts had; cells of other treatments are left out.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "A"] * 8, "line": ["u"] * 8 + ["v"] * 8})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> unseen_contexts(obs, schema).made[0].labels[:2].tolist()
    ['train', 'test']
    """
    layout = read_layout(obs, schema)
    groups = _grouped({i: pair.place for i, pair in layout.treated().items()})
    return _hold_out_each("unseen context", layout, groups)


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
        Of the draw.

    Raises
    ------
    ValueError
        `share` is out of range.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none"] * 10 + ["A"] * 20, "line": "u"})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> random_cells(obs, schema).made[0].test.sum()
    np.int64(6)
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, wanted a number above 0 and below 1")
    layout = read_layout(obs, schema)
    size = layout.n_cells()
    n_test = np.floor(share * size + 0.5).astype(np.int64)
    judged: list[int] = []
    left_out: dict[str, str] = {}
    for i, pair in layout.treated().items():
        if layout.lacks(i, n_test) or layout.lacks(i, size - n_test):
            left_out[str(pair)] = "fewer than 2 cells, or controls, for training or for test"
        else:
            judged.append(i)
    kept = layout.with_controls(judged)
    n_test[np.setdiff1d(np.arange(len(size)), kept)] = 0
    test = random_rank(layout.codes, seed) < n_test[layout.codes]
    pairs = tuple(layout.pairs[i] for i in judged)
    return Scenarios((Scenario("random", pairs, ~test, test),) if pairs else (), left_out)


def _grouped(names: Mapping[int, str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for position, name in names.items():
        groups.setdefault(name, []).append(position)
    return list(groups.values())


def _hold_out_each(
    kind: Kind,
    layout: Layout,
    groups: Sequence[Sequence[int]],
    *,
    described: frozenset[str] = frozenset(),
) -> Scenarios:
    made: list[Scenario] = []
    left_out: dict[str, str] = {}
    for heldout in groups:
        seen = np.setdiff1d(np.arange(len(layout.pairs)), heldout)
        lacks = {i: _lacks(kind, layout, i, seen, described) for i in heldout}
        judged = [i for i in heldout if not lacks[i]]
        left_out |= {str(layout.pairs[i]): reason for i, reason in lacks.items() if reason}
        if judged:
            made.append(predicted(kind, layout, judged, train=~np.isin(layout.codes, heldout)))
    return Scenarios(tuple(made), left_out)


def predicted(kind: Kind, layout: Layout, judged: Sequence[int], *, train: Mask) -> Scenario:
    """Make the scenario in which all cells of the judged pairs, by position, are predicted."""
    pairs = tuple(layout.pairs[i] for i in judged)
    return Scenario(kind, pairs, train, np.isin(layout.codes, judged))


def _lacks(
    kind: Kind, layout: Layout, position: int, seen: Codes, described: frozenset[str]
) -> str:
    """Say what a held-out pair lacks to be predicted and judged; nothing if all is there."""
    if reason := layout.lacks(position, layout.n_cells()):
        return reason
    treatment = layout.pairs[position].treatment
    if kind == "unseen treatment":
        agents = {agent for i in seen for agent in layout.agents[i]} | described
        if missing := sorted(set(layout.agents[position]) - agents):
            return f"no other treatment has {missing[0]!r}, and no features describe it"
    elif treatment not in {layout.pairs[i].treatment for i in seen}:
        return f"no other context has {treatment!r}"
    return ""
