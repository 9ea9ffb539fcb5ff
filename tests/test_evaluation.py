import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from headstart.core.errors import InputError
from headstart.evaluation import curves, galleries
from headstart.evaluation import page as page_module
from headstart.evaluation.look_alikes import look_alikes
from headstart.prediction.predictor import Predictor
from headstart.targets.reports import classification, plots, single_label
from headstart.targets.reports.judged import Judged
from headstart.targets.single_label import SingleLabel
from headstart.targets.target import tta
from headstart.training.lr_report import lr_curve
from tests.conftest import encode, picture
from tests.test_models import make_model

TARGET = SingleLabel(("a", "b", "c"))


def test_both_formulas_of_test_time_augmentation():
    logits = torch.randn(5, 7, 3)
    p = logits.double().softmax(-1)
    answers = TARGET.answers(logits)
    assert torch.allclose(tta(answers, "mean"), p.mean(0))
    assert torch.allclose(tta(answers, "blend"), 0.25 * p[0] + 0.75 * p[1:].mean(0))
    for formula in ("mean", "blend"):
        assert torch.equal(tta(TARGET.answers(logits[:1]), formula), p[0])


def test_metrics_agree_with_scikit_learn_and_counts():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (200,), generator=generator)
    p = (torch.randn(200, 4, generator=generator) + 2 * torch.nn.functional.one_hot(y, 4)).double().softmax(1)
    found, said = classification.summarise(p, y), p.argmax(1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, said))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p.numpy()))
    counts = classification.confusion_matrix(y, said, 4)
    assert counts.tolist() == [[int(((y == i) & (said == j)).sum()) for j in range(4)] for i in range(4)]
    off = [(int(counts[i, j]), str(i), str(j)) for i in range(4) for j in range(4) if i != j]
    assert classification.most_confused(counts, tuple("0123"), most=1)[0][2] == max(off)[0]


def test_figures_of_each_class():
    y, said = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 0, 1])
    assert classification.per_class(y, said, 4) == [
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "images": 3},
        {"precision": 1 / 3, "recall": 0.5, "f1": pytest.approx(0.4), "images": 2},
        {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0},  # no image, never predicted
        {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 1},
    ]


def test_pictures_are_the_same_bytes_each_time():
    counts = np.array([[3, 1], [0, 4]])
    course = curves.TrainingCurves(np.array([[1, 1e-3, 2.0], [2, 1e-4, 1.0]]), np.array([[2, 1.1, 0.5]]))
    found = classification.reliability(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
    for draw in (
        lambda: plots.confusion(counts, ("a", "b")),
        lambda: lr_curve([((1e-3, 1e-2), (2.0, 1.0))], {"steep": [3e-3]}, 3e-3, False),
        lambda: curves.training_curves({"train_head": course, "fine_tune": course}, "accuracy"),
        lambda: plots.reliability_diagram(found),
    ):
        assert draw() == draw()
        assert draw().startswith(b"\x89PNG")


EVIL = "<script>alert(1)</script>"
DATA = {
    "sentence": EVIL, "classes_kept_in_train": [EVIL], "classes_without_test": [EVIL], "classes_without_valid": [],
    "rows": [(EVIL, "1")], "near_total": 1,
    "near": [{"path": EVIL, "label": EVIL, "split": "train", "of": EVIL, "of_label": EVIL, "of_split": "test"}],
    "unusual_shares": [{"class": EVIL, "split": "test", "images": 1, "expected": 9.0}],
    "pictures": {"samples": "", "labels": "", "sizes": ""},
}  # fmt: skip


def page() -> str:
    """A report in which every name is an attack."""
    table = pd.DataFrame({"path": [EVIL], "key": [""], "label": [EVIL]})
    answers = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    target = SingleLabel((EVIL, EVIL + "x"))
    told = galleries.Gallery(Judged(table, answers, torch.tensor([0]), target), single_label.REPORT, None).item(0)
    item = told | {"image": "x"}
    score = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "log_loss": 1.0, "calibration_error": 0.1}
    against = {"a": EVIL, "b": EVIL, "only_a": 1, "only_b": 2, "p_value": 0.5, "log_loss": 0.1, "low": 0, "high": 1}
    row = {"name": EVIL, "precision": 0, "recall": 0, "f1": 0, "train": 1, "valid": 1, "test": 1}
    search = {"title": EVIL, "sentence": EVIL, "rules": [{"rule": EVIL, "lrs": EVIL}], "picture": ""}
    column = {"name": EVIL, "role": EVIL, "about": EVIL}
    alike = {"path": EVIL, "label": EVIL, "like": EVIL, "like_label": EVIL, "image": "", "like_image": ""}
    return page_module.render(single_label.REPORT.template, {
        "source": EVIL, "backbone": EVIL, "image_size": 1, "what": "images", "classes": [EVIL, "b"], "n_test": "1",
        "copies": "2", "kept": EVIL,
        "results": [{"name": EVIL, **score}] * 4, "comparisons": [against | {"better": EVIL}],
        "galleries": {"most wrong": [item], "most right": [item], "most uncertain": []}, "meanings": single_label.MEANINGS,
        "by_class": {EVIL: [item]},
        "pictures": {"confusion_matrix": "", "calibration": "", "training": ""}, "confused": [(EVIL, EVIL, 1)],
        "per_class": [row], "searches": [search], "columns": [column], "bn_freeze": EVIL,
        "data": DATA, "alike": [alike], "alike_total": 1,
        "params": [(EVIL, EVIL)], "provenance": [(EVIL, EVIL)],
    })  # fmt: skip


def test_file_and_class_names_are_escaped_in_the_report():
    html = page()
    assert EVIL not in html
    assert "&lt;script&gt;" in html
    assert html.count("<script>") == 1  # our own
    assert "http://" not in html and "https://" not in html and 'src="/' not in html  # opens offline


def test_the_report_is_accessible():
    """Every picture has a text, every link of the contents a place, one h1, a language, and text stands out."""
    from html.parser import HTMLParser

    seen: dict[str, list[dict[str, str | None]]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.setdefault(tag, []).append(dict(attrs))

    html = page()
    Reader().feed(html)
    assert all(image.get("alt") for image in seen["img"])
    ids = {attrs["id"] for tag in seen.values() for attrs in tag if attrs.get("id")}
    assert {link["href"].removeprefix("#") for link in seen["a"]} <= ids
    assert len(seen["h1"]) == 1
    assert seen["html"][0]["lang"] == "en"

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    import re

    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", html))
    for ink in ("ink", "quiet", "accent"):
        for paper in (colours["wash"], "#ffffff"):
            contrast = (luminance(paper) + 0.05) / (luminance(colours[ink]) + 0.05)
            assert contrast >= 4.5, (ink, paper, contrast)  # WCAG 2.1, 1.4.3


def judged(p: list[list[float]], y: list[int], folder) -> galleries.Gallery:
    from headstart.core.files import sha256_bytes
    from headstart.images.loader import ImageSource
    from headstart.images.preprocessing import Preprocessing
    from headstart.images.transforms import Augmentation

    preprocessing = Preprocessing(20, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    rows = []
    for i, c in enumerate(y):
        data = encode(picture(c, i))
        (folder / f"{i}.png").write_bytes(data)
        rows.append({"path": f"{i}.png", "key": sha256_bytes(data), "label": "abc"[c]})
    images = ImageSource(folder, 10_000, preprocessing, Augmentation("none", False, 0, 1, 0), 0)
    table = pd.DataFrame(rows)
    answers = Judged(table, torch.tensor(p, dtype=torch.float64), TARGET.truth(table["label"]), TARGET)
    return galleries.Gallery(answers, single_label.REPORT, images)


def test_the_lessons_galleries(tmp_path):
    p = [[0.98, 0.01, 0.01], [0.1, 0.8, 0.1], [0.5, 0.49, 0.01], [0.05, 0.05, 0.9], [0.3, 0.3, 0.4], [0.01, 0.98, 0.01]]
    found = judged(p, [0, 0, 0, 1, 2, 1], tmp_path)
    ranks = found.report.rankings(found.judged)
    assert ranks["most wrong"] == [3, 1]
    assert ranks["most right"] == [0, 5, 2, 4]
    assert ranks["most uncertain"][:2] == [2, 4]
    assert found.report.grouped(found.judged) == {"a": [1, 0, 2], "b": [3, 5], "c": [4]}
    item = found.item(3)
    assert item["html"] == "<b>b</b> (5.0 %) classified as <b>c</b> (90.0 %)"
    assert (item["alt"], item["mark"]) == ("a b classified as c", "wrong")
    assert found.item(0)["html"] == "<b>a</b>, right (98.0 %)" and found.item(0)["mark"] == "right"
    sheets = galleries.sheets(found)
    assert set(sheets) == {"most_wrong.png", "most_right.png", "most_uncertain.png"}
    assert dict(galleries.sheets(found)) == dict(sheets)


def test_only_the_worst_of_many_classes_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(single_label, "CLASSES_SHOWN", 2)
    found = judged([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.9, 0.1, 0.0]], [0, 1, 2], tmp_path)
    assert list(found.report.grouped(found.judged)) == ["b", "c"]


def test_look_alikes_are_the_nearest_training_rows_whatever_the_blocks():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 16, generator=generator), torch.randn(10, 16, generator=generator)
    test[3] = train[41] + 0.05 * torch.randn(16, generator=generator)
    test[7] = train[2]
    for size in (50, 7, 1):
        found = look_alikes(test, lambda size=size: iter(train.split(size)))
        assert [(i, j) for i, j, _ in found] == [(7, 2), (3, 41)]
        assert found[0][2] == pytest.approx(1, abs=1e-5) and found[1][2] > 0.99


def test_the_predictor_takes_bytes_only_and_sees_what_training_saw(tmp_path):
    model, card = make_model(tmp_path)
    predictor = Predictor(tmp_path / "m.safetensors")
    files = [encode(picture(number % 3, number)) for number in range(40)]
    probabilities = predictor.answers_of_bytes(files)
    assert probabilities.shape == (40, 3)
    assert torch.allclose(probabilities.sum(1), torch.ones(40, dtype=torch.float64), atol=1e-5)
    from headstart.images.decode import decode
    from headstart.images.preprocessing import normalise
    from headstart.images.transforms import base_view

    x = normalise(base_view(decode(files[7]), card.preprocessing)[None], card.preprocessing)
    with torch.no_grad():
        assert torch.allclose(model(x).double().softmax(1)[0], probabilities[7], atol=1e-5)
    for bad in ("/etc/passwd", "http://x/y.png", None):
        with pytest.raises(InputError, match="row 1"):
            predictor.answers_of_bytes([files[0], bad])
    with pytest.raises(InputError, match="row 0: not an image"):
        predictor.answers_of_bytes([b"text"])
    assert predictor.answers_of_bytes([]).shape == (0, 3)
    assert json.dumps(card.target.classes) == '["a", "b", "c"]'
