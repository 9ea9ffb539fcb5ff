"""The validity guard: every way in which something below a cut can move or be random is caught before it is cached."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from headstart.activations import build as module
from headstart.activations.guard import refuse_moved, refuse_moving
from headstart.core.errors import InputError
from headstart.models.backbones import build_backbone
from headstart.models.weights import state_digest
from tests.test_activations import built, images_and_files

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def body() -> nn.Module:
    return build_backbone("test_efficientnet", "random", 32).body


class After(nn.Module):
    """A sound body with something after it."""

    def __init__(self, rest) -> None:
        super().__init__()
        self.body = body()
        self.rest = rest

    def forward(self, x):
        return self.rest(self.body(x))


class Counting(nn.Module):
    """A buffer that counts batches."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1), persistent=persistent)

    def forward(self, x):
        self.seen += 1
        return x


class Drifting(nn.Module):
    """Not a buffer, yet it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + 1e-3 * self.calls


class LeftOn(nn.Module):
    """Functional dropout that eval mode does not switch off."""

    def forward(self, x):
        return F.dropout(x, 0.1, training=True)


class OwnGenerator(nn.Module):
    """Noise from a generator of its own: torch's global one is not touched."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator)


class Centred(nn.Module):
    """Depends on the rest of the batch."""

    def forward(self, x):
        return x - x.mean(0)


def trainable():
    one = body()
    next(one.parameters()).requires_grad_(True)
    return one


def norm_in_training():
    one = body()
    next(m for m in one.modules() if isinstance(m, nn.BatchNorm2d)).train()
    return one


def with_batch_statistics():
    norm = nn.BatchNorm1d(512, track_running_stats=False, affine=False).eval()
    return After(norm).eval()


def stochastic_depth(on):
    from torchvision.ops import StochasticDepth

    depth = StochasticDepth(0.5, "row")
    return After(depth.train(on)).train(False) if not on else _keep_on(After(depth), depth)


def _keep_on(whole, part):
    whole.eval()
    part.train()
    return whole


def _spoilt(one):
    next(one.parameters()).data.fill_(float("inf"))
    return one


VIOLATIONS = {
    "a parameter that trains": (trainable, "parameters would train: stages"),
    "a batch norm in training mode": (norm_in_training, "modules are in training mode: stages"),
    "the whole body in training mode": (lambda: body().train(), "modules are in training mode: the body, stages"),
    "dropout in training mode": (lambda: _keep_on(whole := After(nn.Dropout(0.1)), whole.rest), "in training mode: rest"),
    "stochastic depth in training mode": (lambda: stochastic_depth(True), "in training mode: rest"),
    "functional dropout": (lambda: After(LeftOn()).eval(), "draws random numbers"),
    "noise of its own": (lambda: After(OwnGenerator()).eval(), "different outputs for equal inputs"),
    "a buffer that counts": (lambda: After(Counting()).eval(), "parameters or buffers changed: rest.seen"),
    "a buffer that counts and is not saved": (lambda: After(Counting(persistent=False)).eval(), "buffers changed: rest.seen"),
    "weights that are not finite": (lambda: _spoilt(body()), "not finite"),
    "an attribute that counts": (lambda: After(Drifting()).eval(), "different outputs for equal inputs"),
    "batch norm by batch statistics": (with_batch_statistics, "depends on the rest of its batch"),
    "the batch's mean": (lambda: After(Centred()).eval(), "depends on the rest of its batch"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_each_violation_is_caught(name):
    make, message = VIOLATIONS[name]
    with pytest.raises(InputError, match=message):
        refuse_moving(make(), X)


def test_a_frozen_body_passes_and_is_left_as_it_was():
    """Every family does: test_families.py."""
    one = body()
    before, drawn = state_digest(one), torch.get_rng_state()
    assert refuse_moving(one, X) == before == state_digest(one)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(value.requires_grad for value in one.parameters())


def test_dropout_and_stochastic_depth_in_eval_mode_are_sound():
    refuse_moving(After(nn.Dropout(0.5)).eval(), X)
    refuse_moving(stochastic_depth(False), X)


def test_weights_or_buffers_that_move_while_it_computes_are_caught(shapes, tmp_path, monkeypatch):
    backbone, images, files = images_and_files(shapes)
    digest = state_digest(backbone.body)
    for value in (next(backbone.body.parameters()), next(backbone.body.buffers())):
        kept = value.detach().clone()
        with torch.no_grad():
            value.view(-1)[0] += 1
        with pytest.raises(InputError, match="weights or buffers changed"):
            refuse_moved(backbone.body, digest)
        with torch.no_grad():
            value.copy_(kept)
    refuse_moved(backbone.body, digest)
    whole = module.fill

    def moving(*arguments, **options):
        with torch.no_grad():
            next(backbone.body.buffers()).add_(1)
        return whole(*arguments, **options)

    monkeypatch.setattr(module, "fill", moving)
    with pytest.raises(InputError, match="weights or buffers changed"):
        built(tmp_path / "out", tmp_path / "cache", images, files, backbone)
    assert not (tmp_path / "out").exists()


def test_a_kept_row_that_is_not_what_comes_out_afresh_is_caught(shapes, tmp_path, monkeypatch):
    """A row with a right checksum and wrong values: a sample is computed again and compared."""
    from headstart.activations import compute

    backbone, images, files = images_and_files(shapes)
    whole = compute.engine_rows
    monkeypatch.setattr(compute, "engine_rows", lambda *a: whole(*a) ^ np.uint8(1))
    with pytest.raises(InputError, match="differ from those computed again"):
        built(tmp_path / "out", tmp_path / "cache", images, files, backbone)
    assert not (tmp_path / "out").exists()
