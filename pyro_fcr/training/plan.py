"""What a training run is told, in one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

_STEPS_WORTH_ALIGNING = 2_000
_STEPS_WORTH_TRACING = 6_000


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train; every default holds from 2,000 to 2,000,000 cells.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; None takes as many as make about 8,000 steps, between 10
        and 400.
    batch_size
        Cells per step.
    learning_rate, weight_decay
        Of AdamW for model, guide and heads.
    lr_schedule
        ``"cosine"`` falls to zero over all epochs, ``"plateau"`` divides by 5 when the held-out
        ELBO has not improved for a third of ``patience``, ``"constant"``.
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
        ``"batch"``: discriminators are trained on every batch; ``"epoch"``: epochs of model and
        guide alternate with epochs of the discriminators.
    align_at
        Share of the training after which the latents are aligned with their priors, see
        :mod:`pyro_fcr.training.alignment`; None never. Trainings of less than 2,000 steps are not
        interrupted for it.
    engine
        How steps are taken: ``"eager"`` runs the programs in Python every time; ``"trace"`` runs
        them once, and has what they compute compiled (10 to 60 s, and a C++ compiler); ``"graph"``
        replays such a step from one CUDA graph (on the CPU it is ``"trace"``); ``"auto"`` traces
        from 6,000 steps on. All give the same numbers; what cannot be traced stays eager.
    precision
        Of matrix products in training: ``"float32"``, ``"tf32"`` (CUDA) or ``"bf16"``. One step of
        2,000 genes in bfloat16 has the loss to 4e-5 and the gradient to 0.5 % of its length.
        Parameters, likelihoods and held-out cells stay in float32.
    seed
        Of initial noise, batches and draws. The global random state of the user is left alone.
    device
        ``"auto"`` takes CUDA where there is one.
    checkpoint_every
        Epochs between checkpoints, where a path for them is given.
    progress
        Whether to show a progress bar.
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
    progress: bool = True

    def __post_init__(self) -> None:
        choices = {
            "lr_schedule": ("cosine", "plateau", "constant"),
            "alternate": ("batch", "epoch"),
            "engine": ("auto", "eager", "trace", "graph"),
            "precision": ("float32", "tf32", "bf16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, wanted {' or '.join(known)}.")
        smallest = {"batch_size": 1, "adversary_steps": 1, "checkpoint_every": 1, "max_epochs": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, wanted {least} or more.")

        if self.align_at is not None and not 0.0 <= self.align_at < 1.0:
            raise ValueError(f"align_at is {self.align_at}, wanted a share from 0 to below 1.")

    def epochs(self, n_cells: int) -> int:
        """Give the number of epochs for so many training cells."""
        if self.max_epochs is not None:
            return self.max_epochs
        return int(min(400, max(10, round(8_000 / self.steps_per_epoch(n_cells)))))

    def steps_per_epoch(self, n_cells: int) -> int:
        """Give the number of whole batches in so many cells, at least 1."""
        return max(1, n_cells // self.batch_size)

    def align_epoch(self, n_cells: int) -> int | None:
        """Give the epoch before which the latents are aligned, for so many training cells."""
        n_epochs = self.epochs(n_cells)
        too_short = n_epochs * self.steps_per_epoch(n_cells) < _STEPS_WORTH_ALIGNING
        return None if self.align_at is None or too_short else int(self.align_at * n_epochs)

    def engine_for(self, n_steps: int, device: torch.device) -> Literal["eager", "trace", "graph"]:
        """Give the engine for so many steps on a device."""
        if self.engine == "auto":
            return "trace" if n_steps >= _STEPS_WORTH_TRACING else "eager"
        return "trace" if self.engine == "graph" and device.type != "cuda" else self.engine

    def patience_for(self, n_cells: int) -> int:
        """Give the patience in epochs for so many training cells."""
        return self.patience or max(5, self.epochs(n_cells) // 10)

    def torch_device(self) -> torch.device:
        """Give the device that ``device`` stands for."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
