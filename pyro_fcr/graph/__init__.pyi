# What there is to import from here; read when a name is first used, see __init__.py.
from .acting import check_by_acting
from .claims import Claim, claims, not_claimed
from .contract import (
    Checked,
    ProgramError,
    adopt_programs,
    check_programs,
    describe_programs,
)
from .dag import CELLS, Graph, read_graph
from .enumeration import SumOut
from .runs import Run, drawn_sites, plates

__all__ = [
    "CELLS",
    "Checked",
    "Claim",
    "Graph",
    "ProgramError",
    "Run",
    "SumOut",
    "adopt_programs",
    "check_by_acting",
    "check_programs",
    "claims",
    "describe_programs",
    "drawn_sites",
    "not_claimed",
    "plates",
    "read_graph",
]
