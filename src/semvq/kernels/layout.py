"""Memory formats of maps (B, C, H, W): which one a map has, which one a device wants; doubling
and halving in that layout.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where `x` (B, C, H, W) is that and nothing else, contiguous_format otherwise.

    So a map that is dense in neither way counts as contiguous, and one that is in both ways too.
    """
    last = torch.channels_last
    plain = x.is_contiguous() or not x.is_contiguous(memory_format=last)
    return torch.contiguous_format if plain else last


def channels_last_on_cuda(x: Tensor) -> Tensor:
    """`x` (B, C, H, W), on CUDA in the layout that convolutions of tensor cores read.

    What follows keeps the layout, so that nothing is turned between two layers. The weights stay
    contiguous: cuDNN goes by the activations, and the states of optimisers keep their layout.
    Elsewhere a map is left as it comes.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W), sides even, to (B, C, H/2, W/2): means of 2x2."""
    if x.is_cuda:
        return halved_channels_last(x)
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W), each value four times, in the dtype of `x`."""
    if x.is_cuda:
        return doubled_channels_last(x)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def doubled_channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W), each value four times; the result is channels_last.

    One broadcast copy, and one sum backward. On CUDA, autocast would have F.interpolate work in
    fp32; on a CPU this sum is the slow one.
    """
    b, c, h, w = x.shape
    places = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c)
    return places.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def halved_channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W), sides even, to (B, C, H/2, W/2), means; the gradient is channels_last."""
    return _Halved.apply(x)


class _Halved(torch.autograd.Function):
    """Average pooling, whose own backward looks up for every place which windows it lay in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return doubled_channels_last(grad / 4)
