"""The Inception-v3 of FID (TensorFlow graph of 2015-12-05): images to 2048 features.

It differs from the usual Inception-v3 in its pools: averages leave the padding out, and the last
block takes a maximum. Input is resized as TensorFlow 1 did. Parameters are named as in the
TorchScript file that carries them: `mixed_4.tower_1.conv_3.weight`, `.beta`, `.mean`, `.var`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq import assets
from semvq.backbones.frozen import FrozenConv

SIZE = 299  # side in pixels that the network was trained at
NUM_FEATURES = 2048
_EPS = 1e-3
_REDUCED = {"mixed_3": ("conv", "tower.conv_2"), "mixed_8": ("tower.conv_1", "tower_1.conv_3")}


class InceptionV3(nn.Module):
    """uint8 images to the features before the classifier, and to its logits where weights have it.

    The pixel path: uint8 as float, `resize_tf1` to 299 x 299, (x - 128) / 128.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        net = _Parts(weights)
        self.layers = nn.Sequential(
            net.conv("conv", stride=2, padding=0),
            net.conv("conv_1", padding=0),
            net.conv("conv_2"),
            nn.MaxPool2d(3, 2),
            net.conv("conv_3"),
            net.conv("conv_4", padding=0),
            nn.MaxPool2d(3, 2),
            *(net.low(name) for name in ("mixed", "mixed_1", "mixed_2")),
            net.first_reduction("mixed_3"),
            *(net.middle(f"mixed_{i}") for i in range(4, 8)),
            net.second_reduction("mixed_8"),
            net.high("mixed_9", nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
            net.high("mixed_10", nn.MaxPool2d(3, 1, 1)),
        )
        # weights in the plain layout, not `FrozenConv`'s: that of the images decides how it works
        self.layers.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.output: Tensor | None
        self.register_buffer("output", weights.get("output.weight"), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W), of any size, to features (B, 2048)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            found = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"expected uint8 images (B, 3, H, W), found {found}")
        x = (resize_tf1(images.float(), SIZE) - 128) / 128
        # cuDNN's fp32 convolutions work on planes, and copied anything else to and fro: 634 ms of
        # kernels for 1,024 images on one H200, and 516 like this (`python -m bench profile fid`;
        # the fast mode, which converts its weights each time, was not timed)
        planes = x.is_cuda and not torch.is_autocast_enabled("cuda")
        layout = torch.contiguous_format if planes else torch.channels_last
        x = self.layers(x.contiguous(memory_format=layout))
        return x.float().mean((2, 3))  # in fast mode too: bf16 would round each sum

    def logits(self, features: Tensor) -> Tensor:
        """Features to the 1008 logits of the Inception Score, without bias as it is defined."""
        if self.output is None:
            raise ValueError(
                "expected Inception weights with the classifier, found features alone; fetch them "
                "with: semvq assets fetch inception-full"
            )
        return features @ self.output.T


class Towers(nn.Module):
    """Several towers on one input, side by side in the channels."""

    def __init__(self, *towers: nn.Module) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, sum of the towers' channels, H', W')."""
        return torch.cat([tower(x) for tower in self.towers], dim=1)


class ConvReLU(FrozenConv):
    """A frozen convolution, batch norm folded in, and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        return F.relu(super().forward(x))


class _Parts:
    """The network's blocks, from its weights by name."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def conv(
        self, name: str, stride: int = 1, padding: int | tuple[int, int] | None = None
    ) -> ConvReLU:
        """Batch norm (without gain) folded into the convolution; `padding` None keeps the size."""
        w = {k: self.weights[f"{name}.{k}"].double() for k in ("weight", "beta", "mean", "var")}
        gain = 1 / torch.sqrt(w["var"] + _EPS)
        weight = (w["weight"] * gain.view(-1, 1, 1, 1)).float()
        bias = (w["beta"] - w["mean"] * gain).float()
        if padding is None:
            padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        return ConvReLU(weight, bias, stride, padding)

    def tower(self, block: str, *names: str) -> nn.Sequential:
        """Convolutions one after the other; the last of a reducing block's towers has stride 2."""
        reduced = _REDUCED.get(block, ())
        how = [(2, 0) if name in reduced else () for name in names]
        return nn.Sequential(*(self.conv(f"{block}.{n}", *h) for n, h in zip(names, how)))

    def pooled(self, block: str, name: str, pool: nn.Module) -> nn.Sequential:
        return nn.Sequential(pool, self.conv(f"{block}.{name}"))

    def low(self, block: str) -> Towers:
        """35 x 35 positions."""
        return Towers(
            self.tower(block, "conv"),
            self.tower(block, "tower.conv", "tower.conv_1"),
            self.tower(block, "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2"),
            self.pooled(block, "tower_2.conv", _average()),
        )

    def first_reduction(self, block: str) -> Towers:
        """35 x 35 to 17 x 17."""
        return Towers(
            self.tower(block, "conv"),
            self.tower(block, "tower.conv", "tower.conv_1", "tower.conv_2"),
            nn.MaxPool2d(3, 2),
        )

    def middle(self, block: str) -> Towers:
        """17 x 17 positions."""
        second = ("tower_1.conv", *(f"tower_1.conv_{i}" for i in range(1, 5)))
        return Towers(
            self.tower(block, "conv"),
            self.tower(block, "tower.conv", "tower.conv_1", "tower.conv_2"),
            self.tower(block, *second),
            self.pooled(block, "tower_2.conv", _average()),
        )

    def second_reduction(self, block: str) -> Towers:
        """17 x 17 to 8 x 8."""
        second = ("tower_1.conv", *(f"tower_1.conv_{i}" for i in range(1, 4)))
        return Towers(
            self.tower(block, "tower.conv", "tower.conv_1"),
            self.tower(block, *second),
            nn.MaxPool2d(3, 2),
        )

    def high(self, block: str, pool: nn.Module) -> Towers:
        """8 x 8 positions; two towers end in a fork."""
        return Towers(
            self.tower(block, "conv"),
            nn.Sequential(self.tower(block, "tower_conv"), self.fork(block, "tower_mixed")),
            nn.Sequential(
                self.tower(block, "tower_1_conv", "tower_1_conv_1"),
                self.fork(block, "tower_1_mixed"),
            ),
            self.pooled(block, "tower_2_conv", pool),
        )

    def fork(self, block: str, name: str) -> Towers:
        """A row and a column filter side by side."""
        return Towers(self.conv(f"{block}.{name}_conv"), self.conv(f"{block}.{name}_conv_1"))


def _average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 did: output i is at i * in / out, corners not aligned, no blur.

    Images (B, C, H, W) to (B, C, size, size), float.
    """
    return _lerp(_lerp(images, size, 3), size, 2)


def _lerp(x: Tensor, size: int, dim: int) -> Tensor:
    num = x.shape[dim]
    where = torch.arange(size, device=x.device, dtype=torch.float32) * (num / size)
    low = where.long()  # floor: nothing is negative
    high = (low + 1).clamp_max(num - 1)
    share = (where - low).view(-1, *[1] * (x.ndim - 1 - dim))
    a, b = x.index_select(dim, low), x.index_select(dim, high)
    return a + (b - a) * share


def load_inception() -> InceptionV3:
    """The network of FID, without its classifier; fetches the asset if it is not there."""
    return InceptionV3(assets.load("inception"))
