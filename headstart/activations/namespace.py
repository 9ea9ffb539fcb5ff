"""The cache's namespaces: each stands for everything but the image that a cached row depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstart.activations.engine import Plan
from headstart.core.code_digest import closure, digest
from headstart.core.files import canonical_json, sha256_bytes
from headstart.hardware import describe_processor, library_versions
from headstart.images.preprocessing import Preprocessing
from headstart.images.transforms import Augmentation

LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "openvino")
OPTIONAL = ("pillow-heif",)


# Keyword by keyword, because a dataclass of these nine would be built and taken apart in one place alone.
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
    """Describe everything that decides a row's bytes besides its image and the number of its view.

    Args:
        options: arguments of the backbone's constructor besides its name.
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
        "hardware": describe_processor(plan.device),
        "libraries": library_versions(),
        "code": digest(code()),
    }


def name_of(description: dict[str, Any]) -> str:
    """Return the namespace's name: 32 hex digits of the description's SHA-256."""
    return sha256_bytes(canonical_json(description).encode())[:32]


def code() -> tuple[str, ...]:
    """Return the first-party files between an image's bytes and a stored row.

    Files that cannot change a row are left out: the core handles no pixels, and the cache stores bytes as they are.
    """
    roots = ("headstart.activations.compute", "headstart.models.backbones", "headstart.models.cuts")
    return closure(*roots, without=("headstart/core", "headstart/activations/cache.py"))
