"""Options that several commands share, alone and in groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from pyro_fcr.data import Registry, Schema
    from pyro_fcr.nn.architecture import Architecture

CellsPath = Annotated[Path, typer.Argument(help="h5ad file or zarr store.", show_default=False)]
ModelPath = Annotated[Path, typer.Argument(help="Folder that `fit` wrote.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Where to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the cells; about 8,000 steps if left out.")
]
Covariates = Annotated[
    list[str] | None,
    typer.Option("--covariate", help="Target context as key=level; one per covariate."),
]
Genes = Annotated[
    list[str] | None, typer.Option("--gene", help="A gene; repeatable, all if left out.")
]
TreatmentKey = Annotated[
    str, typer.Option(help="Column of obs with the treatment; combinations as A+B.")
]
CovariateKeys = Annotated[
    list[str], typer.Option("--covariate-key", help="Column of obs with a context; repeatable.")
]


@dataclass(frozen=True)
class Columns:
    """What cells have beside treatment and covariates, and how."""

    control: Annotated[
        str | None, typer.Option(help="Label of untreated cells, if there are any.")
    ] = None
    dose_key: Annotated[str | None, typer.Option(help="Column of obs with the dose.")] = None
    layer: Annotated[str | None, typer.Option(help="Layer with the values, in place of X.")] = None
    split_key: Annotated[
        str | None,
        typer.Option(help="Column of obs: `train`, `valid` (held out); other labels are left out."),
    ] = None
    expression: Annotated[str, typer.Option(help="What the values are: counts or log1p.")] = (
        "counts"
    )

    def schema(self, treatment_key: str, covariate_keys: list[str]) -> Schema:
        """Make the schema."""
        from pyro_fcr.data import Schema

        return Schema(
            treatment_key=treatment_key, covariate_keys=tuple(covariate_keys), **asdict(self)
        )


@dataclass(frozen=True)
class Sizes:
    """Sizes and likelihood of the shipped programs."""

    n_x: Annotated[int, typer.Option(help="Dimensions of z_x.")] = 8
    n_t: Annotated[int, typer.Option(help="Dimensions of z_t.")] = 8
    n_tx: Annotated[
        int | None, typer.Option(help="Dimensions of z_tx; what the data identify if left out.")
    ] = None
    likelihood: Annotated[
        str | None, typer.Option(help="nb, zinb or normal; by --expression if left out.")
    ] = None

    def architecture(self, registry: Registry) -> Architecture:
        """Give the architecture for a data set."""
        from pyro_fcr.programs import default_architecture

        given = {key: value for key, value in asdict(self).items() if value is not None}
        return replace(default_architecture(registry), **given)


@dataclass(frozen=True)
class Training:
    """How to train."""

    max_epochs: Epochs = None
    batch_size: Annotated[int, typer.Option(help="Cells per step.")] = 256
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 3e-3
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    engine: Annotated[str, typer.Option(help="auto, eager, trace or graph (CUDA).")] = "auto"

    def settings(self) -> dict[str, Any]:
        """Give the fields of the plan.

        Raises
        ------
        ValueError
            The device is none that there is.
        """
        import torch

        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise ValueError(f"--device {self.device!r} is none, wanted auto, cpu or cuda.")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device!r}: torch sees no CUDA. Leave --device out.")
        return asdict(self)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options: their fields become options of the command."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        own = parameter.replace(annotation=hints[name])
        parameters += _options_of(groups[name]) if name in groups else [own]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _options_of(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
