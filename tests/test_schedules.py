"""Schedules against the libraries' own."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR

from headstart.core.errors import InputError
from headstart.core.params import load_params
from headstart.training.optimizers import build_optimizer, set_rates
from headstart.training.schedules import OneCycle, WarmRestarts, group_rates
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(("steps", "warm_up", "div"), [(101, 0.25, 25.0), (41, 0.3, 5.0), (11, 0.5, 10.0)])
def test_one_cycle_is_torchs(steps, warm_up, div):
    cycle = OneCycle(steps, warm_up=warm_up, div=div)
    turn = (warm_up * (steps - 1) + 1) / steps  # torch ends the warm-up at pct_start * steps - 1
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=turn, div_factor=div, final_div_factor=1e5 / div,
        base_momentum=0.85, max_momentum=0.95,
    )  # fmt: skip
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"]) == pytest.approx(cycle.at(step), rel=1e-6), step
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


def test_one_cycle_has_fastais_shape_at_any_length():
    cycle = OneCycle(101)
    factors, momenta = zip(*(cycle.at(step) for step in range(101)), strict=True)
    assert (factors[0], factors[25], factors[100]) == pytest.approx((1 / 25, 1, 1e-5))
    assert (momenta[0], momenta[25], momenta[100]) == pytest.approx((0.95, 0.85, 0.95))
    assert np.all(np.diff(factors[:26]) > 0) and np.all(np.diff(factors[25:]) < 0)
    assert all(math.isfinite(f) for f, _ in (OneCycle(n).at(s) for n in (1, 2, 3) for s in range(n)))


@pytest.mark.parametrize(("cycle", "mult"), [(5, 1), (4, 2), (3, 3), (1, 2)])
def test_warm_restarts_are_torchs(cycle, mult):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, schedule = CosineAnnealingWarmRestarts(optimizer, cycle, mult), WarmRestarts(cycle, mult)
    for step in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule.at(step)[0]), step
        optimizer.step()
        scheduler.step()


def test_rates_and_momentum_reach_the_optimizer():
    weight = torch.zeros(2, 2, requires_grad=True)
    adamw, sgd = (build_optimizer([([weight], 0.1)], kind) for kind in ("adamw", "sgd"))
    for optimizer in (adamw, sgd):
        set_rates(optimizer, 0.5, 0.7)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert adamw.param_groups[0]["betas"] == (0.7, 0.999)
    assert sgd.param_groups[0]["momentum"] == 0.7


def test_group_rates():
    assert group_rates(1e-2, 10, ["early", "late", "head"]) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert group_rates([1e-4, 1e-3, 1e-2], 5, ["early", "late", "head"]) == [1e-4, 1e-3, 1e-2]
    with pytest.raises(InputError, match="one rate for each of early, head"):
        group_rates([1e-3], 1, ["early", "head"])


@pytest.mark.parametrize(
    ("epochs", "length", "mult", "right"),
    [(7, 1, 2, True), (4, 1, 2, False), (6, 3, 1, True), (5, 2, 1, False), (3, 1, 1, True)],
)
def test_sgdr_must_end_where_a_cycle_does(tmp_path, epochs, length, mult, right):
    from flows.param_edits import set_params

    path = tmp_path / "params.yaml"
    path.write_text((REPOSITORY / "params.yaml").read_text())
    edit = [f"train_head.epochs={epochs}", f"train_head.cycle_len={length}", f"train_head.cycle_mult={mult}"]
    if right:
        assert set_params(path, [*edit, "train_head.schedule=sgdr"]).train_head.epochs == epochs
        return
    set_params(path, edit)  # one-cycle takes any
    with pytest.raises(InputError, match=rf"epochs must end a cycle: .*, not {epochs}"):
        set_params(path, ["train_head.schedule=sgdr"])
    assert load_params(path).train_head.schedule == "one_cycle"
