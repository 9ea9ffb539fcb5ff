"""Freezing and batch norm, the heads' and the network's training, one loop for both."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from headstart.core.errors import InputError
from headstart.hardware import choose_precision
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body
from headstart.models.depthwise import Depthwise
from headstart.models.folding import FoldedConv, training_view
from headstart.models.freezing import freeze_except, layer_groups, trained_groups, training_mode
from headstart.models.heads import Classifier, HeadSpec, build_head, fit_standardiser
from headstart.models.weights import state_digest
from headstart.targets.single_label import SingleLabel, class_weights, cross_entropy
from headstart.targets.target import LossRule
from headstart.training.activation_dataset import ActivationDataset, epoch_batches
from headstart.training.batch_sources import BatchSource, TrainingImages, from_feature_maps, from_images
from headstart.training.fine_tune import Labels, Network, UnfreezePhase, fine_tune
from headstart.training.head import train_head
from headstart.training.loop import History, TrainingRun, train_step
from headstart.training.optimizers import build_optimizer, epoch_order
from headstart.training.options import Options
from headstart.training.schedules import group_rates, steps_per_epoch
from headstart.training.validation import collect_logits

CPU = torch.device("cpu")
TARGET = SingleLabel(("a", "b", "c"))


def silent(epoch: int, metrics: dict[str, float]) -> None:
    pass


RUN = TrainingRun(0, silent)


def unfrozen(name: str = "test_resnet", unfreeze_from: str = "all") -> tuple[Classifier, dict[str, list[nn.Parameter]]]:
    backbone = build_backbone(name, "random", 32)
    model = Classifier(backbone.body, build_head(HeadSpec("mlp", backbone.width, 3), 0))
    groups = layer_groups(backbone.groups, model)
    freeze_except(groups, trained_groups(list(groups), unfreeze_from))
    return model, groups


@pytest.mark.parametrize(
    ("unfreeze_from", "bn_freeze", "batch_stats", "moves", "trains"),
    [("head", True, False, False, False), ("head", False, False, False, False),
     ("all", True, False, False, True), ("all", False, True, True, True)],
)  # fmt: skip
def test_batch_norm_rows_of_the_table(unfreeze_from, bn_freeze, batch_stats, moves, trains):
    model, groups = unfrozen(unfreeze_from=unfreeze_from)
    training_mode(model, bn_freeze)
    norms = [module for module in model.body.modules() if isinstance(module, nn.BatchNorm2d)]
    running = [norm.running_mean.clone() for norm in norms]
    affine = [norm.weight.detach().clone() for norm in norms]
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32) * 3 + 1, torch.arange(8) % 3
    same = torch.equal(model.body(x)[:4], model.body(torch.cat([x[:4], 9 * x[4:]]))[:4])
    assert same == (not batch_stats)  # with batch statistics, the other rows matter
    optimizer = build_optimizer([(group, 1e-2) for group in groups.values()])
    train_step(model, optimizer, x, y, cross_entropy())
    assert all(torch.equal(a, b.running_mean) for a, b in zip(running, norms, strict=True)) == (not moves)
    assert all(torch.equal(a, b.weight) for a, b in zip(affine, norms, strict=True)) == (not trains)


def test_a_frozen_part_is_in_eval_mode_with_its_dropout():
    backbone = build_backbone("efficientnet_b0", "random", 32)  # dropout and stochastic depth inside
    model = Classifier(backbone.body, build_head(HeadSpec("mlp", backbone.width, 3), 0))
    groups = layer_groups(backbone.groups, model)
    freeze_except(groups, ["head"])
    training_mode(model, bn_freeze=False)
    assert not any(module.training for module in model.body.modules() if list(module.parameters()))
    assert model.head.training
    x = torch.randn(4, 3, 32, 32)
    before = state_digest(model.body)
    assert torch.equal(model.body(x), model.body(x))
    assert state_digest(model.body) == before


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize(("frozen", "bn_freeze"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_kind_of_batch_norm_keeps_to_the_table(norm, frozen, bn_freeze):
    """Against the formula: running statistics or the batch's, moved by a tenth or not, gradients or none."""
    torch.manual_seed(0)
    layer = norm(4)
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(4.0)
    model = nn.Sequential(layer)
    for parameter in layer.parameters():
        parameter.requires_grad_(not frozen)
    training_mode(model, bn_freeze)
    shape = (8, 4) if norm is nn.BatchNorm1d else (8, 4, 3, 3)
    x = torch.randn(shape, requires_grad=True)
    axes = (0, *range(2, x.ndim))
    mean, var = x.detach().mean(axes), x.detach().var(axes, correction=0)
    seen = [0.5 * torch.ones(4), 4.0 * torch.ones(4)] if frozen or bn_freeze else [mean, var]
    wide = [part.view(1, 4, *[1] * (x.ndim - 2)) for part in seen]
    y = model(x)
    assert torch.allclose(y, (x - wide[0]) / torch.sqrt(wide[1] + layer.eps), atol=1e-5)
    moved = not frozen and not bn_freeze
    assert torch.allclose(layer.running_mean, 0.9 * torch.full((4,), 0.5) + 0.1 * mean if moved else torch.full((4,), 0.5))
    (y**3).sum().backward()
    assert (layer.weight.grad is not None) == (not frozen)
    assert layer.training == moved


def test_which_groups_train():
    names = ["early", "late", "head"]
    assert trained_groups(names, "all") == names
    assert trained_groups(names, "late") == trained_groups(names, "last-2") == ["late", "head"]
    with pytest.raises(InputError, match="last-1 to last-3"):
        trained_groups(names, "last-4")


def rows(count: int = 120, width: int = 8, views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    x = torch.randn(views, count, width, generator=generator) + 4 * torch.nn.functional.one_hot(y, width)
    return x, y


def in_memory(x: torch.Tensor, y: torch.Tensor) -> ActivationDataset:
    """Activations [v, n, d] and classes [n]."""
    return ActivationDataset(lambda images, views: x[views, images], len(x), y)


def test_an_epoch_holds_each_image_once_in_a_view_drawn_afresh():
    x = torch.arange(2 * 50).reshape(2, 50, 1).float()
    y = torch.arange(50)
    first, again, second = (list(epoch_batches(in_memory(x, y), 16, seed)) for seed in (0, 0, 1))
    labels = torch.cat([labels for _, labels, _ in first])
    assert sorted(labels.tolist()) == list(range(50))
    assert all(torch.equal(values[:, 0] % 50, labels.float()) for values, labels, _ in first)
    assert all(torch.equal(labels, images) for _, labels, images in first)
    views = {
        tuple(torch.cat([values for values, *_ in batches]).sort(0).values.ravel().tolist()) for batches in (first, second)
    }
    assert len(views) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert list(epoch_batches(in_memory(x, y), 16, 0, first=4)) == []
    later = list(epoch_batches(in_memory(x, y), 16, 0, first=2))  # an epoch gone on with
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first[2:], later, strict=True))
    for count, size in ((50, 16), (49, 16), (33, 16), (1, 8), (2, 2)):
        batches = list(epoch_batches(in_memory(x[:, :count], y[:count]), size, 0))
        assert len(batches) == steps_per_epoch(count, size)


def test_members_take_the_rows_in_orders_of_their_own():
    x, y = torch.arange(2 * 50).reshape(2, 50, 1).float(), torch.arange(50)
    batches = list(epoch_batches(in_memory(x, y), 16, 0, members=3))
    assert [len(rows) for *_, rows in batches] == [48, 48, 48, 6]
    assert all(torch.equal(values[:, 0] % 50, labels.float()) and torch.equal(labels, rows) for values, labels, rows in batches)
    orders = [torch.cat(parts).tolist() for parts in zip(*(rows.chunk(3) for *_, rows in batches), strict=True)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({*map(tuple, orders)}) == 3
    later = list(epoch_batches(in_memory(x, y), 16, 0, first=2, members=3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches[2:], later, strict=True))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_learns_keeps_its_best_epoch_and_repeats_to_the_bit(kind):
    x, y = rows()

    def trained() -> tuple[nn.Module, object]:
        head = build_head(HeadSpec(kind, 8, 3), seed=1)
        fit_standardiser(head, x[0].split(50))
        return head, train_head(
            head, in_memory(x, y), in_memory(x[1:], y), TARGET, epochs=6, lr=1e-2, options=Options(batch_size=16), run=RUN
        )

    (head, history), (twin, _) = trained(), trained()
    assert state_digest(head) == state_digest(twin)
    found = TARGET.scores(collect_logits(head, [x[1]]), y)
    best = history.best_epoch()
    assert found["accuracy"] > 0.9
    assert found["log_loss"] == best["valid_log_loss"]
    assert best["valid_calibrated_log_loss"] == min(e["valid_calibrated_log_loss"] for e in history.epochs)


def test_a_loss_that_is_not_finite_or_explodes_stops_naming_step_rate_and_files():
    x, y = rows()
    x[:, 7] = float("nan")
    head = build_head(HeadSpec("linear", 8, 3), seed=0)
    names = [f"c/{i}.png" for i in range(len(y))]
    run = TrainingRun(0, silent, names.__getitem__)
    options = {"target": TARGET, "epochs": 2, "options": Options(batch_size=16), "run": run}
    naming = r"the loss is nan in epoch 1, step \d+ at learning rate \S+\n  in the batch of c/\d+"
    with pytest.raises(InputError, match=naming) as nan:
        train_head(head, in_memory(x, y), in_memory(x[1:], y), lr=1e-2, **options)
    assert "(16 in all)" in str(nan.value)
    assert all(bool(parameter.isfinite().all()) for parameter in head.parameters())  # the step was not taken
    x[:, 7] = 0
    broken = x.clone()
    broken[0, 5] = float("inf")  # a validation image
    with pytest.raises(InputError, match=r"the validation log-loss is nan after epoch 1"):
        train_head(build_head(HeadSpec("linear", 8, 3), 0), in_memory(x[1:], y), in_memory(broken, y), lr=1e-2, **options)
    with pytest.raises(InputError, match=r"(?s)the loss is \d.*wanted: a loss below 1000"):
        train_head(build_head(HeadSpec("mlp", 8, 3), 0), in_memory(x * 1e4, y), in_memory(x[1:], y), lr=1e4, **options)


def test_prediction_leaves_modes_as_they_were():
    head = build_head(HeadSpec("mlp", 8, 3), seed=0)
    head.train()
    head[0].eval()
    collect_logits(head, [torch.randn(4, 8)])
    assert [module.training for module in head] == [False, True, True, True, True, True, True]


IMAGES = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
BACKBONE = build_backbone("test_resnet", "random", 32)


def images_feed(workers: int = 1) -> BatchSource:
    """The images, changed in every epoch."""
    train = TrainingImages(lambda epoch, row: IMAGES[row] ^ abs(epoch), LABELS)
    return from_images(train, (lambda row: IMAGES[row], len(IMAGES)), BACKBONE.preprocessing, workers, CPU)


def network(bn_freeze: bool = True) -> Network:
    model = Classifier(copy.deepcopy(BACKBONE.body), build_head(HeadSpec("mlp", BACKBONE.width, 3), 0))
    return Network(model, BACKBONE.groups, bn_freeze)


def tuned(net: Network, stretches: list[tuple[UnfreezePhase, BatchSource]], **options) -> History:
    settings = Options(**({"batch_size": 8, "label_smoothing": 0.1} | options))
    return fine_tune(net, stretches, Labels(TARGET, LABELS, LABELS), settings, RUN)


@pytest.mark.parametrize("bn_freeze", [True, False])
def test_fine_tuning_trains_only_its_groups_and_repeats_to_the_bit(bn_freeze):
    nets = [network(bn_freeze) for _ in range(3)]
    for net, start, workers in zip(nets, ("late", "late", "all"), (1, 3, 2), strict=True):
        history = tuned(net, [(UnfreezePhase(start, 2, 1e-3, 3), images_feed(workers))])
        assert history.best_epoch()["epoch"] > 0, "what it began with would tell nothing"
    model, twin, whole = (net.model for net in nets)
    assert state_digest(model) == state_digest(twin) != state_digest(whole)
    before, after = BACKBONE.body.state_dict(), model.body.state_dict()
    early = {name.rpartition(".")[0] for name in BACKBONE.groups["early"]}
    for name in before:
        if name.rpartition(".")[0] in early:
            assert torch.equal(before[name], after[name]), name  # buffers too
    assert any(not torch.equal(before[name], after[name]) for name in BACKBONE.groups["late"])
    moved = any(not torch.equal(before[name], after[name]) for name in before if "running_mean" in name)
    assert moved == (not bn_freeze)


NETWORKS = {"test_resnet": True, "test_efficientnet": True, "tf_efficientnet_lite0": True, "densenet121": True,
            "test_vit": False, "coatnet_pico_rw_224": False}  # fmt: skip


@pytest.mark.parametrize(("name", "folds"), NETWORKS.items())
def test_the_view_for_frozen_batch_norm_is_the_same_function_of_the_same_tensors(name, folds):
    """Not where a shortcut reads the convolution too (CoAtNet), and not without batch norm."""
    size = {"test_vit": 160, "coatnet_pico_rw_224": 224}.get(name, 64)
    backbone = build_backbone(name, "random", size)
    model = Classifier(backbone.body, build_head(HeadSpec("mlp", backbone.width, 3), 0)).eval()
    for module in model.modules():  # statistics that are not those of a new network
        if isinstance(module, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(len(module.weight))
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    freeze_except(groups := layer_groups(backbone.groups, model), list(groups))
    model.body.double()  # so that a rounding does not flip a ReLU deep down
    x = torch.randn(4 if folds else 2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = training_view(model, x[:1]).eval()
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in view.buffers()} == {id(b) for b in model.buffers()}
    expected, found = model(x), view(x)
    assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))
    slopes = [
        torch.autograd.grad(out.square().mean(), list(model.parameters()), allow_unused=True) for out in (expected, found)
    ]
    for a, b in zip(*slopes, strict=True):
        assert a is None or float((a - b).norm()) <= 1e-5 * float(a.norm()) + 1e-9
    assert any(isinstance(module, FoldedConv) for module in view.modules()) == folds


def test_a_tail_on_the_cached_map_has_the_losses_of_the_full_forward():
    """With the same views: the map of each image is of the very picture that the full forward sees."""
    front, _ = cut_body(BACKBONE.body, BACKBONE.groups, "early")
    preprocessing = BACKBONE.preprocessing
    train, valid = TrainingImages(lambda epoch, row: IMAGES[row], LABELS), (lambda row: IMAGES[row], len(IMAGES))
    still = from_images(train, valid, preprocessing, 1, CPU)
    with torch.no_grad():
        maps = front(torch.cat(list(still.valid())))
    cached = ActivationDataset(lambda images, views: maps[images], 1, LABELS)
    histories, models = [], []
    for feed in (still, from_feature_maps("early", cached, cached, CPU)):
        for bn_freeze in (True, False):
            net = network(bn_freeze)
            histories.append(tuned(net, [(UnfreezePhase("late", 3, 3e-3, 3), feed)], weight_decay=0.0))
            models.append(net.model)
    for full, tail, a, b in zip(histories[:2], histories[2:], models[:2], models[2:], strict=True):
        assert np.allclose([row[2] for row in full.trace], [row[2] for row in tail.trace], rtol=2e-3)
        for row, other in zip(full.epochs, tail.epochs, strict=True):
            assert row["valid_log_loss"] == pytest.approx(other["valid_log_loss"], rel=2e-3)
        x = torch.cat(list(still.valid()))
        assert torch.allclose(a.eval()(x).softmax(1), b.eval()(x).softmax(1), atol=5e-3)


def test_gradual_unfreezing_goes_on_from_the_best_of_the_phase_before():
    net = network()
    history = tuned(net, [(UnfreezePhase("head", 1, 1e-3), images_feed()), (UnfreezePhase("late", 2, 1e-3), images_feed()),
                          (UnfreezePhase("all", 1, [1e-5, 1e-4, 1e-3]), images_feed())])  # fmt: skip
    assert [(row["epoch"], row["phase"]) for row in history.epochs] == [
        (0, "as it came"), (1, "head"), (2, "late"), (3, "late"), (4, "all")]  # fmt: skip
    assert [row[0] for row in history.trace] == list(range(1, 13))
    found = TARGET.scores(collect_logits(net.model, images_feed().valid()), LABELS)
    best = min(row["valid_calibrated_log_loss"] for row in history.epochs)
    assert found["calibrated_log_loss"] == pytest.approx(best, rel=1e-4)
    with pytest.raises(InputError, match="2 rates for 3 layer groups"):
        tuned(network(), [(UnfreezePhase("all", 1, [1e-5, 1e-4]), images_feed())])


def test_early_stopping_keeps_the_best_and_ends_a_phase_only():
    x, y = rows(60)
    head = build_head(HeadSpec("mlp", 8, 3), seed=1)
    noise = in_memory(torch.randn(1, 60, 8, generator=torch.Generator().manual_seed(1)), y)
    history = train_head(
        head, noise, in_memory(x[1:], y), TARGET, epochs=50, lr=3e-2, options=Options(batch_size=16, patience=2), run=RUN
    )
    assert len(history.epochs) == history.best + 1 + 2 < 50
    found = TARGET.scores(collect_logits(head, [x[1]]), y)
    best = history.best_epoch()["valid_calibrated_log_loss"]
    assert found["calibrated_log_loss"] == best == min(e["valid_calibrated_log_loss"] for e in history.epochs)


def test_class_weights_and_balanced_sampling():
    from sklearn.utils.class_weight import compute_class_weight

    y = torch.tensor([0] * 90 + [1] * 9 + [3])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=y.numpy()) * 3 / 4  # ours has 4 classes
    assert class_weights(y, 4)[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert class_weights(y, 4)[2] == 0
    weights_n = SingleLabel(tuple("abcd")).sampling_weights(y)
    drawn = torch.cat([y[epoch_order(len(y), weights_n, torch.Generator().manual_seed(seed))] for seed in range(60)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares[[0, 1, 3]].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    order = epoch_order(len(y), None, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(100))
    logits = torch.randn(100, 4)
    weights = class_weights(y, 4)
    by_hand = (weights[y] * F.cross_entropy(logits, y, reduction="none")).sum() / weights[y].sum()
    assert float(SingleLabel(tuple("abcd")).loss(LossRule(balance="weights"), y)(logits, y)) == pytest.approx(float(by_hand))
    wider = torch.cat([logits, torch.full((100, 2), -1e9)], 1)  # two more classes, in no training image
    assert float(SingleLabel(tuple("abcdef")).loss(LossRule(balance="weights"), y)(wider, y)) == pytest.approx(float(by_hand))


def test_label_smoothing_is_szegedys():
    logits, y, classes = torch.randn(7, 5), torch.arange(7) % 5, 5
    target = 0.9 * F.one_hot(y, classes) + 0.1 / classes
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(cross_entropy(0.1)(logits, y)) == pytest.approx(float(expected))


def test_weight_decay_is_for_matrices_and_kernels_only_and_each_group_has_its_rate():
    model, groups = unfrozen()
    rates = group_rates(1e-2, 10, list(groups))
    for kind in ("adamw", "sgd"):
        optimizer = build_optimizer(list(zip(groups.values(), rates, strict=True)), kind, 0.05)
        of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for parameters, rate in zip(groups.values(), rates, strict=True):
            for parameter in parameters:
                assert of[id(parameter)]["peak"] == rate
                assert of[id(parameter)]["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)


def test_bfloat16_is_for_hardware_that_has_it(monkeypatch):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert choose_precision("auto", CPU)[0] == expected
        assert choose_precision("float32", CPU)[0] == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_precision("auto", torch.device("cuda"))[0] == "float32"
    assert choose_precision("auto", torch.device("mps"))[0] == "float32"


@pytest.mark.parametrize("bn_freeze", [True, False])
def test_in_bfloat16_grouped_convolutions_stay_in_float32_unless_they_are_depthwise(bn_freeze):
    backbone = build_backbone("regnetx_002", "random", 32)
    model = Classifier(backbone.body, build_head(HeadSpec("linear", backbone.width, 3), 0))
    torch.nn.init.normal_(model.head[1].weight)
    feed = images_feed()
    nets = [Network(model, backbone.groups, bn_freeze, precision) for precision in ("float32", "bfloat16")]
    depthwise = Network(mobile := unfrozen("test_efficientnet")[0], {}, bn_freeze, "bfloat16").runner(feed)
    assert sum(isinstance(module, Depthwise) for module in depthwise.modules()) == sum(
        isinstance(module, nn.Conv2d) and module.groups > 1 for module in mobile.modules()
    )
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def look(module: nn.Conv2d, inputs: object, output: torch.Tensor) -> None:
        seen[module.groups > 1].add(output.dtype)

    for module in nets[1].runner(feed).modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    for net in nets:
        net.prepare(feed)
    x = next(iter(feed.valid()))
    plain, mixed = (net.forward(feed)(x) for net in nets)
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    assert plain.dtype == mixed.dtype == torch.float32
    assert 0 < float((plain - mixed).detach().abs().max()) < 0.1 * float(plain.detach().abs().max())
    mixed.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
