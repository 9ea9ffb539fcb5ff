"""evaluate: the test split, plain and with test-time augmentation; metrics, predictions, report."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from headstart.activations.engine import build_engine
from headstart.activations.store import Activations
from headstart.core.command_line import main
from headstart.core.files import sha256_file, write_bytes, write_json, write_text
from headstart.core.parallel import chunks
from headstart.core.progress import track
from headstart.core.stages import StageContext, Summary
from headstart.evaluation import galleries, metrics, plots, report
from headstart.evaluation.galleries import Judged
from headstart.evaluation.look_alikes import BLOCK, look_alikes
from headstart.hardware import resolve_workers
from headstart.images.loader import KEPT_BYTES, ImageSource, Kept, image_map
from headstart.images.transforms import Augmentation
from headstart.manifest import read_manifest, without_copies, write_csv
from headstart.models.heads import Classifier
from headstart.models.trained import Card, load_classifier, load_head
from headstart.runtime import configure
from headstart.tracking.record import record_pipeline
from headstart.training.validation import predict

logger = logging.getLogger("headstart")
TUNED = "models/fine_tuned.safetensors"


def evaluate(context: StageContext) -> Summary:
    """Write reports/{metrics.json, predictions.parquet, look_alikes.csv, report.html} and reports/pictures/."""
    params = context.params
    manifest = read_manifest(context.root / "data/manifest.parquet")
    test, files = without_copies(manifest, "test"), manifest[manifest["split"] == "test"].reset_index(drop=True)
    y_n = torch.tensor(test["class_index"].to_numpy(), dtype=torch.int64)
    head, _ = load_head(context.root / "models/head.safetensors")
    activations = Activations(context.root / "data/activations/pooled")
    head_vnc = torch.stack([predict(head, [activations.rows(list(test["key"]), view)]) for view in range(activations.views)])
    model, card = load_classifier(context.root / "models/fine_tuned.safetensors")
    images = ImageSource(
        folder=context.root / params.data.source,
        max_pixels=params.data.max_pixels,
        preprocessing=card.preprocessing,
        augmentation=Augmentation(**params.precompute.augment.model_dump()),
        seed=params.precompute.view_seed,
        kept=Kept(KEPT_BYTES),
    )
    tuned_vnc = all_views(context, images, model, test)
    p = {
        "head": head_vnc[0].double().softmax(1),
        "head_tta": metrics.test_time_augmentation(head_vnc, params.evaluate.tta),
        "fine_tuned": tuned_vnc[0].double().softmax(1),
        "fine_tuned_tta": metrics.test_time_augmentation(tuned_vnc, params.evaluate.tta),
    }
    results: dict[str, Any] = {"n_test": len(test), "n_test_files": len(files)} | {
        name: metrics.summarise(p_nc, y_n) for name, p_nc in p.items()
    }
    results["comparisons"] = report.compare_models(p, y_n, params.seed)
    write_json(context.output("reports/metrics.json"), results)
    judged = galleries.Judged(images, test, p["fine_tuned_tta"], card.classes)
    row_of = dict(zip(test["key"], range(len(test)), strict=True))
    p_of_files = judged.p_nc[[row_of[key] for key in files["key"]]]
    write_bytes(context.output("reports/predictions.parquet"), predictions(files, p_of_files, card))
    counts = metrics.confusion_matrix(y_n, judged.p_nc.argmax(1), len(card.classes))
    for name, data in pictures(context.root, judged, counts, y_n).items():
        write_bytes(context.output(f"reports/pictures/{name}"), data)
    pairs = alike(activations, manifest, test)
    write_csv(context.output("reports/look_alikes.csv"), pairs)
    write_text(context.output("reports/report.html"), html(context, results, manifest, judged, counts, card, pairs))
    if len(pairs):
        logger.warning("  %s test images look much like a training image: reports/look_alikes.csv", len(pairs))
    for row in report.result_rows(results):
        logger.info("  %s: %.4f (%.4f to %.4f)", row["name"], row["accuracy"], row["accuracy_low"], row["accuracy_high"])
    return {f"{name}_accuracy": results[name]["accuracy"] for name in p}


def all_views(context: StageContext, images: ImageSource, model: Classifier, test: pd.DataFrame) -> torch.Tensor:
    """The fine-tuned model's logits [v, n, c] of every view of the test images.

    As in precompute, by the same engine, each worker decodes and classifies in one thread.
    """
    params, settings = context.params, context.params.precompute
    engine = build_engine(
        model.body,
        images.preprocessing,
        engine=settings.engine,
        precision=settings.precision,
        storage="float32",
        batch_size=settings.batch_size,
        device=configure(params.runtime.threads, params.runtime.device),
        workers=params.runtime.workers,
    )
    logger.info("  classifying by %s in %s (%s)", engine.plan.engine, engine.plan.precision, engine.plan.reason)
    views, files = 1 + settings.views, list(zip(test["path"], test["key"], strict=True))

    @torch.inference_mode()
    def classify(part: list[tuple[str, str]]) -> torch.Tensor:
        x = torch.stack([view for file in part for view in images.views(*file, range(views))])
        logits: torch.Tensor = model.head(torch.cat([engine(some) for some in x.split(settings.batch_size)]))
        return logits

    workers, parts = resolve_workers(params.runtime.workers), chunks(files, max(1, settings.batch_size // views))
    done = track(
        image_map(classify, parts, workers, ahead=2 * workers),
        "classifying test images",
        len(files) * views,
        unit="views",
        weigh=len,
    )
    return torch.cat(list(done)).reshape(len(files), views, -1).transpose(0, 1)


def alike(activations: Activations, manifest: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Test images that look much like a training image to the backbone: path, label, like, like_label, cosine."""
    train = manifest[manifest["split"] == "train"].drop_duplicates("key").reset_index(drop=True)

    def blocks() -> Iterator[torch.Tensor]:
        return activations.blocks(list(train["key"]), BLOCK)

    rows = [
        (test["path"][i], test["label"][i], train["path"][j], train["label"][j], cosine)
        for i, j, cosine in look_alikes(activations.rows(list(test["key"])), blocks)
    ]
    return pd.DataFrame(rows, columns=["path", "label", "like", "like_label", "cosine"])


def predictions(files: pd.DataFrame, p_nc: torch.Tensor, card: Card) -> bytes:
    """One row per file of the test split as Parquet: path, label, predicted, probabilities in class order."""
    columns = {
        "path": pa.array(files["path"], pa.string()),
        "label": pa.array(files["label"], pa.string()),
        "predicted": pa.array([card.classes[i] for i in p_nc.argmax(1).tolist()], pa.string()),
        "probabilities": pa.array(p_nc.tolist(), pa.list_(pa.float64())),
    }
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(card.classes)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def pictures(root: Path, judged: Judged, counts: np.ndarray, y_n: torch.Tensor) -> dict[str, bytes]:
    """reports/pictures: confusion matrix, calibration, training, and the galleries as contact sheets."""
    courses = {stage: report.course(root / f"reports/{stage}") for stage in ("train_head", "fine_tune")}
    return {
        "confusion_matrix.png": plots.confusion(counts, judged.classes),
        "calibration.png": plots.reliability_diagram(metrics.reliability(judged.p_nc, y_n)),
        "training.png": plots.training_curves(courses),
        **galleries.sheets(judged),
    }


def html(
    context: StageContext,
    results: dict[str, Any],
    manifest: pd.DataFrame,
    judged: Judged,
    counts: np.ndarray,
    card: Card,
    pairs: pd.DataFrame,
) -> str:
    """The report of this evaluation; `pictures` has been written."""
    root, params = context.root, context.params
    digests = {name: sha256_file(root / name) for name in ("data/manifest.parquet", "models/head.safetensors", TUNED)}
    searches = [
        report.search_section(root / "reports/find_lr", "Of the head, on cached activations"),
        report.search_section(root / "reports/fine_tune", "Of the unfrozen network"),
    ]
    verdict = root / "reports/fine_tune/bn_freeze.json"
    shown = {
        name: report.base64_text(context.output(f"reports/pictures/{name}.png").read_bytes())
        for name in ("confusion_matrix", "calibration", "training")
    }
    return report.render(
        {
            "source": params.data.source,
            "backbone": card.backbone,
            "image_size": card.preprocessing.image_size,
            "classes": card.classes,
            "n_test": f"{results['n_test']:,}",
            "copies": f"{results['n_test_files'] - results['n_test']:,}" if results["n_test_files"] > results["n_test"] else "",
            "kept": json.loads((root / "reports/fine_tune/kept.json").read_text())["sentence"],
            "results": report.result_rows(results),
            "comparisons": report.comparison_rows(results),
            "galleries": {
                name: [judged.item(i) for i in rows[: galleries.SHOWN]] for name, rows in galleries.rankings(judged).items()
            },
            "by_class": {name: [judged.item(i) for i in rows] for name, rows in galleries.by_class(judged).items()},
            "pictures": shown,
            "confused": metrics.most_confused(counts, card.classes),
            "per_class": report.class_rows(metrics.per_class(counts), manifest),
            "searches": [search for search in searches if search],
            "bn_freeze": json.loads(verdict.read_text())["sentence"] if verdict.is_file() else "",
            "data": report.data_section(root / "reports/data"),
            "alike": galleries.look_alike_pictures(judged.images, pairs, manifest),
            "alike_total": len(pairs),
            "params": list(report.flat_params(params).items()),
            "provenance": [(f"SHA-256 of {name}", digest) for name, digest in digests.items()]
            + [("backbone weights", card.provenance["weights"])],
        }
    )


if __name__ == "__main__":
    main("evaluate", evaluate, after=record_pipeline)
