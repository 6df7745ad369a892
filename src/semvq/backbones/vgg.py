"""VGG16 as the perceptual loss sees it: activations after ReLU, and the logits (Sec. 3.1).

Weights: ImageNet, torchvision's (the assets `vgg16` without and `vgg16-full` with dense layers).
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from semvq import assets
from semvq.backbones.frozen import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenConv,
    FrozenLinear,
    Normalize,
)
from semvq.foreign_weights import VGG16_CONVS

# block -> number of its convolutions; a 2x2 max pool stands between blocks
_BLOCKS = (2, 2, 3, 3, 3)
LAYERS = tuple(f"relu{b + 1}_{c + 1}" for b, n in enumerate(_BLOCKS) for c in range(n))


class VGG16Features(nn.Module):
    """The 13 convolutions of VGG16, frozen; differentiable with respect to the images.

    `weights` are named as torchvision's (`features.0.weight`, …).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.convs = nn.ModuleList(
            FrozenConv(weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1)
            for i in VGG16_CONVS
        )

    def forward(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Activations after ReLU by layer name, computed only as deep as needed.

        images: (B, 3, H, W) in [-1, 1]. A layer of block b has H / 2**(b-1) rows.
        ValueError for an unknown layer, or images too small for the deepest one.
        """
        unknown = [name for name in layers if name not in LAYERS]
        if unknown:
            raise ValueError(f"expected layers among {', '.join(LAYERS)}, found {unknown[0]}")
        found: dict[str, Tensor] = {}
        x = self.normalize(images)
        for name, conv in zip(LAYERS, self.convs):
            if len(found) == len(set(layers)):
                break
            if name.endswith("_1") and name != LAYERS[0]:
                if min(x.shape[-2:]) < 2:
                    size = tuple(images.shape[-2:])
                    raise ValueError(f"expected images large enough for {name}, found {size}")
                x = F.max_pool2d(x, 2)
            # not in place: an activation that is asked for must survive
            x = F.relu(conv(x))
            if name in layers:
                found[name] = x
        return found


class VGG16Classifier(nn.Module):
    """VGG16 with its dense layers: images to 1000 ImageNet logits, frozen (dropout is off)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = VGG16Features(weights)
        self.dense = nn.ModuleList(
            FrozenLinear(weights[f"classifier.{i}.weight"], weights[f"classifier.{i}.bias"])
            for i in (0, 3, 6)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], made for 224 px and at least 32, to logits (B, 1000)."""
        x = F.max_pool2d(self.features(images, LAYERS[-1:])[LAYERS[-1]], 2)
        # the dense layers read the map channel by channel, whatever its memory format
        x = F.adaptive_avg_pool2d(x, 7).flatten(1)
        for layer in self.dense[:-1]:
            x = F.relu(layer(x))
        return self.dense[-1](x)


def load_vgg16() -> VGG16Features:
    """VGG16's convolutions with ImageNet weights; fetches the asset if it is not there."""
    return VGG16Features(assets.load("vgg16"))


def load_vgg16_classifier() -> VGG16Classifier:
    """VGG16 with dense layers; its asset, 553 MB, has no package that carries it."""
    return VGG16Classifier(assets.load("vgg16-full"))


def load_lpips_linear() -> dict[str, Tensor]:
    """The non-negative weight of every channel in LPIPS v0.1, (C,) by layer name."""
    return assets.load("lpips-linear")
