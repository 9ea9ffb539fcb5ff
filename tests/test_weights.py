"""Weights from a file: all of the body comes from it, or it is refused by name; what is safe to adapt is adapted."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models as tv

from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.models.backbones import build_backbone

VIT = "test_vit"  # timm's, of 160 px and patches of 16


def built(name: str, state: object, path, size: int = 32):
    torch.save(state, path)
    return build_backbone(name, str(path), size, weights_sha256=sha256_file(path))


def refused(name: str, state: object, path, size: int = 32) -> str:
    with pytest.raises(InputError) as error:
        built(name, state, path, size)
    return str(error.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def same_weights(body: nn.Module, state: dict) -> bool:
    """Whether each of the body's tensors is one of the file's."""
    shapes: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for value in state.values():
        shapes.setdefault(tuple(value.shape), []).append(value)
    return all(any(torch.equal(value, one) for one in shapes[tuple(value.shape)]) for value in body.state_dict().values())


@pytest.mark.parametrize("part", ["mlp.fc", "attn.qkv", "norm1"])
def test_blocks_that_are_missing_are_not_left_random(path, part):
    """A head is not what has `fc` or `head` in its name: two blocks' MLPs were once left random without a word."""
    state = timm.create_model(VIT).state_dict()
    gone = {name: value for name, value in state.items() if part not in name or "blocks.0" not in name}
    assert len(gone) < len(state)
    assert f"blocks.0.{part}" in refused(VIT, gone, path, 160)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121", "convnext_tiny", "swin_t"])
def test_a_body_that_lacks_one_tensor_is_refused(path, name):
    model = tv.get_model(name, weights=None)
    state = model.state_dict()
    middle = [key for key in state if not key.startswith(("fc", "classifier", "head")) and "num_batches" not in key]
    gone = middle[len(middle) // 2]
    del state[gone]
    text = refused(name, state, path)
    assert gone in text and "it lacks 1 of " in text


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("resnet18", "fc"),
        ("densenet121", "classifier"),
        ("squeezenet1_1", "classifier"),
        ("googlenet", "aux1"),
        ("test_vit", "head"),
        ("test_convnext", "head.fc"),
        ("test_efficientnet", "classifier"),
    ],
)
def test_only_the_classifier_may_be_missing_or_called_otherwise(path, name, classifier):
    size = 160 if name == "test_vit" else 32
    model = timm.create_model(name) if name.startswith("test_") else tv.get_model(name, weights=None, init_weights=False) if (
        name == "googlenet") else tv.get_model(name, weights=None)  # fmt: skip
    state = model.state_dict()
    rest = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    assert len(rest) < len(state)
    for more in ({}, {"my_own_head.weight": torch.zeros(7, 3)}):
        assert same_weights(built(name, rest | more, path, size).body, rest)


def test_a_larger_network_s_file_is_refused(path):
    """ResNet-101 has all of ResNet-50's names in equal shapes, and more."""
    assert "tensors that the backbone does not have" in refused("resnet50", tv.resnet101(weights=None).state_dict(), path)
    deeper = timm.create_model(VIT).state_dict()
    deeper |= {key.replace("blocks.0", "blocks.99"): value for key, value in deeper.items() if "blocks.0" in key}
    assert "blocks.99" in refused(VIT, deeper, path, 160)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.model.", "backbone."])
@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict"])
def test_wrappers_prefixes_and_training_scripts_containers_are_seen_through(path, prefix, container):
    state = tv.resnet18(weights=None).state_dict()
    wrapped = {f"{prefix}{key}": value for key, value in state.items()} | {"criterion.weight": torch.ones(3)}
    saved = wrapped if container is None else {container: wrapped, "epoch": 7, "lr": 0.1}
    assert same_weights(built("resnet18", saved, path).body, state)


def test_two_networks_in_one_file_are_refused(path):
    student, teacher = (tv.resnet18(weights=None).state_dict() for _ in range(2))
    both = {f"student.{k}": v for k, v in student.items()} | {f"teacher.{k}": v for k, v in teacher.items()}
    text = refused("resnet18", both, path)
    assert "'student.'" in text and "'teacher.'" in text


@pytest.mark.parametrize(("saved", "said"), [({"epoch": 3}, "keys epoch"), ([1, 2], "a list"), ({}, "keys")])
def test_a_file_without_a_state_dict_says_what_is_in_it(path, saved, said):
    text = refused("resnet18", saved, path)
    assert text.startswith(f"{path}: holds no state dict, but ") and said in text
    assert "wanted: tensors by name" in text and "torch.save(model.state_dict(), PATH)" in text


def test_position_embeddings_of_another_size_are_resampled_as_the_library_does(path):
    state = timm.create_model(VIT, img_size=160).state_dict()
    body = built(VIT, state, path, 96).body
    found = body.state_dict()["stages.model.pos_embed"]
    assert found.shape != state["pos_embed"].shape
    from timm.layers import resample_abs_pos_embed

    wanted = resample_abs_pos_embed(state["pos_embed"], [6, 6], num_prefix_tokens=1)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_torchvision_s_too(path):
    state = tv.vit_b_32(weights=None, image_size=224).state_dict()
    body = built("vit_b_32", state, path, 64).body
    wanted = tv.vision_transformer.interpolate_embeddings(64, 32, dict(state))["encoder.pos_embedding"]
    assert torch.equal(body.state_dict()["stages.encoder.pos_embedding"], wanted)


def test_swin_of_another_size(path):
    name = "swin_tiny_patch4_window7_224"
    state = timm.create_model(name, img_size=224).state_dict()
    body = built(name, state, path, 160).body
    assert torch.equal(body.state_dict()["stages.model.patch_embed.proj.weight"], state["patch_embed.proj.weight"])


def test_another_patch_is_another_network(path):
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    wrong = state | {"patch_embed.proj.weight": torch.zeros(192, 3, 32, 32)}
    text = refused("vit_tiny_patch16_224", wrong, path, 224)
    assert "patch_embed.proj.weight ([192, 3, 32, 32] in the file, [192, 3, 16, 16] in the backbone)" in text


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [("vit_tiny_patch16_224", 100, "96 or 112"), ("vit_b_16", 50, "48 or 64"), ("convnext_atto", 98, "96 or 100"),
     ("swin_t", 30, "28 or 32"), ("mixer_s32_224", 40, "32 or 64")],
)  # fmt: skip
def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused_with_the_nearest(name, size, near):
    with pytest.raises(InputError, match="never seen") as error:
        build_backbone(name, "random", size)
    assert f"such as {near}" in str(error.value)
    assert f"--set backbone.image_size={near.split()[0]}" in str(error.value)


def test_convolutions_that_overlap_have_no_patch(caplog):
    assert build_backbone("test_resnet", "random", 50).width > 0
    assert "does not see" not in caplog.text


@pytest.mark.parametrize(("name", "size", "unseen"), [("pit_ti_224", 230, 6), ("alexnet", 100, 3)])
def test_an_edge_that_strides_leave_out_is_said(caplog, name, size, unseen):
    with caplog.at_level("WARNING", logger="headstart"):
        build_backbone(name, "random", size)
    assert f"{name} does not see the last {unseen} of {size} pixels" in caplog.text


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_r_s16_p8_224", 232), ("mvitv2_tiny", 100)])
def test_a_size_that_a_network_refuses_without_a_word_is_still_said(name, size):
    with pytest.raises(InputError, match=f"backbone.image_size: {name} refuses {size} pixels: "):
        build_backbone(name, "random", size)


def test_8_bit_integers_are_no_weights(path):
    state = {k: v.to(torch.int8) if v.is_floating_point() else v for k, v in tv.resnet18(weights=None).state_dict().items()}
    assert "it lacks" in refused("resnet18", state, path)


def test_an_empty_file_is_said_to_be_one(path):
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable weights file: "):
        build_backbone("resnet18", str(path), 32, weights_sha256=sha256_file(path))
