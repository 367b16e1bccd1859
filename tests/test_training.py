import errno
import io
import re
import signal
import threading
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import NO_PENALTIES, SCHEMA, make_programs, simulate
from operations import Operations
from torch import nn

from pyro_fcr import files, modes
from pyro_fcr.data import register, split_cells
from pyro_fcr.objective import Objective, Ramp
from pyro_fcr.training import (
    CheckpointError,
    NonFiniteError,
    Trainer,
    TrainingPlan,
    fit,
)
from pyro_fcr.training.batches import Batches, prefetched
from pyro_fcr.training.checkpoint import write_checkpoint


def fresh(cells, *, seed=0, **weights):
    torch.manual_seed(seed)
    batch = cells.batch(np.arange(32))
    return Objective.from_programs(*make_programs(batch), batch, weights=weights)


def plan(device="cpu", **changes):
    settings = {"max_epochs": 4, "batch_size": 128, "progress": False, "device": device}
    return TrainingPlan(**{**settings, **changes})


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_training_improves_and_keeps_the_best_state(cells, split, device):
    objective = fresh(cells)
    history = fit(objective, cells, split=split, plan=plan(device, max_epochs=12))
    elbo = history["heldout/elbo"]
    assert elbo.iloc[-1] > elbo.iloc[0] + 1.0
    assert history.attrs["best_epoch"] == elbo[elbo.index >= 4].idxmax()
    assert not objective.training
    assert {"train/kl_z_tx", "heldout/reconstruction", "weight/structure_z_x_t", "lr"} < set(
        history
    )
    assert history.notna().all(axis=None)


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(cells, split, device):
    runs = []
    for seed in (3, 3, 4):
        objective = fresh(cells)
        fit(objective, cells, split=split, plan=plan(device, seed=seed))
        runs.append(objective.state_dict())
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["guide.z_x.head.weight"], runs[2]["guide.z_x.head.weight"])


def test_nothing_global_is_touched(cells, split, device):
    objective, state = fresh(cells), torch.get_rng_state()
    fit(objective, cells, split=split, plan=plan(device))
    assert torch.equal(state, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0
    assert torch.distributions.Distribution._validate_args == __debug__


def test_second_model_of_a_session_trains(cells, split, device):
    for seed in (0, 1):
        objective = fresh(cells, seed=seed)
        before = {k: v.detach().clone() for k, v in objective.named_parameters()}
        fit(objective, cells, split=split, plan=plan(device, max_epochs=2))
        still = [
            k
            for k, v in objective.named_parameters()
            if torch.equal(v.cpu(), before[k]) and "permutation" not in k
        ]
        assert still == []


@pytest.mark.parametrize("lr_schedule", ["cosine", "plateau", "constant"])
def test_learning_rate_schedules(cells, split, lr_schedule):
    history = fit(
        fresh(cells), cells, split=split, plan=plan(lr_schedule=lr_schedule, max_epochs=3)
    )
    last = history["lr"].iloc[-1]
    assert last == pytest.approx(0.0 if lr_schedule == "cosine" else 3e-3, abs=1e-9)


def test_training_stops_when_the_held_out_elbo_stops_improving(cells, split):
    plan_ = plan(max_epochs=200, patience=3, learning_rate=2e-2, lr_schedule="constant")
    history = fit(fresh(cells, **NO_PENALTIES), cells, split=split, plan=plan_)
    assert len(history) < 200
    assert history.attrs["stopped"] == "no better held-out ELBO for 3 epochs"
    assert len(history) - 1 - history.attrs["best_epoch"] == 3


def test_patience_begins_when_the_weights_have_settled(cells, split):
    weights = {"structure": Ramp(5.0, until=0.5), "permutation": 0.0}
    plan_ = plan(max_epochs=20, patience=1, learning_rate=1e-30)  # nothing ever improves
    history = fit(fresh(cells, **weights), cells, split=split, plan=plan_)
    assert history.attrs["best_epoch"] == 9
    assert len(history) == 11


def test_adversaries_alternate_by_epoch(cells, split):
    objective = fresh(cells)
    trainer = Trainer(objective, cells, split=split, plan=plan(alternate="epoch"))
    names = {"main": "guide.z_x.head.weight"}
    names["adversary"] = "_terms.permutation_z_x_z_tx.adversary.net.0.weight"
    moved = []
    for _ in range(4):
        before = {k: objective.state_dict()[v].clone() for k, v in names.items()}
        trainer._run_epoch()
        after = objective.state_dict()
        moved.append([k for k, v in names.items() if not torch.equal(before[k], after[v])])
    assert moved == [["main"], ["adversary"], ["main"], ["adversary"]]


def test_gradient_is_clipped(cells, split):
    small = fit(fresh(cells), cells, split=split, plan=plan(gradient_clip=1e-12, max_epochs=2))
    free = fit(fresh(cells), cells, split=split, plan=plan(max_epochs=2))
    gain = [h["heldout/elbo"].iloc[-1] for h in (small, free)]
    assert gain[0] < gain[1] - 1.0


class _Interrupt:
    """Press Ctrl-C within one step of training, by a real signal."""

    def __init__(self, objective, step, *, presses=1):
        self.objective, self.step, self.presses, self.seen = objective, step, presses, 0

    def __call__(self, *_):
        if self.objective.training and torch.is_grad_enabled():
            self.seen += 1
            if self.seen == self.step + 1:
                for _ in range(self.presses):
                    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "step", [7, 23]
)  # in the first epoch; in a later one, past a held-out look
def test_resumed_run_is_bit_identical_to_one_that_never_stopped(
    cells, split, tmp_path, step, device
):
    whole = fresh(cells)
    history = fit(whole, cells, split=split, plan=plan(device, max_epochs=5))
    part = fresh(cells)
    handle = part.guide.z_tx.register_forward_pre_hook(_Interrupt(part, step))
    with pytest.warns(UserWarning, match="Interrupted in epoch"):
        broken = fit(
            part, cells, split=split, plan=plan(device, max_epochs=5), checkpoint=tmp_path / "c.pt"
        )
    handle.remove()
    assert broken.attrs["stopped"] == "interrupted"
    rest = fresh(cells, seed=99)
    resumed = fit(
        rest, cells, split=split, plan=plan(device, max_epochs=5), resume=tmp_path / "c.pt"
    )
    assert_same(whole.state_dict(), rest.state_dict())
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), resumed.drop(columns="seconds"), check_exact=True
    )


def test_interruption_keeps_the_best_state(cells, split):
    objective = fresh(cells, structure=1.0, permutation=1.0)
    objective.register_forward_pre_hook(_Interrupt(objective, 20))
    with pytest.warns(UserWarning, match="Interrupted"):
        history = fit(objective, cells, split=split, plan=plan(max_epochs=50))
    assert history.attrs["best_epoch"] == history["heldout/elbo"].idxmax()
    assert not objective.training


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(cells, split, tmp_path):
    objective, path = fresh(cells), tmp_path / "c.pt"
    objective.guide.z_tx.register_forward_pre_hook(_Interrupt(objective, 16, presses=2))
    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="Interrupted in epoch 2"):
        fit(objective, cells, split=split, plan=plan(checkpoint_every=1), checkpoint=path)
    assert saved_state(path)["position"][:2] == [2, 0]  # the end of an epoch
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_refuses_what_does_not_fit(cells, split, tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(CheckpointError, match=r"no checkpoint .*c\.pt"):
        fit(fresh(cells), cells, split=split, plan=plan(), resume=path)
    fit(fresh(cells), cells, split=split, plan=plan(), checkpoint=path)
    with pytest.raises(CheckpointError, match="batch_size=128, not 64"):
        fit(fresh(cells), cells, split=split, plan=plan(batch_size=64), resume=path)
    with pytest.raises(CheckpointError, match="run of 4 epochs, this one has 6"):
        fit(fresh(cells), cells, split=split, plan=plan(max_epochs=6), resume=path)


def test_broken_write_leaves_the_old_checkpoint_and_the_training(
    cells, split, tmp_path, monkeypatch, caplog
):
    path = tmp_path / "c.pt"
    fit(fresh(cells), cells, split=split, plan=plan(max_epochs=1), checkpoint=path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush", fail)
    history = fit(fresh(cells), cells, split=split, plan=plan(max_epochs=2), checkpoint=path)
    assert len(history) == 2
    said = rf"No checkpoint in epoch 2; training goes on\. The disk is full: {path} cannot be"
    assert re.search(said, caplog.text)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_non_finite_loss_stops_before_the_step_and_names_term_and_cell(cells, split, device):
    objective = fresh(cells)
    batches = Trainer(objective, cells, split=split, plan=plan(device)).train
    rows = batches.shuffled_rows(0, 1)[2]  # step = one epoch + 2
    step = len(batches) + 2
    victim = int(rows[5])
    broken = replace(cells, expression=cells.expression.astype(np.float32))
    broken.expression[victim, 3] = np.inf
    # Only that epoch's batches may hold the cell, so that the step is known.
    first = [number for number, r in enumerate(batches.shuffled_rows(0, 0)) if victim in r]
    expected = first[0] if first else step
    trainer = Trainer(objective, broken, split=split, plan=plan(device))
    states = []
    hook = objective.register_forward_pre_hook(
        lambda *_: states.append(objective.state_dict()["guide.z_x.head.weight"].clone())
    )
    with pytest.raises(NonFiniteError, match=f"before step {expected}: terms not finite") as error:
        trainer.run()
    hook.remove()
    assert "reconstruction" in str(error.value)
    assert broken.obs_names[victim] in str(error.value)
    assert torch.equal(objective.state_dict()["guide.z_x.head.weight"], states[expected])
    assert all(torch.isfinite(p).all() for p in objective.parameters())


def test_split_without_held_out_cells_trains(cells, adata):
    split = split_cells(adata.obs, SCHEMA, heldout_fraction=0.0)
    history = fit(fresh(cells), cells, split=split, plan=plan(max_epochs=2))
    assert not any(column.startswith("heldout") for column in history)
    assert history.attrs["best_epoch"] == 1


def test_epochs_follow_the_number_of_cells():
    plan_ = TrainingPlan()
    assert plan_.epochs(2_000) == 400
    assert plan_.epochs(2_000_000) == 10
    assert 10 < plan_.epochs(50_000) < 400


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_schedule": "cos"}, "Unknown lr_schedule 'cos'; expected cosine, plateau or constant"),
        ({"alternate": "step"}, "Unknown alternate 'step'; expected batch or epoch"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of 1 or more"),
        ({"max_epochs": 0}, "max_epochs is 0; expected a whole number of 1 or more"),
    ],
)
def test_plans_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan(**wrong)


def _between_treatments(latents, obs):
    """Share of the variance of a block, within lines, that lies between treatments."""
    line, frame = obs["line"].to_numpy(), pd.DataFrame(latents)
    frame = frame - frame.groupby(line).transform("mean")
    fitted = frame.groupby([line, obs["drug"].to_numpy()]).transform("mean")
    return float((fitted**2).sum().sum() / (frame**2).sum().sum())


def test_structure_term_removes_a_planted_leak():
    """A z_x whose KL costs little takes treatment effects over; the default weight undoes it."""
    adata = simulate(1200, interaction=0.0)
    cells = register(adata, SCHEMA)[1]
    split = split_cells(adata.obs, SCHEMA, heldout_fraction=0.2)
    leak, elbo = {}, {}
    for weight in (0.0, Ramp(5.0)):
        torch.manual_seed(0)
        batch = cells.batch(np.arange(32))
        programs = make_programs(batch, n_x=4, n_hidden=32, n_layers=3, decoder="joint")
        weights = {"structure": weight, "permutation": 0.0, "kl_z_x": 0.1}
        objective = Objective.from_programs(*programs, batch, weights=weights)
        history = fit(
            objective,
            cells,
            split=split,
            plan=plan(max_epochs=30, learning_rate=5e-3, patience=30),
        )
        heldout = cells.batch(split.heldout)
        with torch.no_grad():
            z_x = objective(heldout).run.posterior("z_x").mean
        key = "without" if weight == 0.0 else "with"
        leak[key] = _between_treatments(z_x.numpy(), adata.obs.iloc[split.heldout])
        elbo[key] = history["heldout/elbo"].max()
    assert leak["without"] > 0.2
    assert leak["with"] < 0.2 * leak["without"]
    assert elbo["with"] > elbo["without"] - 1.0


def test_user_warnings_are_errors_here():
    with pytest.raises(UserWarning):
        warnings.warn("the suite turns warnings into errors", stacklevel=1)


def test_a_training_step_reads_nothing_from_the_device(cells, split):
    trainer = Trainer(fresh(cells), cells, split=split, plan=plan())
    batches = list(trainer.train.shuffled(0, 0))
    for batch in batches[:4]:  # the first steps are validated, which reads
        trainer._validated_step(batch)
    with Operations() as operations:
        trainer._validated_step(batches[4])
    assert operations.reads == []
    with Operations() as operations:
        trainer._raise_if_bad()
    assert operations.reads != []  # the counter does see a read


def test_other_cells_of_the_same_data_share_what_is_prepared(cells):
    size = {"batch_size": 16, "device": torch.device("cpu")}
    rows, others = np.arange(40), np.arange(40, 70)
    train = Batches.for_training(cells, rows, **size)
    shared, apart = train.of(others), Batches.for_training(cells, others, **size)
    assert shared._summaries is train._summaries
    assert train.rows.tolist() == rows.tolist()
    for one, other in zip(shared.in_order(), apart.in_order(), strict=True):
        assert one.n_total == other.n_total == len(cells)  # until a training says otherwise
        assert torch.equal(one["y"], other["y"])
        assert torch.equal(one.counts.tails.exceeding, other.counts.tails.exceeding)


def test_the_next_batch_is_prepared_while_one_is_worked_on():
    prepared, ready = [], threading.Event()

    def batches():
        for number in range(1, 4):
            prepared.append(number)
            if number == 2:
                ready.set()
            yield number

    given = prefetched(batches())
    assert next(given) == 1
    assert ready.wait(timeout=10)
    assert list(given) == [2, 3]
    assert prepared == [1, 2, 3]


def test_what_goes_wrong_with_a_batch_ahead_is_raised():
    def batches():
        yield 1
        raise OSError("gone")

    given = prefetched(batches())
    assert next(given) == 1
    with pytest.raises(OSError, match="gone"):
        next(given)


def test_memory_is_told_before_training(cells, split, caplog):
    with caplog.at_level("INFO", logger="pyro_fcr.training"):
        fit(fresh(cells), cells, split=split, plan=plan(max_epochs=1))
    assert f"{len(split.train)} cells in batches of 128, 7 steps (eager)" in caplog.text
    assert re.search(r"take \d+ MB", caplog.text)


def saved_state(path):
    """What a checkpoint holds, behind its two first lines."""
    return torch.load(io.BytesIO(path.read_bytes().split(b"\n", 2)[2]), weights_only=True)


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(cells, split, tmp_path):
    path = tmp_path / "c.pt"
    fit(fresh(cells), cells, split=split, plan=plan(max_epochs=1), checkpoint=path)
    state = saved_state(path)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"c\.pt is no checkpoint of this version .* earlier"):
        fit(fresh(cells), cells, split=split, plan=plan(max_epochs=1), resume=path)
    path.unlink()
    del state["plan"]["align_at"]
    write_checkpoint(path, state, plan())
    with pytest.raises(CheckpointError, match=r"earlier version, which did not have align_at"):
        fit(fresh(cells), cells, split=split, plan=plan(max_epochs=1), resume=path)


def test_looking_gives_every_part_its_own_mode_back():
    whole = nn.ModuleDict({"fitted": nn.Linear(2, 2).eval(), "other": nn.Linear(2, 2)})
    with modes.looking(whole):
        assert not any(part.training for part in whole.modules())
    assert whole.training
    assert whole["other"].training
    assert not whole["fitted"].training
