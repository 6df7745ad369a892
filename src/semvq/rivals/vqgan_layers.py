"""Layers of VQGAN's networks: blocks, attention, halving and doubling (Esser et al. 2021, Table 7).

What a norm is, is left to the network: MoVQ's read the embeddings beside their map.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from semvq.kernels.finite_attention import finite_kernels
from semvq.kernels.layout import doubled
from semvq.tokenizer.norm_silu import Norm, NormSiLU


class Norms(NamedTuple):
    """Makers of norms for a number of channels: with swish for convolutions, bare for attention.

    A norm that they make is called with the map and with all that the network's blocks were given
    beside it.
    """

    silu: Callable[[int], nn.Module]
    bare: Callable[[int], nn.Module]


PLAIN = Norms(NormSiLU, Norm)


class Block(nn.Module):
    """Two normalised 3x3 convolutions and a skip; a 1x1 convolution of the input widens it."""

    def __init__(self, in_channels: int, out_channels: int, norms: Norms) -> None:
        super().__init__()
        self.norm1 = norms.silu(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norms.silu(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes = in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else None

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W); the norms read `given`."""
        h = self.conv1(self.norm1(x, *given))
        h = self.conv2(self.norm2(h, *given))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nn.Module):
    """Residual attention of one head over all places; queries, keys and values in one product."""

    def __init__(self, channels: int, norms: Norms) -> None:
        super().__init__()
        self.norm = norms.bare(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; the norm reads `given`."""
        places = self.qkv(self.norm(x, *given)).flatten(2).transpose(1, 2)
        q, k, v = places[:, None].chunk(3, dim=3)  # each (B, one head, HW, C)
        with finite_kernels(places.shape[1]):
            mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Halving(nn.Conv2d):
    """(B, C, H, W), sides even, to (B, C, H/2, W/2): windows of 3x3 that reach over on one side."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Zeros to the right and below only, as published weights expect."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Doubling(nn.Conv2d):
    """(B, C, H, W) to (B, C, 2H, 2W): each value four times, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return super().forward(doubled(x))


class Level(nn.Module):
    """Residual blocks and attentions at one resolution, then `resample` where a network sets it."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.resample: nn.Module | None = None

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), or at the size that `resample` makes of it."""
        for layer in self.layers:
            x = layer(x, *given)
        return x if self.resample is None else self.resample(x)


def layers(
    in_channels: int, out_channels: int, num_blocks: int, attends: bool, norms: Norms = PLAIN
) -> list[nn.Module]:
    """`num_blocks` blocks, the first of which changes the width, each with attention if asked."""
    found: list[nn.Module] = []
    for width in [in_channels] + [out_channels] * (num_blocks - 1):
        found.append(Block(width, out_channels, norms))
        found += [Attention(out_channels, norms)] if attends else []
    return found


def middle(width: int, norms: Norms = PLAIN, attends: bool = True) -> Level:
    """Block, attention if asked, block at the coarsest resolution."""
    return Level([*layers(width, width, 1, attends, norms), Block(width, width, norms)])
