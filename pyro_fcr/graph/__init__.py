"""The causal graph of a program, its independences, and what model and guide owe one another."""

from pyro_fcr.graph.contract import Checked, ProgramError, check_programs, describe_programs
from pyro_fcr.graph.dag import CELLS, Claim, Graph, claims, read_graph
from pyro_fcr.graph.runs import Run, auxiliary_sites, drawn_sites, plates

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
