"""Random programs against oracles that do not look at the package's graph.

``tests/benchmarks/fuzz.py`` goes on where this ends.
"""

import numpy as np
import pytest
from fuzzing import Program, cells_of, random_spec, wrong, wrong_graph

from pyro_fcr.graph import Graph, read_graph


@pytest.mark.parametrize("start", range(0, 36, 6))
def test_random_programs(start):
    found = {seed: wrong(seed) for seed in range(start, start + 6)}
    assert {seed: each for seed, each in found.items() if each} == {}


def test_the_oracle_notices_a_wrong_graph():
    """An arrow less, a selection that is overlooked: the oracle must say so."""
    noticed = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        graph = read_graph(Program(spec), cells_of(spec, rng))
        assert list(wrong_graph(spec, graph)) == []
        parents = {s: p[1:] if s == "y" else p for s, p in graph.parents.items()}
        assert list(wrong_graph(spec, Graph(**{**graph.__dict__, "parents": parents})))
        blind = Graph(**{**graph.__dict__, "conditioned": frozenset(), "shared": frozenset()})
        noticed += bool(graph.conditioned) and any("claim" in w for w in wrong_graph(spec, blind))
    assert noticed
