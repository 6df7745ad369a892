"""MobileNetV2: 1280 features and 1000 ImageNet logits for the quick metrics (KID, class agreement).

Architecture and weights are torchvision's first ones (71.9 % top-1).
"""

from collections.abc import Mapping

from torch import Tensor

from semvq import assets
from semvq.backbones.frozen import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenConv,
    FrozenLinear,
    InvertedResidual,
    InvertedResidualNet,
    Normalize,
    block_shapes,
    fold_batch_norm,
)

_EPS = 1e-5
# expansion, number of blocks and stride of the first, by stage; the rest lies in the weights
_STAGES = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))


class MobileNetV2(InvertedResidualNet):
    """Images to 1000 ImageNet logits; see `InvertedResidualNet`.

    `weights` are named as torchvision's (`features.1.conv.0.0.weight`, …).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        shapes = block_shapes(_STAGES)
        last = len(shapes) + 1
        super().__init__(
            Normalize(IMAGENET_MEAN, IMAGENET_STD),
            _conv(weights, "features.0.0", "features.0.1", stride=2),
            (_block(weights, f"features.{i}.conv.", *s) for i, s in enumerate(shapes, start=1)),
            _conv(weights, f"features.{last}.0", f"features.{last}.1"),
            FrozenLinear(weights["classifier.1.weight"], weights["classifier.1.bias"]),
        )


def _block(
    weights: Mapping[str, Tensor], name: str, expansion: int, stride: int, residual: bool
) -> InvertedResidual:
    expand = _conv(weights, f"{name}0.0", f"{name}0.1") if expansion > 1 else None
    at = int(expansion > 1)
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
