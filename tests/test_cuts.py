"""A body cut in two at a layer group's boundary: how its tail trains, and what cannot be cut.

That both halves together are the whole: test_families.py.
"""

import pytest
import torch

from headstart.core.errors import InputError
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body
from headstart.models.freezing import training_mode


def test_a_tail_trains_as_it_does_in_the_whole_network():
    """From the cached map: the same loss and gradients, batch norm and dropout as ever."""
    backbone = build_backbone("tf_efficientnet_lite0", "packaged", 64)
    _, tail = cut_body(backbone.body, backbone.groups, "early")
    front, _ = cut_body(backbone.body, backbone.groups, "early")
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        boundary = front(x)
    for name, value in backbone.body.named_parameters():
        value.requires_grad_(name in backbone.groups["late"])
    gradients = []
    for module, given in ((backbone.body, x), (tail, boundary)):
        training_mode(module, bn_freeze=True)
        backbone.body.zero_grad()
        torch.manual_seed(0)
        module(given).square().mean().backward()
        gradients.append({name: value.grad.clone() for name, value in tail.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    training_mode(tail, bn_freeze=False)
    norms = [module for module in backbone.body.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms[-1].training and not norms[0].training


class TwoWays(torch.nn.Module):
    """Two tensors cross every boundary between its halves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return (self.second(self.first(x)) + x).mean((2, 3))


def test_a_body_that_cannot_be_cut_is_said_to_be_one():
    groups = {"early": ("first.weight", "first.bias"), "late": ("second.weight", "second.bias")}
    with pytest.raises(InputError, match="early: this backbone cannot be cut there: more than one tensor"):
        cut_body(TwoWays().eval(), groups, "early")
    with pytest.raises(InputError, match="cache_map_after: 'middle'"):
        cut_body(TwoWays().eval(), groups, "middle")
