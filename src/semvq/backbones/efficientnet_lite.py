"""EfficientNet-Lite0: a 4.7M-parameter ImageNet classifier whose logits stand in for VGG16's (D6).

The architecture is TensorFlow's: "SAME" padding, ReLU6, no squeeze-and-excitation, batch norm with
eps 1e-3. Made for 224 px, but any size will do.
"""

from collections.abc import Mapping

from torch import Tensor

from semvq import assets
from semvq.backbones.frozen import (
    FrozenConv,
    FrozenLinear,
    InvertedResidual,
    InvertedResidualNet,
    Normalize,
    block_shapes,
    fold_batch_norm,
)

_EPS = 1e-3
# (pixel - 127) / 128, as these weights were trained, whatever the package's own README says: with
# ImageNet's mean and deviation the first batch norm sees 3.3 times the variance it has stored
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
# expansion, number of blocks and stride of the first, by stage; the rest lies in the weights
_STAGES = ((1, 1, 1), (6, 2, 2), (6, 2, 2), (6, 3, 2), (6, 3, 1), (6, 4, 2), (6, 1, 1))


class EfficientNetLite0(InvertedResidualNet):
    """Images to 1000 ImageNet logits; see `InvertedResidualNet`.

    `weights` are named as in the package that carries them (`_blocks.0._depthwise_conv.weight`).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        shapes = enumerate(block_shapes(_STAGES))
        super().__init__(
            Normalize(_MEAN, _STD),
            _conv(weights, "_conv_stem", "_bn0", stride=2),
            (_block(weights, f"_blocks.{i}.", *shape) for i, shape in shapes),
            _conv(weights, "_conv_head", "_bn1"),
            FrozenLinear(weights["_fc.weight"], weights["_fc.bias"]),
        )


def _block(
    weights: Mapping[str, Tensor], name: str, expansion: int, stride: int, residual: bool
) -> InvertedResidual:
    expand = _conv(weights, f"{name}_expand_conv", f"{name}_bn0") if expansion > 1 else None
    depthwise = _conv(weights, f"{name}_depthwise_conv", f"{name}_bn1", stride, depthwise=True)
    project = _conv(weights, f"{name}_project_conv", f"{name}_bn2")
    return InvertedResidual(expand, depthwise, project, residual)


def _conv(
    weights: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1, depthwise: bool = False
) -> FrozenConv:
    weight, bias = fold_batch_norm(weights, conv, norm, _EPS)
    return FrozenConv(weight, bias, stride, None, groups=len(weight) if depthwise else 1)


def load_efficientnet_lite0() -> EfficientNetLite0:
    """EfficientNet-Lite0 with ImageNet weights; fetches the asset if it is not there."""
    return EfficientNetLite0(assets.load("efficientnet-lite0"))
