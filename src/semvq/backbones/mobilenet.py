"""MobileNetV2: 1280 features and 1000 ImageNet logits for the quick metrics (KID, class agreement).

Architecture and weights are torchvision's first ones (71.9 % top-1).
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
    InvertedResidual,
    Normalize,
    fold_batch_norm,
)

_EPS = 1e-5
# whether blocks expand, their number and the stride of the first, by stage
_STAGES = (
    (False, 1, 1),
    (True, 2, 2),
    (True, 3, 2),
    (True, 4, 2),
    (True, 3, 1),
    (True, 3, 2),
    (True, 1, 1),
)


class MobileNetV2(nn.Module):
    """Images to 1000 ImageNet logits, frozen; differentiable with respect to the images.

    `weights` are named as torchvision's (`features.1.conv.0.0.weight`, …).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.stem = _conv(weights, "features.0.0", "features.0.1", stride=2)
        shapes = [(e, s if i == 0 else 1, i > 0) for e, n, s in _STAGES for i in range(n)]
        self.blocks = nn.ModuleList(
            _block(weights, f"features.{i}.conv.", *shape)
            for i, shape in enumerate(shapes, start=1)
        )
        last = len(shapes) + 1
        self.head = _conv(weights, f"features.{last}.0", f"features.{last}.1")
        self.classifier = FrozenLinear(weights["classifier.1.weight"], weights["classifier.1.bias"])

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to pooled features (B, 1280)."""
        x = F.relu6(self.stem(self.normalize(images)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], made for 224 px, to logits (B, 1000)."""
        return self.classifier(self.features(images))


def _block(
    weights: Mapping[str, Tensor], name: str, expands: bool, stride: int, residual: bool
) -> InvertedResidual:
    expand = _conv(weights, f"{name}0.0", f"{name}0.1") if expands else None
    at = int(expands)
    depthwise = _conv(weights, f"{name}{at}.0", f"{name}{at}.1", stride, depthwise=True)
    project = _conv(weights, f"{name}{at + 1}", f"{name}{at + 2}")
    return InvertedResidual(expand, depthwise, project, residual)


def _conv(
    weights: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1, depthwise: bool = False
) -> FrozenConv:
    weight, bias = fold_batch_norm(weights, conv, norm, _EPS)
    padding = weight.shape[-1] // 2
    return FrozenConv(weight, bias, stride, padding, groups=len(weight) if depthwise else 1)


def load_mobilenet_v2() -> MobileNetV2:
    """MobileNetV2 with ImageNet weights; fetches the asset if it is not there."""
    return MobileNetV2(assets.load("mobilenet-v2"))
