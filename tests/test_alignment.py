import copy

import numpy as np
import pytest
import torch
from conftest import SCHEMA, make_batch, make_programs, simulate
from edits import EDITS
from torch import nn

from pyro_fcr.data import register, split_cells
from pyro_fcr.nn import InteractionPrior, LinearPrior
from pyro_fcr.objective import Objective
from pyro_fcr.training import Batches, Trainer, TrainingPlan, alignment, axes, fit
from pyro_fcr.training.axes import find_axes
from pyro_fcr.training.flows import Flows
from pyro_fcr.training.places import best_order, block_scores
from pyro_fcr.training.samples import Sample, draw, priors_of, split

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    """Few steps, and no training too short for an alignment."""
    for name in ("axes._STEPS", "axes._REFINE_STEPS", "places._STEPS"):
        monkeypatch.setattr(f"pyro_fcr.training.{name}", 8)
    monkeypatch.setattr("pyro_fcr.training.plan._STEPS_WORTH_ALIGNING", 0)


def prepared(adata, schema=SCHEMA, build=None, *, extra=lambda model: ()):
    cells = register(adata, schema)[1]
    batch = cells.batch(np.arange(16))
    torch.manual_seed(0)
    model, guide = make_programs(batch) if build is None else build(register(adata, schema)[0])
    objective = Objective.from_programs(model, guide, batch, extra=extra(model))
    return (
        objective,
        cells,
        Batches.for_training(cells, np.arange(len(cells)), batch_size=64, device=CPU),
    )


def align(objective, batches, **changes):
    return alignment.align(
        objective, batches, **{"teach_steps": 5, "learning_rate": 1e-3, **changes}
    )


def copy_of(objective):
    return {name: value.clone() for name, value in objective.state_dict().items()}


def assert_same(one, other):
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def random_flows(latents, n):
    flows = Flows(latents, n)
    for parameter in flows.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flows


def test_flows_know_how_they_change_volumes():
    torch.manual_seed(0)
    latents = torch.randn(50, 5).double() * torch.tensor([0.1, 1.0, 3.0, 1.0, 1.0]) + 2.0
    flows = random_flows(latents, 3).double()
    flows.order[1] = torch.tensor([4, 2, 0, 1, 3])
    mapped, volume = flows(latents)
    assert mapped.shape == (3, 50, 5)
    assert volume.shape == (3, 50)
    for number in range(3):
        flow = flows.take([number]).double()
        jacobian = torch.autograd.functional.jacobian(lambda z: flow(z[None])[0][0, 0], latents[7])  # noqa: B023
        expected = torch.linalg.slogdet(jacobian)[1].item()
        assert volume[number, 7].item() == pytest.approx(expected, abs=1e-6)


def test_stacked_flows_are_those_they_are_taken_apart_into():
    torch.manual_seed(0)
    latents = torch.randn(20, 4)
    flows = random_flows(latents, 3)
    flows.order[2] = torch.tensor([1, 0, 3, 2])
    mapped, volume = flows(latents)
    for numbers in ([2], [1, 1, 0]):
        again, volume_again = flows.take(numbers)(latents)
        assert torch.allclose(again, mapped[numbers], atol=1e-6)
        assert torch.allclose(volume_again, volume[numbers], atol=1e-6)
    by_flow, _ = flows(latents + torch.arange(3.0)[:, None, None])
    assert torch.allclose(by_flow[1], flows(latents + 1.0)[0][1], atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_latents_can_be_mapped_too(n):
    mapped, volume = random_flows(torch.randn(30, n), 2)(torch.randn(30, n))
    assert mapped.shape == (2, 30, n)
    assert torch.isfinite(volume).all()


def test_flows_start_as_different_rotations_of_standardised_latents():
    latents = torch.randn(4_000, 6) * 5.0 + 3.0
    mapped, volume = Flows(latents, 3)(latents)
    standard = (latents - latents.mean(0)) / latents.std(0)
    for each in mapped[:2]:
        assert torch.allclose(each.T.cov(correction=0).diagonal(), torch.ones(6), atol=0.1)
        assert not torch.allclose(each.abs(), standard.abs(), atol=0.5)
    assert not torch.allclose(mapped[0], mapped[1], atol=0.5)
    assert torch.allclose(mapped[2], latents, atol=1e-4)  # the identity
    assert torch.allclose(volume[2], torch.zeros(4_000), atol=1e-4)


class Known(nn.Module):
    """Priors of three blocks, far enough apart to be told from one another."""

    def __init__(self):
        super().__init__()
        self.z_x, self.z_t = LinearPrior(5, 1), LinearPrior(4, 1)
        self.z_tx = InteractionPrior(4, 5, 2)


def entangled(n=3_000):
    """Latents of known priors, and what a rotation and a bend make of them."""
    torch.manual_seed(3)
    batch = make_batch(n, n_genes=5, n_x=5, n_t=4)
    truth, x, t = Known(), batch["x"], batch["t"]
    for parameter in truth.parameters():
        nn.init.normal_(parameter, std=1.0)
    with torch.no_grad():
        priors = truth.z_x(x), truth.z_tx(t, x), truth.z_t(t)
        latents = torch.cat([prior.sample() for prior in priors], dim=-1)
    standard = (latents - latents.mean(0)) / latents.std(0)
    rotated = standard @ torch.linalg.qr(torch.randn(4, 4))[0]
    return batch, latents, 0.3 * rotated + torch.tanh(rotated)


def within(values, batch):
    """What is left of values without the means of their conditions, standardised."""
    codes = batch.stratum(("x", "t"))[0]
    left = values.clone()
    for code in codes.unique():
        left[codes == code] -= left[codes == code].mean(0)
    return (left / left.std(0)).numpy()


SIZES = {"z_x": 1, "z_tx": 2, "z_t": 1}


def search_of(fitted, kept):
    return axes._Search(fitted, kept, SIZES, before=0.0, after_step=lambda: None)


def test_maximum_likelihood_finds_the_blocks_again(monkeypatch):
    monkeypatch.setattr(axes, "_STEPS", 300)
    monkeypatch.setattr(axes, "_MOST_ROUNDS", 1)
    batch, truth, mixed = entangled()
    model, _ = make_programs(batch, n_x=1, n_tx=2, n_t=1)
    before = copy_of(model)
    found_axes = find_axes(model, Sample(batch.without("y"), mixed[None]), SIZES)
    assert_same(before, model.state_dict())
    assert found_axes.gain > 0.3
    assert found_axes.n_starts == 4
    mapped = found_axes.flow(mixed)[0][0].detach()
    found = within(mapped, batch)
    correlation = np.abs(found.T @ within(truth, batch)) / len(found)
    assert correlation[0, 0] > 0.9
    assert correlation[3, 3] > 0.9
    assert max(correlation[0, 1:].max(), correlation[3, :3].max()) < 0.25
    mixed_correlation = np.abs(within(mixed, batch).T @ within(truth, batch)) / len(found)
    assert mixed_correlation[0, 0] < 0.9  # or there was nothing to be found


def test_latents_are_as_large_as_their_priors_say():
    batch, _, mixed = entangled()
    model, _ = make_programs(batch, n_x=1, n_tx=2, n_t=1)
    kept, fitted = Sample(batch.without("y"), mixed[None]).divide()
    flows = Flows(fitted.drawn[0], 2)
    models = [model, copy.deepcopy(model)]
    starts = search_of(fitted, kept).fit(models, flows, 250)
    with torch.no_grad():
        latents = split(starts[1].flow(mixed)[0][0], SIZES)
        priors = priors_of(starts[1].model, batch.without("y"), latents)
    for site, value in latents.items():
        standard = (value - priors[site].mean) / priors[site].stddev
        assert standard.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.1)


def test_each_dimension_is_most_likely_under_its_own_prior():
    batch, truth, _ = entangled()
    model, _ = make_programs(batch, n_x=1, n_tx=2, n_t=1)
    kept, fitted = Sample(batch.without("y"), truth[None]).divide()
    scores = block_scores(model, fitted, kept, SIZES)
    assert scores.shape == (4, 3)
    assert scores.argmax(dim=1).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("better", [True, False])
def test_dimensions_in_the_wrong_blocks_are_exchanged_if_that_helps(better, monkeypatch):
    batch, truth, _ = entangled()
    swapped = truth[:, [0, 3, 2, 1]]  # z_t has a dimension of z_tx, and z_tx the one of z_t
    model, _ = make_programs(batch, n_x=1, n_tx=2, n_t=1)
    kept, fitted = Sample(batch.without("y"), swapped[None]).divide()

    def refined(_, models, flows, n_steps):
        gains = (0.0, 1.0 if better else -1.0)
        return [axes._Start(g, models[i], flows.take([i])) for i, g in enumerate(gains)]

    monkeypatch.setattr(axes._Search, "fit", refined)
    start = axes._Start(0.0, model, Identity(fitted.drawn[0]))
    found, n_moved = search_of(fitted, kept).exchange(start)
    assert n_moved == (2 if better else 0)
    expected = truth if better else swapped
    assert torch.allclose(found.flow(swapped)[0][0], expected, atol=1e-4)


def Identity(latents):
    """A flow that changes nothing but the scale."""
    return Flows(latents, 2).take([1])


def test_what_stays_in_its_block_keeps_its_place():
    sizes = {"a": 2, "b": 2}
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert best_order(scores, sizes).tolist() == [2, 1, 0, 3]
    assert best_order(scores.flip(1), sizes).tolist() in (
        [0, 3, 2, 1],
        [3, 0, 1, 2],
        [0, 3, 1, 2],
    )
    assert best_order(torch.zeros(4, 2), sizes).tolist() == [0, 1, 2, 3]
    assert best_order(None, sizes).tolist() == [0, 1, 2, 3]


def test_two_starts_agree_if_their_blocks_hold_the_same():
    batch, truth, _ = entangled()
    kept = Sample(batch.without("y"), truth + 0.01 * torch.randn(3, *truth.shape))
    flow = Identity(truth)
    other = flow.take([0])
    assert axes._agreement(flow, other, kept, SIZES) == pytest.approx(1.0, abs=1e-3)
    other.order[0] = torch.tensor([0, 2, 1, 3])
    assert axes._agreement(flow, other, kept, SIZES) == pytest.approx(1.0, abs=1e-3)
    other.order[0] = torch.tensor([3, 1, 2, 0])
    assert axes._agreement(flow, other, kept, SIZES) < 0.2


def test_more_starts_are_made_while_they_pay(monkeypatch):
    gains = iter([[0.1, 0.0, 0.0, 0.5], [0.6, 0.1, 0.2, 0.3], [0.61, 0.6, 0.0, 0.0]])

    def fitted(_, models, flows, n_steps):
        return [
            axes._Start(g, m, flows.take([0])) for g, m in zip(next(gains), models, strict=True)
        ]

    monkeypatch.setattr(axes._Search, "fit", fitted)
    monkeypatch.setattr(axes._Search, "exchange", lambda _, start: (start, 0))
    batch, truth, _ = entangled(300)
    model, _ = make_programs(batch, n_x=1, n_tx=2, n_t=1)
    found = find_axes(model, Sample(batch.without("y"), truth.expand(2, -1, -1)), SIZES)
    assert (found.n_starts, found.gain) == (12, 0.61)
    assert found.lead == pytest.approx(0.01)


@pytest.mark.parametrize("name", EDITS)
def test_every_graph_is_aligned_or_left_alone_with_a_reason(name, quick):
    edit = EDITS[name]
    objective, _, batches = prepared(edit.data(), edit.schema, edit.build, extra=edit.extra)
    before = copy_of(objective)
    result = align(objective, batches)
    if name in ("g_bayesian", "g_map"):
        assert result.obstacle == "log_dispersion is shared by all cells"
    if result.obstacle:
        assert_same(before, objective.state_dict())
    else:
        assert result.gain > 0
        changed = {
            n.split(".")[0] for n, v in objective.state_dict().items() if (v != before[n]).any()
        }
        assert {"model", "guide"} <= changed


def test_most_graphs_can_be_aligned(quick, monkeypatch):
    monkeypatch.setattr(axes, "_STEPS", 100)
    objective, _, batches = prepared(simulate(400, n_genes=12))
    places = {name: value.data_ptr() for name, value in objective.state_dict().items()}
    assert align(objective, batches).obstacle == ""
    # A step that was recorded before reads and writes there.
    assert {name: v.data_ptr() for name, v in objective.state_dict().items()} == places


def test_teaching_makes_model_and_guide_agree_on_the_mapped_latents(quick):
    objective, _, batches = prepared(simulate(600, n_genes=12))
    sizes = {"z_x": 2, "z_tx": 2, "z_t": 2}
    batch = batches.batch(torch.arange(600))
    with torch.no_grad():
        flow = Flows(draw(objective.guide, batch, sizes)).requires_grad_(False)
    lesson = alignment._lesson(objective.guide, flow, sizes)
    with torch.no_grad():
        before = alignment._lesson_loss(objective, batch, lesson(batch)).item()
        target = torch.stack([lesson(batch)["z_tx"] for _ in range(30)]).mean(dim=0)
    with torch.enable_grad():
        alignment._teach(objective, batches, lesson, (150, 3e-3), lambda: None)
    with torch.no_grad():
        after = alignment._lesson_loss(objective, batch, lesson(batch)).item()
        learnt = objective.guide.z_tx(
            objective.guide.features(batch["y"], batch["library"]), batch["t"], batch["x"]
        ).mean
    assert after < before - 1.0
    correlation = np.corrcoef(learnt[:, 0], target[:, 0])[0, 1]
    assert correlation > 0.3


def test_what_ends_an_alignment_half_way_leaves_no_trace(quick):
    objective, _, batches = prepared(simulate(400, n_genes=12))
    # While maps are fitted, while blocks are scored, while a map is taught.
    for last_step in (3, 10, 19):
        before, left = copy_of(objective), iter(range(last_step))

        def stop(left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            align(objective, batches, after_step=stop)
        assert_same(before, objective.state_dict())


def test_a_map_that_gains_nothing_is_not_taken(quick, monkeypatch):
    objective, _, batches = prepared(simulate(400, n_genes=12))
    monkeypatch.setattr(
        axes,
        "_mean_densities",
        lambda models, *_: -torch.arange(1.0, 5.0)[: len(models)] * len(models),
    )
    before = copy_of(objective)
    assert "no map" in align(objective, batches).obstacle
    assert_same(before, objective.state_dict())


def test_training_aligns_once_and_resumes_across_it_exactly(quick, tmp_path):
    adata = simulate(400, n_genes=12)
    split = split_cells(adata.obs, SCHEMA, heldout_fraction=0.2)
    plan = {"batch_size": 64, "progress": False, "align_at": 0.5, "max_epochs": 6}
    states, gains = [], []
    for name, path, every in (("whole", None, 10), ("again", tmp_path / "c.pt", 2)):
        objective, cells, _ = prepared(adata)
        settings = TrainingPlan(**plan, checkpoint_every=every)
        if name == "again":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(alignment, "_teach", _interrupt)
                with pytest.warns(UserWarning, match="Interrupted"):
                    fit(objective, cells, split=split, plan=settings, checkpoint=path)
            objective, _, _ = prepared(adata)
        files = {"checkpoint": path, "resume": path}
        history = fit(objective, cells, split=split, plan=settings, **files)
        states.append(copy_of(objective))
        gains.append(history.attrs["alignment"]["gain"])
    assert gains[0] == gains[1] > 0
    assert_same(*states)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_fcr.training.trainer.align", _interrupt)  # it is behind us
        history = fit(objective, cells, split=split, plan=settings, resume=path)
    assert history.attrs["alignment"]["gain"] == gains[0]


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def test_parameters_from_before_the_alignment_are_not_kept(quick, monkeypatch):
    def worsen(objective, *_, **__):
        with torch.no_grad():
            objective.guide.z_x.head.bias.add_(3.0)
        return alignment.Aligned(gain=1.0)

    monkeypatch.setattr("pyro_fcr.training.trainer.align", worsen)
    adata = simulate(400, n_genes=12)
    split = split_cells(adata.obs, SCHEMA, heldout_fraction=0.2)
    objective, cells, _ = prepared(adata)
    settings = {"batch_size": 64, "progress": False, "align_at": 0.8, "max_epochs": 10}
    plan = TrainingPlan(**settings, learning_rate=1e-30)  # nothing but the alignment changes
    history = fit(objective, cells, split=split, plan=plan)
    assert history.attrs["best_epoch"] == 8
    assert history["heldout/elbo"][8] < history["heldout/elbo"][7]


def test_a_run_resumed_within_the_epoch_of_the_alignment_does_not_align_again(quick, monkeypatch):
    adata = simulate(400, n_genes=12)
    split = split_cells(adata.obs, SCHEMA, heldout_fraction=0.2)
    objective, cells, _ = prepared(adata)
    plan = TrainingPlan(batch_size=64, progress=False, align_at=0.5, max_epochs=4)
    trainer = Trainer(objective, cells, split=split, plan=plan)
    trainer.epoch, trainer.batch_number, trainer.step = 2, 1, 2 * len(trainer.train) + 1
    monkeypatch.setattr("pyro_fcr.training.trainer.align", _interrupt)
    assert trainer.run().attrs["stopped"] == "all epochs done"


def test_short_trainings_are_not_interrupted_and_shares_are_checked():
    assert TrainingPlan(max_epochs=10).align_epoch(2_000) is None
    assert TrainingPlan(max_epochs=None).align_epoch(20_000) == int(0.4 * 103)
    assert TrainingPlan(align_at=None).align_epoch(20_000) is None
    with pytest.raises(ValueError, match="align_at is 1.5"):
        TrainingPlan(align_at=1.5)
