"""What was measured of a fitted model on one self-contained HTML page."""

from pyro_fcr.report.page import Page

__all__ = ["Page"]
