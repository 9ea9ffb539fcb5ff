"""evaluate: answer for the test split, on the base view and with test-time augmentation; write metrics, predictions, report."""

from __future__ import annotations

import logging
from typing import Any

from headstart.activations.inputs import HeadInputs
from headstart.core.command_line import main
from headstart.core.files import sha256_file, write_bytes, write_json, write_text
from headstart.core.stages import StageContext, Summary
from headstart.evaluation.answers import image_answers
from headstart.evaluation.comparisons import compare_models, result_rows
from headstart.evaluation.galleries import Gallery
from headstart.evaluation.look_alikes import NO_PAIRS, look_alike_pairs
from headstart.evaluation.page import Evaluation, page, pictures
from headstart.evaluation.predictions import predictions_file
from headstart.evaluation.sections import flat_params
from headstart.evaluation.table import table_answers
from headstart.images.loader import open_images
from headstart.manifest import read_manifest, rows_of, without_copies, write_csv
from headstart.models.trained import load_card, load_head
from headstart.prediction.predictor import Predictor
from headstart.runtime import configure
from headstart.targets.reports.judged import Judged
from headstart.targets.reports.kinds import report_of
from headstart.targets.target import DecisionRule

logger = logging.getLogger("headstart")
HEAD, FINE_TUNED = "models/head.safetensors", "models/fine_tuned.safetensors"


def evaluate(context: StageContext) -> Summary:
    """Write reports/{metrics.json, predictions.parquet, look_alikes.csv, report.html} and reports/pictures/."""
    root, params = context.root, context.params
    manifest = read_manifest(root / "data/manifest.parquet")
    test, files, train = without_copies(manifest, "test"), rows_of(manifest, "test"), rows_of(manifest, "train")
    card, inputs = load_card(root / FINE_TUNED), HeadInputs(root / "data/activations")
    if card.preprocessing is None:
        configure(params.runtime.threads, "cpu")
        splits = {"train": train, "valid": without_copies(manifest, "valid"), "test": test}
        rule = DecisionRule(params.evaluate.beta, params.evaluate.thresholds)
        head, _ = load_head(root / FINE_TUNED)
        answered, images = table_answers(inputs, head, card.target, splits, rule, params.seed), None
        pairs = NO_PAIRS
    else:
        runtime, how = params.runtime, params.precompute
        device = configure(runtime.threads, runtime.device)
        tuned = Predictor(root / FINE_TUNED, device, how.batch_size, runtime.workers, how.engine, how.precision)
        plan = tuned.engine.plan
        logger.info("  classifying with %s in %s (%s)", plan.engine, plan.precision, plan.reason)
        folder, most = root / params.data.source, params.data.max_pixels
        images = open_images(folder, most, card.for_images, how.augment.model_dump(), how.view_seed)
        answered = image_answers(inputs, root / HEAD, tuned, images, test, params.evaluate.tta)
        assert inputs.pooled is not None
        pairs = look_alike_pairs(inputs.pooled, train.drop_duplicates("key", ignore_index=True), test)
    truth, report = card.target.truth(test["label"]), report_of(card.target)
    results: dict[str, Any] = {"n_test": len(test), "n_test_files": len(files)}
    results |= {name: report.summarise(one.answers, truth, one.target) for name, one in answered.items()}
    results["comparisons"] = compare_models(answered, truth, params.seed)
    write_json(context.output("reports/metrics.json"), results)
    judged = Judged(test, list(answered.values())[-1].answers, truth, card.target)
    write_bytes(context.output("reports/predictions.parquet"), predictions_file(files, judged))
    write_csv(context.output("reports/look_alikes.csv"), pairs)
    digests = {name: sha256_file(root / name) for name in ("data/manifest.parquet", HEAD, FINE_TUNED)}
    gallery, by_class = Gallery(judged, report, images), card.target.format.exploded(manifest)
    source, flat = params.data.source, flat_params(params)
    evaluation = Evaluation(results, gallery, manifest, by_class, card, pairs, source, flat, digests)
    drawn = pictures(evaluation, root / "reports")
    for name, data in drawn.items():
        write_bytes(context.output(f"reports/pictures/{name}"), data)
    write_text(context.output("reports/report.html"), page(evaluation, root / "reports", drawn))
    if len(pairs):
        logger.warning("  %s test images look much like a training image; reports/look_alikes.csv lists them", len(pairs))
    for row in result_rows(results):
        logger.info("  %s: %s", row["name"], report.in_words(row))
    return {f"{name}_{report.headline}": results[name][report.headline] for name in answered}


if __name__ == "__main__":
    from headstart.tracking.record import record_pipeline

    main("evaluate", evaluate, after=record_pipeline)
