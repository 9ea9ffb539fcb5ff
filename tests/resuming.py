"""A training that dies where it is told to: `python -m tests.resuming FOLDER ARM POINT`, run by tests/test_resume.py.

Dropout, shuffling, augmentation, stochastic depth, channels-last memory, two phases, weights of classes; batch norm is
`frozen` or `moving`, the ARM. The ARM `several` learns several labels, `columns` a number from images and columns, with two
members and hidden categories. It prints the digest of the model it ends with, and its history's files. Points: `none`;
`step N` before the Nth step since the process began; `validate N`; `save N`, in the middle of writing the Nth checkpoint;
`saved N`, just after it; `term N`, a SIGTERM to itself within the Nth step; `term-validate N`, while it validates.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from headstart.core.command_line import command_line
from headstart.images.transforms import Augmentation, augmented_view
from headstart.models.backbones import build_backbone
from headstart.models.column_head import ColumnSpec
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.models.weights import state_digest
from headstart.runtime import to_device
from headstart.seeds import view_generator
from headstart.targets.multi_label import MultiLabel
from headstart.targets.number import Number
from headstart.targets.single_label import SingleLabel
from headstart.targets.target import Target
from headstart.training import checkpoints, loop
from headstart.training.batch_sources import TrainingImages, from_images
from headstart.training.checkpoints import Checkpoint
from headstart.training.fine_tune import Labels, Network, UnfreezePhase, fine_tune
from headstart.training.loop import TrainingRun
from headstart.training.options import Options

COUNT = 40
COLUMNS = ColumnSpec(((0.0, 0.5, 1.0),), (5,), (0.3,), (8,), (0.1,), 0.1, "lesson", 2)


class Fuse:
    """Kills this process at the Nth call of one kind."""

    def __init__(self, point: str) -> None:
        self.kind, _, number = point.partition(" ")
        self.left = int(number or 0)

    def __call__(self, kind: str) -> None:
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM if kind.startswith("term") else signal.SIGKILL)


def arm(fuse: Fuse) -> None:
    """Put the fuse into the loop."""
    step, replace, save = loop.train_step, os.replace, Checkpoint.save

    def train_step(*arguments: object) -> float:
        fuse("step")
        value = step(*arguments)  # type: ignore[arg-type]
        fuse("term")
        return value

    def renamed(source: object, target: object) -> None:
        if str(target).endswith(".safetensors"):
            fuse("save")
        replace(source, target)  # type: ignore[arg-type]

    def saved(self: Checkpoint, state: checkpoints.Saved) -> None:
        save(self, state)
        fuse("saved")

    loop.train_step, os.replace, Checkpoint.save = train_step, renamed, saved  # type: ignore[assignment,method-assign]


def task(arm: str) -> tuple[Labels, Options]:
    """What is learned, and how."""
    options = Options(batch_size=8, label_smoothing=0.1, balance="weights", patience=3)
    target: Target = SingleLabel(("a", "b", "c"))
    texts = [("a", "b", "c")[n % 4 % 3] for n in range(COUNT)]
    if arm == "several":
        target, texts = MultiLabel(("a", "b", "c")), [("a b", "b", "", "a c")[n % 4] for n in range(COUNT)]
    if arm == "columns":
        target, texts = Number(False, 20.0, 10.0), [str(n) for n in range(COUNT)]
        options = Options(batch_size=8, loss="huber", patience=3)
    y = target.encode(texts)
    return Labels(target, y, y), options


def main() -> None:
    folder, frozen, point = Path(sys.argv[1]), sys.argv[2] == "frozen", " ".join(sys.argv[3:])
    command_line()
    torch.set_num_threads(2)
    fuse = Fuse(point)
    arm(fuse)
    backbone = build_backbone("test_efficientnet", "random", 32)
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, options = task(sys.argv[2])
    augmentation = Augmentation("side_on", True, 10, 1.2, 0.1)

    def augmented(epoch: int, row: int) -> torch.Tensor:
        return augmented_view(images[row], backbone.preprocessing, augmentation, view_generator(0, "epoch", row, epoch))

    def plain(row: int) -> torch.Tensor:
        if row == 0:
            fuse("validate")
            fuse("term-validate")
        return images[row]

    beside = torch.stack([torch.linspace(0, 1, COUNT), torch.arange(COUNT) % 3 + 2.0], dim=1)
    columns = (beside, beside) if sys.argv[2] == "columns" else None
    load, cpu = TrainingImages(augmented, labels.train), torch.device("cpu")
    feed = from_images(load, (plain, COUNT), backbone.preprocessing, 2, cpu, columns)
    spec = HeadSpec("mlp", backbone.width, labels.target.outputs, COLUMNS if columns else None)
    model = to_device(Classifier(backbone.body, build_head(spec, 0)), cpu)
    history = fine_tune(
        Network(model, backbone.groups, bn_freeze=frozen),
        [(UnfreezePhase("late", 2, 3e-3, 2), feed), (UnfreezePhase("all", 2, 1e-3, 2), feed)],
        labels,
        options,
        TrainingRun(0, lambda epoch, metrics: None, checkpoint=Checkpoint(folder, "training")),
    )
    print(state_digest(model), loop.history_files(history))  # noqa: T201


if __name__ == "__main__":
    main()
