"""The settings of a training run, in one record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from pyro_fcr.ranks import n_processes, place_on_machine
from pyro_fcr.values import check_settings, shown, unknown

if TYPE_CHECKING:
    import torch

_STEPS_WORTH_ALIGNING = 2_000
_STEPS_WORTH_JUDGING = 500
_STEPS_WORTH = {"trace": 6_000, "graph": 200}  # compiling, 10 to 60 s; their time decides on CUDA


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train; the defaults hold from 2,000 to 2,000,000 cells.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; None takes as many as make about 8,000 steps, between 10
        and 400.
    batch_size
        Cells per step, those of all processes together.
    learning_rate
        Learning rate of AdamW for model, guide and heads.
    weight_decay
        Weight decay of AdamW.
    lr_schedule
        ``cosine`` falls to zero over all epochs, ``plateau`` divides by 5 when the held-out ELBO
        has not improved for a third of the patience, ``constant`` keeps the rate.
    gradient_clip
        Largest norm of the gradient; larger ones are scaled down.
    patience
        Epochs without a better held-out ELBO after which training stops, counted from when the
        weights no longer change; None takes a tenth of the epochs, at least 5.
    adversary_lr
        Learning rate of the discriminators' Adam.
    adversary_steps
        Steps of the discriminators after each step of model and guide.
    alternate
        ``batch``: discriminators are trained on every batch; ``epoch``: epochs of model and guide
        alternate with epochs of the discriminators.
    align_at
        Share of the training after which the latents are aligned with their priors; None never
        aligns them. Trainings of fewer than 2,000 steps do without.
    engine
        How steps are taken: ``eager`` runs the programs in Python every time; ``trace`` runs them
        once, and has what they compute compiled (10 to 60 s, and a C++ compiler); ``graph`` replays
        such a step from one CUDA graph (on the CPU it is ``trace``); ``auto`` takes ``trace`` on
        the CPU from 6,000 steps on, and ``graph`` on CUDA where ten timed steps say that the rest
        is long enough, and as long as replays are not slower. All give the same numbers under the
        same noise, but for rounding: name the engine where another run must end with the same bits.
        What cannot be recorded is traced, and what cannot be traced stays eager.
    precision
        Precision of matrix products in training: ``tf32`` needs CUDA, ``bf16`` takes those of
        hidden layers in bfloat16 (and the others in TF32 on CUDA). One step of 2,000 genes in
        ``bf16`` reproduces the loss to 1e-5 and the gradient to 0.5 % of its length (torch 2.13).
        Parameters, priors, last layers, likelihoods and held-out cells stay in float32.
    seed
        Seed of initial noise, batches and draws. The global random state is left alone.
    device
        ``auto``, ``cpu`` or ``cuda``, or one GPU as ``cuda:1``; ``auto`` takes CUDA if it is
        available. Of several processes each has a GPU of its own.
    checkpoint_every
        Epochs between checkpoints, if a path for them is given.
    progress
        Whether to show a progress bar; None shows it in terminals and notebooks.

    Examples
    --------
    >>> plan = TrainingPlan(max_epochs=50, lr_schedule="constant")
    >>> plan.epochs(10_000), TrainingPlan().epochs(10_000)
    (50, 205)
    """

    max_epochs: int | None = None
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    lr_schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    gradient_clip: float = 10.0
    patience: int | None = None
    adversary_lr: float = 1e-3
    adversary_steps: int = 1
    alternate: Literal["batch", "epoch"] = "batch"
    align_at: float | None = 0.4
    engine: Literal["auto", "eager", "trace", "graph"] = "auto"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 10
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(unknown("device", self.device, ("auto", "cpu", "cuda")))
        if self.device.startswith("cuda") and not _cuda_is_available():
            raise ValueError(f"device is {self.device!r}, but torch sees no CUDA; leave it out.")

    def epochs(self, n_cells: int) -> int:
        """Return the number of epochs for so many training cells."""
        if self.max_epochs is not None:
            return self.max_epochs
        return int(min(400, max(10, round(8_000 / self.steps_per_epoch(n_cells)))))

    def steps_per_epoch(self, n_cells: int) -> int:
        """Return the number of whole batches in so many cells, at least 1."""
        return max(1, n_cells // self.batch_size)

    def align_epoch(self, n_cells: int) -> int | None:
        """Return the epoch before which the latents are aligned, for so many training cells."""
        n_epochs = self.epochs(n_cells)
        too_short = n_epochs * self.steps_per_epoch(n_cells) < _STEPS_WORTH_ALIGNING
        return None if self.align_at is None or too_short else int(self.align_at * n_epochs)

    def epochs_to_align(self, n_cells: int) -> int:
        """Return the number of epochs from which on latents are aligned."""
        return -(-_STEPS_WORTH_ALIGNING // self.steps_per_epoch(n_cells))

    def is_worth_judging(self, n_epochs: int, n_cells: int) -> bool:
        """Return whether so many epochs are a training, and no trial of a few hundred steps."""
        return n_epochs * self.steps_per_epoch(n_cells) >= _STEPS_WORTH_JUDGING

    def is_full(self, n_epochs: int, n_cells: int) -> bool:
        """Return whether so many epochs are enough to be aligned; the log warns of fewer."""
        return n_epochs * self.steps_per_epoch(n_cells) >= _STEPS_WORTH_ALIGNING

    def engine_for(self, n_steps: int, device: torch.device) -> Literal["eager", "trace", "graph"]:
        """Return the engine for so many steps on a device."""
        # That graphs of several processes replay was not tried on GPUs: they are asked for by name.
        replays = device.type == "cuda" and (self.engine == "graph" or n_processes() == 1)
        compiled: Literal["trace", "graph"] = "graph" if replays else "trace"
        if self.engine == "auto":
            return compiled if n_steps >= _STEPS_WORTH[compiled] else "eager"
        return compiled if self.engine == "graph" else self.engine

    def patience_for(self, n_cells: int) -> int:
        """Return the patience in epochs for so many training cells."""
        return self.patience or max(5, self.epochs(n_cells) // 10)

    def torch_device(self) -> torch.device:
        """Return the device that ``device`` stands for, in several processes each one's own GPU.

        Raises
        ------
        ValueError
            Several processes would have one GPU.
        """
        import torch  # noqa: PLC0415 (the command line reads options of the plan without torch)

        name = self.device
        if name == "auto":
            name = "cuda" if _cuda_is_available() else "cpu"
        if n_processes() == 1 or name == "cpu":
            return torch.device(name)
        number, n_gpus = place_on_machine(), torch.cuda.device_count()
        if name != "cuda" or number >= n_gpus:
            raise ValueError(
                f"device is {self.device!r}, but each of the {n_processes()} processes needs a GPU "
                f"of its own, and this machine has {n_gpus}: torchrun --nproc-per-node {n_gpus}, "
                "with device left out."
            )
        return torch.device("cuda", number)


def changed_plan(plan: TrainingPlan | None, changes: Mapping[str, Any]) -> TrainingPlan:
    """Return a plan, the default one if there is none, with other values of some fields.

    Raises
    ------
    ValueError
        It is no plan, or a field does not exist or cannot have its value.
    """
    from pyro_fcr.data.spelling import did_you_mean  # noqa: PLC0415

    if not isinstance(plan, TrainingPlan | None):
        raise ValueError(f"plan is {shown(plan)}; expected a TrainingPlan, or its fields by name.")
    known = [each.name for each in fields(TrainingPlan)]
    for name in changes:
        if name not in known:
            raise ValueError(
                f"Unknown setting {name!r}.{did_you_mean(name, known)} The settings of a training "
                f"are {', '.join(known)}."
            )
    return replace(plan or TrainingPlan(), **changes)


def _cuda_is_available() -> bool:
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()
