"""Depthwise convolutions with fast gradients: PyTorch's own function and gradients, in every class and shape."""

import pytest
import torch
from timm.layers import create_conv2d
from torch import nn
from torch.nn import functional as F

from headstart.models import depthwise
from headstart.models.depthwise import Depthwise, fast_grouped, is_depthwise
from headstart.models.folding import FoldedConv

SHAPES = [(kernel, stride, side) for kernel in (3, 5, 7) for stride in (1, 2) for side in (1, 2, 4, 9, 16)]


def conv_of(kernel: int, stride: int, padding: str | int, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    torch.manual_seed(0)
    if padding == "same":  # TensorFlow's, which timm pads for itself at strides above one
        return create_conv2d(24, 24, kernel, stride=stride, padding="same", depthwise=True, bias=True).to(dtype)
    return nn.Conv2d(24, 24, kernel, stride, padding, groups=24).to(dtype)


def gradients(module: nn.Module, of: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the input, the weight and the bias, after a function that weighs every output differently; the output first."""
    x = x.detach().clone(memory_format=torch.channels_last).requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = [y.detach(), x.grad, *(p.grad.clone() for p in of.parameters())]
    of.zero_grad()
    return found


def close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(a.dtype == b.dtype and float((a - b).norm()) <= tolerance * float(b.norm()) for a, b in pairs)


PADDED = [(*shape, padding) for shape in SHAPES for padding in (0, 1, 2) if shape[2] + 2 * padding >= shape[0]]


@pytest.mark.parametrize(("kernel", "stride", "side", "padding"), [*PADDED, *((*shape, "same") for shape in SHAPES)])
def test_gradients_are_pytorchs(kernel, stride, side, padding):
    conv = conv_of(kernel, stride, padding)
    x = torch.randn(3, 24, side, side, dtype=torch.float64)
    assert close(gradients(Depthwise(conv), conv, x), gradients(conv, conv, x), 1e-12)


@pytest.mark.parametrize(("kernel", "stride", "side"), SHAPES)
def test_in_bfloat16_they_are_as_near_to_float32_as_pytorchs_own(kernel, stride, side):
    conv = conv_of(kernel, stride, "same", torch.float32)
    x = torch.randn(3, 24, side, side)
    exact = gradients(conv, conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        found, own = gradients(Depthwise(conv), conv, x), gradients(conv, conv, x)
    assert found[0].dtype == own[0].dtype == torch.bfloat16
    assert close([found[0].float()], [conv(x.bfloat16().float())], 2**-8)  # forward with the weights as they are
    for a, b, c in zip(found[1:], own[1:], exact[1:], strict=True):
        assert a.dtype == torch.float32
        assert float((a - c).norm()) <= 1.2 * float((b - c).norm()) + 1e-3 * float(c.norm())


def fenced(x: torch.Tensor) -> torch.Tensor:
    """A channels-last copy with NaN before and after it in memory."""
    n, c, h, w = x.shape
    memory = torch.full((x.numel() + 8192,), torch.nan, dtype=x.dtype)
    copy = memory[4096 : 4096 + x.numel()].view(n, h, w, c)
    copy.copy_(x.permute(0, 2, 3, 1))
    return copy.permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [32, 96, 192])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (3, 1), (2, 2), (4, 4)])
def test_no_gradient_depends_on_what_lies_beside_a_tensor_in_memory(channels, kernel, height, width):
    """PyTorch's own do in bfloat16, for maps lower than the kernel at stride 2."""
    torch.manual_seed(0)
    weight, half = torch.randn(channels, 1, kernel, kernel), kernel // 2
    for n in (1, 7, 8):
        x = torch.randn(n, channels, height, width, dtype=torch.bfloat16)
        y = F.conv2d(x, weight.bfloat16(), None, 2, half, 1, channels)
        for function in (depthwise.input_gradient, depthwise.weight_gradient):
            found = function(fenced(torch.ones_like(y)), fenced(x), weight, (2, 2), (half, half))
            plain = function(torch.ones_like(y), x, weight, (2, 2), (half, half))
            assert torch.equal(found, plain) and torch.isfinite(found).all()


def test_a_kernel_of_five_columns_never_takes_the_slow_path(monkeypatch):
    """Nor does a gradient in bfloat16 at stride 2; and what needs no gradient gets none."""
    seen = []

    def backward(gradient, x, weight, stride, padding, of):
        seen.append((of, weight.shape[3], max(stride), x.dtype))
        return original(gradient, x, weight, stride, padding, of)

    original = depthwise._backward
    monkeypatch.setattr(depthwise, "_backward", backward)
    conv = conv_of(5, 2, "same", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        gradients(Depthwise(conv), conv, torch.randn(2, 24, 8, 8))
    assert seen == [(0, 5, 2, torch.float32), (1, 3, 2, torch.bfloat16), (1, 2, 2, torch.bfloat16)]
    seen.clear()
    Depthwise(conv)(torch.randn(2, 24, 8, 8)).sum().backward()
    assert [of for of, *_ in seen] == [1, 1]
    conv.requires_grad_(False)
    seen.clear()
    Depthwise(conv)(torch.randn(2, 24, 8, 8, requires_grad=True)).sum().backward()
    assert [of for of, *_ in seen] == [0]


def test_only_depthwise_convolutions_are_taken_and_folded_ones_too():
    plain, grouped, wide = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 16, 3, groups=8)
    dilated, own = nn.Conv2d(8, 8, 3, groups=8, dilation=2), nn.Conv2d(8, 8, 3, groups=8)
    assert [is_depthwise(conv) for conv in (plain, grouped, wide, dilated, own)] == [False, False, False, False, True]
    net = nn.Sequential(plain, FoldedConv(own, nn.BatchNorm2d(8).eval()))
    expected = net(x := torch.randn(2, 8, 9, 9))
    view = fast_grouped(net, mixed=True)
    assert isinstance(view[1], Depthwise) and isinstance(view[0], nn.Conv2d)
    assert torch.allclose(view(x), expected, atol=1e-6)


def test_outside_the_module_nothing_is_changed():
    conv = conv_of(5, 1, 2, torch.float32)
    y = Depthwise(conv)(torch.randn(1, 24, 8, 8))
    assert type(y.grad_fn).__name__ == "_ConvolutionBackward"
    assert type(F.conv2d(torch.randn(1, 24, 8, 8), conv.weight, groups=24).grad_fn).__name__ == "ConvolutionBackward0"


def test_a_convolution_that_is_called_otherwise_is_left_to_pytorch():
    """With padding by a word, or with fewer arguments, as a class of its own may."""

    class Own(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.weight, self.bias, groups=24)

    x = torch.randn(2, 24, 9, 9)
    for conv in (Own(24, 24, 5, groups=24), nn.Conv2d(24, 24, 5, padding="same", groups=24)):
        assert torch.equal(Depthwise(conv)(x), conv(x))
        Depthwise(conv)(x).sum().backward()
        assert conv.weight.grad is not None
