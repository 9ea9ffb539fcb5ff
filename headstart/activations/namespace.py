"""What a cached row depends on besides its image: the namespace it is kept in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headstart.activations.engine import Plan
from headstart.core.files import canonical_json, sha256_bytes, sha256_file
from headstart.images.transforms import Augmentation, Preprocessing

LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "openvino")
OPTIONAL = ("pillow-heif",)
PACKAGE = Path(__file__).resolve().parents[1]
# All first-party code between a file's bytes and a stored row; tests/test_namespace.py holds it against the imports.
CODE = (
    "activations/compute.py", "activations/engine.py", "images/containers.py", "images/decode.py", "images/loader.py",
    "images/kinds.py", "images/reading.py", "images/transforms.py", "models/backbones.py", "models/cuts.py",
    "models/families.py",
    "models/folding.py", "models/weights.py", "runtime.py",
)  # fmt: skip


def describe(
    *,
    backbone: str,
    options: Mapping[str, Any],
    weights: str,
    cut: str,
    shape: tuple[int, ...],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    view_seed: int,
    plan: Plan,
) -> dict[str, Any]:
    """Everything that decides a row's bytes besides its image and its view's number.

    Args:
        options: what the backbone's constructor was told beside its name.
        weights: digest of the body's parameters and buffers.
        cut: "pooled", or the layer group after which the activation map is taken.
        shape: of one row.
    """
    return {
        "backbone": backbone,
        "options": dict(options),
        "weights": weights,
        "cut": cut,
        "shape": list(shape),
        "preprocessing": preprocessing.as_dict(),
        "augmentation": augmentation.__dict__,
        "view_seed": view_seed,
        "engine": plan.engine,
        "precision": plan.precision,
        "storage": plan.storage,
        "batch_size": plan.batch_size,
        "hardware": hardware(plan.device),
        "libraries": library_versions(),
        "code": code_digest(),
    }


def name_of(description: dict[str, Any]) -> str:
    """The namespace's name: 32 hex digits of the description's SHA-256."""
    return sha256_bytes(canonical_json(description).encode())[:32]


def code_digest(package: Path = PACKAGE) -> str:
    """Hex SHA-256 of our own code that makes pixels or activations."""
    digest = hashlib.sha256()
    for name in CODE:
        digest.update(f"{name}\0{sha256_file(package / name)}\0".encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of what pixels and numbers are computed with."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES} | {name: _version_if_any(name) for name in OPTIONAL}


def _version_if_any(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def hardware(device: str) -> str:
    """The kind of processor that computes: kernels are chosen by it, and with them the last bits."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()} CUDA {torch.version.cuda} cuDNN {torch.backends.cudnn.version()}"
    amx = torch.cpu._is_amx_tile_supported()
    bf16 = torch.cpu._is_avx512_bf16_supported()
    return f"{_cpu_model()} {torch.backends.cpu.get_cpu_capability()} bf16={bf16} amx={amx}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    fields = [found.get(name, "") for name in ("model name", "cpu family", "model", "cache size")]
    return f"{platform.machine()} {' '.join(fields)}"
