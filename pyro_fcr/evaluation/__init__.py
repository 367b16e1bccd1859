"""A fitted model held against all that can be known of it, in one call."""

from pyro_fcr.evaluation.encoded import label_blind_latents
from pyro_fcr.evaluation.measure import Assessment, assess

__all__ = ["Assessment", "assess", "label_blind_latents"]
