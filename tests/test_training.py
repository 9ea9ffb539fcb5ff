"""Freezing and batch norm, schedules, the loop, the LR search (invariant 3), the heads' training."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from headstart.core.errors import InputError
from headstart.models.backbones import build_backbone
from headstart.models.freezing import freeze_except, layer_groups, trained_groups, training_mode
from headstart.models.heads import Classifier, adapt, build_head
from headstart.models.weights import state_digest
from headstart.training.fine_tune import fine_tune
from headstart.training.head import Rows, epoch_batches, train_head
from headstart.training.loop import adamw, derive_seed, predict, scores, train_step
from headstart.training.lr_search import Curve, minimum, range_test, slide, steep, suggest, trim, valley
from headstart.training.schedules import OneCycle, group_rates, steps_per_epoch


def silent(epoch: int, metrics: dict[str, float]) -> None:
    pass


def unfrozen(name: str = "test_resnet", unfreeze_from: str = "all") -> tuple[Classifier, dict[str, list[nn.Parameter]]]:
    backbone = build_backbone(name, "random", 32)
    model = Classifier(backbone.body, build_head("mlp", backbone.width, 3, 0))
    groups = layer_groups(backbone.groups, model)
    freeze_except(groups, trained_groups(list(groups), unfreeze_from))
    return model, groups


@pytest.mark.parametrize(
    ("unfreeze_from", "bn_freeze", "batch_stats", "moves", "trains"),
    [("head", True, False, False, False), ("head", False, False, False, False),
     ("all", True, False, False, True), ("all", False, True, True, True)],
)  # fmt: skip
def test_batch_norm_rows_of_the_table(unfreeze_from, bn_freeze, batch_stats, moves, trains):
    model, groups = unfrozen(unfreeze_from=unfreeze_from)
    training_mode(model, bn_freeze)
    norms = [module for module in model.body.modules() if isinstance(module, nn.BatchNorm2d)]
    running = [norm.running_mean.clone() for norm in norms]
    affine = [norm.weight.detach().clone() for norm in norms]
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32) * 3 + 1, torch.arange(8) % 3
    same = torch.equal(model.body(x)[:4], model.body(torch.cat([x[:4], 9 * x[4:]]))[:4])
    assert same == (not batch_stats)  # with batch statistics, the other rows matter
    optimizer = adamw([(group, 1e-2) for group in groups.values()])
    train_step(model, optimizer, x, y)
    assert all(torch.equal(a, b.running_mean) for a, b in zip(running, norms, strict=True)) == (not moves)
    assert all(torch.equal(a, b.weight) for a, b in zip(affine, norms, strict=True)) == (not trains)


def test_a_frozen_part_is_in_eval_mode_with_its_dropout():
    backbone = build_backbone("efficientnet_b0", "random", 32)  # dropout and stochastic depth inside
    model = Classifier(backbone.body, build_head("mlp", backbone.width, 3, 0))
    groups = layer_groups(backbone.groups, model)
    freeze_except(groups, ["head"])
    training_mode(model, bn_freeze=False)
    assert not any(module.training for module in model.body.modules() if list(module.parameters()))
    assert model.head.training
    x = torch.randn(4, 3, 32, 32)
    before = state_digest(model.body)
    assert torch.equal(model.body(x), model.body(x))
    assert state_digest(model.body) == before


def test_batch_norm_1d_and_sync_are_frozen_too():
    for norm in (nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.BatchNorm3d(4)):
        model = nn.Sequential(norm, nn.Linear(4, 2))
        training_mode(model, bn_freeze=True)
        assert not norm.training
        assert model[1].training


def test_which_groups_train():
    names = ["early", "late", "head"]
    assert trained_groups(names, "all") == names
    assert trained_groups(names, "late") == trained_groups(names, "last-2") == ["late", "head"]
    with pytest.raises(InputError, match="last-1 to last-3"):
        trained_groups(names, "last-4")


def test_group_rates_and_one_cycle():
    assert group_rates(1e-2, 10, 3) == pytest.approx([1e-4, 1e-3, 1e-2])
    cycle = OneCycle(101, warm_up=0.25, div=25, final_div=1e5)
    factors, momenta = zip(*(cycle.at(step) for step in range(101)), strict=True)
    assert (factors[0], factors[25], factors[100]) == pytest.approx((1 / 25, 1, 1e-5))
    assert (momenta[0], momenta[25], momenta[100]) == pytest.approx((0.95, 0.85, 0.95))
    assert np.all(np.diff(factors[:26]) > 0) and np.all(np.diff(factors[25:]) < 0)
    assert all(math.isfinite(f) for f, _ in (OneCycle(n).at(s) for n in (1, 2, 3) for s in range(n)))


def rows(count: int = 120, width: int = 8, views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    x = torch.randn(views, count, width, generator=generator) + 4 * torch.nn.functional.one_hot(y, width)
    return x, y


def in_memory(x: torch.Tensor, y: torch.Tensor) -> Rows:
    """Rows [v, n, d] and classes [n]."""
    return Rows(lambda images, views: x[views, images], len(x), y)


def test_an_epoch_holds_each_image_once_in_a_view_drawn_afresh():
    x = torch.arange(2 * 50).reshape(2, 50, 1).float()
    y = torch.arange(50)
    first, again, second = (list(epoch_batches(in_memory(x, y), 16, seed)) for seed in (0, 0, 1))
    labels = torch.cat([labels for _, labels in first])
    assert sorted(labels.tolist()) == list(range(50))
    assert all(torch.equal(values[:, 0] % 50, labels.float()) for values, labels in first)
    views = {tuple(torch.cat([values for values, _ in batches]).sort(0).values.ravel().tolist()) for batches in (first, second)}
    assert len(views) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    for count, size in ((50, 16), (49, 16), (33, 16), (1, 8), (2, 2)):
        batches = list(epoch_batches(in_memory(x[:, :count], y[:count]), size, 0))
        assert len(batches) == steps_per_epoch(count, size)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_learns_keeps_its_best_epoch_and_repeats_to_the_bit(kind):
    x, y = rows()

    def trained() -> tuple[nn.Module, object]:
        head = build_head(kind, 8, 3, seed=1)
        adapt(head, x[0].split(50))
        return head, train_head(
            head, in_memory(x, y), in_memory(x[1:], y), epochs=6, lr=1e-2, batch_size=16, seed=0, log=silent
        )

    (head, history), (twin, _) = trained(), trained()
    assert state_digest(head) == state_digest(twin)
    found = scores(predict(head, [x[1]]), y)
    best = history.epochs[history.best]
    assert found["accuracy"] > 0.9
    assert found["log_loss"] == best["valid_log_loss"] == min(e["valid_log_loss"] for e in history.epochs)


def test_an_exploding_loss_stops_naming_step_and_rate():
    x, y = rows()
    x[:, 7] = float("nan")
    head = build_head("linear", 8, 3, seed=0)
    with pytest.raises(InputError, match=r"the loss is nan in epoch 1, step \d+ at learning rate"):
        train_head(head, in_memory(x, y), in_memory(x[1:], y), epochs=2, lr=1e-2, batch_size=16, seed=0, log=silent)


def test_prediction_leaves_modes_as_they_were():
    head = build_head("mlp", 8, 3, seed=0)
    head.train()
    head[0].eval()
    predict(head, [torch.randn(4, 8)])
    assert [module.training for module in head] == [False, True, True, True, True, True, True]


def test_fine_tuning_trains_only_its_groups_and_repeats_to_the_bit():
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 3
    backbone = build_backbone("test_resnet", "random", 32)

    def tuned(unfreeze_from: str, workers: int) -> Classifier:
        model = Classifier(copy.deepcopy(backbone.body), build_head("mlp", backbone.width, 3, 0))
        fine_tune(
            model, layer_groups(backbone.groups, model),
            train=(lambda epoch, row: images[row] ^ epoch, y), valid=(lambda row: images[row], y),
            preprocessing=backbone.preprocessing, epochs=2, lr=1e-2, lr_ratio=3, bn_freeze=False,
            unfreeze_from=unfreeze_from, batch_size=8, label_smoothing=0.1, workers=workers, seed=0, log=silent,
        )  # fmt: skip
        return model

    model, twin = tuned("late", 1), tuned("late", 3)
    assert state_digest(model) == state_digest(twin)
    before, after = backbone.body.state_dict(), model.body.state_dict()
    early = {name.rpartition(".")[0] for name in backbone.groups["early"]}
    for name in before:
        if name.rpartition(".")[0] in early:
            assert torch.equal(before[name], after[name]), name  # buffers too
    assert any(not torch.equal(before[name], after[name]) for name in backbone.groups["late"])
    assert state_digest(tuned("all", 2)) != state_digest(model)


def endless(x: torch.Tensor, y: torch.Tensor, seed: int = 0):
    epoch = 0
    while True:
        yield from epoch_batches(in_memory(x, y), 16, derive_seed(seed, epoch))
        epoch += 1


def test_lr_search_changes_nothing():
    """Invariant 3: weights, buffers, modes, RNG; the next fit is the same to the bit with or without it."""
    x, y = rows()

    def fitted(search: bool) -> str:
        torch.manual_seed(5)
        np.random.seed(5)
        head = build_head("mlp", 8, 3, seed=1)
        head[0].eval()
        before, state, numpy_state = state_digest(head), torch.get_rng_state(), np.random.get_state()[1].copy()
        if search:
            range_test(head, endless(x, y), lr_min=1e-6, lr_max=10, steps=60, seed=3)
        assert state_digest(head) == before
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)
        assert [module.training for module in head][:2] == [False, True]
        assert all(parameter.grad is None for parameter in head.parameters())
        train_head(head, in_memory(x, y), in_memory(x[1:], y), epochs=2, lr=1e-2, batch_size=16, seed=0, log=silent)
        return state_digest(head)

    assert fitted(search=True) == fitted(search=False)


def test_the_range_test_covers_the_range_and_stops_when_it_diverges():
    x, y = rows()
    head = build_head("mlp", 8, 3, seed=1)
    curve = range_test(head, endless(x, y), lr_min=1e-6, lr_max=1e3, steps=80, seed=0)
    assert curve.lrs[0] == pytest.approx(1e-6)
    ratios = np.diff(np.log(curve.lrs))
    assert np.allclose(ratios, ratios[0])
    assert len(curve.lrs) < 80  # cut off where the loss exploded
    assert max(curve.losses) <= 4 * min(curve.losses[: np.argmax(curve.losses) + 1])
    again = range_test(head, endless(x, y), lr_min=1e-6, lr_max=1e3, steps=80, seed=0)
    assert again == curve


def bowl(steps: int = 100, low: float = -2.0, noise: float = 0.0, seed: int = 0) -> Curve:
    """A curve flat at first, steepest a decade below its minimum at 10**low, then rising."""
    exponents = np.linspace(-7, 1, steps)
    losses = 2 - 1.5 / (1 + np.exp(-4 * (exponents - low + 1))) + np.maximum(0, exponents - low) ** 3
    losses = losses + noise * np.random.default_rng(seed).normal(size=steps)
    return Curve(steps, tuple(10**exponents), tuple(losses))


def test_the_rules_read_the_curve():
    lrs, losses = trim(bowl())
    assert len(lrs) == 85
    assert math.log10(steep(lrs, losses)) == pytest.approx(-3, abs=0.15)
    assert math.log10(minimum(lrs, losses)) == pytest.approx(-3, abs=0.25)
    assert -6 < math.log10(valley(lrs, losses)) < -2
    assert slide(lrs, losses) is not None


def test_valley_is_fastais_longest_decreasing_subsequence():
    generator = np.random.default_rng(0)
    for _ in range(30):
        losses = generator.normal(size=40)
        n, longest, end = len(losses), [1] * 40, 0
        for i in range(1, n):
            for j in range(i):
                if losses[i] < losses[j] and longest[i] < longest[j] + 1:
                    longest[i] = longest[j] + 1
                if longest[end] < longest[i]:
                    end = i
        start = end - longest[end]
        third = longest[end] // 3
        assert valley(np.arange(40.0), losses) == max(start + third + third // 2, 0)


def test_non_finite_losses_are_cut_off_and_no_nan_is_ever_suggested():
    curve = bowl()
    losses = [*curve.losses[:60], math.nan, *curve.losses[61:]]
    lrs, kept = trim(Curve(100, curve.lrs, tuple(losses)))
    assert len(kept) == 50 and np.isfinite(kept).all()
    found = suggest([Curve(100, (1e-7, 1e-6), (math.nan, math.nan))], default=3e-3)
    assert (found.lr, found.abstained) == (3e-3, True)


def test_seeds_agree_or_the_search_abstains():
    agreed = suggest([bowl(noise=0.01, seed=seed) for seed in range(5)], default=1.0)
    assert not agreed.abstained
    assert 1e-4 < agreed.lr < 1e-2
    assert agreed.spread >= 1
    torn = suggest([bowl(low=low) for low in (-5.5, -5.4, 0.4, 0.5)], default=3e-3)
    noise = [Curve(100, bowl().lrs, tuple(np.random.default_rng(s).normal(size=100))) for s in range(5)]
    assert torn.spread > 100
    assert suggest(noise, default=3e-3).abstained or suggest(noise, default=3e-3).spread > 10
