"""Layers of frozen networks: their weights are buffers that no optimiser, checkpoint or mode sees.

A parameter would be moved by an optimiser that is given too much, saved with every checkpoint and
synchronised between processes; batch norm would change with `train()`. So weights are
non-persistent buffers here, and batch norm is folded into the convolution before it.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenConv(nn.Module):
    """A convolution with given weights (out, in / groups, k, k), channels last.

    `padding` None means TensorFlow's "SAME": the output has ceil(size / stride) pixels a side, and
    an odd pixel of padding goes to the right and below.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        padding = self.padding
        if padding is None:
            kernel = self.weight.shape[-1]
            pads = [max(kernel - (s - 1) % self.stride - 1, 0) for s in x.shape[-2:]]
            x = F.pad(x, (pads[1] // 2, -(-pads[1] // 2), pads[0] // 2, -(-pads[0] // 2)))
            padding = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


class FrozenLinear(nn.Module):
    """A dense layer with given weights (out, in) and bias (out,)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        return F.linear(x, self.weight, self.bias)


class InvertedResidual(nn.Module):
    """Expand by 1x1 (None: not), filter each channel, project by 1x1; add the input if told."""

    def __init__(
        self, expand: FrozenConv | None, depthwise: FrozenConv, project: FrozenConv, residual: bool
    ) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project = expand, depthwise, project
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Normalize(nn.Module):
    """Images in [-1, 1] to ((image + 1) / 2 - mean) / std, channels last."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        m, s = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 0.5 / s, persistent=False)
        self.register_buffer("shift", (0.5 - m) / s, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the same shape; ValueError for another one."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), found {tuple(images.shape)}")
        return (images * self.scale + self.shift).contiguous(memory_format=torch.channels_last)


class InvertedResidualNet(nn.Module):
    """A frozen classifier of images: stem, inverted residuals, head, mean over positions, logits.

    Differentiable with respect to the images; made for 224 px, but any size will do.
    """

    def __init__(
        self,
        normalize: Normalize,
        stem: FrozenConv,
        blocks: Iterable[InvertedResidual],
        head: FrozenConv,
        classifier: FrozenLinear,
    ) -> None:
        super().__init__()
        self.normalize, self.stem, self.head = normalize, stem, head
        self.blocks = nn.ModuleList(blocks)
        self.classifier = classifier

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to pooled features (B, 1280)."""
        x = F.relu6(self.stem(self.normalize(images)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).float().mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to logits (B, 1000)."""
        return self.classifier(self.features(images))


def block_shapes(stages: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, bool]]:
    """(expansion, stride, whether residual) of every block, from stages of (expansion, number of

    blocks, stride of the first).
    """
    return [(e, s if i == 0 else 1, i > 0) for e, n, s in stages for i in range(n)]


def fold_batch_norm(
    weights: Mapping[str, Tensor], conv: str, norm: str, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution `conv` (without bias) followed by batch norm `norm`.

    Computed in float64, so that folding costs no accuracy.
    """
    w = {
        k: weights[f"{norm}.{k}"].double()
        for k in ("weight", "bias", "running_mean", "running_var")
    }
    gain = w["weight"] / torch.sqrt(w["running_var"] + eps)
    weight = weights[f"{conv}.weight"].double() * gain.view(-1, 1, 1, 1)
    bias = w["bias"] - w["running_mean"] * gain
    return weight.float(), bias.float()
