"""Options that several commands share, alone and as the fields of dataclasses.

Names, defaults and help of the latter stand in the dataclasses and their docstrings alone.
"""

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter, default_name_transform

from pyro_fcr.data.schema import Schema
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.training.plan import TrainingPlan

SchemaOptions = Annotated[Schema, Parameter(name="*", group=Group("Schema", sort_key=1))]
ArchitectureOptions = Annotated[
    Architecture, Parameter(name="*", group=Group("Architecture", sort_key=2))
]
PlanOptions = Annotated[TrainingPlan, Parameter(name="*", group=Group("Training", sort_key=3))]

CellsPath = Annotated[Path, Parameter(help="h5ad file or zarr store.")]
ModelPath = Annotated[Path, Parameter(help="Folder that `fit` wrote.")]
Out = Annotated[Path, Parameter(help="Where to write.")]
Overwrite = Annotated[
    bool, Parameter(help="Replace what stands at --out.", negative=(), show_default=False)
]
Seed = Annotated[int, Parameter(help="Seed of everything random.")]
Genes = Annotated[
    list[str] | None, Parameter("--gene", help="A gene; repeatable, all if left out.")
]


def option_name(field: str) -> str:
    """Return the option of a field; one that is repeated is singular, as in ``--covariate-key``."""
    return re.sub(r"(?<=covariate-)(key|site)s$", r"\1", default_name_transform(field))
