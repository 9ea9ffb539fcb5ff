"""A model answers after loading as before saving: every torchvision family, every module of timm, weights from a file."""

import pytest
import timm
import torch
from timm.models import _registry
from torchvision import models as tv

from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.images.preprocessing import normalise
from headstart.models.backbones import Backbone, build_backbone
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.models.trained import ModelCard, load_classifier, refuse_another, save_model
from headstart.prediction.export import export
from headstart.prediction.predictor import Predictor
from headstart.targets.single_label import SingleLabel
from tests.conftest import LIMITS, encode, picture
from tests.test_families import FAMILIES

QUICK = ("googlenet", "inception_v3", "mnasnet0_5", "resnet18", "squeezenet1_1")  # the others take a minute
TORCHVISION = [
    pytest.param(name, size, marks=[] if name in QUICK else pytest.mark.e2e)
    for name, size in FAMILIES
    if name in tv.list_models(module=tv)
]
# The smallest model of each of timm's modules (`models/*.py` there), by parameters.
SMALLEST = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
    cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c
    dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
    ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050
    gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s
    lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap
    nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny
    regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny
    samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window16_256 test_byobnet test_coatnet test_convnext
    test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224
    tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_dinov3_qkvb
    vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905


def trained(name: str, size: int, path) -> tuple[Classifier, Backbone, ModelCard]:
    """A classifier on a backbone whose weights come from a file at `path`, as of a network with 7 classes, and its card."""
    if name in tv.list_models(module=tv):
        sized = {"image_size": size} if name.startswith("vit_") else {"input_size": (size, size)} if "maxvit" in name else {}
        whole = tv.get_model(name, num_classes=7, **sized)
    else:
        config = timm.get_pretrained_cfg(name)
        sized = {"img_size": size} if config is not None and config.fixed_input_size else {}
        whole = timm.create_model(name, num_classes=7, **sized)
    torch.save(whole.state_dict(), path)
    backbone = build_backbone(name, str(path), size, weights_sha256=sha256_file(path))
    head = build_head(HeadSpec("mlp", backbone.width, 3), seed=0)
    model = Classifier(backbone.body, head).eval()
    limits = {"max_pixels": 10_000, "min_side": 4, "formats": LIMITS["formats"]}
    target = SingleLabel(("a", "b", "c"))
    card = ModelCard(
        name,
        backbone.options,
        backbone.preprocessing,
        limits,
        HeadSpec("mlp", backbone.width, len(target.classes)),
        target,
        {"weights": "w"},
    )
    return model, backbone, card


def views_of(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def answers_alike(name: str, size: int, folder) -> None:
    model, _, card = trained(name, size, folder / "weights.pth")
    save_model(folder / "m.safetensors", model, card)
    loaded, found = load_classifier(folder / "m.safetensors")
    assert found == card
    x = normalise(views_of(size), card.preprocessing)
    with torch.inference_mode():
        wanted = model(x)
        assert torch.allclose(loaded(x), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    refuse_another(folder / "m.safetensors", model, views_of(size))


@pytest.mark.parametrize(("name", "size"), TORCHVISION)
def test_every_torchvision_family_is_the_same_model_after_loading(name, size, tmp_path):
    answers_alike(name, size, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("name", SMALLEST)
def test_every_module_of_timm_is_the_same_model_after_loading(name, tmp_path):
    config = timm.get_pretrained_cfg(name)
    answers_alike(name, config.input_size[-1] if config else 224, tmp_path)


def test_each_module_of_timm_has_its_smallest_model_here():
    modules = {_registry._model_to_module[name] for name in SMALLEST}
    assert modules == set(_registry._module_to_models)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_weights_from_a_file_keep_the_input_scaling_wherever_the_model_is_used(name, tmp_path):
    """Weights that are not random ask for another input scaling; the file once came back without it."""
    model, backbone, card = trained(name, 96, tmp_path / "weights.pth")
    assert backbone.options == {"transform_input": True}
    save_model(tmp_path / "m.safetensors", model, card)
    predictor = Predictor(tmp_path / "m.safetensors")
    data = [encode(picture(0, 1, side=96))]
    view = predictor._view_of(data[0], 0)[None]
    with torch.inference_mode():
        wanted = model(normalise(view, card.preprocessing)).softmax(1)
    assert torch.allclose(predictor.answers_of_bytes(data), wanted.double(), atol=0.02), (
        "by precompute's engine, perhaps in bfloat16"
    )
    export(tmp_path / "m.safetensors", tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(view), wanted, atol=1e-4)


def test_a_model_file_that_comes_back_as_another_network_is_refused(tmp_path):
    model, backbone, card = trained("googlenet", 64, tmp_path / "weights.pth")
    other = ModelCard(**card.__dict__ | {"options": {"transform_input": False}})
    save_model(tmp_path / "m.safetensors", model, other)
    with pytest.raises(InputError, match="googlenet answers differently after loading: logits differ by"):
        refuse_another(tmp_path / "m.safetensors", model, views_of(64))


def test_classes_that_the_data_has_and_the_model_not_are_found(tmp_path):
    from headstart.core.files import write_json
    from headstart.models.classes import target_in, unknown_classes, warning
    from tests.conftest import scan_folder, write_shapes

    model, _, card = trained("squeezenet1_1", 64, tmp_path / "weights.pth")
    save_model(tmp_path / "m.safetensors", model, card)
    assert target_in(tmp_path / "m.safetensors") == {"kind": "single_label", "classes": ["a", "b", "c"]}
    assert unknown_classes(tmp_path / "m.safetensors", tmp_path / "none.json") == []
    found = scan_folder(write_shapes(tmp_path / "images", classes=4))
    write_json(tmp_path / "target.json", found.format.describe(found.manifest))
    assert unknown_classes(tmp_path / "m.safetensors", tmp_path / "target.json") == ["d"]
    assert "does not know 1 of the classes that the data has now: 'd'" in warning(["d"])
    (tmp_path / "m.safetensors").write_bytes(b"no model")
    with pytest.raises(InputError, match="not a Headstart model"):
        target_in(tmp_path / "m.safetensors")
