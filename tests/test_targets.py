"""Targets: one class, several classes, or a number. Each against a plain reference, from labels.csv to the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn import metrics as sklearn
from torch.nn import functional as F

from headstart.core.errors import InputError
from headstart.evaluation.comparisons import compare_models, comparison_rows
from headstart.evaluation.galleries import Gallery
from headstart.evaluation.look_alikes import NO_PAIRS
from headstart.evaluation.page import Evaluation, page
from headstart.evaluation.predictions import predictions_file
from headstart.ingest import splits
from headstart.ingest.labels import USUAL_NAMES, TableColumns
from headstart.ingest.listing import Listing
from headstart.ingest.near_duplicates import NO_LEAKS
from headstart.ingest.scan import Scan
from headstart.ingest.sources import list_source
from headstart.ingest.summary import pictures, summarise
from headstart.ingest.tree import preflight
from headstart.targets.kinds import read_target, target_of
from headstart.targets.labels import AS_SHOWN, BadLabel, LabelFormat
from headstart.targets.multi_label import (
    GRID,
    MultiLabel,
    mean_average_precision,
    positive_weights,
    quick_mean_average_precision,
    samples_f,
)
from headstart.targets.number import Number
from headstart.targets.reports.judged import Judged
from headstart.targets.reports.kinds import report_of
from headstart.targets.single_label import SingleLabel
from headstart.targets.tables import METRICS, PICTURE, prediction_columns
from headstart.targets.target import Answered, DecisionRule, LossRule, Target, tta
from headstart.tracking import promotion
from headstart.tracking.promotion import PresentData, PromotionDecision, PromotionRule, decide
from headstart.tracking.registry import Version
from tests.conftest import scan_folder, write_shapes

SINGLE = SingleLabel(("a", "b", "c"))
SEVERAL = MultiLabel(("a", "b", "c"), ";")
NUMBER = Number(log=False, mean=3.0, deviation=2.0)
TARGETS = [
    SINGLE,
    SEVERAL,
    MultiLabel(("a", "b", "c"), "|", 0.3, (0.2, 0.4, 0.6), "per_class", 1.0),
    NUMBER,
    Number(True, 1.5, 0.5, (0.0, 3.0), 0.25),
]
LABELS = {"single_label": ["b", "a", "c", "b"], "multi_label": ["a;c", "", "b", "a;b;c"], "number": ["2.5", "1", "1e-3", "7"]}
KINDS = tuple(LABELS)


def of_kind(kind: str) -> Target:
    return {"single_label": SINGLE, "multi_label": SEVERAL, "number": NUMBER}[kind]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_logits(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, c, generator=generator(seed))


def some_labels(n: int, c: int = 3, seed: int = 0, share: float = 0.4) -> torch.Tensor:
    return (torch.rand(n, c, generator=generator(seed)) < share).float()


# ---------------------------------------------------------------- description, labels


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_a_target_comes_back_from_json(target, tmp_path):
    (tmp_path / "target.json").write_text(json.dumps(target.as_dict()))
    assert read_target(tmp_path / "target.json") == target == target_of(json.loads(json.dumps(target.as_dict())))
    assert hash(target) == hash(target_of(target.as_dict())), "it is a value"
    assert target.format.kind == target.kind
    assert set(target.scores(some_logits(4, target.outputs), encoded(target))) >= {target.chosen_by, target.headline}
    assert {target.chosen_by, target.headline} == set(target.scores_in_words)
    assert PICTURE[target.kind] and METRICS[target.kind]


def encoded(target: Target) -> torch.Tensor:
    labels = LABELS[target.kind]
    return target.encode([one.replace(";", target.format.joiner) for one in labels])


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"kind": "other"}', '{"kind": "number"}', '{"kind": "single_label", "x": 1}']
)
def test_a_damaged_target_file_is_named(tmp_path, text):
    (tmp_path / "target.json").write_text(text)
    with pytest.raises(InputError, match=r"target\.json: damaged"):
        read_target(tmp_path / "target.json")
    with pytest.raises(InputError, match="run link_data first"):
        read_target(tmp_path / "missing.json")


def test_labels_are_encoded():
    assert SINGLE.encode(["b", "a", "c"]).tolist() == SINGLE.truth(["b", "a", "c"]).tolist() == [1, 0, 2]
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert SEVERAL.encode(["a;c", "", "b"]).tolist() == SEVERAL.truth(["a;c", "", "b"]).tolist() == expected
    assert SEVERAL.encode([]).shape == (0, 3)
    assert NUMBER.truth(["2.5", "-1"]).tolist() == [2.5, -1] and NUMBER.truth(["2.5"]).dtype == torch.float64
    assert NUMBER.encode(["5", "-1"]).tolist() == [1, -2]
    log = Number(True, 1.0, 0.5)
    assert log.encode([repr(math.e), "1"]).tolist() == pytest.approx([0, -2])
    assert log.natural(log.encode(["0.25", "1e9"]).double()).tolist() == pytest.approx([0.25, 1e9], rel=1e-5)


NAMES = st.lists(
    st.text(st.characters(exclude_characters=";", codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=6
)


@given(NAMES, st.data())
@settings(max_examples=60, deadline=None)
def test_several_labels_survive_reading_encoding_and_prediction(names, data):
    form = LabelFormat("multi_label", ";")
    classes = tuple(sorted({name.strip() for name in names}))
    chosen = data.draw(st.lists(st.sets(st.sampled_from(classes)), min_size=1, max_size=5))
    texts = [form.read(" ; ".join(sorted(one, reverse=True)) + ";") for one in chosen]
    assert [set(form.classes(text)) for text in texts] == chosen
    assert [form.read(text) for text in texts] == texts, "a label that was read is read as itself"
    target = MultiLabel(classes, ";")
    y = target.encode(texts)
    assert y.sum(1).tolist() == [len(one) for one in chosen]
    rows = target.rows(y.double(), len(classes))
    assert [row["predicted"] for row in rows] == texts
    for row, one in zip(rows, chosen, strict=True):
        assert {row[f"label_{rank}"] for rank in range(1, len(one) + 1)} == one, "the most probable come first"


# ---------------------------------------------------------------- losses, guesses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_loss_of_one_class_is_the_weighted_cross_entropy(smoothing, balance):
    y, z = torch.tensor([0] * 8 + [1] * 3 + [2]), some_logits(12, 3)
    weight_c = len(y) / (3 * torch.bincount(y)) if balance == "weights" else torch.ones(3)
    aim_nc = (1 - smoothing) * F.one_hot(y, 3) + smoothing / 3
    reference = -(weight_c * aim_nc * z.log_softmax(1)).sum() / weight_c[y].sum()
    assert float(SINGLE.loss(LossRule(smoothing, balance), y)(z, y)) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_loss_of_several_classes_is_the_binary_cross_entropy_of_each(smoothing, balance):
    y, z = some_labels(12, share=0.3), some_logits(12, 3)
    with_c = y.sum(0)
    weight_c = (12 - with_c) / with_c if balance == "weights" else torch.ones(3)
    total = 0.0
    for i in range(12):
        for c in range(3):
            aim, p = float(y[i, c]) * (1 - smoothing) + smoothing / 2, 1 / (1 + math.exp(-float(z[i, c])))
            total -= float(weight_c[c]) * aim * math.log(p) + (1 - aim) * math.log(1 - p)
    assert float(SEVERAL.loss(LossRule(smoothing, balance), y)(z, y)) == pytest.approx(total / 36, rel=1e-5)


def test_a_rare_class_does_not_take_the_whole_gradient():
    y = torch.zeros(1000, 4)
    y[:1, 1], y[:500, 2], y[:, 3] = 1, 1, 1
    assert positive_weights(y).tolist() == pytest.approx([100, 100, 1, 0.01])


@pytest.mark.parametrize(("loss", "of"), [
    ("auto", lambda e: e**2), ("mse", lambda e: e**2), ("l1", abs),
    ("huber", lambda e: e**2 / 2 if abs(e) < 1 else abs(e) - 0.5),
])  # fmt: skip
@pytest.mark.parametrize("bounds", [None, (1.0, 9.0)])
def test_the_loss_of_a_number_is_in_standardised_units(loss, of, bounds):
    target = Number(False, 3.0, 2.0, bounds)
    y, z = target.encode(["0", "3", "12"]), some_logits(3, 1)
    said = [float(one) * 2 + 3 if bounds is None else 1 + 8 / (1 + math.exp(-float(one))) for one in z]
    reference = np.mean([of((one - true) / 2) for one, true in zip(said, (0, 3, 12), strict=True)])
    assert float(target.loss(LossRule(loss=loss), y)(z, y)) == pytest.approx(float(reference), rel=1e-5)


def best_constant(loss: Callable[[torch.Tensor], torch.Tensor], outputs: int) -> float:
    """The lowest loss of one answer for all, found by a search that knows no formula."""
    starts = [np.zeros(outputs), np.full(outputs, -1.0)]
    options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 20_000, "maxfev": 20_000}
    found = [minimize(lambda z: float(loss(torch.from_numpy(z))), one, method="Nelder-Mead", options=options) for one in starts]
    return min(one.fun for one in found)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_a_guess_at_one_class_is_the_best_constant_answer(smoothing, balance):
    target = SingleLabel(("a", "b", "c", "d"))  # no training image of d
    y = torch.tensor([0] * 60 + [1] * 9 + [2] * 2)
    rule = LossRule(smoothing, balance)
    rows = y if balance != "sampling" else torch.tensor([0, 1, 2])  # what is drawn, on average
    loss = target.loss(rule, y)
    found = best_constant(lambda z: loss(z.float().expand(len(rows), 4), rows), 4)
    assert target.guess(rule, y) == pytest.approx(found, abs=2e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_a_guess_at_several_classes_is_the_best_constant_answer(smoothing, balance):
    y = some_labels(40, 4, share=0.2)
    y[:, 2], y[:, 3] = 0, 1  # a class without an image, and one with all
    rule, target = LossRule(smoothing, balance), MultiLabel(("a", "b", "c", "d"))
    loss = target.loss(rule, y)
    alone = [best_constant(lambda z, c=c: loss(insert(z, c, y), y), 1) - float(loss(insert(None, c, y), y)) for c in range(4)]
    perfect = float(loss(torch.zeros_like(y), y)) + sum(alone)  # the classes' losses add up
    assert target.guess(rule, y) == pytest.approx(perfect, abs=2e-3)


def insert(z: torch.Tensor | None, c: int, y: torch.Tensor) -> torch.Tensor:
    logits = torch.zeros_like(y)
    if z is not None:
        logits[:, c] = z.float()
    return logits


@pytest.mark.parametrize("bounds", [None, (-5.0, 80.0)])
@pytest.mark.parametrize("loss", ["auto", "mse", "l1", "huber"])
def test_a_guess_at_a_number_is_the_best_constant_answer(loss, bounds):
    values = np.random.default_rng(0).gamma(0.3, 5, size=101)  # skewed: mean, median and huber's best differ
    target = Number(False, 1.0, 1.5, bounds)
    y = target.encode(map(str, values))
    objective = target.loss(LossRule(loss=loss), y)
    found = best_constant(lambda z: objective(z.float().expand(len(y), 1), y), 1)
    assert target.guess(LossRule(loss=loss), y) == pytest.approx(found, abs=1e-4)


def test_what_a_kind_cannot_do_is_refused():
    y = some_labels(5)
    with pytest.raises(InputError, match="loss is l1, which is for numbers, but the labels are classes"):
        SINGLE.loss(LossRule(loss="l1"), y[:, 0].long())
    with pytest.raises(InputError, match="which is for numbers"):
        SEVERAL.loss(LossRule(loss="huber"), y)
    with pytest.raises(InputError, match="balance is sampling, but images have several labels"):
        SEVERAL.sampling_weights(y)
    for balance in ("weights", "sampling"):
        with pytest.raises(InputError, match=f"balance is {balance}, but the labels are numbers"):
            NUMBER.loss(LossRule(balance=balance), y[:, 0])
    with pytest.raises(InputError, match="the labels are numbers"):
        NUMBER.sampling_weights(y[:, 0])


def test_sampling_makes_classes_equally_likely():
    y = torch.tensor([0] * 8 + [2] * 2)
    weight_n = SINGLE.sampling_weights(y)
    assert float(weight_n[y == 0].sum()) == pytest.approx(float(weight_n[y == 2].sum()))


# ---------------------------------------------------------------- scores, answers


def test_scores_of_one_class():
    y, z = torch.tensor([0, 1, 2, 1] * 20), some_logits(80, 3)
    z[torch.arange(80), y] += 2
    found = SINGLE.scores(z, y)
    assert found["log_loss"] == pytest.approx(sklearn.log_loss(y, z.double().softmax(1)), rel=1e-6)
    assert found["accuracy"] == sklearn.accuracy_score(y, z.argmax(1))
    sharper = SINGLE.scores(3 * z, y)
    assert sharper["log_loss"] > found["log_loss"] >= found["calibrated_log_loss"]
    assert sharper["calibrated_log_loss"] == pytest.approx(found["calibrated_log_loss"], rel=1e-4)
    assert math.isnan(SINGLE.scores(z * math.nan, y)["calibrated_log_loss"])


def test_scores_of_several_classes():
    y, z = some_labels(50), some_logits(50, 3)
    found = SEVERAL.scores(z, y)
    assert found["log_loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(z.double(), y.double())))
    assert found["calibrated_log_loss"] <= found["log_loss"]
    assert found["mean_average_precision"] == pytest.approx(sklearn.average_precision_score(y, z, average="macro"))
    assert math.isnan(SEVERAL.scores(z * math.inf, y)["mean_average_precision"])


def test_classes_that_say_nothing_do_not_count_for_the_mean_average_precision():
    y, p = some_labels(30, 4), torch.rand(30, 4, generator=generator())
    y[:, 1], y[:, 2] = 0, 1
    mine = [sklearn.average_precision_score(y[:, c], p[:, c]) for c in (0, 3)]
    assert mean_average_precision(p, y) == pytest.approx(np.mean(mine))
    assert mean_average_precision(p, torch.zeros(30, 4)) == 0


@pytest.mark.parametrize("log", [False, True])
def test_scores_of_a_number_are_in_its_unit(log):
    target = Number(log, 1.0, 0.5)
    labels = ["0.5", "2", "9"]
    y, z = target.encode(labels), some_logits(3, 1)
    learned = z[:, 0].double() * 0.5 + 1
    said = learned.exp() if log else learned
    found = target.scores(z, y)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error([0.5, 2, 9], said), rel=1e-5)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error([0.5, 2, 9], said), rel=1e-5)
    assert found["mse"] == pytest.approx(float(F.mse_loss(z[:, 0], y)), rel=1e-5)
    assert math.isnan(target.scores(z * math.nan, y)["mse"])


def test_answers_are_probabilities_or_numbers_and_keep_their_views():
    z = some_logits(6, 3).reshape(2, 3, 3)
    assert SINGLE.answers(z).sum(-1).flatten().tolist() == pytest.approx([1] * 6)
    assert torch.allclose(SEVERAL.answers(z), 1 / (1 + (-z.double()).exp()))
    one = some_logits(6, 1).reshape(2, 3, 1)
    assert torch.allclose(NUMBER.answers(one), one.double() * 2 + 3)
    assert torch.allclose(Number(True, 3.0, 2.0).answers(one), (one.double() * 2 + 3).exp())
    for target, logits in ((SINGLE, z), (SEVERAL, z), (NUMBER, one)):
        answers = target.answers(logits)
        assert answers.shape == logits.shape and answers.dtype == torch.float64
        assert torch.equal(tta(answers, "mean"), answers.mean(0))
        assert torch.allclose(tta(answers, "blend"), 0.25 * answers[0] + 0.75 * answers[1])
        assert torch.equal(tta(answers[:1], "blend"), answers[0])


@pytest.mark.parametrize("log", [False, True])
def test_bounded_numbers_stay_within_their_bounds(log):
    labels = ["0.5", "2", "40"]
    manifest = pd.DataFrame({"label": labels, "split": "train", "path": ["a", "b", "c"]})
    target = target_of(LabelFormat("number").describe(manifest, log, bound=True))
    low, high = (math.log(0.5), math.log(40)) if log else (0.5, 40)
    assert target.bounds == pytest.approx((low - 0.1 * (high - low), high + 0.1 * (high - low)))
    extremes = torch.tensor([[-1e30], [-50.0], [0.0], [50.0], [1e30]])
    said = target.learned(target.answers(extremes)[:, 0])
    assert said[0] == pytest.approx(target.bounds[0]) and said[-1] == pytest.approx(target.bounds[1])
    assert (said.diff() >= 0).all() and said[2] == pytest.approx((low + high) / 2)
    reached = target.loss(LossRule(), target.encode(labels))(torch.tensor([[-2.4], [0.0], [2.4]]), target.encode(labels))
    assert math.isfinite(float(reached))


def test_a_logarithm_of_nonsense_is_still_a_number():
    target = Number(True, 0.0, 1.0, None, 0.5)
    answers = target.answers(torch.tensor([[-1e9], [1e9]]))
    assert answers.isfinite().all() and (answers > 0).all()
    assert np.isfinite(target.score_of_each(answers, torch.tensor([1.0, 1.0], dtype=torch.float64))).all()


# ---------------------------------------------------------------- decisions


def f_of_sets(said: set[int], true: set[int], beta: float) -> float:
    if not said and not true:
        return 1.0
    both = len(said & true)
    return (1 + beta**2) * both / (beta**2 * len(true) + len(said))


def as_sets(rows: torch.Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row).flatten().tolist()) for row in rows]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_f_beta_of_images_is_scikit_learns_where_that_is_defined(beta):
    true, said = some_labels(80, 4, 1).bool(), some_labels(80, 4, 2).bool()
    true[:10], said[5:15] = False, False
    found = samples_f(said.numpy(), true.numpy(), beta)
    assert found == pytest.approx([f_of_sets(a, b, beta) for a, b in zip(as_sets(said), as_sets(true), strict=True)])
    reference = sklearn.fbeta_score(true, said, beta=beta, average="samples", zero_division=1.0)
    assert found.mean() == pytest.approx(reference)
    some = true.any(1) & said.any(1)
    assert found[some].mean() == pytest.approx(sklearn.fbeta_score(true[some], said[some], beta=beta, average="samples"))


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_common_threshold_has_the_highest_f_beta_of_all(seed, beta):
    y, p = some_labels(40, 4, seed, 0.3), torch.rand(40, 4, generator=generator(seed + 100), dtype=torch.float64)
    p = (p + y) / 2
    found = MultiLabel(tuple("abcd")).fitted(p, y, DecisionRule(beta, "one"))
    means = [np.mean([f_of_sets(a, b, beta) for a, b in zip(as_sets(p > t), as_sets(y), strict=True)]) for t in GRID]
    assert samples_f(found.decide(p).numpy(), y.numpy() > 0, beta).mean() == pytest.approx(max(means))
    assert (found.rule, found.beta) == ("one", beta)
    assert found.chosen().tolist() == [found.threshold] * 4


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_each_classs_threshold_has_the_highest_f_beta_of_its_own(seed, beta):
    y, p = some_labels(40, 4, seed, 0.3), torch.rand(40, 4, generator=generator(seed + 100), dtype=torch.float64)
    y[:, 2] = 0
    found = MultiLabel(tuple("abcd")).fitted(p, y, DecisionRule(beta, "per_class"))
    said = found.decide(p)
    for c in (0, 1, 3):
        true = set(torch.nonzero(y[:, c]).flatten().tolist())
        best = max(f_of_sets(one, true, beta) for one in as_sets(torch.stack([p[:, c] > t for t in GRID])))
        assert sklearn.fbeta_score(y[:, c], said[:, c], beta=beta) == pytest.approx(best)
    assert found.thresholds[2] == found.threshold, "no validation image has it"


def test_thresholds_of_one_validation_image_or_none_with_labels():
    one = SEVERAL.fitted(torch.tensor([[0.9, 0.2, 0.4]]).double(), torch.tensor([[1.0, 0.0, 1.0]]), DecisionRule())
    assert one.decide(torch.tensor([[0.9, 0.2, 0.4]])).tolist() == [[True, False, True]]
    empty = SEVERAL.fitted(torch.full((5, 3), 0.3).double(), torch.zeros(5, 3), DecisionRule(2.0, "per_class"))
    assert not empty.decide(torch.full((5, 3), 0.3)).any(), "nothing is there, and nothing is said"
    same = SEVERAL.fitted(torch.full((4, 3), 0.5).double(), torch.ones(4, 3), DecisionRule())
    assert same.decide(torch.full((4, 3), 0.5)).all(), "equal probabilities"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("n", [10, 60])
def test_the_interval_covers_nine_of_ten_new_numbers(n, log):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        truth = torch.from_numpy(rng.lognormal(size=n + 200))
        noise = torch.from_numpy(rng.standard_t(3, size=n + 200) / 3)
        answers = (truth * noise.exp() if log else truth + noise)[:, None]
        target = Number(log, 0.0, 1.0).fitted(answers[:n], truth[:n], DecisionRule())
        low, high = target.interval(answers[n:])
        covered.append(float(((low <= truth[n:]) & (truth[n:] <= high)).double().mean()))
    assert 0.895 < np.mean(covered) < 0.94, "it is not much wider than it need be"


def test_an_interval_of_few_or_of_perfect_answers():
    truth = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    for n in (1, 2, 3):
        fitted = NUMBER.fitted(truth[:n, None] + torch.tensor([[0.1], [-0.5], [0.2]])[:n], truth[:n], DecisionRule())
        assert fitted.half == pytest.approx(0.1 if n == 1 else 0.5), "the largest error"
    assert NUMBER.fitted(truth[:, None], truth, DecisionRule()).half == 0
    errors = torch.arange(99, 0, -1).double()
    fitted = NUMBER.fitted(errors[:, None], torch.zeros_like(errors), DecisionRule())
    assert fitted.half == 90, "ninety of a hundred: the new one is as likely at each place among the others"
    low, high = Number(True, 0.0, 1.0, None, math.log(2)).interval(torch.tensor([[8.0]]))
    assert (float(low), float(high)) == pytest.approx((4, 16)), "a factor"


# ---------------------------------------------------------------- comparisons


def pair(kind: str, n: int, worse: float, better: float, seed: int = 0) -> tuple[Answered, Answered, torch.Tensor]:
    """A worse and a better model of a kind, which add this much noise to the truth."""
    rng = generator(seed)
    if kind == "number":
        truth = 10 + 3 * torch.randn(n, generator=rng, dtype=torch.float64)
        answers = [truth[:, None] + noise * torch.randn(n, 1, generator=rng) for noise in (worse, better)]
        return Answered(answers[0], NUMBER), Answered(answers[1], NUMBER), truth
    target = of_kind(kind)
    truth = torch.randint(0, 3, (n,), generator=rng) if kind == "single_label" else some_labels(n, 3, seed + 1000)
    signal = 2 * (F.one_hot(truth, 3) if kind == "single_label" else truth) - 1
    answers = [target.answers(signal + noise * torch.randn(n, 3, generator=rng)) for noise in (worse, better)]
    return Answered(answers[0], target), Answered(answers[1], target), truth


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_says_who_is_better(kind):
    a, b, truth = pair(kind, 200, 3.0, 0.3)
    found = b.target.compare(a, b, truth, 0)
    assert found.better() == "b" and found.gain > 0 and found.p_value < 0.001
    back = a.target.compare(b, a, truth, 0)
    assert back.better() == "a" and back.gain < 0
    same = a.target.compare(a, a, truth, 0)
    assert (same.better(), same.gain, same.p_value) == ("undecided", 0, 1)
    a, b, truth = pair(kind, 29, 3.0, 0.1)
    assert a.target.compare(a, b, truth, 0).better() == "undecided", "too few images"
    words = found.words("one", "other", "pictures")
    assert "one" in words and "other" in words and "pictures" in words
    assert found.versus("version 1").count("version 1") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_models_as_good_as_each_other_are_told_apart_only_by_chance(kind):
    pairs = [pair(kind, 60, 1.0, 1.0, seed) for seed in range(12)]
    found = [a.target.compare(a, b, truth, 0).better() for a, b, truth in pairs]
    assert found.count("undecided") >= 10


def test_a_models_own_thresholds_decide_in_a_comparison():
    y = some_labels(100)
    p = torch.where(y > 0, 0.3, 0.1).double()
    low, high = (MultiLabel(SEVERAL.classes, ";", threshold) for threshold in (0.2, 0.5))
    assert low.compare(Answered(p, high), Answered(p, low), y, 0).better() == "b"
    assert "F2" in low.compare(Answered(p, high), Answered(p, low), y, 0).versus("it")


def test_the_gain_of_a_number_is_a_share_of_the_other_models_error():
    truth = torch.arange(50, dtype=torch.float64)
    a, b = (Answered(truth[:, None] + off, NUMBER) for off in (2.0, 1.5))
    assert NUMBER.compare(a, b, truth, 0).gain == pytest.approx(0.25)
    assert NUMBER.verdict(b, a, truth).format(other="x") == "its mean absolute error is 1.5; x has 2"


def test_a_model_that_learned_the_logarithm_is_compared_with_one_that_did_not():
    """The other may answer with numbers below zero, which have no logarithm."""
    truth = torch.from_numpy(np.random.default_rng(0).lognormal(size=100))
    plain = Answered((truth + 2 * torch.randn(100, generator=generator()))[:, None], NUMBER)
    assert (plain.answers < 0).any()
    log = Answered((truth * 1.01)[:, None], Number(True, 0.0, 1.0))
    for one, other, better in ((plain, log, "b"), (log, plain, "a")):
        found = other.target.compare(one, other, truth, 0)
        assert found.better() == better and math.isfinite(found.gain)
    assert log.target.verdict(log, plain, truth).startswith("its mean absolute error is ")
    assert log.target.verdict(log, log, truth).startswith("its mean absolute error of the logarithm is ")


def test_answers_are_brought_into_the_datas_order():
    p = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], dtype=torch.float64)
    other = SingleLabel(("c", "x", "a"))
    found = SINGLE.align(Answered(p, other))
    assert found.answers.tolist() == [[0.7, 0, 0.1], [0.2, 0, 0.5]]
    assert found.target.classes == SINGLE.classes
    several = MultiLabel(("c", "x", "a"), ";", 0.5, (0.05, 0.9, 0.6), "per_class", 1.0)
    found = SEVERAL.align(Answered(p, several))
    assert found.answers.tolist() == [[0.7, 0, 0.1], [0.2, 0, 0.5]]
    assert found.target.decide(found.answers).tolist() == [[True, False, True], [False, False, True]], "by its own thresholds"
    assert found.target.beta == 1.0
    assert not found.target.decide(torch.ones(1, 3).double())[0, 1], "it never answers with a class that it does not know"
    answered = Answered(torch.ones(2, 1).double(), NUMBER)
    assert NUMBER.align(answered) is answered
    for target in (SINGLE, SEVERAL):
        with pytest.raises(InputError, match="a model of kind number answers another question than"):
            target.align(answered)
    with pytest.raises(InputError, match="a model of kind multi_label answers another question than number"):
        NUMBER.align(Answered(p, several))


def test_the_best_constant_answers():
    answer, words = SINGLE.constant(["c", "b", "c", "b", "a"])
    assert (answer.tolist(), words) == ([0, 1, 0], "'b'"), "of several, the first by name"
    answer, words = NUMBER.constant(["1", "100", "3"])
    assert (answer.tolist(), words) == ([3], "3")
    answer, words = MultiLabel(SEVERAL.classes, ";", beta=1.0).constant(["a;c", "a", "c;a", "b"])
    assert (answer.tolist(), words) == ([1, 0, 1], "'a;c'")
    answer, words = SEVERAL.constant(["", "", "", "a"])
    assert (answer.tolist(), words) == ([0, 0, 0], "no label")


@pytest.mark.parametrize("seed", range(5))
def test_no_other_set_of_common_classes_is_a_better_constant_answer(seed):
    target = MultiLabel(tuple("abcd"), ";")
    y = (torch.rand(50, 4, generator=generator(seed)) < torch.tensor([0.8, 0.5, 0.4, 0.1])).float()
    labels = [";".join(target.named(row)) for row in y]
    answer, _ = target.constant(labels)
    every = [torch.tensor([bool(n >> c & 1) for c in range(4)]) for n in range(16)]
    means = [samples_f(one.expand(50, 4).numpy(), y.numpy() > 0, 2.0).mean() for one in every]
    assert samples_f((answer > 0).expand(50, 4).numpy(), y.numpy() > 0, 2.0).mean() == pytest.approx(max(means), abs=0.02)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
@pytest.mark.parametrize("top", [1, 3])
def test_rows_are_what_tables_say(target, top):
    answers = target.answers(some_logits(5, target.outputs))
    rows, types = target.rows(answers, top), prediction_columns(target.kind, top)
    python = {"string": str, "double": float, "bool": bool}
    assert len(rows) == 5
    for row in rows:
        assert list(row) == list(types)
        assert all(isinstance(row[name], python[kind]) for name, kind in types.items())
    served = target.served(answers)
    assert list(served) == list(target.served_types()) and {len(values) for values in served.values()} == {5}
    assert served["predicted"] == [row["predicted"] for row in rows]
    if target.kind != "number":
        assert served["probabilities"] == answers.tolist()
        assert all(row["probability_1"] == max(p) for row, p in zip(rows, answers.tolist(), strict=True))
    else:
        assert all(row["low"] <= row["predicted"] <= row["high"] for row in rows)


def test_more_classes_than_there_are_can_be_asked_for():
    assert set(SINGLE.rows(torch.full((1, 3), 1 / 3).double(), 5)[0]) < set(prediction_columns("single_label", 5))


# ---------------------------------------------------------------- how labels are written


@pytest.mark.parametrize(("form", "column", "labels", "kind"), [
    (AS_SHOWN, "label", ["cat", "dog"], "single_label"),
    (AS_SHOWN, "label", ["1", "2"], "single_label"),
    (AS_SHOWN, "label", ["1.0", "2.0"], "single_label"),
    (AS_SHOWN, "label", ["1.5", "2"], "number"),
    (AS_SHOWN, "label", ["1.5", "", "2"], "number"),
    (AS_SHOWN, "label", ["-1.5e-3", "2"], "number"),
    (AS_SHOWN, "label", ["1.5", "nan"], "single_label"),
    (AS_SHOWN, "label", ["1.5", "inf"], "single_label"),
    (AS_SHOWN, "label", ["1.5", "1_000.5"], "single_label"),
    (AS_SHOWN, "label", ["1,5", "2,5"], "single_label"),
    (AS_SHOWN, "label", [], "single_label"),
    (AS_SHOWN, "tags", ["1.5"], "multi_label"),
    (LabelFormat(separator=" "), "label", ["1.5"], "multi_label"),
    (LabelFormat(columns=("a",)), "label", [], "multi_label"),
    (LabelFormat("number"), "tags", ["x"], "number"),
    (LabelFormat("single_label"), "label", ["1.5"], "single_label"),
])  # fmt: skip
def test_the_kind_is_what_the_source_shows(form, column, labels, kind):
    assert form.settled(column, labels).kind == kind


@given(st.floats(-1e100, 1e100))
@settings(deadline=None)
def test_a_number_is_read_as_itself_and_equal_numbers_are_equal_texts(value):
    form = LabelFormat("number")
    text = form.read(repr(value))
    assert float(text) == value and form.read(text) == text
    assert form.read(f"  {value!r} ") == form.read(f"{value:.17g}") == form.read(f"{value:+.20e}") == text


@given(st.text())
@settings(deadline=None)
def test_any_text_is_a_label_or_is_refused(text):
    for form in (LabelFormat("number"), LabelFormat("single_label"), LabelFormat("multi_label", "|")):
        try:
            label = form.read(text)
        except BadLabel as error:
            assert error.found and form.kind != "multi_label", "it may be empty"
        else:
            assert form.read(label) == label
            assert form.write(form.classes(label)) == ("" if form.kind == "number" else label)
            assert not form.has_classes or form.kind == "multi_label" or label.strip()


@pytest.mark.parametrize(("form", "text", "found", "wanted"), [
    (LabelFormat("number"), "", "empty", ""),
    (LabelFormat("number"), "tall", "'tall'", "a number such as 12.5"),
    (LabelFormat("number"), "1,5", "'1,5'", "a number such as 12.5"),
    (LabelFormat("number"), "1_000", "'1_000'", "a number such as 12.5"),
    (LabelFormat("number"), "-inf", "'-inf'", "a finite number"),
    (LabelFormat("number"), "1e999", "'1e999'", "a finite number"),
    (LabelFormat("number"), "NaN", "'NaN'", "a finite number"),
    (LabelFormat("number"), "1e200", "'1e200'", "a number up to 1e+100"),
    (LabelFormat("single_label"), "  ", "empty", ""),
])  # fmt: skip
def test_a_bad_label_is_told(form, text, found, wanted):
    with pytest.raises(BadLabel) as error:
        form.read(text)
    assert (error.value.found, error.value.wanted) == (found, wanted)


def test_equal_label_sets_are_equal_texts():
    form = LabelFormat("multi_label", ", ")
    assert form.read("haze, primary, haze,  clear") == "clear, haze, primary"
    assert form.read("") == form.read(" ") == ""
    assert LabelFormat("multi_label").read("b  a") == "a b", "without a separator it is a space"
    assert LabelFormat("single_label").read("red car") == "red car"


@pytest.mark.parametrize("value", [0, 1, "0", "1", 0.0, 1.0, "0.0", "1.0", True, False, "TRUE", "false", " 1 "])
def test_flags(value):
    form = LabelFormat("multi_label", columns=("a", "b"))
    assert form.flagged({"a": value, "b": 1}) == ("a|b" if str(value).strip().lower() in ("1", "1.0", "true") else "b")


@pytest.mark.parametrize("value", [2, "", None, "yes", "0.5", -1, math.nan, "01"])
def test_what_is_no_flag(value):
    with pytest.raises(BadLabel) as error:
        LabelFormat("multi_label", columns=("a",)).flagged({"a": value})
    assert (error.value.found, error.value.wanted) == (f"a\0{value!r}", "0 or 1")


def test_a_column_whose_name_would_be_two_classes_is_refused():
    with pytest.raises(InputError, match=r"data.label_columns: 'red car' contains ' ', which stands between"):
        LabelFormat("multi_label", " ", ("tree", "red car"))
    with pytest.raises(InputError, match=r"'a\|b' contains '\|'"):
        LabelFormat(columns=("a|b",))
    assert LabelFormat("multi_label", ";", ("a|b", "red car")).flagged({"a|b": 1, "red car": 1}) == "a|b;red car"


@pytest.mark.parametrize(("form", "labels", "why"), [
    (LabelFormat("single_label"), [], "no images in class folders"),
    (LabelFormat("single_label"), ["a", "a"], "only one class ('a')"),
    (LabelFormat("single_label"), ["a", "b"], ""),
    (LabelFormat("multi_label"), [], "no labels"),
    (LabelFormat("multi_label"), ["", ""], "no label for any"),
    (LabelFormat("multi_label"), ["a b", "a b"], "the same label 'a b' for all"),
    (LabelFormat("multi_label"), ["a", ""], ""),
    (LabelFormat("number"), [], "fewer than 2 different numbers"),
    (LabelFormat("number"), ["1", "1"], "fewer than 2 different numbers"),
    (LabelFormat("number"), ["1", "2"], ""),
])  # fmt: skip
def test_labels_that_give_nothing_to_learn(form, labels, why):
    assert form.too_few(labels) == why


def test_many_whole_numbers_are_likely_a_quantity():
    form = LabelFormat("single_label")
    assert "data.target: number learns them as numbers" in form.remark(str(n) for n in range(101))
    assert form.remark(str(n) for n in range(100)) == form.remark([*map(str, range(200)), "a"]) == ""
    assert LabelFormat("number").remark(str(n) for n in range(200)) == ""


def test_rows_of_each_class():
    frame = pd.DataFrame({"label": ["a b", "", "b"], "path": ["x", "y", "z"]}, index=[5, 7, 9])
    found = LabelFormat("multi_label").exploded(frame)
    assert found[["label", "path"]].to_numpy().tolist() == [["a", "x"], ["b", "x"], ["b", "z"]]
    assert list(found.index) == [5, 5, 9]
    assert LabelFormat("single_label").exploded(frame) is frame
    assert LabelFormat("number").exploded(frame.assign(label="1")).empty
    assert LabelFormat("multi_label").banded(frame).equals(found)


@pytest.mark.parametrize("values", [
    range(100), [0] * 99 + [1], [0, 1], [1_000_000_000 + n / 8 for n in range(40)], [1e-9 * n for n in range(30)],
])  # fmt: skip
def test_bands_of_numbers_hold_them_all(values):
    found = LabelFormat("number").banded(pd.DataFrame({"label": [repr(float(one)) for one in values]}))
    counts = found["label"].value_counts()
    assert counts.sum() == len(list(values)) and len(counts) <= 10
    assert all(isinstance(name, str) for name in counts.index)


def test_what_a_network_needs_to_know():
    frame = pd.DataFrame({"label": ["b c", "", "a"], "split": ["train", "test", "train"], "path": ["x", "y", "z"]})
    assert LabelFormat("multi_label").describe(frame) == {"kind": "multi_label", "classes": ["a", "b", "c"], "joiner": " "}
    assert LabelFormat("single_label").describe(frame.assign(label=["b", "a", "b"])) == {
        "kind": "single_label", "classes": ["a", "b"],
    }  # fmt: skip
    numbers = frame.assign(label=["1", "1000", "9"])
    found = LabelFormat("number").describe(numbers)
    assert found == {"kind": "number", "log": False, "mean": 5.0, "deviation": 4.0, "bounds": None}, "of training numbers alone"
    assert LabelFormat("number").describe(numbers, log=True)["mean"] == pytest.approx(math.log(3))
    same = numbers.assign(label=["0.1", "7", "0.1"])
    assert target_of(LabelFormat("number").describe(same)).encode(["0.1", "1.1"]).tolist() == [0, 1], "constant in training"


@pytest.mark.parametrize("label", ["0", "-2"])
def test_a_number_without_a_logarithm_is_named(label):
    frame = pd.DataFrame({"label": ["1", label, "3"], "split": "train", "path": ["x.png", "y\n.png", "z.png"]})
    with pytest.raises(InputError, match=rf"y\\n\.png: the label {label} has no logarithm") as error:
        LabelFormat("number").describe(frame, log=True)
    assert "data.log_target=false" in str(error.value)
    assert LabelFormat("number").describe(frame)["kind"] == "number"


# ---------------------------------------------------------------- labels.csv


@pytest.fixture
def four(tmp_path) -> Path:
    """A folder of four images: 0.png to 3.png in a/."""
    return write_shapes(tmp_path / "shapes", classes=1, each=4)


def listed(folder: Path, text: str, labels: LabelFormat = AS_SHOWN, names: TableColumns = USUAL_NAMES) -> Listing:
    """The listing of four images whose labels.csv has these lines; N stands for the path of image N."""
    head, *rows = text.strip().splitlines()
    lines = [head.strip(), *(f"a/00{row.strip()[0]}.png{row.strip()[1:]}" for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return list_source(preflight(folder, follow_external_links=False), labels=labels, names=names)


def labels_of(found: Listing) -> list[str]:
    assert not found.problems, found.problems
    return [entry.label for entry in found.entries]


TAGS = "path,tags\n0,haze primary\n1,primary clear primary\n2,\n3,haze"
TAGS_READ = ["haze primary", "clear primary", "", "haze"]


def test_tags_are_several_labels(four):
    found = listed(four, TAGS)
    assert (found.format.kind, labels_of(found)) == ("multi_label", TAGS_READ)
    assert list(found.extra.columns) == []
    assert labels_of(listed(four, TAGS.replace("tags", "label"), LabelFormat("multi_label"))) == TAGS_READ
    assert listed(four, "path,label,tags\n0,x,a b\n1,x,a\n2,y,a\n3,y,a").format.kind == "single_label"
    with pytest.raises(InputError, match="no column label; columns found: path, tags"):
        listed(four, TAGS, LabelFormat("single_label"))


def test_another_kind_of_space_separates_too(four):
    found = listed(four, "path,tags\n0,tree\N{NO-BREAK SPACE}car\n1,car tree\n2,\n3,car")
    assert labels_of(found) == ["car tree", "car tree", "", "car"], "equal sets are equal texts"


def test_columns_of_classes_need_a_table(four):
    found = list_source(preflight(four, follow_external_links=False), labels=FLAGS)
    assert any("data.label_columns is set, but" in problem.found for problem in found.problems)


def test_a_separator_means_several_labels(four):
    found = listed(four, "path,label\n0,red car;tree\n1,tree; red car ;\n2,\n3,tree", LabelFormat(separator=";"))
    assert labels_of(found) == ["red car;tree", "red car;tree", "", "tree"]
    assert (found.format.kind, found.format.joiner) == ("multi_label", ";")


FLAGS = LabelFormat(columns=("haze", "clear"))


def test_a_column_for_each_class(four):
    found = listed(four, "path,haze,clear,site\n0,1,0,x\n1,1,1,x\n2,0,0,y\n3,0.0,TRUE,y", FLAGS)
    assert labels_of(found) == ["haze", "clear|haze", "", "clear"]
    assert list(found.extra.columns) == ["site"], "what gave the labels is no further column"


def test_what_is_neither_0_nor_1_is_named_by_row_column_and_value(four):
    with pytest.raises(InputError, match=r"labels\.csv row 3, column clear: '2'\n  wanted: 0 or 1"):
        listed(four, "path,haze,clear\n0,1,0\n1,1,2\n2,0,0\n3,0,1", FLAGS)
    with pytest.raises(InputError) as error:
        listed(four, "path,haze,clear\n0,1,0\n1,yes,2\n2,0,0\n3,0,", FLAGS)
    message = str(error.value)
    assert "2 rows cannot be used" in message and "row 3, column haze: 'yes'" in message
    assert "row 5, column clear: ''" in message and message.count("0 or 1") == 1
    with pytest.raises(InputError, match="no column clear; columns found: path, haze"):
        listed(four, "path,haze\n0,1", FLAGS)
    with pytest.raises(InputError, match="a column label, but data.label_columns gives the labels too"):
        listed(four, "path,haze,clear,label\n0,1,0,x", FLAGS)


def test_columns_may_have_other_names(four):
    names = TableColumns(path="image", label="kind", group="site")
    found = listed(four, "image,kind,site,more\n0,x,s,1\n1,y,s,2\n2,x,t,3\n3,y,t,4", names=names)
    assert labels_of(found) == ["x", "y", "x", "y"]
    assert [entry.group for entry in found.entries] == ["s", "s", "t", "t"]
    assert list(found.extra.columns) == ["more"]
    with pytest.raises(InputError, match=r"no column kind, site; columns found: image, label\n  wanted: image,kind\[,split\]"):
        listed(four, "image,label\n0,x", names=names)


@pytest.mark.parametrize(("names", "head", "role"), [
    (TableColumns(label="kind"), "path,kind,label", "label"),
    (TableColumns(label="tags"), "path,tags,label", "label"),
    (TableColumns(path="image"), "image,label,path", "path"),
    (TableColumns(group="site"), "path,label,site,group", "group"),
])  # fmt: skip
def test_two_columns_for_one_role_are_refused(four, names, head, role):
    row = ",x" * head.count(",")
    with pytest.raises(InputError, match=rf"row 1: a column {role}, but data\.{role}_column is ") as error:
        listed(four, f"{head}\n0{row}\n1{row}\n2{row}\n3{row}", names=names)
    assert f"rename the column {role}" in str(error.value)


@pytest.mark.parametrize("names", [TableColumns(path="haze"), TableColumns(group="haze")])
def test_a_column_for_a_class_has_no_other_role(four, names):
    with pytest.raises(InputError, match="column haze is in data.label_columns, but holds the paths or the groups"):
        listed(four, "haze,clear,path,x\n0,1,0,x".replace(",path", ",p" if names.path == "haze" else ",path"), FLAGS, names)


def test_blank_space_after_commas_in_renamed_columns_is_removed(four):
    names = TableColumns(path="image", label="kind")
    assert labels_of(listed(four, "image,kind\n0, x\n1,y\n2,x\n3, y", names=names)) == ["x", "y", "x", "y"]


def test_empty_labels_are_legal_only_for_several(four):
    with pytest.raises(InputError, match=r"row 4, column label: empty"):
        listed(four, "path,label\n0,x\n1,y\n2,\n3,x")
    found = listed(four, "path,tags\n0,\n1,\n2,\n3,")
    (problem,) = found.problems
    assert "no label for any" in problem.found


def test_numbers(four):
    found = listed(four, "path,label\n0,1.50\n1, 2 \n2,1e3\n3,-0.0")
    assert (found.format.kind, labels_of(found)) == ("number", ["1.5", "2", "1000", "0"])
    assert not found.warned
    (problem,) = listed(four, "path,label\n0,2.5\n1,2.50\n2,25e-1\n3,2.5").problems
    assert "fewer than 2 different numbers" in problem.found


@pytest.mark.parametrize(("cell", "found", "wanted"), [
    ("tall", "'tall'", "a number such as 12.5"), ("inf", "'inf'", "a finite number"), ("nan", "'nan'", "a finite number"),
    ("", "empty", ""), ("1e999", "'1e999'", "a finite number"), ("1.5.2", "'1.5.2'", "a number such as 12.5"),
])  # fmt: skip
def test_a_number_that_is_none_is_named_by_its_row(four, cell, found, wanted):
    with pytest.raises(InputError, match=rf"labels\.csv row 4, column label: {found}") as error:
        listed(four, f"path,label\n0,1.5\n1,2\n2,{cell}\n3,4", LabelFormat("number"))
    assert wanted in str(error.value)


def test_an_empty_cell_among_numbers_does_not_make_them_classes(four):
    with pytest.raises(InputError, match=r"row 4, column label: empty"):
        listed(four, "path,label\n0,1.5\n1,2\n2,\n3,4")


@pytest.mark.parametrize("values", [
    pa.array([1.5, 2.0, -3.0, 4.25]), pa.array([1.5, 2, -3, 4.25], pa.float32()),
    pa.array([1.5, 2, -3, 4.25]).cast(pa.decimal128(6, 2)), pa.array(["1.5", "2.0", "-3", "4.25"]),
])  # fmt: skip
def test_numbers_in_parquet(four, values):
    paths = pa.array([f"a/00{n}.png" for n in range(4)])
    pq.write_table(pa.table({"path": paths, "label": values}), four / "labels.parquet")
    found = list_source(preflight(four, follow_external_links=False))
    assert (found.format.kind, labels_of(found)) == ("number", ["1.5", "2", "-3", "4.25"])


@pytest.mark.parametrize("labels", [AS_SHOWN, LabelFormat("number")])
def test_a_missing_number_in_parquet_is_named(four, labels):
    paths = pa.array([f"a/00{n}.png" for n in range(4)])
    pq.write_table(pa.table({"path": paths, "label": pa.array([1.5, None, 3.0, 4.0])}), four / "labels.parquet")
    with pytest.raises(InputError, match=r"labels\.parquet row 2, column label: empty"):
        list_source(preflight(four, follow_external_links=False), labels=labels)


def test_a_pattern_can_give_numbers_or_several_labels(tmp_path):
    folder = tmp_path / "shapes"
    write_shapes(folder, classes=1, each=3)
    for name, image in zip(("t_1.5.png", "t_-2.png", "t_x.png"), sorted((folder / "a").iterdir()), strict=True):
        image.rename(folder / name)
    tree = preflight(folder, follow_external_links=False)
    found = list_source(tree, label_pattern=r"_(.+)\.png", labels=LabelFormat("number"))
    assert [(entry.path, entry.label) for entry in found.entries] == [("t_-2.png", "-2"), ("t_1.5.png", "1.5")]
    assert found.stray == [("t_x.png", "its label is 'x', not a number such as 12.5")]
    found = list_source(tree, label_pattern=r"(.+)\.png", labels=LabelFormat(separator="_"))
    assert [entry.label for entry in found.entries] == ["-2_t", "1.5_t", "t_x"]


def test_a_scan_of_several_labels(tmp_path):
    folder = write_shapes(tmp_path / "shapes", classes=2, each=20)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [
        f"{path},{' '.join(filter(None, ['x' * (i % 2), 'rare' * (i == 7), 'y' * (i % 3 == 0)]))}"
        for i, path in enumerate(paths)
    ]
    (folder / "labels.csv").write_text("\n".join(["path,tags", *rows]) + "\n")
    result = scan_folder(folder, near_duplicates="keep")
    assert len(result.manifest) == 40 and (result.manifest["label"] == "").any()
    by_class = result.format.exploded(result.manifest)
    assert set(by_class.loc[by_class["split"] == "train", "label"]) == {"rare", "x", "y"}
    report = summarise(result)
    assert (report["target"], report["classes"], report["images"]) == ("multi_label", 3, 40)


# ---------------------------------------------------------------- splits

RULE = {"valid_fraction": 0.3, "test_fraction": 0.3, "folds": 5, "fold": "none"}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_no_class_of_several_labels_is_without_a_training_image(seed, grouped):
    rng = np.random.default_rng(seed)
    shares = (0.7, 0.3, 0.1, 0.05, 0.02, 0.02, 0.02)
    labels = [" ".join(c for c, share in zip("abcdefg", shares, strict=True) if rng.random() < share) for _ in range(60)]
    groups = [f"g{n // 4}" if grouped else "" for n in range(60)]
    frame = pd.DataFrame({"key": [f"k{n}" for n in range(60)], "label": labels, "group": groups, "declared": ""})
    form = LabelFormat("multi_label")
    assigned, folds, rescued = splits.assign(frame, form, seed=seed, **RULE)
    by_class = form.exploded(frame.assign(split=assigned))
    assert set(by_class.loc[by_class["split"] == "train", "label"]) == set(by_class["label"]) >= set(rescued)
    assert (np.array(folds) == -1).tolist() == [split == "test" for split in assigned]
    if grouped:
        assert frame.assign(split=assigned).groupby("group")["split"].nunique().max() == 1, "a group stays together"
    again, _, _ = splits.assign(frame.iloc[::-1], form, seed=seed, **RULE)
    assert again[::-1] == assigned, "whatever the order"


@pytest.mark.parametrize("seed", range(40))
def test_an_image_that_is_moved_for_one_class_serves_its_others(seed):
    frame = pd.DataFrame({"key": list("pqrstu"), "label": ["b", "b c", "c", "", "", ""], "group": "", "declared": ""})
    rule = RULE | {"valid_fraction": 0.45, "test_fraction": 0.45}
    assigned, _, rescued = splits.assign(frame, LabelFormat("multi_label"), seed=seed, **rule)
    if assigned[0] != "train" and assigned[1] == "train":
        assert "c" not in rescued, "the image that serves b has c too"


def test_numbers_have_no_classes_to_keep_in_train():
    frame = pd.DataFrame(
        {"key": [f"k{n}" for n in range(40)], "label": [str(n) for n in range(40)], "group": "", "declared": ""}
    )
    assigned, _, rescued = splits.assign(frame, LabelFormat("number"), seed=0, **RULE)
    assert rescued == [] and set(assigned) == {"train", "valid", "test"}
    splits.check("source", frame.assign(split=assigned), LabelFormat("number"))
    assert splits.unusual_shares(LabelFormat("number").exploded(frame.assign(split=assigned))) == []


# ---------------------------------------------------------------- reports

HOSTILE = ("<script>alert(1)</script>", "\"&'<b>", "_under $x^{2}$", "{{ 7*7 }}")


class Page(HTMLParser):
    """Collects tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.alts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.alts += [str(value) for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


class FakeImages:
    """Images of one colour."""

    def base_view(self, path: str, key: str) -> torch.Tensor:
        return torch.full((3, 8, 8), 100, dtype=torch.uint8)


def synthetic(kind: str, n: int = 60, hostile: Sequence[str] = HOSTILE) -> tuple[pd.DataFrame, LabelFormat]:
    """A manifest of rows; half of them are test rows."""
    rng = np.random.default_rng(0)
    form = LabelFormat(kind, ";" if kind == "multi_label" else "none")
    if kind == "number":
        labels = [form.read(repr(round(value, 3))) for value in rng.lognormal(size=n).tolist()]
    elif kind == "single_label":
        labels = [hostile[i % len(hostile)] for i in range(n)]
    else:
        labels = [form.write(name for name in hostile if rng.random() < 0.4) for _ in range(n)]
    split = ["test" if i % 2 else "train" if i % 4 else "valid" for i in range(n)]
    paths = [f"<i>{i}.png" for i in range(n)]
    frame = pd.DataFrame({"key": [f"k{i}" for i in range(n)], "path": paths, "label": labels, "split": split, "group": ""})
    return frame.assign(fold=np.int16(0)), form


def judged_of(frame: pd.DataFrame, form: LabelFormat, log: bool = False) -> Judged:
    target = target_of(form.describe(frame, log))
    test = frame[frame["split"] == "test"].reset_index(drop=True)
    logits = some_logits(len(test), target.outputs)
    truth = target.truth(test["label"])
    target = target.fitted(target.answers(logits), truth, DecisionRule(thresholds="per_class"))
    return Judged(test, target.answers(logits), truth, target)


def rendered(folder: Path, frame: pd.DataFrame, form: LabelFormat, judged: Judged, images: FakeImages | None) -> str:
    """The report's page, with the real files of link_data and made-up ones of the stages between."""
    none = pd.DataFrame(columns=["path", "reason"])
    notes = pd.DataFrame(columns=["path", "kind", "text"])
    scan = Scan(frame, none, notes, NO_LEAKS, [], form, len(frame), 0, 0)
    for name in ("data", "fine_tune"):
        (folder / name).mkdir()
    (folder / "data/summary.json").write_text(json.dumps(summarise(scan)))
    for name, picture in pictures(scan, folder, 0).items():
        (folder / "data" / name).write_bytes(picture)
    NO_LEAKS.to_csv(folder / "data/near_duplicates.csv")
    (folder / "fine_tune/kept.json").write_text(json.dumps({"sentence": "kept"}))
    report = report_of(judged.target)
    answered = {name: Answered(judged.answers, judged.target) for name in ("head", "fine_tuned")}
    results = {"n_test": len(judged.table), "n_test_files": len(judged.table)}
    results |= {name: report.summarise(judged.answers, judged.truth, judged.target) for name in answered}
    results["comparisons"] = compare_models(answered, judged.truth, 0)
    assert [row["better"] for row in comparison_rows(results)] == ["undecided"]
    json.dumps(results, allow_nan=False)
    card = SimpleNamespace(target=judged.target, backbone="b", preprocessing=None, columns=None, provenance={"weights": "w"})
    gallery = Gallery(judged, report, images)
    found = Evaluation(results, gallery, frame, form.exploded(frame), card, NO_PAIRS, "src", {"k": "v"}, {"f": "d"})
    return page(found, folder, report.pictures(judged) | {"training.png": b""})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_images", [True, False])
def test_a_report_shows_hostile_names_as_text(tmp_path, kind, with_images):
    frame, form = synthetic(kind)
    judged = judged_of(frame, form, log=with_images)
    html = rendered(tmp_path, frame, form, judged, FakeImages() if with_images else None)
    shown = Page(html)
    assert shown.tags.count("script") == 1 and "i" not in shown.tags, "the page's own"
    assert "<i>1.png" in shown.text
    assert ("figcaption" in shown.tags) is with_images
    heads = {
        "single_label": ("Most wrong", "Confusion matrix", "Calibration"),
        "multi_label": ("Worst", "Thresholds", "Precision and recall", "Labels that come together"),
        "number": ("Largest errors", "Predicted against true", "Residuals", "Interval"),
    }[kind]
    assert all(head in shown.text for head in heads)
    if kind != "number":
        assert all(" ".join(name.split()) in shown.text for name in HOSTILE)
    assert ("rows" if not with_images else "images") in shown.text
    assert "nan" not in shown.text.split()


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_galleries_and_predictions_agree(kind):
    frame, form = synthetic(kind)
    judged = judged_of(frame, form)
    report = report_of(judged.target)
    found = report.summarise(judged.answers, judged.truth, judged.target)
    assert report.headline in found and set(METRICS[kind]) <= set(found) and report.in_words(found)
    assert PICTURE[kind][0] in report.pictures(judged)
    rankings = report.rankings(judged)
    assert set(rankings) == set(report.meanings)
    for i in rankings[next(iter(rankings))][:3]:
        caption = report.caption(judged, i)
        assert "<script>" not in caption.html and len(caption.sheet.splitlines()) == 2
    files = pd.concat([judged.table, judged.table[:2].assign(path=["copy 1", "copy 2"])], ignore_index=True)
    table = pq.read_table(pa.BufferReader(predictions_file(files, judged)))
    assert table.num_rows == len(files) and json.loads(table.schema.metadata[b"classes"]) == list(judged.classes)
    rows = judged.target.rows(judged.answers, 1)
    assert table["predicted"].to_pylist() == [row["predicted"] for row in (*rows, *rows[:2])]


@pytest.mark.parametrize("seed", range(20))
def test_the_quick_average_precision_is_scikit_learns(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(50, 7, generator=generator).double()
    y = (torch.rand(50, 7, generator=generator) < torch.linspace(0, 1, 7)).double()  # the first class never, the last always
    quick, slow = (one(scores, y) for one in (quick_mean_average_precision, mean_average_precision))
    assert quick == pytest.approx(slow, abs=1e-12) and 0 < quick < 1


@pytest.mark.parametrize(("target", "answers", "label", "html", "alt"), [
    (SINGLE, [0.2, 0.7, 0.1], "b", "<b>b</b>, right (70.0 %)", "a b"),
    (SINGLE, [0.2, 0.7, 0.1], "a", "<b>a</b> (20.0 %) classified as <b>b</b> (70.0 %)", "a a classified as b"),
    (SEVERAL, [0.8, 0.3, 0.9], "a;b", "<b>a</b>, missed <b>b</b> (30 %), wrongly <b>c</b> (90 %)",
     "labelled a, b, predicted a, c"),
    (SEVERAL, [0.1, 0.3, 0.2], "", "no label", "labelled with nothing, predicted nothing"),
    (Number(False, 0.0, 1.0, None, 1.5), [2.25], "3", "true <b>3</b>, predicted <b>2.25</b> (0.75 to 3.75)",
     "true 3, predicted 2.25"),
])  # fmt: skip
def test_captions(target, answers, label, html, alt):
    judged = Judged(pd.DataFrame({"label": [label]}), torch.tensor([answers]).double(), target.truth([label]), target)
    caption = report_of(target).caption(judged, 0)
    assert (str(caption.html), caption.alt) == (html, alt)


def test_metrics_of_several_classes_against_scikit_learn():
    frame, form = synthetic("multi_label")
    judged = judged_of(frame, form)
    true, said = judged.truth.numpy() > 0, judged.target.decide(judged.answers).numpy()
    found = report_of(judged.target).summarise(judged.answers, judged.truth, judged.target)
    assert found["f_beta"] == pytest.approx(sklearn.fbeta_score(true, said, beta=2, average="samples", zero_division=1.0))
    assert found["f_beta"] == found["f_beta_per_class_thresholds"]
    assert found["micro_f1"] == pytest.approx(sklearn.f1_score(true, said, average="micro"))
    assert found["subset_accuracy"] == pytest.approx(sklearn.accuracy_score(true, said))
    assert found["log_loss"] == pytest.approx(np.mean([sklearn.log_loss(true[:, c], judged.answers[:, c]) for c in range(4)]))


def test_metrics_of_a_number_against_scikit_learn():
    frame, form = synthetic("number")
    judged = judged_of(frame, form)
    said, true = judged.answers[:, 0], judged.truth
    found = report_of(judged.target).summarise(judged.answers, true, judged.target)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(true, said))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, said))
    assert found["r2"] == pytest.approx(sklearn.r2_score(true, said))
    ranks = np.corrcoef(said.argsort().argsort(), true.argsort().argsort())[0, 1]
    assert found["spearman"] == pytest.approx(ranks, abs=1e-6)
    assert found["rmspe"] == pytest.approx(float((((true - said) / true) ** 2).mean().sqrt()))
    zero = report_of(judged.target).summarise(judged.answers, torch.where(true == true.min(), 0.0, true), judged.target)
    assert "rmspe" not in zero, "a share of nothing"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [[5.0], [3.0, 3.0, 3.0], [0.0, 0.0, 1.0]])
def test_reports_of_few_or_equal_numbers(labels):
    truth = torch.tensor(labels, dtype=torch.float64)
    table = pd.DataFrame({"path": [f"{i}" for i in range(len(labels))], "label": list(map(str, labels))})
    for off in (0.0, 0.1):
        judged = Judged(table, truth[:, None] + off, truth, Number(False, 0.0, 1.0, None, 0.5))
        report = report_of(judged.target)
        found = report.context(judged, table)
        assert sum(row["images"] for row in found["bands"]) == len(labels) and found["covered"] == 1
        metrics = report.summarise(judged.answers, truth, judged.target)
        assert all(math.isfinite(value) for value in metrics.values())
        assert set(report.pictures(judged)) == {"predicted.png", "residuals.png"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("y", [
    torch.zeros(1, 3), torch.zeros(4, 3), torch.ones(4, 3), torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 1.0, 0], [0, 0, 0]]),
])  # fmt: skip
def test_reports_of_classes_that_no_test_image_has(y):
    target = MultiLabel(("_a", "b$", "c"), ";")
    labels = [";".join(target.named(row)) for row in y]
    table = pd.DataFrame({"key": range(len(y)), "path": list(map(str, range(len(y)))), "label": labels, "split": "test"})
    judged = Judged(table, torch.full_like(y, 0.4).double(), y, target)
    report = report_of(target)
    assert set(report.pictures(judged)) == {"precision_recall.png", "together.png"}
    assert all(math.isfinite(value) for value in report.summarise(judged.answers, y, target).values())
    found = report.context(judged, target.format.exploded(table))
    assert [row["test"] for row in found["per_class"]] == y.sum(0).tolist()
    assert report.caption(judged, 0).mark == ("wrong" if y[0].any() else "right")


# ---------------------------------------------------------------- promotion


class FakeRegistry:
    """Version 1 saw the first test image, version 2 the second."""

    def trained_on(self, version: Version) -> frozenset[str]:
        return frozenset([f"k{version.number}"])


def version(number: int, rolled_back: bool = False) -> Version:
    return Version(number, f"digest {number}", Path(f"{number}.safetensors"), "run", rolled_back)


def decided(
    monkeypatch: pytest.MonkeyPatch,
    new: Answered,
    champion: Answered | None,
    target: Target,
    labels: Sequence[str],
    margin: float = 0.0,
) -> PromotionDecision:
    """What is decided by all test images but those that a version saw; answers are in the order of the labels."""
    test = pd.DataFrame({"key": [f"k{i}" for i in range(len(labels))], "label": labels, "split": "test"})
    manifest = pd.concat([test, test.assign(key="t" + test["key"], split="train")], ignore_index=True)
    by_version = {2: new, 1: champion}

    def answers_of(one: Version, rows: pd.DataFrame) -> Answered:
        answered = by_version[one.number]
        assert answered is not None and f"k{one.number}" not in set(rows["key"])
        return Answered(answered.answers[[int(key[1:]) for key in rows["key"]]], answered.target)

    def card_of(file: Path) -> SimpleNamespace:
        assert champion is not None and file == version(1).file
        return SimpleNamespace(target=champion.target)

    monkeypatch.setattr(promotion, "load_card", card_of)
    before = None if champion is None else version(1)
    rule = PromotionRule(alpha=0.05, margin=margin, seed=0)
    return decide(FakeRegistry(), version(2), before, PresentData(manifest, target), rule, answers_of)


def truth_texts(kind: str, truth: torch.Tensor) -> list[str]:
    if kind == "number":
        return [repr(float(value)) for value in truth]
    return (
        [SINGLE.classes[int(one)] for one in truth]
        if kind == "single_label"
        else [";".join(SEVERAL.named(row)) for row in truth]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_better_model_of_each_kind_becomes_champion(monkeypatch, kind):
    bad, good, truth = pair(kind, 120, 6.0, 0.3)
    labels = truth_texts(kind, truth)
    first = decided(monkeypatch, good, None, good.target, labels)
    assert first.promoted and first.reason.startswith("it is the first; of 119 test images "), first.reason
    assert "always answering" in first.reason and "promotion needs p below 0.05" in first.reason
    assert not decided(monkeypatch, bad, None, good.target, labels).promoted, "no better than a constant answer"
    found = decided(monkeypatch, good, bad, good.target, labels)
    assert found.promoted and found.reason.startswith("of 118 test images it"), found.reason
    assert not decided(monkeypatch, good, good, good.target, labels).promoted, "no better than the champion"
    assert not decided(monkeypatch, good, bad, good.target, labels, margin=5.0).promoted, "the gain must reach the margin"
    assert "version 2 is the champion" in found.sentence()


def test_a_champion_that_lacks_a_class_is_compared_and_told(monkeypatch):
    _, good, truth = pair("multi_label", 120, 1.0, 0.2)
    labels = truth_texts("multi_label", truth)
    champion = Answered(good.answers[:, :2].flip(1), MultiLabel(("b", "a"), ";"))
    found = decided(monkeypatch, good, champion, SEVERAL, labels)
    assert found.promoted and found.reason.endswith("; the champion does not know 'c'"), found.reason


def test_a_champion_of_another_kind_is_left_to_the_user(monkeypatch):
    _, good, truth = pair("multi_label", 120, 1.0, 0.2)
    other = Answered(good.answers, SINGLE)
    found = decided(monkeypatch, good, other, SEVERAL, truth_texts("multi_label", truth))
    assert not found.promoted
    assert "the champion, version 1, answers another question" in found.reason and "--champion 2" in found.reason


def test_a_constant_answer_may_be_a_class_that_the_model_does_not_know():
    """The model's thresholds must not keep it from being said; and it suits the F-beta that the model was made for."""
    version = MultiLabel(("b",), ";", beta=1.0)
    data = PresentData(pd.DataFrame({"split": "train", "label": ["a", "a", "a", "a;b"]}), MultiLabel(("a", "b"), ";"))
    labels = ["a"] * 40
    answered = data.target.align(Answered(torch.full((40, 1), 0.1).double(), version))
    _, sentence = promotion.against_guess(answered, data.target.truth(labels), data, PromotionRule(0.05, 0.0, 0))
    assert "its mean F1 is 0.0000; always answering 'a' has 1.0000" in sentence


def test_too_few_images_decide_nothing(monkeypatch):
    _, good, truth = pair("number", 30, 1.0, 0.2)
    found = decided(monkeypatch, good, None, NUMBER, truth_texts("number", truth))
    assert not found.promoted and found.reason.startswith("29 test images that no training has seen are too few")


def test_a_number_is_judged_in_words_that_are_its_own(monkeypatch):
    bad, good, truth = pair("number", 120, 6.0, 0.3)
    reason = decided(monkeypatch, good, bad, NUMBER, truth_texts("number", truth)).reason
    assert "its error is better than that of version 1 by +" in reason and "permutation" not in reason
    first = decided(monkeypatch, good, None, NUMBER, truth_texts("number", truth)).reason
    assert "its mean absolute error is 0.2" in first and "(permutation p = " in first
