"""find_lr: run the learning-rate range test of the head on cached activations."""

from __future__ import annotations

from headstart.activations.inputs import HeadInputs
from headstart.core.command_line import main
from headstart.core.stages import StageContext, Summary
from headstart.manifest import read_manifest
from headstart.models.heads import build_head, fit_standardiser, members_of
from headstart.runtime import configure
from headstart.seeds import derive_seed
from headstart.targets.kinds import read_target
from headstart.tracking.runs import stage_run
from headstart.training.activation_dataset import endless, inputs_of
from headstart.training.head import head_prepare
from headstart.training.head_spec import head_spec
from headstart.training.lr_report import write_search
from headstart.training.lr_search import Curve, range_test, suggest
from headstart.training.options import Options


def find_lr(context: StageContext) -> Summary:
    """Write reports/find_lr/{lr.json, curve.csv, curve.png}. No image is decoded."""
    params, settings, training = context.params, context.params.find_lr, context.params.train_head
    configure(params.runtime.threads, "cpu")
    manifest = read_manifest(context.root / "data/manifest.parquet")
    inputs = HeadInputs(context.root / "data/activations")
    target, rows = read_target(context.root / "data/target.json"), manifest[manifest["split"] == "train"]
    y = target.encode(rows["label"])
    options = Options(
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        loss=training.loss,
        label_smoothing=training.label_smoothing,
        balance=training.balance,
    )
    train = inputs_of(inputs, rows["key"], y, options.sampling(target, y))

    spec = head_spec(inputs, training.head, target.outputs, training.columns, rows["key"])

    def curve(number: int) -> Curve:
        seed = derive_seed(params.seed, "find_lr", number)
        head = build_head(spec, seed)
        fit_standardiser(head, train.base_views())
        return range_test(
            head,
            head_prepare(options, settings.lr_min),
            endless(train, options, seed, members_of(head)),
            loss=options.objective(target, y).loss,
            lr_min=settings.lr_min,
            lr_max=settings.lr_max,
            steps=settings.steps,
            seed=seed,
        )

    searched = {"lr_min": settings.lr_min, "lr_max": settings.lr_max, "steps": settings.steps, "seeds": settings.seeds}
    with stage_run(context.root, "find_lr", searched) as log:
        curves = [curve(number) for number in range(settings.seeds)]
        log.curve({"lr": lr, "smoothed_loss": loss} for lr, loss in zip(curves[0].lrs, curves[0].losses, strict=True))
    found = suggest(curves, settings.default)
    return {"suggested_lr": write_search(context.output("reports/find_lr/lr.json").parent, curves, found)}


if __name__ == "__main__":
    main("find_lr", find_lr)
