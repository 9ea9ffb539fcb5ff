"""Fine-tuning never leaves less than it was given: the trained model is epoch 0, and rates that spoil it are lowered."""

import json
import math
import sys

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from headstart.seeds import scoped_seed
from headstart.targets.single_label import SingleLabel, cross_entropy
from headstart.targets.target import LossRule
from headstart.training.checkpoints import Checkpoint
from headstart.training.collapse import is_spoilt
from headstart.training.loop import Phase, Trainer, TrainingRun
from headstart.training.optimizers import build_optimizer
from headstart.training.options import Objective
from headstart.training.schedules import OneCycle
from headstart.training.tuning import what_was_kept
from headstart.training.validation import collect_logits

STEPS = 12
TARGET = SingleLabel(("a", "b", "c"))


def task(seed: int = 0, separation: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(32 * STEPS) % 3
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(y), 8, generator=generator) + separation * F.one_hot(y, 8), y


X, Y = task()
X_VALID, Y_VALID = task(seed=1)


def good_model(steps: int = 60) -> nn.Module:
    """A network that knows the task and is easily spoilt."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return model


def phase(model: nn.Module, lr: float, epochs: int = 2, name: str = "all") -> Phase:
    def batches(epoch: int, first: int):
        order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(epoch))
        return ((X[part], Y[part], part) for part in order.split(32)[first:])

    return Phase(
        name=name,
        epochs=epochs,
        steps=STEPS,
        begin=lambda: build_optimizer([(list(model.parameters()), lr)], "sgd", 0.0),
        schedule=OneCycle(epochs * STEPS, warm_up=0.3, div=5.0),
        prepare=model.train,
        forward=model,
        batches=batches,
        validate=lambda: TARGET.scores(collect_logits(model, [X_VALID]), Y_VALID),
    )


def fit(model: nn.Module, phases: list[Phase], guess: float | None = math.log(3), checkpoint: Checkpoint | None = None):
    run = TrainingRun(0, lambda epoch, found: None, checkpoint=checkpoint)
    return Trainer(model, Objective(cross_entropy(), guess, TARGET.chosen_by), run, what="fine_tune").fit(phases)


def state(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_what_no_epoch_betters_is_kept_as_it_came():
    model = good_model()
    before = state(model)
    history = fit(model, [phase(model, 0.5)], guess=1e9)  # nobody looks for a collapse here
    assert [row["epoch"] for row in history.epochs] == [0, 1, 2]
    assert history.best_epoch()["epoch"] == 0
    assert same(state(model), before)
    assert history.epochs[0]["valid_log_loss"] == TARGET.scores(collect_logits(model, [X_VALID]), Y_VALID)["log_loss"]
    found = what_was_kept(history, TARGET)
    assert found["epoch"] == 0 and "The trained head is kept without fine-tuning" in found["sentence"]


def test_what_an_epoch_betters_is_replaced():
    with scoped_seed(0):
        model = nn.Linear(8, 3)
    history = fit(model, [phase(model, 0.1)])
    assert history.best_epoch()["epoch"] == 2
    assert "The fine-tuned network of epoch 2 is kept" in what_was_kept(history, TARGET)["sentence"]


def test_a_head_has_no_epoch_0():
    model = nn.Linear(8, 3)
    assert [row["epoch"] for row in fit(model, [phase(model, 0.1)], guess=None).epochs] == [1, 2]


def test_a_rate_that_spoils_the_network_is_lowered_and_it_is_said(caplog):
    model = good_model()
    with caplog.at_level("WARNING", logger="headstart"):
        history = fit(model, [phase(model, 5.0)])
    lowered = round(math.log(1 / history.scale, 3))
    assert 1 <= lowered <= 3
    assert len(caplog.records) == lowered
    assert "steps at a peak rate of 5 spoilt the network" in caplog.text and "again at a peak rate of 1.7" in caplog.text
    assert [row["epoch"] for row in history.epochs] == [0, 1, 2]
    assert len({point[0] for point in history.trace}) == len(history.trace), "no step is in the trace twice"
    assert max(point[1] for point in history.trace) <= 5 * history.scale * 1.001
    assert "The learning rate was lowered to 0.33 of the set rate" in what_was_kept(history, TARGET)["sentence"]


def test_a_sound_training_is_the_same_with_and_without_the_watch():
    first, second = good_model(), good_model()
    a, b = fit(first, [phase(first, 0.05)]), fit(second, [phase(second, 0.05)], guess=1e9)
    assert same(state(first), state(second)) and a.epochs == b.epochs and a.scale == 1


def test_after_a_collapse_the_training_is_the_one_with_the_lower_rate():
    first, second = good_model(), good_model()
    history = fit(first, [phase(first, 5.0)])
    other = fit(second, [phase(second, 5.0 * history.scale)], guess=1e9)
    assert [row["train_loss"] for row in history.epochs] == pytest.approx([row["train_loss"] for row in other.epochs])


def test_later_phases_keep_the_lower_rate():
    model = good_model()
    history = fit(model, [phase(model, 5.0, 1, "late"), phase(model, 5.0, 1)])
    assert history.scale < 1
    assert [row["phase"] for row in history.epochs] == ["as it came", "late", "all"]


@pytest.mark.parametrize("stop_after", [1, 4, 9, 13, 20, 26])
def test_resumed_at_any_step_it_ends_with_the_same_bits(tmp_path, stop_after):
    """Before, at and after the collapse, and in the epochs that follow."""
    whole = good_model()
    undisturbed = fit(whole, [phase(whole, 5.0)], checkpoint=Checkpoint(tmp_path / "whole", "t"))
    assert undisturbed.scale < 1
    (tmp_path / "cut").mkdir()
    killed = good_model()
    taken = 0

    class Stop(BaseException):
        pass

    def counted(x: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        if torch.is_grad_enabled():
            taken += 1
            if taken > stop_after:
                raise Stop
        return killed(x)

    import dataclasses

    with pytest.raises(Stop):
        fit(killed, [dataclasses.replace(phase(killed, 5.0), forward=counted)], checkpoint=Checkpoint(tmp_path / "cut", "t"))
    resumed = good_model()
    history = fit(resumed, [phase(resumed, 5.0)], checkpoint=Checkpoint(tmp_path / "cut", "t"))
    assert same(state(resumed), state(whole))
    assert json.dumps(history.__dict__, sort_keys=True) == json.dumps(undisturbed.__dict__, sort_keys=True)


@pytest.mark.parametrize("knows", [5, 20])
@pytest.mark.parametrize("lr", [2.0, 3.0, 8.0])
def test_with_few_steps_an_epoch_what_is_recorded_is_what_is_left(knows, lr, tmp_path, monkeypatch):
    """A collapse after an epoch that was the best so far: that epoch is kept, and its row tells of its weights."""
    monkeypatch.setattr(sys.modules[__name__], "STEPS", 4)
    monkeypatch.setattr(sys.modules[__name__], "X", X[:128])
    monkeypatch.setattr(sys.modules[__name__], "Y", Y[:128])
    model = good_model(knows)
    history = fit(model, [phase(model, lr, 6)], checkpoint=Checkpoint(tmp_path, "t"))
    found = TARGET.scores(collect_logits(model, [X_VALID]), Y_VALID)
    assert history.best_epoch()["valid_log_loss"] == pytest.approx(found["log_loss"])
    assert [row["epoch"] for row in history.epochs] == list(range(7))
    best = min(row["valid_calibrated_log_loss"] for row in history.epochs)
    assert history.best_epoch()["valid_calibrated_log_loss"] == best


@pytest.mark.parametrize(
    ("losses", "guess", "spoilt"),
    [
        ([(2.10, 256), (8.27, 256), (3.90, 256), (2.75, 256), (2.65, 256)], math.log(10), True),  # weak signal at 1e-3
        ([(2.09, 256), (4.84, 256), (2.92, 256), (2.75, 256), (2.64, 256)], math.log(10), True),
        ([(2.09, 256), (2.15, 256), (2.09, 256), (2.06, 256), (2.09, 256)], math.log(10), False),  # and at a ninth
        ([(0.81, 32), (3.01, 32), (2.36, 32), (1.26, 32), (1.42, 32), (1.40, 32)], math.log(10), False),  # digits, to .98
        ([(1.68, 32), (3.36, 32), (3.22, 32), (2.15, 32), (2.18, 32), (2.94, 32)], math.log(400), False),
        ([(2.0, 256)] + [(9.0, 256)] * 3, math.log(10), False),  # too few steps to tell
        ([(2.0, 8)] + [(9.0, 8)] * 18, math.log(10), False),  # and too few images
        ([(2.0, 8)] + [(9.0, 8)] * 19, math.log(10), True),
        ([(0.25, 32), (0.31, 32), (0.22, 32), (0.3, 32), (0.24, 32), (0.28, 32)], 0.2, False),  # 19 of 20 of one class
        ([(0.25, 32)] + [(0.6, 32)] * 6, 0.2, True),
        ([(0.2, 32)] + [(0.35, 32)] * 6, 0.24, False),
    ],
)
def test_a_collapse_is_a_loss_above_a_guess_s(losses, guess, spoilt):
    """Losses as measured (bench/rates.py): good trainings lose a lot too in their first steps."""
    assert any(is_spoilt(losses[: i + 1], guess) for i in range(len(losses))) is spoilt


def test_a_guess_is_the_best_constant_answer():
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    for rule in (LossRule(), LossRule(label_smoothing=0.1), LossRule(balance="weights")):
        loss = TARGET.loss(rule, y)
        found = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

        def closure(loss=loss, found=found, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(found.expand(len(y), 3), y)
            value.backward()
            return value

        optimizer.step(closure)
        assert TARGET.guess(rule, y) == pytest.approx(float(closure().detach()), abs=1e-4)


def calibrated_log_loss(logits: torch.Tensor, y: torch.Tensor) -> float:
    return SingleLabel(("a", "b", "c", "d")).scores(logits, y)["calibrated_log_loss"]


def test_epochs_are_compared_by_what_they_know_and_not_by_how_sure_they_are():
    y = torch.arange(200) % 4
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 4, generator=generator).double() + 2 * F.one_hot(y, 4)
    wanted = minimize_scalar(lambda t: float(F.cross_entropy(logits / t, y)), bounds=(0.2, 5), method="bounded").fun
    found = [calibrated_log_loss(logits * sure, y) for sure in (0.5, 1.0, 2.0)]
    assert found == pytest.approx([wanted] * 3, abs=1e-5)
    assert calibrated_log_loss(logits, y) <= float(F.cross_entropy(logits, y))
    better = logits + F.one_hot(y, 4)
    assert calibrated_log_loss(0.1 * better, y) < calibrated_log_loss(logits, y)
    assert F.cross_entropy(0.1 * better, y) > F.cross_entropy(logits, y), "as with label smoothing"
    assert math.isnan(calibrated_log_loss(logits * math.nan, y))
