"""Phases of fine-tuning on images of another size."""

import importlib

import pytest
import torch

from flows.param_edits import set_params
from headstart.core.errors import InputError
from headstart.core.graph import load_graph
from headstart.core.stages import run_stage
from headstart.models.backbones import build_backbone
from headstart.models.sizes import refuse_size
from headstart.training.fine_tune import Network

PHASES = [
    "{unfreeze_from: late, epochs: 1, lr: 1.0e-3}",
    "{unfreeze_from: late, epochs: 1, lr: 1.0e-3, image_size: 24}",
    "{unfreeze_from: all, epochs: 2, lr: 1.0e-3, image_size: 16}",
]


def run(project, *settings: str) -> None:
    params = set_params(project / "params.yaml", settings)
    for name in ("link_data", "precompute", "find_lr", "train_head", "fine_tune"):
        stage = load_graph(project, params)[name]
        run_stage(stage, getattr(importlib.import_module(f"tasks.{name}"), name), project, params)


def test_each_phase_trains_at_its_size_and_all_are_validated_at_the_full_one(project, monkeypatch):
    trained: list[tuple[int, ...]] = []
    validated: list[tuple[int, ...]] = []
    forward, runner = Network.forward, Network.runner

    def watched(self, feed):
        def run(x):
            trained.append(tuple(x.shape[1:]))
            return forward(self, feed)(x)

        return run

    def watched_runner(self, feed):
        module = runner(self, feed)
        if not hasattr(module, "seen"):
            module.seen = module.register_forward_pre_hook(
                lambda module, x: None if module.training else validated.append(tuple(x[0].shape[1:]))
            )
        return module

    monkeypatch.setattr(Network, "forward", watched)
    monkeypatch.setattr(Network, "runner", watched_runner)
    run(project, f"fine_tune.gradual=[{', '.join(PHASES)}]", "fine_tune.epochs=1", "precompute.cache_map_after=early")
    sizes = list(dict.fromkeys(trained))
    assert len(sizes[0]) == 3 and sizes[0][0] != 3  # the cached map
    assert sizes[1:] == [(3, 24, 24), (3, 16, 16), (3, 32, 32)]
    assert set(validated) == {sizes[0], (3, 32, 32)}
    history = (project / "reports/fine_tune/history.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in history[1:]] == ["as it came", "late", "late", "all", "all", "all"]


def test_a_size_that_the_network_cannot_take_is_refused():
    backbone = build_backbone("vit_tiny_patch16_224", "random", 64)
    refuse_size(backbone, 64)
    with pytest.raises(InputError, match=r"fine_tune.gradual\[0\].image_size: vit_tiny_patch16_224 refuses 48 pixels"):
        refuse_size(backbone, 48, "fine_tune.gradual[0].image_size")
    with pytest.raises(InputError, match="fine_tune.gradual.* never seen"):
        refuse_size(backbone, 50, "fine_tune.gradual[0].image_size")
    refuse_size(build_backbone("tf_efficientnet_lite0", "random", 64), 48)
    assert torch.is_grad_enabled()
