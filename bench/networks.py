"""Frozen networks with random weights: their cost is that of the trained ones, and nothing is read.

`divide` makes every width that much smaller, for sizes at which the real ones would hide the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semvq.backbones.inception import NUM_FEATURES, InceptionV3
from semvq.backbones.vgg import VGG16Classifier, VGG16Features
from semvq.evaluation.features import FeatureNet
from semvq.foreign_weights import VGG16_CONVS
from semvq.losses.perceptual import PerceptualConfig, PerceptualLoss

_VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@dataclass(frozen=True)
class RandomPerceptual(PerceptualConfig):
    """The perceptual loss with untrained VGG16s (`logits_from` the classifier of the same kind)."""

    divide: int = 1

    def load(self) -> PerceptualLoss:
        """The loss; nothing is fetched."""
        weights = vgg16_weights(self.divide)
        return self.build(VGG16Features(weights), VGG16Classifier(weights))


def vgg16_weights(divide: int = 1) -> dict[str, Tensor]:
    """Names and shapes of torchvision's, dense layers included."""
    widths = [w // divide for w in _VGG_WIDTHS]
    weights: dict[str, Tensor] = {}
    for index, width, out in zip(VGG16_CONVS, [3, *widths], widths):
        weights[f"features.{index}.weight"] = random(out, width, 3, 3)
        weights[f"features.{index}.bias"] = torch.zeros(out)
    dense = 4096 // divide
    shapes = {0: (dense, widths[-1] * 49), 3: (dense, dense), 6: (1000, dense)}
    for index, (out, width) in shapes.items():
        weights[f"classifier.{index}.weight"] = random(out, width)
        weights[f"classifier.{index}.bias"] = torch.zeros(out)
    return weights


def random(*shape: int) -> Tensor:
    """A weight that keeps the size of what passes through it and a ReLU."""
    fan_in = max(1, torch.Size(shape[1:]).numel())
    return torch.randn(shape) * (2 / fan_in) ** 0.5


def random_inception(divide: int, device: torch.device) -> FeatureNet:
    """FID's network, untrained: uint8 images to 2048 / divide features."""
    net = InceptionV3(inception_weights(divide)).to(device).eval()
    return FeatureNet(
        name="inception-v3, untrained",
        weights="random",
        resize="TF1 bilinear, 299",
        width=NUM_FEATURES // divide,
        module=net,
        features=net,
        logits=None,
    )


def inception_weights(divide: int = 1) -> dict[str, Tensor]:
    """Names and shapes of the graph of 2015-12-05, features alone."""
    weights: dict[str, Tensor] = {}
    for name, out, width, height, length in _inception_shapes():
        inputs = width if width == 3 else width // divide
        weights[f"{name}.weight"] = random(out // divide, inputs, height, length)
        weights[f"{name}.beta"] = torch.zeros(out // divide)
        weights[f"{name}.mean"] = torch.zeros(out // divide)
        weights[f"{name}.var"] = torch.ones(out // divide)
    return weights


Shape = tuple[str, int, int, int, int]  # name, channels out and in, kernel's height and width


def _inception_shapes() -> Iterator[Shape]:
    yield "conv", 32, 3, 3, 3
    yield "conv_1", 32, 32, 3, 3
    yield "conv_2", 64, 32, 3, 3
    yield "conv_3", 80, 64, 1, 1
    yield "conv_4", 192, 80, 3, 3
    for name, width, pooled in (("mixed", 192, 32), ("mixed_1", 256, 64), ("mixed_2", 288, 64)):
        yield f"{name}.conv", 64, width, 1, 1
        yield f"{name}.tower.conv", 48, width, 1, 1
        yield f"{name}.tower.conv_1", 64, 48, 5, 5
        yield from _thick(f"{name}.tower_1", width)
        yield f"{name}.tower_2.conv", pooled, width, 1, 1
    yield "mixed_3.conv", 384, 288, 3, 3
    yield from _thick("mixed_3.tower", 288)
    for name, inner in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
        yield f"{name}.conv", 192, 768, 1, 1
        yield f"{name}.tower.conv", inner, 768, 1, 1
        yield f"{name}.tower.conv_1", inner, inner, 1, 7
        yield f"{name}.tower.conv_2", 192, inner, 7, 1
        yield f"{name}.tower_1.conv", inner, 768, 1, 1
        for i, (height, length) in enumerate(((7, 1), (1, 7), (7, 1)), 1):
            yield f"{name}.tower_1.conv_{i}", inner, inner, height, length
        yield f"{name}.tower_1.conv_4", 192, inner, 1, 7
        yield f"{name}.tower_2.conv", 192, 768, 1, 1
    yield from _mixed_8()
    for name, width in (("mixed_9", 1280), ("mixed_10", 2048)):
        yield from _high(name, width)


def _thick(name: str, width: int) -> Iterator[Shape]:
    yield f"{name}.conv", 64, width, 1, 1
    yield f"{name}.conv_1", 96, 64, 3, 3
    yield f"{name}.conv_2", 96, 96, 3, 3


def _mixed_8() -> Iterator[Shape]:
    yield "mixed_8.tower.conv", 192, 768, 1, 1
    yield "mixed_8.tower.conv_1", 320, 192, 3, 3
    yield "mixed_8.tower_1.conv", 192, 768, 1, 1
    yield "mixed_8.tower_1.conv_1", 192, 192, 1, 7
    yield "mixed_8.tower_1.conv_2", 192, 192, 7, 1
    yield "mixed_8.tower_1.conv_3", 192, 192, 3, 3


def _high(name: str, width: int) -> Iterator[Shape]:
    yield f"{name}.conv", 320, width, 1, 1
    yield f"{name}.tower_conv", 384, width, 1, 1
    yield f"{name}.tower_1_conv", 448, width, 1, 1
    yield f"{name}.tower_1_conv_1", 384, 448, 3, 3
    for tower in ("tower", "tower_1"):
        yield f"{name}.{tower}_mixed_conv", 384, 384, 1, 3
        yield f"{name}.{tower}_mixed_conv_1", 384, 384, 3, 1
    yield f"{name}.tower_2_conv", 192, width, 1, 1
