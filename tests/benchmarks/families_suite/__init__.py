"""Scores, tables and the figure of the families of simulated cells."""

from families_suite.figure import draw_families
from families_suite.scores import judge
from families_suite.tables import table_of, warning_scores

__all__ = ["draw_families", "judge", "table_of", "warning_scores"]
