# What there is to import from here; read when a name is first used, see __init__.py.
from .contract import Checked, ProgramError, check_programs, describe_programs
from .dag import CELLS, Claim, Graph, claims, read_graph
from .runs import Run, auxiliary_sites, drawn_sites, plates

__all__ = [
    "CELLS",
    "Checked",
    "Claim",
    "Graph",
    "ProgramError",
    "Run",
    "auxiliary_sites",
    "check_programs",
    "claims",
    "describe_programs",
    "drawn_sites",
    "plates",
    "read_graph",
]
