"""Discriminators (decision D7): PatchGAN, and a residual network of StyleGAN2's kind.

Neither has batch statistics, so the number of processes does not change a run (D16).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.config import Config
from semvq.kernels.blur import blur_by_products
from semvq.kernels.layout import channels_last_on_cuda


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """Base of the discriminators' settings."""

    def build(self, resolution: int) -> nn.Module:
        """A module from images (B, 3, H, W) to logits; ValueError for a resolution too small."""
        raise NotImplementedError


@dataclass(frozen=True)
class PatchGANConfig(DiscriminatorConfig):
    """Isola et al.'s; a logit sees 70 px with three layers. `norm` may be left out."""

    channels: int = 64
    num_layers: int = 3
    norm: Literal["group", "none"] = "group"

    def build(self, resolution: int) -> nn.Module:
        """Images (B, 3, H, W) to logits (B, 1, h, w)."""
        if resolution >> self.num_layers < 3:
            raise ValueError(
                f"expected a resolution of at least {3 << self.num_layers} for a PatchGAN of "
                f"{self.num_layers} layers, found {resolution}"
            )
        return PatchGAN(self)


class PatchGAN(nn.Module):
    """Strided 4x4 convolutions to a map of logits, one per overlapping patch."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        widths = [config.channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:])):
            stride = 2 if i < config.num_layers - 1 else 1
            layers.append(nn.Conv2d(a, b, 4, stride, 1, bias=config.norm == "none"))
            if config.norm == "group":
                layers.append(nn.GroupNorm(math.gcd(b, max(1, min(32, b // 4))), b))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, 1, h, w)."""
        return self.layers(channels_last_on_cuda(images))


@dataclass(frozen=True)
class StyleGANDiscriminatorConfig(DiscriminatorConfig):
    """Karras et al. 2020: residual, learning rates equalised, blurred downsampling.

    A map of side s has min(max_channels, channel_base // s) channels. `minibatch_group` is the
    number of images over which the standard deviation is shown to the last layer; 0 turns it off.
    """

    channel_base: int = 16384
    max_channels: int = 512
    minibatch_group: int = 0

    def build(self, resolution: int) -> nn.Module:
        """Images (B, 3, H, W) of this resolution to logits (B, 1)."""
        side = resolution
        while side > 4 and side % 2 == 0:
            side //= 2
        if side != 4:
            raise ValueError(
                "expected a resolution of 4 times a power of two for this discriminator, found "
                f"{resolution}"
            )
        return StyleGANDiscriminator(self, resolution)


class EqualConv(nn.Module):
    """A convolution (or, on 1x1 maps, a dense layer) whose weight is scaled when it is used.

    Stored weights have variance 1, so that Adam's step is the same share of every layer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.gain = 1 / math.sqrt(in_channels * kernel * kernel)
        self.stride = stride
        self.padding = kernel // 2 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        return F.conv2d(x, self.weight * self.gain, self.bias, self.stride, self.padding)


BLUR = (0.125, 0.375, 0.375, 0.125)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def blur(x: Tensor, *, padding: int, stride: int = 1) -> Tensor:
    """Filter every channel of (B, C, H, W) by [1, 3, 3, 1] / 8 in both directions."""
    if x.is_cuda:
        return blur_by_products(x, BLUR, padding, stride)
    kernel = torch.tensor(BLUR, dtype=x.dtype, device=x.device)
    weight = torch.outer(kernel, kernel).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])


class DownBlock(nn.Module):
    """Residual block to half the side; every downsampling is blurred."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(in_channels, in_channels, 3)
        self.conv2 = EqualConv(in_channels, out_channels, 3, stride=2)
        self.skip = EqualConv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H/2, W/2)."""
        h = activate(self.conv1(x))
        h = activate(self.conv2(blur(h, padding=2)))
        return (h + self.skip(blur(x, padding=1, stride=2))) / math.sqrt(2)


class StyleGANDiscriminator(nn.Module):
    """Halve to 4x4, then two dense layers to one logit per image."""

    def __init__(self, config: StyleGANDiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        sides = [resolution >> i for i in range((resolution // 4).bit_length())]
        widths = [max(1, min(config.max_channels, config.channel_base // s)) for s in sides]
        self.group = config.minibatch_group
        self.resolution = resolution
        self.from_rgb = EqualConv(3, widths[0], 1)
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in zip(widths[:-1], widths[1:]))
        self.conv = EqualConv(widths[-1] + (self.group > 0), widths[-1], 3)
        self.dense = EqualConv(widths[-1] * 16, widths[-1], 1)
        self.out = EqualConv(widths[-1], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, 1)."""
        if images.shape[-2:] != (self.resolution, self.resolution):
            raise ValueError(
                f"expected images of {self.resolution} px, found {tuple(images.shape[-2:])}"
            )
        x = activate(self.from_rgb(channels_last_on_cuda(images)))
        for block in self.blocks:
            x = block(x)
        if self.group:
            x = torch.cat([x, self._deviation(x)], 1)
        x = activate(self.conv(x)).flatten(1)[:, :, None, None]
        return self.out(activate(self.dense(x))).flatten(1)

    def _deviation(self, x: Tensor) -> Tensor:
        """Mean standard deviation within each run of `group` neighbours, as a map (B, 1, h, w)."""
        b, _, h, w = x.shape
        if b % self.group:
            raise ValueError(
                f"expected a batch that is a multiple of minibatch_group = {self.group}, found {b}"
            )
        groups = x.float().reshape(b // self.group, self.group, -1)
        deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean(1)
        return deviation.repeat_interleave(self.group).reshape(b, 1, 1, 1).expand(b, 1, h, w).to(x)
