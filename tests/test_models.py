"""Backbones, weights, heads, model files."""

import json
import socket

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as tv

from flows import backbones as table
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.images.preprocessing import Preprocessing
from headstart.models.backbones import bare_backbone, build_backbone
from headstart.models.heads import Classifier, HeadSpec, Standardise, build_head, fit_standardiser
from headstart.models.trained import ModelCard, Outdated, load_card, load_classifier, load_head, save_model
from headstart.models.weights import state_digest
from headstart.targets.single_label import SingleLabel
from headstart.training.checkpoints import Checkpoint, Saved
from tests.test_families import FAMILIES


@pytest.mark.parametrize(("name", "crop_pct"), [("lite0", 0.875), ("lite1", 0.882), ("lite2", 0.89)])
def test_packaged_weights_are_imagenets(name, crop_pct):
    """The package's weights in timm's architecture tell a real photo's class (scikit-image ships the cat)."""
    from skimage import data

    from headstart.images.preprocessing import normalise
    from headstart.images.transforms import base_view
    from headstart.models.weights import create_timm

    model = create_timm(f"tf_efficientnet_{name}", "packaged", {}, "none")[0].eval()
    backbone = build_backbone(f"tf_efficientnet_{name}", "packaged", 224)
    assert (backbone.preprocessing.mean, backbone.preprocessing.interpolation) == ((0.5, 0.5, 0.5), "bicubic")
    assert (backbone.preprocessing.crop_pct, backbone.width) == (crop_pct, 2560)
    with torch.no_grad():
        cat = model(normalise(base_view(data.cat(), backbone.preprocessing)[None], backbone.preprocessing)).argmax()
    assert int(cat) in range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian


def test_every_torchvision_classification_model_has_a_family():
    known = {name.partition("_")[0].rstrip("0123456789") for name, _ in FAMILIES}
    missing = [name for name in tv.list_models(module=tv) if name.partition("_")[0].rstrip("0123456789") not in known]
    assert not missing


def test_random_weights_follow_the_seed_and_leave_the_global_state():
    before = torch.get_rng_state()
    digests = [state_digest(build_backbone("test_resnet", "random", 32, seed=seed).body) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_preprocessing_is_the_weights_own():
    vgg, vit = build_backbone("vgg11", "random", 64), build_backbone("vit_b_16", "random", 32)
    weights = tv.get_model_weights("vgg11").DEFAULT.transforms()
    assert vgg.preprocessing.mean == tuple(weights.mean)
    assert vgg.preprocessing.crop_pct == weights.crop_size[0] / weights.resize_size[0]
    assert vgg.preprocessing.interpolation == weights.interpolation.value
    assert vit.width == 768
    config = timm.get_pretrained_cfg("convnext_atto")
    ours = build_backbone("convnext_atto", "random", 64).preprocessing
    assert (ours.mean, ours.crop_pct, ours.interpolation) == (config.mean, config.crop_pct, config.interpolation)
    assert build_backbone("test_resnet", "random", 32, crop_pct=1.0).preprocessing.crop_pct == 1.0


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_with_another_classifier(tmp_path, name, suffix):
    model = timm.create_model(name, num_classes=7) if name.startswith("test") else tv.resnet18(num_classes=7)
    path = tmp_path / f"w{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    backbone = build_backbone(name, str(path), 32, weights_sha256=sha256_file(path))
    loaded = {key.rpartition("stages.")[2]: value for key, value in backbone.body.state_dict().items()}
    key, ours = ("conv1.weight", "stem.0.weight") if name == "resnet18" else (next(iter(model.state_dict())),) * 2
    found = next(value for own, value in loaded.items() if own.endswith(ours))
    assert torch.equal(found, model.state_dict()[key])


def test_weights_from_a_file_are_pinned_by_their_hash(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(tv.resnet18().state_dict(), path)
    with pytest.raises(InputError, match=f"--set backbone.weights_sha256={sha256_file(path)}"):
        build_backbone("resnet18", str(path), 32)


def test_weights_that_do_not_fit_or_are_no_weights(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(tv.resnet50().state_dict(), path)
    with pytest.raises(InputError, match="does not fit"):
        build_backbone("resnet18", str(path), 32, weights_sha256=sha256_file(path))
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="w.pth"):
        build_backbone("resnet18", str(path), 32, weights_sha256=sha256_file(path))
    with pytest.raises(InputError, match="there is no file"):
        build_backbone("resnet18", str(tmp_path / "none.pth"), 32)
    with pytest.raises(InputError, match="no package ships"):
        build_backbone("resnet18", "packaged", 32)


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"x": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="not unpickled"):
        build_backbone("resnet18", str(tmp_path / "w.pth"), 32, weights_sha256=sha256_file(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
def test_without_network_the_error_says_what_where_and_what_works_offline(monkeypatch, tmp_path, name):
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client tries again with growing pauses
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        build_backbone(name, "imagenet", 64)
    text = str(error.value)
    assert "https://" in text and "kept in" in text and "packaged" in text and "random" in text


def test_an_unknown_backbone_names_near_ones():
    with pytest.raises(InputError, match="resnet18"):
        build_backbone("resnt18", "random", 64)


def test_an_image_size_the_network_refuses():
    with pytest.raises(InputError, match="image_size"):
        build_backbone("vit_b_16", "random", 50)  # no multiple of its patch
    with pytest.raises(InputError, match="image_size"):
        build_backbone("inception_v3", "random", 32)


def test_the_table_shows_the_lessons_remark(capsys, monkeypatch):
    vgg, resnet = (build_backbone(name, "random", 224) for name in ("vgg16", "resnet34"))
    assert vgg.classifier_parameters / (vgg.body_parameters + vgg.classifier_parameters) > 0.85
    assert resnet.classifier_parameters / (resnet.body_parameters + resnet.classifier_parameters) < 0.05
    assert table.giga_flops(build_backbone("resnet50", "random", 224).body, 224) == pytest.approx(4.09, abs=0.02)
    monkeypatch.setattr("sys.argv", ["models", "resnet34"])
    assert table.main() == 0
    out = capsys.readouterr().out
    assert "21,284,672" in out and "layer group early" in out and "activation width" in out


def test_the_linear_head_sees_standardised_activations():
    x = torch.randn(50, 6) * torch.tensor([1.0, 2, 3, 4, 5, 0]) + 7
    head = build_head(HeadSpec("linear", 6, 3), seed=0)
    fit_standardiser(head, x.split(20))
    standard = head[0]
    assert isinstance(standard, Standardise)
    y = standard(x)
    assert torch.allclose(y.mean(0), torch.zeros(6), atol=1e-5)
    assert y.var(0, correction=0).mean() == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="standard deviation 0"):
        fit_standardiser(head, [torch.ones(5, 6)])


def test_the_mlp_head_is_fastais():
    kinds = [type(layer) for layer in build_head(HeadSpec("mlp", 64, 5), seed=0)]
    assert kinds == [nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear]
    head = build_head(HeadSpec("mlp", 64, 5), seed=0)
    assert (head[1].p, head[5].p, head[2].out_features) == (0.25, 0.5, 512)
    assert float(head[2].weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)  # Kaiming-normal


def make_model(tmp_path, kind="linear"):
    preprocessing = Preprocessing(32, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    backbone = build_backbone("test_resnet", "random", 32)
    model = Classifier(backbone.body, build_head(HeadSpec(kind, backbone.width, 3), 0)).eval()
    limits = {"max_pixels": 50_000_000, "min_side": 8, "formats": ["JPEG", "PNG"]}
    target = SingleLabel(("a", "b", "c"))
    card = ModelCard(
        "test_resnet", {}, preprocessing, limits, HeadSpec(kind, backbone.width, len(target.classes)), target, {"weights": "x"}
    )
    save_model(tmp_path / "m.safetensors", model, card)
    return model, card


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_model_file_holds_all_that_is_needed(tmp_path, kind):
    model, card = make_model(tmp_path, kind)
    loaded, found = load_classifier(tmp_path / "m.safetensors")
    assert found == card == load_card(tmp_path / "m.safetensors")
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    first = (tmp_path / "m.safetensors").read_bytes()
    save_model(tmp_path / "m.safetensors", loaded, found)
    assert (tmp_path / "m.safetensors").read_bytes() == first


@pytest.mark.parametrize("place", [100, -1, -5000])
def test_one_flipped_bit_in_a_model_file_is_detected(tmp_path, place):
    make_model(tmp_path)
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[place] ^= 1
    (tmp_path / "m.safetensors").write_bytes(bytes(data))
    with pytest.raises(InputError, match="m.safetensors"):
        load_classifier(tmp_path / "m.safetensors")


def test_a_flip_anywhere_in_the_card_is_detected_or_says_the_same(tmp_path):
    """The names of the classes, the preprocessing: what is wrong there would be a wrong answer."""
    path = tmp_path / "m.safetensors"
    preprocessing = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    card = ModelCard(
        "resnet18",
        {"x": 1},
        preprocessing,
        {"min_side": 8},
        HeadSpec("linear", 8, 2),
        SingleLabel(("cat", "dog")),
        {"manifest": "ab"},
    )
    save_model(path, build_head(HeadSpec("linear", 8, 2), seed=0), card)
    whole = path.read_bytes()
    refused = 0
    for at in range(8 + int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            assert load_card(path) == card, f"byte {at}"
        except InputError:
            refused += 1
    assert refused > 500


def test_a_cut_or_foreign_model_file_is_refused(tmp_path):
    make_model(tmp_path)
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_head(tmp_path / "m.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="not a Headstart model"):
        load_head(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="no such file"):
        load_head(tmp_path / "none.safetensors")


def test_bare_backbone_has_the_same_state_names():
    preprocessing = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    bare = bare_backbone("resnet18", preprocessing, {})
    assert bare.preprocessing == preprocessing
    assert bare.body.state_dict().keys() == build_backbone("resnet18", "random", 64).body.state_dict().keys()


@pytest.mark.parametrize("lacking", [("options", "limits", "target", "columns"), ("target", "columns")])
def test_a_model_of_an_earlier_version_is_said_to_be_one(tmp_path, lacking):
    model, card = make_model(tmp_path)
    earlier = {key: value for key, value in card.__dict__.items() if key not in lacking}
    earlier |= {"head": card.head.kind, "width": card.head.width, "classes": ["a", "b", "c"]}
    earlier |= {"preprocessing": {key: value for key, value in card.preprocessing.as_dict().items() if key != "whites"}}
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"headstart": json.dumps(earlier | {"sha256": "x"})}
    save_file(state, tmp_path / "m.safetensors", metadata)
    with pytest.raises(Outdated, match="by an earlier version of Headstart"):
        load_classifier(tmp_path / "m.safetensors")


def test_layers_that_share_their_weights_are_saved_and_stay_shared(tmp_path):
    """CoaT has such; saving it ended in a traceback after the training."""
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, first, nn.Linear(4, 2))
    path = Checkpoint(tmp_path, "t").path
    Checkpoint(tmp_path, "t").save(Saved(model.state_dict(), {}, {}, {}, {}))
    assert path.is_file()
    saved = Checkpoint(tmp_path, "t").load().model
    assert torch.equal(saved["0.weight"], saved["1.weight"])
    card = ModelCard(
        "x",
        {},
        Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3),
        {},
        HeadSpec("linear", 4, 2),
        SingleLabel(("a", "b")),
        {},
    )
    save_model(tmp_path / "m.safetensors", model, card)
    assert load_card(tmp_path / "m.safetensors") == card
