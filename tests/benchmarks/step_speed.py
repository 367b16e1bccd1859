"""One training step of the Pyro programs against the same networks written by hand in torch.

    python tests/benchmarks/step_speed.py --batch-sizes 128 512 2048 --decoder joint

Without penalties, so that all compute the same loss: three encoders, closed-form KL, negative
binomial. By hand: the library's count likelihood, a dense one (lgamma over the whole matrix), that
of ``torch.distributions``, and the best one compiled. Stock Pyro: ``SVI(Trace_ELBO)`` and
``pyro.optim`` with defaults and Pyro's negative binomial; "lean" has our likelihood and no
validation. All take their batch from memory; what the loader prepares is timed in loader.py.
"""

import argparse
from dataclasses import replace

from speed_cells import (
    NO_PENALTIES,
    SIZES,
    encode,
    interleaved,
    make_cells,
    make_trainer,
    report,
    train_step,
)

# isort: split
import pandas as pd
import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_fcr.distributions import NegativeBinomial
from pyro_fcr.nn import NegativeBinomialDecoder, linear_of_parts

_BOUND = 1.5


def by_library(log_mean, log_theta, batch):
    """The count likelihood of this library, from the sums that the loader prepared."""
    return NegativeBinomial(log_mean, log_theta).log_prob_sum(batch["y"], batch.counts)


def dense(log_mean, log_theta, batch):
    """The formula as written in papers, over every entry of the matrix."""
    y, theta = batch["y"], log_theta.exp()
    log_total = torch.log(theta + log_mean.exp() + 1e-8)
    return (
        theta * (log_theta - log_total)
        + y * (log_mean - log_total)
        + torch.lgamma(y + theta)
        - torch.lgamma(theta)
        - torch.lgamma(y + 1.0)
    ).sum()


def by_torch(log_mean, log_theta, batch):
    """The distribution of torch."""
    family = torch.distributions.NegativeBinomial(
        log_theta.exp(), logits=log_mean - log_theta, validate_args=False
    )
    return family.log_prob(batch["y"]).sum()


class ByHand(nn.Module):
    """The loss of FCR without Pyro: the networks of two programs, and formulas."""

    def __init__(self, model, guide, likelihood):
        super().__init__()
        self.model, self.guide, self.likelihood = model, guide, likelihood

    def forward(self, batch):
        y, x, t, library = (batch[name] for name in ("y", "x", "t", "library"))
        target_sum = self.guide.features.target_sum
        h = torch.log1p(y * (target_sum / library))
        loss, latents = 0.0, []
        for name, parents in (("z_x", (x,)), ("z_tx", (t, x)), ("z_t", (t,))):
            loc, scale = self._encode(getattr(self.guide, name), h, *parents)
            latents.append(loc + scale * torch.randn_like(loc))
            loss = loss + self._kl(loc, scale, *self._prior(name, *parents))
        log_mean = self._decode(latents) + torch.log(library)
        loss = loss - self.likelihood(log_mean, self.model.y.log_dispersion, batch)
        return loss / len(y)

    def _encode(self, encoder, h, *parents):
        h = linear_of_parts(encoder.hidden[0], h, *parents)
        for layer in list(encoder.hidden)[1:]:
            h = layer(h)
        loc, raw = encoder.head(h).chunk(2, dim=-1)
        return loc, F.softplus(raw) + 1e-4

    def _prior(self, name, *parents):
        prior, h = getattr(self.model, name), parents[0]
        if name == "z_tx":
            t, x = parents
            average = prior.treatment.weight.T * prior.context(prior.mean_context)
            h = prior.treatment(t) * prior.context(x) - t @ average
        return prior.loc(h), (_BOUND * torch.tanh(prior.log_scale(h) / _BOUND)).exp()

    def _kl(self, loc, scale, prior_loc, prior_scale):
        ratio, shift = scale / prior_scale, (loc - prior_loc) / prior_scale
        return (0.5 * (ratio.square() + shift.square() - 1.0) - torch.log(ratio)).sum()

    def _decode(self, latents):
        decoder = self.model.y
        blocks = latents if len(decoder.hidden) > 1 else [torch.cat(latents, -1)]
        h = torch.cat([layers(z) for layers, z in zip(decoder.hidden, blocks, strict=True)], -1)
        return torch.log_softmax(decoder.heads[0](h), dim=-1)


def hand_step(programs, likelihood, batch, *, compiled=False, recorded=False):
    """Give a training step written by hand, with the optimiser and the clipping of ours.

    With ``recorded`` it may be recorded in a CUDA graph.
    """
    loss = ByHand(*programs, likelihood)
    function = torch.compile(loss, dynamic=False) if compiled else loss
    parameters = list(loss.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=3e-3, weight_decay=1e-4, fused=True, capturable=recorded
    )

    def step():
        optimizer.zero_grad()
        function(batch).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0, foreach=True)
        optimizer.step()

    return step


def our_step(data, batch, engine, sizes):
    """Give the trainer's own step."""
    trainer = make_trainer(
        data,
        batch_size=len(batch),
        engine=engine,
        weights=NO_PENALTIES,
        max_epochs=1_000_000,
        architecture=sizes,
    )
    trainer.step = 10  # beyond the steps with validation
    return trainer.objective, lambda: train_step(trainer, batch)


class StockDecoder(NegativeBinomialDecoder):
    """The decoder with Pyro's negative binomial."""

    def family(self, heads, library):
        log_mean = torch.log_softmax(heads[0], dim=-1) + torch.log(library)
        logits = log_mean - self.log_dispersion
        return pyro.distributions.NegativeBinomial(self.log_dispersion.exp(), logits=logits)


def stock_step(programs, batch, *, lean):
    """Give a step of Pyro's own SVI."""
    model, guide = programs
    model.y.__class__ = NegativeBinomialDecoder if lean else StockDecoder
    batch = replace(batch, counts=None)

    def registered(name, program):
        def run(cells):
            pyro.module(name, program)
            return program(cells)

        return run

    svi = SVI(
        registered("model", model),
        registered("guide", guide),
        pyro.optim.ClippedAdam({"lr": 3e-3, "clip_norm": 10.0}),
        loss=Trace_ELBO(),
    )

    def step():
        with pyro.validation_enabled(is_validate=not lean):
            svi.step(batch)

    return step


def alternatives(data, batch, sizes, *, with_compiled):
    """Give every way of taking a step, each with parameters of its own."""

    def programs():
        objective, _ = our_step(data, batch, "eager", sizes)
        return objective.model, objective.guide

    ways = {
        "eager": our_step(data, batch, "eager", sizes)[1],
        "by hand": hand_step(programs(), by_library, batch),
        "by hand, dense": hand_step(programs(), dense, batch),
        "by hand, torch's": hand_step(programs(), by_torch, batch),
        "stock SVI": stock_step(programs(), batch, lean=False),
        "stock SVI, lean": stock_step(programs(), batch, lean=True),
    }
    if with_compiled:
        ways["traced"] = our_step(data, batch, "trace", sizes)[1]
        ways["by hand, compiled"] = hand_step(programs(), by_library, batch, compiled=True)
    return ways


RATIOS = (
    ("eager", "by hand"),
    ("traced", "by hand, compiled"),
    ("stock SVI", "traced"),
    ("stock SVI, lean", "traced"),
    ("by hand, torch's", "eager"),
    ("by hand, dense", "eager"),
    ("eager", "traced"),
)


def main():
    """Print medians and ratios for every batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512, 2_048])
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--zeros", type=float, default=0.89)
    parser.add_argument("--decoder", choices=("additive", "joint"), default="additive")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--without-compiled", action="store_true")
    options = parser.parse_args()
    data = encode(make_cells(n_cells=4_096, n_genes=options.genes, zeros=options.zeros))
    sizes = replace(SIZES, decoder=options.decoder)
    rows = []
    for size in options.batch_sizes:
        trainer = make_trainer(data, batch_size=size, weights=NO_PENALTIES)
        batch = trainer.train.batch(torch.arange(size))
        ways = alternatives(data, batch, sizes, with_compiled=not options.without_compiled)
        times = interleaved(ways, options.repeats, warmup=4)
        row = {"batch_size": size}
        row |= {f"ms {name}": 1e3 * each.median[0] for name, each in times.items()}
        row |= {f"{a} / {b}": times[a].over(times[b])[0] for a, b in RATIOS if {a, b} <= set(times)}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("batch_size").T
    report(table, {"decoder": options.decoder, "step_speed": rows})


if __name__ == "__main__":
    main()
