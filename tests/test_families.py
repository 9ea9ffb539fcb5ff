"""Invariant 1: head(cached activations) = full frozen model(images), for every backbone family, and the engine's promises.

Of every family also: a body that is cut in two is still the same function, and a frozen one passes the guard.
"""

import copy
import logging
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from headstart.activations import engine as engine_module
from headstart.activations.engine import Engine, Plan, build_engine, fidelity, plan_engine, plan_storage
from headstart.activations.guard import refuse_moving
from headstart.core.errors import InputError
from headstart.hardware import choose_precision
from headstart.images.preprocessing import normalise
from headstart.models.backbones import Backbone, build_backbone
from headstart.models.cuts import cut_body, output_shape
from headstart.models.folding import fold_batch_norms
from headstart.models.freezing import layer_groups
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.models.weights import state_digest
from tests.machines import pretend

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


def engine_of(body, preprocessing, *, engine="torch", precision="float32", storage="float32", batch_size=8) -> Engine:
    options = {"engine": engine, "precision": precision, "storage": storage, "batch_size": batch_size}
    return build_engine(body, preprocessing, **options, device=CPU)


@dataclass(frozen=True)
class Family:
    """A backbone that several tests look at, and its image size. A test that changes the body takes a copy."""

    size: int
    backbone: Backbone


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, id="-".join(map(str, family)), marks=pytest.mark.xdist_group(family[0])) for family in FAMILIES
    ],
)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family is built once; its tests run one after another, in one process of pytest-xdist's (`--dist loadgroup`)."""
    name, size = request.param
    return Family(size, build_backbone(name, "random", size))


def test_head_on_cached_activations_is_the_full_frozen_model(family):
    backbone, size = family.backbone, family.size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    head = build_head(HeadSpec("mlp", backbone.width, 4), seed=0)
    model = Classifier(backbone.body, head).eval()
    with torch.inference_mode():
        full = model(normalise(images, backbone.preprocessing))
    body = copy.deepcopy(backbone.body)
    for engine in ("openvino", "torch"):
        with torch.inference_mode():
            cached = head(engine_of(body, backbone.preprocessing, engine=engine, batch_size=4)(images))
        assert torch.allclose(cached, full, rtol=1e-3, atol=1e-3 * float(full.abs().max())), (
            engine,
            (cached - full).abs().max(),
        )
    groups = layer_groups(backbone.groups, model)
    assert list(groups) == ["early", "late", "head"]
    assert all(groups.values())
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())  # each exactly once


def test_tail_of_front_is_the_whole_to_the_bit(family):
    backbone, size = family.backbone, family.size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = backbone.body(x)
        for after in backbone.groups:
            front, tail = cut_body(backbone.body, backbone.groups, after)
            boundary = front(x)
            assert torch.equal(tail(boundary), whole)
            assert output_shape(front, size) == tuple(boundary.shape[1:])
            own = dict(backbone.body.named_parameters())
            late = {
                key
                for group in list(backbone.groups)[list(backbone.groups).index(after) + 1 :]
                for key in backbone.groups[group]
            }
            assert {key for key, _ in tail.named_parameters()} <= late  # a norm that the pooled output skips may be in neither
            assert all(own[key] is value for key, value in tail.named_parameters())  # the very same, under the same names
            assert not set(dict(front.named_parameters())) & late


def test_a_frozen_body_passes_the_guard_and_is_left_as_it_was(family):
    body = family.backbone.body
    x = torch.randn(4, 3, family.size, family.size, generator=torch.Generator().manual_seed(0))
    before, drawn = state_digest(body), torch.get_rng_state()
    assert refuse_moving(body, x) == before == state_digest(body)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(value.requires_grad for value in body.parameters())


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="all tests run in one process")
def test_each_family_is_built_by_one_process_only(request, family):
    """pytest-xdist tells its scheduler by the end of a test's name; with pytest 9.2 the name stayed as it was."""
    assert request.node.nodeid.rpartition("]")[2].startswith("@")


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_is_the_same_to_the_bit_whatever_else_is_in_its_batch(precision, engine):
    backbone = build_backbone("tf_efficientnet_lite0", "packaged", 64)
    engine = engine_of(backbone.body, backbone.preprocessing, engine=engine, precision=precision)
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


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.99)])
def test_engines_are_as_near_to_plain_float32_as_their_precision(engine, precision, least):
    """OpenVINO computes in float32 where the processor has no bfloat16: this holds on all of them."""
    backbone = build_backbone("resnet18", "random", 64)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    found = engine_of(backbone.body, backbone.preprocessing, engine=engine, precision=precision)
    assert fidelity(found, backbone.body, backbone.preprocessing, images)["cosine_min"] > least


def test_fidelity_is_measured_against_plain_float32():
    """With an engine that is off by a known amount, whatever this machine computes in."""
    backbone = build_backbone("resnet18", "random", 64)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        plain = backbone.body(normalise(images, backbone.preprocessing))
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * plain.std() * torch.randn(plain.shape, generator=generator)
    plan = Plan("torch", "bfloat16", "float32", 4, "cpu", "because", 0.0)
    found = fidelity(Engine(lambda _: plain + noise, plan), backbone.body, backbone.preprocessing, images)
    cosine = torch.cosine_similarity((plain + noise).double(), plain.double()).min()
    assert found["cosine_min"] == pytest.approx(float(cosine), abs=1e-6) and cosine < 0.9999
    assert found["max_error"] == pytest.approx(float(noise.abs().max()), rel=1e-3)
    assert found["max_value"] == pytest.approx(float(plain.abs().max()), rel=1e-4)


@pytest.mark.parametrize(
    ("machine", "precision"), [("avx2", "float32"), ("avx512_bf16", "bfloat16"), ("amx", "bfloat16"), ("arm", "float32")]
)
def test_auto_precision_follows_the_hardware(monkeypatch, machine, precision):
    pretend(monkeypatch, machine)
    assert choose_precision("auto", CPU)[0] == precision
    assert choose_precision("auto", CPU)[0] == precision
    assert choose_precision("bfloat16", CPU)[0] == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_precision("auto", torch.device("cuda"))[0] == "float32"


def test_auto_precision_gives_bfloat16_up_where_it_is_not_exact_enough(monkeypatch):
    backbone = build_backbone("resnet18", "random", 64)
    pretend(monkeypatch, "avx512_bf16")
    plans = []
    for most in (0.063, 1e-6):
        monkeypatch.setattr(engine_module, "MAX_ERROR", most)
        plans.append(engine_of(backbone.body, backbone.preprocessing, precision="auto").plan)
    assert [plan.precision for plan in plans] == ["bfloat16", "float32"]
    assert "has an error of" in plans[1].reason
    assert plans[1].probe_error < 1e-4 < plans[0].probe_error


def test_storage_is_16_bits_where_they_hold_the_activations():
    assert plan_storage(torch.tensor([[0.1, 3.0, 900.0]])) == "float16"
    assert plan_storage(torch.tensor([[0.1, 3.0, 20_000.0]])) == "float32"  # too near the end of its range
    assert plan_storage(torch.full((4, 4), 1e-7)) == "float32"  # below its precision


def test_the_engine_by_device():
    assert (plan_engine("auto", CPU), plan_engine("auto", torch.device("cuda"))) == ("openvino", "torch")
    with pytest.raises(InputError, match="openvino, and runtime.device is cuda"):
        plan_engine("openvino", torch.device("cuda"))


class Unknown(torch.nn.Module):
    """A body OpenVINO has no operation for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x[:, 0]).real


def test_a_body_that_openvino_cannot_run_is_said_to_be_one():
    root = logging.getLogger()
    before = (root.level, list(root.filters), list(root.handlers))
    backbone = build_backbone("resnet18", "random", 32)
    with pytest.raises(InputError, match="OpenVINO cannot run this backbone") as error:
        engine_of(Unknown().eval(), backbone.preprocessing, engine="openvino")
    assert "precompute.engine=torch" in str(error.value)
    assert (root.level, root.filters, root.handlers) == before  # OpenVINO leaves warnings switched off where it fails


def openvino_process(then: str) -> int:
    """The exit code of a fresh process that computes with OpenVINO, and goes on with `then`."""
    code = (
        "import os, signal, sys, torch\n"
        "from headstart.activations.engine import *; from headstart.models.backbones import build_backbone\n"
        "b = build_backbone('test_efficientnet', 'random', 32)\n"
        "compiled = openvino_forward(b.body, b.preprocessing, 2, torch.device('cpu'), 1)\n"
        "forwards = [compiled('float32'), compiled('float32')]\n"
        "forwards[0](torch.zeros(2, 3, 32, 32).byte())\n"
    )
    return subprocess.run([sys.executable, "-c", code + then], check=False).returncode


def test_no_telemetry_leaves():
    assert openvino_process("sys.exit(sys.modules.get('openvino_telemetry') is not None)") == 0


def test_signals_can_be_handled_after_engines_are_gone():
    """Each openvino.Core sets the thread's signal stack, and leaves a freed one behind if the oldest is deleted first."""
    told = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); del forwards[0]; forwards.clear()\n"
    assert openvino_process(told + "os.kill(os.getpid(), signal.SIGTERM)") == 143
