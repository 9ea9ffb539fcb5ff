"""A body cut in two at any layer group's boundary is still the same function, for every family."""

import pytest
import torch

from headstart.core.errors import InputError
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body, output_shape
from headstart.models.freezing import training_mode
from tests.test_families import FAMILIES

SMALL = [family for family in FAMILIES if family[1] < 200]  # the other two are of timm's and torchvision's same kinds


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_tail_of_front_is_the_whole_to_the_bit(name, size):
    backbone = build_backbone(name, "random", size)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = backbone.body(x)
        for after in backbone.groups:
            front, tail = cut_body(backbone.body, backbone.groups, after)
            boundary = front(x)
            assert torch.equal(tail(boundary), whole)
            assert output_shape(front, size) == tuple(boundary.shape[1:])
            own = dict(backbone.body.named_parameters())
            late = {
                key
                for group in list(backbone.groups)[list(backbone.groups).index(after) + 1 :]
                for key in backbone.groups[group]
            }
            assert {key for key, _ in tail.named_parameters()} <= late  # a norm that the pooled output skips may be in neither
            assert all(own[key] is value for key, value in tail.named_parameters())  # the very same, under the same names
            assert not set(dict(front.named_parameters())) & late


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
