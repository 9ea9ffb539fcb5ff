"""The training loop, shared by the head and by fine-tuning: phases of epochs that resume bit for bit.

Shape legend: n rows of a batch, c outputs. `x` is the network's input.
"""

from __future__ import annotations

import copy
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import nn

from headstart.core.errors import InputError, is_shutdown
from headstart.seeds import derive_seed, random_state, restore_random_state, scoped_seed
from headstart.targets.target import Loss
from headstart.training.checkpoints import Checkpoint, Saved, Tensors, load_optimizer, optimizer_tensors
from headstart.training.collapse import MOST_RETREATS, RETREAT, WATCHED, Collapsed, is_spoilt
from headstart.training.interrupts import WholeSteps
from headstart.training.optimizers import set_rates
from headstart.training.options import Objective
from headstart.training.schedules import Schedule

Batch = tuple[Any, torch.Tensor, torch.Tensor]  # x, encoded labels y [n] or [n, c], training rows [n] int64
Forward = Callable[[Any], torch.Tensor]
Log = Callable[[int, dict[str, float]], None]
logger = logging.getLogger("headstart")
TRACED = 50  # points in an epoch's loss curve
EXPLODED = 1000.0  # nats, where a guess among c classes costs ln c; of standardised numbers, where a guess costs 1
FILES_NAMED = 8


@dataclass(frozen=True)
class Phase:
    """Epochs that train the same layers.

    Args:
        name: what trains, for messages and the history.
        epochs, steps: number of epochs, and of batches in each.
        begin: freezes and unfreezes layers, and returns a new optimizer whose groups carry `peak`.
        schedule: over the phase's steps.
        prepare: puts the network into training mode before each epoch.
        forward: maps x to logits [n, c], with gradients.
        batches: takes an epoch's number and the first batch's number, and returns the batches from that one on.
        validate: returns the target's validation scores; called after each epoch.
    """

    name: str
    epochs: int
    steps: int
    begin: Callable[[], torch.optim.Optimizer]
    schedule: Schedule
    prepare: Callable[[], None]
    forward: Forward
    batches: Callable[[int, int], Iterable[Batch]]
    validate: Callable[[], dict[str, float]]


@dataclass
class History:
    """The record of a training: what happened in each epoch, and how far it has come.

    Args:
        epochs: a row per epoch: number (from 1), phase, mean training loss, last learning rate, validation scores.
        trace: points of (step, learning rate, mean loss since the last point), about 50 per epoch.
        best: index in `epochs` of the row whose weights were kept; -1 before the first.
        done: epochs finished, or skipped by early stopping.
        batch, total, count: batches of the current epoch so far, their summed loss and their images.
        part, parts: summed loss and batches since the trace's last point.
        watched: (loss, images) of the first steps of the phase.
        scale: factor on all learning rates: below 1 after a collapse.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    trace: list[list[float]] = field(default_factory=list)
    best: int = -1
    done: int = 0
    batch: int = 0
    total: float = 0.0
    count: int = 0
    part: float = 0.0
    parts: int = 0
    watched: list[tuple[float, int]] = field(default_factory=list)
    scale: float = 1.0

    def best_epoch(self) -> dict[str, Any]:
        """Return the row of the epoch whose weights were kept."""
        return self.epochs[self.best]


@dataclass(frozen=True)
class TrainingRun:
    """What surrounds a training.

    Args:
        seed: dropout in epoch e, and the order of its images, depend on (seed, e) alone.
        log: called with (epoch, scores) after each epoch.
        name_of: returns the file of a training row.
        checkpoint: written after every epoch and on shutdown; training resumes from it if it exists.
        progress: wraps an epoch's batches, as (batches, epoch, steps), to show progress.
    """

    seed: int
    log: Log
    name_of: Callable[[int], str] = str
    checkpoint: Checkpoint | None = None
    progress: Callable[[Iterator[Batch], int, int], Iterator[Batch]] = lambda batches, epoch, steps: batches


@dataclass
class Trainer:
    """Trains a model, and leaves it with the weights of the epoch that had the best validation score.

    Args:
        model: trained in place; checkpoints hold its state.
        objective: the loss to minimise, and the score that chooses the epoch. It has a guess's loss if the model is trained
            already. That model is then epoch 0 and is kept if no epoch is better, and a phase whose first steps spoil it
            starts again with lower rates.
        run: its seed, log and checkpoint.
        what: the stage's name, for messages.
        patience: a phase ends after this many epochs without a better one; 0: never.
    """

    model: nn.Module
    objective: Objective
    run: TrainingRun
    what: str
    patience: int = 0
    history: History = field(default_factory=History, init=False)
    best: Tensors = field(init=False)
    whole: WholeSteps = field(default_factory=WholeSteps, init=False)

    def fit(self, phases: Sequence[Phase]) -> History:
        """Run the phases in order, each from the best weights so far.

        Raises:
            InputError: the loss explodes or is not finite; the message names epoch, step, learning rate and files. The
                last epoch's checkpoint stays.
        """
        self.best = copy.deepcopy(self.model.state_dict())
        saved = self.run.checkpoint.load() if self.run.checkpoint else None
        if saved is not None:
            self.model.load_state_dict(saved.model)
            self.best, self.history = saved.best or saved.model, History(**saved.progress)
        elif self.objective.guess is not None:
            self._epoch_0(phases[0])
        start = 0
        with self.whole:
            for phase in phases:
                if self.history.done < start + phase.epochs:
                    self._run(phase, start, saved)
                    saved = None
                start += phase.epochs
        self.model.load_state_dict(self.best)
        return self.history

    def _run(self, phase: Phase, start: int, saved: Saved | None) -> None:
        """Run the phase whose first epoch is `start`, resuming from `saved`."""
        history, end = self.history, start + phase.epochs
        begun = saved is not None and (history.done > start or history.batch > 0)
        if not begun:
            self.model.load_state_dict(self.best)
        optimizer = phase.begin()
        if saved is not None and begun:
            load_optimizer(optimizer, saved.optimizer)
        random = saved.random if saved is not None else {}
        while history.done < end:
            try:
                self._epoch(phase, optimizer, start, random)
            except Collapsed:
                optimizer = self._retreat(phase, start)
            random = {}
            if history.done == start:  # the phase starts again
                self._save(optimizer, {})
                continue
            if history.done - max(start, int(history.best_epoch()["epoch"])) >= (self.patience or math.inf):
                history.done = end
            self._save(optimizer, {})

    def _epoch_0(self, phase: Phase) -> None:
        scores = {f"valid_{name}": score for name, score in phase.validate().items()}
        self.history.epochs.append({"epoch": 0, "phase": "as it came", "train_loss": None, "lr": 0.0} | scores)
        self.history.best = 0

    def _retreat(self, phase: Phase, start: int) -> torch.optim.Optimizer:
        """Go back to the state in which the phase began, and lower all rates."""
        history, optimizer = self.history, phase.begin()
        rate = optimizer.param_groups[-1]["peak"] * history.scale
        logger.warning(
            "  %s: the first %d steps at a peak rate of %.2g spoilt the network: its loss is %.2f, a constant answer has %.2f."
            " The phase starts again at a peak rate of %.2g",
            self.what, len(history.watched), rate, history.watched[-1][0], self.objective.guess or 0.0, rate / RETREAT,
        )  # fmt: skip
        history.epochs = [row for row in history.epochs if row["epoch"] <= start]
        history.trace = [point for point in history.trace if point[0] <= start * phase.steps]
        history.done, history.batch, history.total, history.count, history.part, history.parts = start, 0, 0.0, 0, 0.0, 0
        history.scale /= RETREAT
        self.model.load_state_dict(self.best)
        return optimizer

    def _epoch(self, phase: Phase, optimizer: torch.optim.Optimizer, start: int, random: Tensors) -> None:
        """Run the rest of the current epoch: its batches and its validation, and record both."""
        history, epoch = self.history, self.history.done

        def leave(kind: type[BaseException] | None, *_: object) -> None:
            if is_shutdown(kind) and not self.whole.inside:
                self._save(optimizer, random_state())

        phase.prepare()
        with scoped_seed(derive_seed(self.run.seed, "dropout", epoch)), ExitStack() as leaving:
            if random:
                restore_random_state(random)
            leaving.push(leave)
            for batch in phase.batches(epoch, history.batch):
                with self.whole.step():
                    self._step(phase, optimizer, (epoch - start) * phase.steps + history.batch, batch)
            scores = phase.validate()
        bad = next((name for name, score in scores.items() if not math.isfinite(score)), None)
        if bad is not None:
            words = bad.replace("log_loss", "log-loss").replace("_", " ")
            raise InputError(
                f"{self.what}: the validation {words} is {scores[bad]} after epoch {epoch + 1}",
                wanted=f"a finite {words}",
                fix=f"lower {self.what}.lr{self._kept()}",
            )
        self._set_rates(phase, optimizer, (epoch - start) * phase.steps + history.batch - 1)  # another process may have done it
        rate = optimizer.param_groups[-1]["lr"]
        row = {"epoch": epoch + 1, "phase": phase.name, "train_loss": history.total / history.count, "lr": rate}
        history.epochs.append(row | {f"valid_{name}": score for name, score in scores.items()})
        history.done, history.batch, history.total, history.count = epoch + 1, 0, 0.0, 0
        chosen_by = f"valid_{self.objective.chosen_by}"
        if history.epochs[-1][chosen_by] <= min(past[chosen_by] for past in history.epochs):
            history.best, self.best = len(history.epochs) - 1, copy.deepcopy(self.model.state_dict())
        self.run.log(epoch, {name: value for name, value in history.epochs[-1].items() if name not in ("epoch", "phase")})

    def _step(self, phase: Phase, optimizer: torch.optim.Optimizer, step: int, batch: Batch) -> None:
        x, y, rows = batch
        self._set_rates(phase, optimizer, step)
        value = train_step(
            phase.forward, optimizer, x, y, self.objective.loss, lambda loss: self._refuse(loss, optimizer, step, rows)
        )
        self._watch(step, phase.steps, value, len(y))
        history, every = self.history, math.ceil(phase.steps / TRACED)
        history.batch, history.total, history.count = history.batch + 1, history.total + value * len(y), history.count + len(y)
        history.part, history.parts = history.part + value, history.parts + 1
        if history.batch % every == 0 or history.batch == phase.steps:
            number = history.done * phase.steps + history.batch
            history.trace.append([number, optimizer.param_groups[-1]["lr"], history.part / history.parts])
            history.part, history.parts = 0.0, 0

    def _set_rates(self, phase: Phase, optimizer: torch.optim.Optimizer, step: int) -> None:
        factor, momentum = phase.schedule.at(step)
        set_rates(optimizer, factor * self.history.scale, momentum)

    def _watch(self, step: int, steps: int, loss: float, images: int) -> None:
        """Look for a collapse in the first steps of a phase, unless one of its epochs is the best so far.

        Raises:
            Collapsed: the network collapsed, and its rates may still be lowered.
        """
        history = self.history
        if step == 0:
            history.watched = []
        watched = step < WATCHED or sum(count for _, count in history.watched) < 32 * WATCHED
        if self.objective.guess is None or not watched or history.scale < RETREAT ** (0.5 - MOST_RETREATS):
            return
        if history.best_epoch()["epoch"] > history.done - step // steps:  # starting again would lose that epoch
            return
        history.watched.append((loss, images))
        if is_spoilt(history.watched, self.objective.guess, self.objective.worse):
            raise Collapsed

    def _refuse(self, loss: float, optimizer: torch.optim.Optimizer, step: int, rows: torch.Tensor) -> None:
        if loss <= EXPLODED:  # also false for NaN
            return
        rates = ", ".join(dict.fromkeys(f"{group['lr']:.2g}" for group in optimizer.param_groups))
        files = ", ".join(self.run.name_of(row) for row in rows[:FILES_NAMED].tolist())
        more = f", … ({len(rows)} in all)" if len(rows) > FILES_NAMED else ""
        raise InputError(
            f"{self.what}: the loss is {loss:.3g} in epoch {self.history.done + 1}, step {step} at learning rate {rates}\n"
            f"  in the batch of {files}{more}",
            wanted=f"a loss below {EXPLODED:g}",
            fix=f"lower {self.what}.lr{self._kept()}",
        )

    def _kept(self) -> str:
        if not self.run.checkpoint or not self.history.done:
            return ""
        kept = f"the state after epoch {self.history.done} and the best state stay in {self.run.checkpoint.path}"
        return f"; {kept} until a training with other settings starts"

    def _save(self, optimizer: torch.optim.Optimizer, random: Tensors) -> None:
        if self.run.checkpoint:
            history = self.history
            just_now = history.best == len(history.epochs) - 1 and not history.batch and bool(history.epochs)
            best = {} if just_now else self.best
            self.run.checkpoint.save(
                Saved(self.model.state_dict(), best, optimizer_tensors(optimizer), random, asdict(history))
            )


def train_step(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: torch.Tensor,
    loss: Loss,
    check: Callable[[float], None] = lambda loss: None,
) -> float:
    """Take one step on a batch and return the loss before it, which `check` sees first and may refuse by raising."""
    value = loss(forward(x), y)
    number = float(value.detach())
    check(number)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return number


def csv_bytes(rows: Sequence[Any], columns: list[str] | None = None) -> bytes:
    """Return rows as CSV, without times, so that equal runs give equal bytes."""
    buffer = io.StringIO()
    pd.DataFrame(rows, columns=columns).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue().encode()


def history_files(history: History) -> dict[str, bytes]:
    """Return history.csv, with a row per epoch, and trace.csv, with about 50 points per epoch."""
    return {
        "history.csv": csv_bytes(history.epochs, list(history.epochs[-1])),
        "trace.csv": csv_bytes(history.trace, ["step", "lr", "loss"]),
    }
