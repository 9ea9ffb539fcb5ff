"""Invariant 1: head(cached activations) = full frozen model(images), for every backbone family, and the engine's promises."""

import pytest
import torch

from headstart.activations.engine import Engine, fidelity, fold_batch_norms, has_depthwise, plan_precision
from headstart.data.transforms import normalise
from headstart.models.backbones import build_backbone
from headstart.models.freezing import layer_groups
from headstart.models.heads import Classifier, build_head

CPU = torch.device("cpu")
# one of each torchvision family (by the first word of its name), and timm's main kinds
FAMILIES = [
    ("alexnet", 64),
    ("vgg11_bn", 32),
    ("resnet18", 64),
    ("resnext50_32x4d", 64),
    ("wide_resnet50_2", 64),
    ("densenet121", 64),
    ("squeezenet1_1", 64),
    ("mobilenet_v3_small", 64),
    ("efficientnet_b0", 64),
    ("convnext_tiny", 64),
    ("regnet_y_400mf", 64),
    ("vit_b_32", 64),
    ("swin_t", 64),
    ("maxvit_t", 224),
    ("shufflenet_v2_x0_5", 64),
    ("mnasnet0_5", 64),
    ("googlenet", 64),
    ("inception_v3", 96),
    ("tf_efficientnet_lite0", 64),
    ("vit_tiny_patch16_224", 32),
    ("swin_tiny_patch4_window7_224", 64),
    ("convnext_atto", 64),
    ("resnetv2_50", 64),
    ("mixer_s32_224", 64),
    ("levit_128s", 224),
]


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_head_on_cached_activations_is_the_full_frozen_model(name, size):
    backbone = build_backbone(name, "random", size)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    head = build_head("mlp", backbone.width, 4, seed=0)
    model = Classifier(backbone.body, head).eval()
    with torch.inference_mode():
        full = model(normalise(images, backbone.preprocessing))
        engine = Engine(backbone.body, backbone.preprocessing, "float32", 4, CPU)
        cached = head(engine(images))
    assert torch.allclose(cached, full, rtol=1e-3, atol=1e-3 * float(full.abs().max())), (cached - full).abs().max()
    groups = layer_groups(backbone.groups, model)
    assert list(groups) == ["early", "late", "head"]
    assert all(groups.values())
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())  # each exactly once


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_is_the_same_to_the_bit_whatever_else_is_in_its_batch(precision):
    backbone = build_backbone("tf_efficientnet_lite0", "packaged", 64)
    engine = Engine(backbone.body, backbone.preprocessing, precision, 8, CPU)
    images = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    whole = torch.cat([engine(images[:8]), engine(images[8:])])
    assert torch.equal(engine(images[3:4])[0], whole[3])
    assert torch.equal(engine(images[[11, 3, 14]])[1], whole[3])
    assert torch.equal(torch.cat([engine(part) for part in images.split(5)]), whole)
    with pytest.raises(ValueError, match="batch size 8"):
        engine(images)


def test_folding_changes_nothing_but_speed_and_leaves_the_body_alone():
    backbone = build_backbone("resnet18", "random", 64)
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    for module in backbone.body.modules():  # statistics as after training, not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 64, 64)
    folded, count = fold_batch_norms(backbone.body, x)
    assert count == 20
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(x), backbone.body(x), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(backbone.body.state_dict()[name], value) for name, value in before.items() if "running" not in name)


class Shared(torch.nn.Module):
    """A convolution read by a batch norm and by an addition: it must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


def test_folding_is_given_up_where_it_would_change_the_result():
    body = Shared().eval()
    x = torch.randn(2, 3, 8, 8)
    folded, count = fold_batch_norms(body, x)
    assert count == 0
    assert torch.equal(folded(x), body(x))


def test_fidelity_is_measured_against_plain_float32():
    backbone = build_backbone("resnet18", "random", 64)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    exact = fidelity(Engine(backbone.body, backbone.preprocessing, "float32", 4, CPU), backbone.body, images)
    rough = fidelity(Engine(backbone.body, backbone.preprocessing, "bfloat16", 4, CPU), backbone.body, images)
    assert exact["cosine_min"] > 0.99999
    assert 0.99 < rough["cosine_min"] < exact["cosine_min"] + 1e-7
    assert rough["max_error"] > exact["max_error"]


def test_auto_precision_follows_cpu_and_architecture(monkeypatch):
    plain, depthwise = build_backbone("resnet18", "random", 64).body, build_backbone("mobilenet_v2", "random", 64).body
    assert (has_depthwise(plain), has_depthwise(depthwise)) == (False, True)

    def chosen(amx: bool, avx: bool) -> list[str]:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
        return [plan_precision("auto", body, CPU)[0] for body in (plain, depthwise)]

    assert chosen(amx=True, avx=True) == ["bfloat16", "bfloat16"]
    assert chosen(amx=False, avx=True) == ["bfloat16", "float32"]
    assert chosen(amx=False, avx=False) == ["float32", "float32"]
    assert plan_precision("bfloat16", plain, CPU)[0] == "bfloat16"
