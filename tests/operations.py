"""What a step does, counted without a clock."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = (
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "detach", "slice", "select",
    "unsqueeze", "squeeze", "alias", "as_strided", "split", "split_with_sizes", "unbind",
    "lift_fresh", "profiler::_record_function_enter_new", "profiler::_record_function_exit",
)  # fmt: skip
READS = ("_local_scalar_dense", "equal", "is_nonzero")
SHAPED_BY_DATA = ("nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave")
ADDING_IN_ANY_ORDER = ("index_add", "index_add_", "scatter_add", "scatter_add_", "bincount", "put_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
PRODUCTS = ("mm", "addmm", "bmm")
MADE_ON_THE_HOST = ("lift_fresh", "lift_fresh_copy")


class Operations(TorchDispatchMode):
    """Counts operations on tensors that do work; names those that make the host wait.

    ``unrecordable`` are those that a CUDA graph cannot hold: also values that are read on the host
    or come from there, and shapes that depend on data. ``unordered`` are those that add up in
    another order at each call on CUDA. ``products`` are matrix products, with their precision.
    """

    def __init__(self):
        super().__init__()
        self.count, self.reads, self.unrecordable, self.unordered = 0, [], [], []
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        self.count += name not in VIEWS
        self.reads += [name] if name in READS else []
        by_mask = name in INDEXING and any(is_mask(each) for each in args[1])
        value_is_read = name.startswith("masked_fill") and isinstance(args[2], Tensor)
        is_made = name in MADE_ON_THE_HOST and args[0].numel() > 0  # Pyro's plates: of no entries
        if name in (*READS, *SHAPED_BY_DATA) or by_mask or value_is_read or is_made:
            self.unrecordable.append(name)
        adds = name in INDEXING[1:] and len(args) > 3 and args[3]
        self.unordered += [name] if name in ADDING_IN_ANY_ORDER or adds else []
        self.products += [(name, args[-1].dtype)] if name in PRODUCTS else []
        return function(*args, **(kwargs or {}))


def is_mask(index):
    """Return whether a tensor picks entries by being true."""
    return isinstance(index, Tensor) and index.dtype == torch.bool
