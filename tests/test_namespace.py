"""A row is never stale: whatever decides its bytes is in the name of the namespace it is kept in."""

import dataclasses
import importlib.metadata

import pytest

from headstart import hardware
from headstart.activations import namespace
from headstart.activations.engine import Plan
from headstart.core import code_digest
from headstart.images.preprocessing import Preprocessing
from headstart.images.transforms import Augmentation
from headstart.images.whites import Whites
from tests.machines import MACHINES, pretend

PLAN = Plan("torch", "float32", "float16", 16, "cpu", "because", 0.0)
PRE = Preprocessing(32, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
AUGMENT = Augmentation("side_on", True, 10, 1.1, 0.1)
GIVEN = {
    "backbone": "resnet18", "options": {"a": 1}, "weights": "w", "cut": "pooled", "shape": (4,), "preprocessing": PRE,
    "augmentation": AUGMENT, "view_seed": 0, "plan": PLAN,
}  # fmt: skip


def name(**changes):
    return namespace.name_of(namespace.describe(**(GIVEN | changes)))


def fields(value, others):
    return [dataclasses.replace(value, **{key: other}) for key, other in others.items()]


OTHERS = [
    *({"preprocessing": p} for p in fields(PRE, {
        "image_size": 33, "crop_pct": 1.0, "interpolation": "bilinear", "mean": (0.5, 0.5, 0.4), "std": (0.5, 0.5, 0.4),
        "whites": Whites(4095.0, 1.0),
    })),
    *({"augmentation": a} for a in fields(AUGMENT, {
        "preset": "none", "flip": False, "rotate": 9, "zoom": 1.2, "lighting": 0.0,
    })),
    *({"plan": p} for p in fields(PLAN, {
        "engine": "openvino", "precision": "bfloat16", "storage": "float32", "batch_size": 8,
    })),
    {"backbone": "resnet34"}, {"options": {"a": 2}}, {"weights": "v"}, {"cut": "early"}, {"shape": (2, 2)}, {"view_seed": 1},
]  # fmt: skip


def test_whatever_decides_a_row_decides_its_name():
    names = [name(), *(name(**other) for other in OTHERS)]
    assert len(set(names)) == len(names)
    assert name() == name()
    assert name(plan=dataclasses.replace(PLAN, reason="another", probe_error=0.1)) == name()  # these decide nothing


def test_every_field_is_covered():
    """A field added to any of these needs a line above."""
    changed = {
        "preprocessing": {f.name for f in dataclasses.fields(Preprocessing)},
        "augmentation": {f.name for f in dataclasses.fields(Augmentation)},
        "plan": {f.name for f in dataclasses.fields(Plan)} - {"reason", "probe_error", "device"},
    }
    for key, wanted in changed.items():
        others = [other[key] for other in OTHERS if key in other]
        found = {
            f.name
            for other in others
            for f in dataclasses.fields(other)
            if getattr(other, f.name) != getattr(GIVEN[key], f.name)
        }
        assert found == wanted


@pytest.mark.parametrize("library", hardware.LIBRARIES)
def test_a_library_s_version_decides(library, monkeypatch):
    before, version = name(), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda wanted: version(wanted) + ("+new" if wanted == library else ""))
    assert name() != before


def test_the_processor_decides(monkeypatch):
    names = set()
    for machine in MACHINES:
        pretend(monkeypatch, machine)
        names.add(name())
        assert name() == name()
    assert len(names) == len(MACHINES)


@pytest.mark.parametrize(
    "module",
    ["images/decode.py", "images/transforms.py", "images/preprocessing.py", "activations/engine.py", "models/weights.py"],
)
def test_our_own_code_decides(module, monkeypatch):
    before = name()
    monkeypatch.setitem(code_digest.CODE_AT_START, f"headstart/{module}", "edited")
    assert name() != before


def test_all_code_between_bytes_and_rows_decides_and_no_other():
    """First-party modules behind pixels and activations, but for those that cannot change a value."""
    found = set(namespace.code())
    assert {
        f"headstart/{one}.py" for one in ("images/containers", "images/kinds", "images/reading", "runtime", "hardware")
    } <= found
    assert {f"headstart/models/{one}.py" for one in ("backbones", "cuts", "families", "folding", "sizes")} <= found
    assert not {path for path in found if path.startswith(("headstart/core/", "headstart/training/", "tasks/", "flows/"))}
    assert "headstart/activations/cache.py" not in found
