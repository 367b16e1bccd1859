"""Are the blocks apart? What a fit can tell of itself, without knowing the true latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from torch import nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws import posterior_moments
from pyro_fcr.graph import Claim
from pyro_fcr.metrics.dimensions import Latents, dimension_use, only_in_use
from pyro_fcr.metrics.independence import independence_table
from pyro_fcr.modes import looking, seeded
from pyro_fcr.training.alignment import Aligned
from pyro_fcr.training.places import block_of, block_scores
from pyro_fcr.training.samples import Sample, Sizes, draw_latents

_DRAWS, _PERMUTATIONS = 8, 20
_FEW = 0.1  # share of a dimension that is known of the cells, below which its block hardly matters
# Chosen on the families that are "tuned" in pyro_fcr.simulation.FAMILIES; that of permutation also
# on five seeds of the others, see docs/truth.md.
_LEAST_MARGIN = 0.01  # nats per cell
_LARGEST_EFFECT: Mapping[str, float] = {"structure": 0.008, "permutation": 0.012}


@dataclass(frozen=True, eq=False)
class Separation:
    """How far the blocks of a fitted model are apart.

    Parameters
    ----------
    dimensions
        The table of :func:`pyro_fcr.metrics.dimension_use` with a column ``margin``: nats per cell
        by which a dimension is more likely under the prior of its own block than under the best of
        the others, each fitted to it; nan where priors are not products over dimensions.
    independence
        The table of :func:`pyro_fcr.metrics.independence_table` of the dimensions in use, with the
        ``kind`` of each claim.
    aligned
        What the alignment did.
    untested
        Claims that these cells cannot test, and why.
    """

    dimensions: pd.DataFrame
    independence: pd.DataFrame
    aligned: Aligned
    untested: dict[str, str] = field(default_factory=dict)

    @property
    def in_use(self) -> dict[str, int]:
        """Number of dimensions in use by block."""
        return self.dimensions.groupby("block", sort=False)["in_use"].sum().astype(int).to_dict()

    @property
    def smallest_margin(self) -> float:
        """Smallest margin of the dimensions whose block matters; nan without any."""
        return float(self.dimensions.loc[self.dimensions["share"] >= _FEW, "margin"].min())

    @property
    def unclear(self) -> pd.DataFrame:
        """Dimensions in use that another block's prior explains as well or better."""
        known = self.dimensions["share"] >= _FEW
        return self.dimensions[known & (self.dimensions["margin"] < _LEAST_MARGIN)]

    @property
    def dependent(self) -> pd.DataFrame:
        """Claims of the graph that do not hold of the latents."""
        if self.independence.empty:
            return self.independence
        effects = self.independence[["effect", "shape_effect"]].max(axis=1)
        return self.independence[effects > self.independence["kind"].map(_LARGEST_EFFECT)]

    @property
    def is_clean(self) -> bool:
        """Whether nothing speaks against the blocks."""
        return self.unclear.empty and self.dependent.empty

    @property
    def line(self) -> str:
        """The finding in one line."""
        sizes = " / ".join(f"{n} of {block}" for block, n in self.in_use.items())
        parts = [f"dimensions in use: {sizes}"]
        if not self.independence.empty:
            worst = self.independence.loc[self.independence["effect"].idxmax()]
            parts.append(
                f"largest dependence {worst['effect']:.3f} ({worst['statement']}; "
                f"{worst['chance']:.3f} by chance)"
            )
        if np.isfinite(margin := self.smallest_margin):
            parts.append(f"each dimension is {margin:.2f} nats or more surer of its own block")
        a = self.aligned
        if a.gain is not None:
            parts.append(
                f"alignment gained {a.gain:.2f} nats; best of {a.n_starts} starts by {a.lead:.3f}, "
                f"which agrees with the next to {a.agreement:.2f}"
            )
        word = "apart" if self.is_clean else "NOT apart"
        return f"Blocks are {word}: {'; '.join(parts)}."

    @property
    def warning(self) -> str:
        """What speaks against the blocks and what may be done; empty if nothing does."""
        found = []
        for row in self.unclear.itertuples():
            found.append(f"{row.block}[{row.dimension}] may belong to another block")
        for row in self.dependent.itertuples():
            found.append(f"{row.statement} does not hold (effect {row.effect:.3f})")
        if not found:
            return ""
        return (
            f"The latent blocks are not separated: {'; '.join(found)}. Do not read z_x, z_t and "
            "z_tx as context, treatment and interaction. Train longer, fit again with another "
            "seed= and see whether it agrees; if that does not help, the treatments may act too "
            "weakly, or there are too few conditions for so many dimensions: try a smaller n_tx."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the findings in a form that JSON can hold."""
        margin = self.smallest_margin
        tests = list(self.independence.itertuples())
        return {
            "separated": self.is_clean,
            "line": self.line,
            "in_use": self.in_use,
            "effects": {test.statement: test.effect for test in tests},
            "shape_effects": {test.statement: test.shape_effect for test in tests},
            "chance": {test.statement: test.chance for test in tests},
            "smallest_margin": margin if np.isfinite(margin) else None,
            "alignment": self.aligned._asdict(),
        }


def measure_separation(
    programs: tuple[nn.Module, nn.Module],
    batches: Iterable[Batch],
    *,
    sizes: Sizes,
    claims: tuple[Claim, ...],
    aligned: Aligned,
    seed: int = 0,
) -> Separation:
    """Measure how far the blocks of two fitted programs are apart.

    Parameters
    ----------
    programs
        Model and guide.
    batches
        Some thousand cells.
    sizes
        Dimensions of each latent site.
    claims
        The independences of the graph.
    aligned
        What the alignment did.
    seed
        Seed of draws, permutations and fits.
    """
    model, guide = programs
    cells = list(batches)
    moments = posterior_moments(model, guide, cells, blocks=sizes)
    use = dimension_use(*moments)
    device = cells[0]["library"].device
    with looking(guide, seed=seed, device=device):
        sample = draw_latents(guide, cells, sizes, n_draws=_DRAWS)
    with seeded(seed, device=device), pyro.validation_enabled(is_validate=False):
        use["margin"] = _margins(model, sample, sizes)
    empty = [block for block, n in use.groupby("block")["in_use"].sum().items() if not n]
    untested = {
        str(claim): f"no dimension of {block} is in use"
        for block in empty
        for claim in claims
        if block in (claim.left, claim.right)
    }
    left = [claim for claim in claims if str(claim) not in untested]
    table = _independence(only_in_use(moments[0], use), cells, left, untested, seed=seed)
    return Separation(use, table, aligned, untested)


def _margins(model: nn.Module, sample: Sample, sizes: Sizes) -> np.ndarray | float:
    kept, fitted = sample.divide()
    scores = block_scores(model, fitted, kept, sizes)
    if scores is None or len(sizes) < 2:
        return float("nan")
    block = block_of(sizes)[:, None]
    own = scores.gather(1, block)
    others = scores.scatter(1, block, -float("inf")).max(dim=1, keepdim=True).values
    return (own - others).squeeze(1).numpy()


def _independence(
    latents: Latents,
    cells: list[Batch],
    claims: Sequence[Claim],
    untested: dict[str, str],
    *,
    seed: int,
) -> pd.DataFrame:
    sites = cells[0].codes
    codes = {site: torch.cat([each.codes[site] for each in cells]).cpu().numpy() for site in sites}
    tables = []
    for claim in claims:
        settings: dict[str, Any] = {"n_permutations": _PERMUTATIONS, "seed": seed}
        try:
            table = independence_table(latents, codes, claims=[claim], **settings)
        except ValueError as error:  # these cells cannot tell
            untested[str(claim)] = str(error)
        else:
            tables.append(table.assign(kind=claim.kind))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
