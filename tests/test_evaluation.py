import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics as sk

from headstart.core.errors import InputError
from headstart.evaluation import metrics, plots, report
from headstart.evaluation.look_alikes import look_alikes
from headstart.evaluation.predictor import Predictor
from tests.conftest import encode, picture
from tests.test_models import make_model


def test_both_formulas_of_test_time_augmentation():
    logits = torch.randn(5, 7, 3)
    p = logits.double().softmax(-1)
    assert torch.allclose(metrics.test_time_augmentation(logits, "mean"), p.mean(0))
    assert torch.allclose(metrics.test_time_augmentation(logits, "blend"), 0.25 * p[0] + 0.75 * p[1:].mean(0))
    for formula in ("mean", "blend"):
        assert torch.equal(metrics.test_time_augmentation(logits[:1], formula), p[0])


def test_metrics_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (200,), generator=generator)
    p = (torch.randn(200, 4, generator=generator) + 2 * torch.nn.functional.one_hot(y, 4)).double().softmax(1)
    found, said = metrics.summarise(p, y), p.argmax(1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, said))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p.numpy()))
    counts = metrics.confusion_matrix(y, said, 4)
    assert np.array_equal(counts, sk.confusion_matrix(y, said))
    for row, values in zip(
        metrics.per_class(counts), zip(*sk.precision_recall_fscore_support(y, said), strict=True), strict=True
    ):
        assert tuple(row.values()) == pytest.approx(values)
    off = [(int(counts[i, j]), str(i), str(j)) for i in range(4) for j in range(4) if i != j]
    assert metrics.most_confused(counts, tuple("0123"), most=1)[0][2] == max(off)[0]


def test_wilson_interval_is_scipys():
    for right, total in ((0, 10), (10, 10), (385, 400), (1, 3)):
        expected = binomtest(right, total).proportion_ci(method="wilson")
        assert metrics.wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_pictures_are_the_same_bytes_each_time():
    counts = np.array([[3, 1], [0, 4]])
    for draw in (
        lambda: plots.confusion(counts, ("a", "b")),
        lambda: plots.lr_curve([((1e-3, 1e-2), (2.0, 1.0))], {"steep": [3e-3]}, 3e-3, False),
        lambda: plots.training_curves({"train_head": np.ones((3, 3))}),
    ):
        assert draw() == draw()
        assert draw().startswith(b"\x89PNG")


def test_file_and_class_names_are_escaped_in_the_report():
    evil = "<script>alert(1)</script>"
    item = {"path": evil, "label": evil, "predicted": evil, "confidence": 0.5, "image": ""}
    empty = {"results": [], "confused": [], "per_class": [], "params": [], "provenance": [], "classes": [evil]}
    words = dict.fromkeys(("source", "backbone", "lr_sentence", "confusion", "lr_curve", "curves"), evil)
    near = {"path": evil, "label": evil, "split": "train", "of": evil, "of_label": evil, "of_split": "test"}
    data = {
        "sentence": evil, "classes_kept_in_train": [evil], "rows": [(evil, "1")], "near": [near], "near_total": 1,
        "unusual_shares": [{"class": evil, "split": "test", "images": 1, "expected": 9.0}],
        "pictures": {"samples": "", "classes": "", "sizes": ""},
    }  # fmt: skip
    alike = {"path": evil, "label": evil, "like": evil, "like_label": evil, "image": "", "like_image": ""}
    more = {"wrong": [item], "image_size": 1, "n_test": "1", "data": data, "alike": [alike], "alike_total": 1}
    html = report.render(empty | words | more)
    assert evil not in html
    assert "&lt;script&gt;" in html
    assert "http://" not in html and "https://" not in html  # opens offline


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
    probabilities = predictor.probabilities(files)
    assert probabilities.shape == (40, 3)
    assert torch.allclose(probabilities.sum(1), torch.ones(40), atol=1e-5)
    from headstart.data.decode import decode
    from headstart.data.transforms import normalise, plain_view

    x = normalise(plain_view(decode(files[7]), card.preprocessing)[None], card.preprocessing)
    with torch.no_grad():
        assert torch.allclose(model(x).softmax(1)[0], probabilities[7], atol=1e-5)
    for bad in ("/etc/passwd", "http://x/y.png", None):
        with pytest.raises(InputError, match="row 1"):
            predictor.probabilities([files[0], bad])
    with pytest.raises(InputError, match="row 0: not an image"):
        predictor.probabilities([b"text"])
    assert predictor.probabilities([]).shape == (0, 3)
    assert json.dumps(card.classes) == '["a", "b", "c"]'
