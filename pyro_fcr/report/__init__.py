"""A fitted model, and how good it is, each on one self-contained HTML page."""

from pyro_fcr.report.evaluation import write_evaluation
from pyro_fcr.report.render import write_report

__all__ = ["write_evaluation", "write_report"]
