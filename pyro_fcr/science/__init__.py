"""Does FCR find the truth? Fits to simulated cells of known latents, over seeds and settings."""

from pyro_fcr.science.records import Record
from pyro_fcr.science.settings import SETTINGS, condition_sweep
from pyro_fcr.science.suite import Suite, run_suite
from pyro_fcr.science.tables import headlines, score_table, summary_table

__all__ = [
    "SETTINGS",
    "Record",
    "Suite",
    "condition_sweep",
    "headlines",
    "run_suite",
    "score_table",
    "summary_table",
]
