"""What pairs of treatment and context do that were never seen, by regression on those that were.

A context is described by the contexts that resemble it, in what other treatments do there or in
the state of its untreated cells. Which of them counts, and how far it can be trusted, is learnt
from the seen pairs, each left out in turn: where none foretells another, every unseen pair gets the
average.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PENALTIES: Final = (1.0, 3.0, 10.0, np.inf)
"""Of the mean square of a context; the last one is the average. Lesser ones look better on the
seen pairs, which one fit has made alike, than they are on others."""
_STATES: Final = (0.0, 0.5, 1.0)  # how much states of untreated cells count beside treatments
_MOST_PAIRS: Final = 300  # that are left out to choose among them


class _Regression(NamedTuple):
    """What likeness counts, and how far it is trusted."""

    states: float
    penalty: float


class _Likeness(NamedTuple):
    """How like each other the contexts of a treatment are, and another one to them, ``(n,)``."""

    among: Floats
    own: Floats

    def weights(self, penalty: float) -> Floats:
        """Return the weights of the contexts by ridge regression."""
        size = np.trace(self.among)
        if not size > 0 or np.isinf(penalty):
            return np.zeros(len(self.own))
        ridge = penalty * size / len(self.own) * np.eye(len(self.own))
        return np.linalg.solve(self.among + ridge, self.own)


def context_weights(effects: Floats, shares: Floats, states: Floats | None = None) -> Floats:
    """Weigh the contexts of each treatment to foretell what it does in another.

    Parameters
    ----------
    effects
        What each treatment does in each context, ``(n_treatments, n_contexts, n_dimensions)``;
        those of pairs that were not seen are not looked at.
    shares
        Share of each treatment's cells by context, ``(n_treatments, n_contexts)``; 0 where a pair
        was not seen.
    states
        State of the untreated cells of each context, ``(n_contexts, n_features)``, if known.

    Returns
    -------
    ``(n_treatments, n_contexts, n_contexts)``: weights that an unseen pair (first two axes) gives
    the same treatment's deviations from its average in the contexts of the last axis; 0 for pairs
    that were seen. The penalty is the largest one whose squared error on seen pairs, left out in
    turn, is not above the least by more than one standard error (Breiman et al. 1984,
    *Classification and Regression Trees*, section 3.4.3, of the difference). It may be
    infinite: all are 0 then, which is the average.

    Examples
    --------
    >>> contexts = np.array([1.0, -1.0, 3.0, -3.0])  # which differ in one way
    >>> effects = np.array([1.0, 3.0, -2.0, 2.0])[:, None, None] * contexts[:, None]
    >>> shares = np.full((4, 4), 1 / 4)
    >>> shares[2] = [1 / 3, 1 / 3, 0, 1 / 3]
    >>> own = effects[2] - effects[2, [0, 1, 3]].mean()
    >>> foretold = context_weights(effects, shares)[2, 2] @ own
    >>> foretold.round(1), own[2]
    (array([-6.]), array([-8.]))
    """
    seen = shares > 0
    pairs = np.argwhere(seen & (seen.sum(axis=1, keepdims=True) > 2))
    pairs = pairs[np.random.default_rng(0).permutation(len(pairs))[:_MOST_PAIRS]]
    rules = [
        _Regression(*each)
        for each in itertools.product((0.0,) if states is None else _STATES, _PENALTIES)
    ]
    gains = np.zeros((len(pairs), len(rules)))  # of squared error over the average
    for i, (t, x) in enumerate(pairs):
        wanted = _deviations(effects[t], shares[t], x)
        weights = _weights(effects, shares, states, (t, x), rules)
        errors = [((each @ wanted - wanted[x]) ** 2).sum() for each in weights]
        gains[i] = (wanted[x] ** 2).sum() - np.array(errors)
    found = np.zeros((*shares.shape, shares.shape[1]))
    if len(pairs) < 2:
        return found
    rule = _most_cautious(rules, gains)
    for t, x in np.argwhere(~seen):
        (found[t, x],) = _weights(effects, shares, states, (t, x), [rule])
    return found


def _most_cautious(rules: Sequence[_Regression], gains: Floats) -> _Regression:
    """Return the rule of largest penalty that is not worse than the best one.

    Worse is by more than one standard error of the difference.
    """
    total = gains.sum(axis=0)
    lost = gains[:, [total.argmax()]] - gains
    beyond = lost.mean(axis=0) - lost.std(axis=0, ddof=1) / np.sqrt(len(gains))
    good = (i for i in range(len(rules)) if beyond[i] <= 0)
    return rules[max(good, key=lambda i: (rules[i].penalty, total[i]))]


def _weights(
    effects: Floats,
    shares: Floats,
    states: Floats | None,
    pair: tuple[int, int],
    rules: Sequence[_Regression],
) -> Iterator[Floats]:
    """Yield by each rule the weights of all contexts, ``(n_contexts,)``, for a pair left out."""
    t, x = pair
    level = np.arange(shares.shape[1])
    contexts = np.flatnonzero((shares[t] > 0) & (level != x))
    known = np.isin(level, [*contexts, x])
    rows = [
        (effects[other], np.where(known, shares[other], 0.0))
        for other in np.flatnonzero(shares[:, x] > 0)
        if other != t
    ]
    treatments = of_states = _likeness(rows, contexts, x)
    if states is not None:
        of_states = _likeness([(states, np.where(known, 1.0, 0.0))], contexts, x)
    for rule in rules:
        found = np.zeros(len(level))
        found[contexts] = _mixed(treatments, of_states, rule.states).weights(rule.penalty)
        yield found


def _likeness(
    rows: list[tuple[Floats, Floats]], contexts: npt.NDArray[np.intp], x: int
) -> _Likeness:
    """Compare contexts by what is known of them, each row with shares of the contexts in it."""
    among, own = np.zeros((len(contexts), len(contexts))), np.zeros(len(contexts))
    for values, share in rows:
        if np.count_nonzero(share[contexts]) > 1:  # one alone differs from no other
            centred = _deviations(values, share, x)
            among += centred[contexts] @ centred[contexts].T
            own += centred[contexts] @ centred[x]
    return _Likeness(among, own)


def _mixed(one: _Likeness, other: _Likeness, share: float) -> _Likeness:
    """Average two kinds of likeness, of one size each."""
    parts = [
        (weight / np.trace(each.among), each)
        for weight, each in ((1.0 - share, one), (share, other))
        if weight > 0 and np.trace(each.among) > 0
    ]
    among = sum((scale * each.among for scale, each in parts), np.zeros_like(one.among))
    own = sum((scale * each.own for scale, each in parts), np.zeros_like(one.own))
    return _Likeness(among, own)


def _deviations(values: Floats, share: Floats, without: int) -> Floats:
    """Return values of contexts minus their average over all seen ones but one."""
    seen = (share > 0)[:, None]
    others = np.where(np.arange(len(share)) == without, 0.0, share)
    average = others @ np.where(seen, values, 0.0) / max(others.sum(), 1e-12)
    return np.where(seen, values - average, 0.0)
