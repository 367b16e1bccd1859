"""Fitted models on disk: a folder with JSON and tensors, no pickled code."""

from pyro_fcr.saving.card import model_card
from pyro_fcr.saving.contents import Saved, load_weights
from pyro_fcr.saving.folder import (
    RECORD,
    BrokenModelError,
    check_model_place,
    read_model,
    reading,
    write_model,
)
from pyro_fcr.saving.hub import fetch_folder, push_folder
from pyro_fcr.saving.named_split import TRAIN, find_split, name_split

__all__ = [
    "RECORD",
    "TRAIN",
    "BrokenModelError",
    "Saved",
    "check_model_place",
    "fetch_folder",
    "find_split",
    "load_weights",
    "model_card",
    "name_split",
    "push_folder",
    "read_model",
    "reading",
    "write_model",
]
