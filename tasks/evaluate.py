"""evaluate: classify the test split, on the base view and with test-time augmentation; write metrics, predictions, report."""

from __future__ import annotations

import logging
from typing import Any

import torch
from headstart.activations.store import Activations
from headstart.core.command_line import main
from headstart.core.files import sha256_file, write_bytes, write_json, write_text
from headstart.core.stages import StageContext, Summary
from headstart.evaluation import galleries, metrics
from headstart.evaluation.comparisons import compare_models, result_rows
from headstart.evaluation.look_alikes import look_alike_pairs
from headstart.evaluation.page import Evaluation, page, pictures
from headstart.evaluation.predictions import predictions_file
from headstart.evaluation.sections import flat_params
from headstart.images.loader import RESIZED_CACHE_BYTES, ImageSource, ResizedImageCache
from headstart.images.transforms import Augmentation
from headstart.manifest import class_indices, read_manifest, rows_of, without_copies, write_csv
from headstart.models.trained import load_head
from headstart.prediction.predictor import Predictor
from headstart.runtime import configure
from headstart.training.validation import collect_logits

logger = logging.getLogger("headstart")
HEAD, FINE_TUNED = "models/head.safetensors", "models/fine_tuned.safetensors"


def evaluate(context: StageContext) -> Summary:
    """Write reports/{metrics.json, predictions.parquet, look_alikes.csv, report.html} and reports/pictures/."""
    root, params = context.root, context.params
    manifest = read_manifest(root / "data/manifest.parquet")
    test, files = without_copies(manifest, "test"), rows_of(manifest, "test")
    y_n = class_indices(test)
    head, card = load_head(root / HEAD)
    activations = Activations(root / "data/activations/pooled")
    augmentation = Augmentation(**params.precompute.augment.model_dump())
    folder, cache = context.root / params.data.source, ResizedImageCache(RESIZED_CACHE_BYTES)
    images = ImageSource(folder, params.data.max_pixels, card.preprocessing, augmentation, params.precompute.view_seed, cache)
    head_vnc = torch.stack([collect_logits(head, [x_nd]) for x_nd in activations.all_views(list(test["key"]))])
    tuned_vnc = fine_tuned_logits(context, images, list(zip(test["path"], test["key"], strict=True)))
    p = {
        "head": head_vnc[0].double().softmax(1),
        "head_tta": metrics.tta_probabilities(head_vnc, params.evaluate.tta),
        "fine_tuned": tuned_vnc[0].double().softmax(1),
        "fine_tuned_tta": metrics.tta_probabilities(tuned_vnc, params.evaluate.tta),
    }
    results: dict[str, Any] = {"n_test": len(test), "n_test_files": len(files)}
    results |= {name: metrics.summarise(p_nc, y_n) for name, p_nc in p.items()}
    results["comparisons"] = compare_models(p, y_n, params.seed)
    write_json(context.output("reports/metrics.json"), results)
    found = galleries.TestPredictions(images, test, p["fine_tuned_tta"], card.classes)
    write_bytes(context.output("reports/predictions.parquet"), predictions_file(files, found))
    pairs = look_alike_pairs(activations, rows_of(manifest, "train").drop_duplicates("key", ignore_index=True), test)
    write_csv(context.output("reports/look_alikes.csv"), pairs)
    digests = {name: sha256_file(root / name) for name in ("data/manifest.parquet", HEAD, FINE_TUNED)}
    evaluation = Evaluation(results, found, y_n, manifest, card, pairs, params.data.source, flat_params(params), digests)
    drawn = pictures(evaluation, root / "reports")
    for name, data in drawn.items():
        write_bytes(context.output(f"reports/pictures/{name}"), data)
    write_text(context.output("reports/report.html"), page(evaluation, root / "reports", drawn))
    if len(pairs):
        logger.warning("  %s test images look much like a training image; reports/look_alikes.csv lists them", len(pairs))
    for row in result_rows(results):
        figures = row["accuracy"], row["accuracy_low"], row["accuracy_high"]
        logger.info("  %s: test accuracy %.4f (95 %% interval %.4f to %.4f)", row["name"], *figures)
    return {f"{name}_accuracy": results[name]["accuracy"] for name in p}


def fine_tuned_logits(context: StageContext, images: ImageSource, files: list[tuple[str, str]]) -> torch.Tensor:
    """Return the fine-tuned model's logits [v, n, c] of every view of the test images, computed by precompute's engine."""
    runtime, how = context.params.runtime, context.params.precompute
    device = configure(runtime.threads, runtime.device)
    predictor = Predictor(
        context.root / FINE_TUNED, device, how.batch_size, runtime.workers, engine=how.engine, precision=how.precision
    )
    plan = predictor.engine.plan
    logger.info("  classifying with %s in %s (%s)", plan.engine, plan.precision, plan.reason)
    return predictor.logits_of_files(images, files, 1 + how.views, "classifying test images")


if __name__ == "__main__":
    from headstart.tracking.record import record_pipeline

    main("evaluate", evaluate, after=record_pipeline)
