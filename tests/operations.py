"""What a step does, counted without a clock."""

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = (
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "detach", "slice", "select",
    "unsqueeze", "squeeze", "alias", "as_strided", "split", "split_with_sizes", "unbind",
    "lift_fresh", "profiler::_record_function_enter_new", "profiler::_record_function_exit",
)  # fmt: skip
READS = ("_local_scalar_dense", "equal", "is_nonzero")


class Operations(TorchDispatchMode):
    """Counts operations on tensors that do work, and names those that make the host wait."""

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        self.count += name not in VIEWS
        self.reads += [name] if name in READS else []
        return function(*args, **(kwargs or {}))
