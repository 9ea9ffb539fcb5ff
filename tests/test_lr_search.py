"""The range test (invariant 3: it changes nothing), the four rules against fastai's, the consensus."""

import json
import math
import random

import numpy as np
import pytest
import torch

from headstart.models.backbones import build_backbone
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.models.weights import state_digest
from headstart.targets.single_label import cross_entropy
from headstart.training import batch_sources
from headstart.training import fine_tune as tuning
from headstart.training.activation_dataset import endless
from headstart.training.batch_sources import TrainingImages
from headstart.training.fine_tune import Network, UnfreezePhase
from headstart.training.head import head_prepare, train_head
from headstart.training.lr_report import write_search
from headstart.training.lr_search import RULES, Curve, minimum, range_test, slide, steep, suggest, trim, valley
from headstart.training.options import Options
from tests.conftest import REPOSITORY
from tests.test_training import LABELS, RUN, TARGET, images_feed, in_memory, network, rows, tuned

OPTIONS = Options(batch_size=16)
RECORDED = json.loads((REPOSITORY / "tests/data/lr_curves.json").read_text())


def head_test(head, x, y, **options) -> Curve:
    settings = {"lr_min": 1e-6, "lr_max": 10.0, "steps": 60, "seed": 3} | options
    batches = endless(in_memory(x, y), OPTIONS, 0)
    return range_test(head, head_prepare(OPTIONS, settings["lr_min"]), batches, loss=cross_entropy(), **settings)


@pytest.mark.parametrize("curve", RECORDED["curves"], ids=[curve["what"] for curve in RECORDED["curves"]])
def test_the_rules_give_what_fastais_give_on_recorded_curves(curve):
    lrs, losses = trim(Curve(curve["steps"], tuple(curve["lrs"]), tuple(curve["losses"])))
    found = {name: rule(lrs, losses) for name, rule in RULES.items()}
    assert found == pytest.approx(curve["fastai"], rel=1e-6)


def test_twenty_curves_are_recorded_with_fastais_version():
    assert len(RECORDED["curves"]) == 20
    assert RECORDED["fastai"].startswith("2.")


def random_states() -> tuple:
    return (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())


def test_searching_on_the_head_changes_nothing():
    x, y = rows()

    def fitted(search: bool) -> str:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        head = build_head(HeadSpec("mlp", 8, 3), seed=1)
        head[0].eval()
        before, states = state_digest(head), random_states()
        if search:
            head_test(head, x, y)
        assert state_digest(head) == before
        assert random_states() == states
        assert [module.training for module in head][:2] == [False, True]
        assert all(parameter.grad is None for parameter in head.parameters())
        train_head(head, in_memory(x, y), in_memory(x[1:], y), TARGET, epochs=2, lr=1e-2, options=OPTIONS, run=RUN)
        return state_digest(head)

    assert fitted(search=True) == fitted(search=False)


def unfrozen_test(net: Network, feed, lr_ratio: float = 3.0, **options) -> Curve:
    settings = {"lr_min": 1e-6, "lr_max": 10.0, "steps": 40, "seed": 3} | options
    prepare = tuning.network_prepare(net, UnfreezePhase("all", 1, 1e-3, lr_ratio), feed, OPTIONS)
    return range_test(net.model, prepare, batch_sources.endless(feed, OPTIONS, 0), loss=cross_entropy(), **settings)


@pytest.mark.parametrize("bn_freeze", [True, False])
def test_searching_on_the_unfrozen_network_changes_nothing(bn_freeze):
    def fitted(search: bool) -> str:
        torch.manual_seed(5)
        net, feed = network(bn_freeze), images_feed(2)
        before, states, modes = state_digest(net.model), random_states(), [m.training for m in net.model.modules()]
        wanted = [p.requires_grad for p in net.model.parameters()]
        if search:
            unfrozen_test(net, feed)
        assert state_digest(net.model) == before
        assert random_states() == states
        assert [m.training for m in net.model.modules()] == modes
        assert [p.requires_grad for p in net.model.parameters()] == wanted
        assert all(parameter.grad is None for parameter in net.model.parameters())
        tuned(net, [(UnfreezePhase("all", 1, 1e-3, 3), feed)])
        return state_digest(net.model)

    assert fitted(search=True) == fitted(search=False)


def test_the_second_search_scales_all_groups_together():
    net, feed = network(), images_feed()
    prepare = tuning.network_prepare(net, UnfreezePhase("all", 1, 1e-3, 10.0), feed, OPTIONS)
    made = []

    def watched(model):
        forward, optimizer = prepare(model)
        made.append(optimizer)
        return forward, optimizer

    batches = batch_sources.endless(feed, OPTIONS, 0)
    curve = range_test(net.model, watched, batches, loss=cross_entropy(), lr_min=1e-6, lr_max=1e-2, steps=20, seed=0)
    rates = sorted({group["lr"] for group in made[0].param_groups})
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2])
    assert curve.lrs[-1] == pytest.approx(1e-2)


def test_the_range_test_covers_the_range_repeats_and_stops_when_it_diverges():
    x, y = rows()
    head = build_head(HeadSpec("mlp", 8, 3), seed=1)
    curve = head_test(head, x, y, lr_max=1e3, steps=80)
    assert curve.lrs[0] == pytest.approx(1e-6)
    ratios = np.diff(np.log(curve.lrs))
    assert np.allclose(ratios, ratios[0])
    assert len(curve.lrs) < 80  # cut off where the loss exploded
    assert max(curve.losses) <= 4 * min(curve.losses[: np.argmax(curve.losses) + 1])
    assert head_test(head, x, y, lr_max=1e3, steps=80) == curve


def test_the_smoothed_loss_is_the_debiased_average():
    """With no learning, steps of a fixed model: the average of the batches' losses with weights .98^age."""
    x, y = rows()
    head = build_head(HeadSpec("linear", 8, 3), seed=1)
    torch.nn.init.normal_(head[1].weight)
    curve = head_test(head, x, y, lr_min=1e-12, lr_max=1e-11, steps=20)
    batches = endless(in_memory(x, y), OPTIONS, 0)
    losses = [float(cross_entropy()(head(x_b), y_b)) for x_b, y_b, _ in (next(batches) for _ in range(20))]
    for n, smoothed in enumerate(curve.losses, start=1):
        weights = 0.98 ** np.arange(n - 1, -1, -1)
        assert smoothed == pytest.approx(float((weights * losses[:n]).sum() / weights.sum()), rel=1e-5)


def bowl(steps: int = 100, low: float = -2.0, noise: float = 0.0, seed: int = 0) -> Curve:
    """A curve flat at first, steepest a decade below its minimum at 10**low, then rising."""
    exponents = np.linspace(-7, 1, steps)
    losses = 2 - 1.5 / (1 + np.exp(-4 * (exponents - low + 1))) + np.maximum(0, exponents - low) ** 3
    losses = losses + noise * np.random.default_rng(seed).normal(size=steps)
    return Curve(steps, tuple(10**exponents), tuple(losses))


def test_the_rules_read_the_curve():
    lrs, losses = trim(bowl())
    assert len(lrs) == 85
    assert math.log10(steep(lrs, losses)) == pytest.approx(-3, abs=0.15)
    assert math.log10(minimum(lrs, losses)) == pytest.approx(-3, abs=0.25)
    assert -6 < math.log10(valley(lrs, losses)) < -2
    assert slide(lrs, losses) is not None


def test_non_finite_losses_are_cut_off_and_no_nan_is_ever_suggested():
    curve = bowl()
    losses = [*curve.losses[:60], math.nan, *curve.losses[61:]]
    lrs, kept = trim(Curve(100, curve.lrs, tuple(losses)))
    assert len(kept) == 50 and np.isfinite(kept).all()
    found = suggest([Curve(100, (1e-7, 1e-6), (math.nan, math.nan))], default=3e-3)
    assert found.lr == 3e-3
    assert "diverged at once" in found.abstained
    assert found.as_json()["spread"] is None
    assert json.dumps(found.as_json(), allow_nan=False)


def test_seeds_and_rules_agree_or_the_search_abstains():
    agreed = suggest([bowl(noise=0.01, seed=seed) for seed in range(5)], default=1.0)
    assert not agreed.abstained
    assert 1e-4 < agreed.lr < 1e-2
    assert agreed.spread >= 1
    assert len(agreed.by_seed) == 5
    torn = suggest([bowl(low=low) for low in (-3.6, -2.0, -0.4)], default=3e-3)
    assert torn.lr == 3e-3
    assert "the seeds disagree by a factor of" in torn.abstained
    assert "the default 3.0e-03 is used" in torn.sentence()
    flat = Curve(100, bowl().lrs, tuple(np.random.default_rng(2).normal(size=100)))
    found = suggest([flat], default=3e-3)
    assert "the rules disagree by a factor of" in found.abstained
    assert found.lr == 3e-3


def test_a_search_that_diverges_at_once_is_written_too(tmp_path):
    empty = Curve(20, (), ())
    for curves in ([empty], [empty, bowl()]):
        write_search(tmp_path, curves, suggest(curves, default=3e-3))
        assert (tmp_path / "curve.png").stat().st_size > 1000
        assert len((tmp_path / "curve.csv").read_text().splitlines()) == 1 + sum(len(one.lrs) for one in curves)


def test_a_network_without_batch_norm_can_be_searched_too():
    backbone = build_backbone("test_vit", "random", 160)
    net = Network(
        Classifier(backbone.body, build_head(HeadSpec("linear", backbone.width, 3), 0)), backbone.groups, bn_freeze=True
    )
    images = torch.randint(0, 256, (24, 3, 160, 160), dtype=torch.uint8)
    train, valid = TrainingImages(lambda _, row: images[row], LABELS), (lambda row: images[row], len(images))
    feed = batch_sources.from_images(train, valid, backbone.preprocessing, 1, torch.device("cpu"))
    assert len(unfrozen_test(net, feed, steps=20).lrs) >= 5
