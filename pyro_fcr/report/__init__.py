"""A fitted model on one self-contained HTML page."""

from pyro_fcr.report.render import write_report

__all__ = ["write_report"]
