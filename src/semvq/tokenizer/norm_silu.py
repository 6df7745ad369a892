"""The tokenizer's norms: GroupNorm with SiLU before every convolution, alone before attention.

On CUDA they run the Triton kernels in `kernels`, which read and write a fraction of what plain
layers move one after the other; elsewhere they are the plain torch expression.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.kernels import fused_norm as kernels

EPS = 1e-6


def norm_groups(channels: int) -> int:
    """Groups of a norm over this many channels: 32, fewer where a group would have under 4.

    At the paper's widths (128 and more) that is 32. Narrower groups would come close to instance
    normalisation, which wipes out mean colour in the small recipes.
    """
    return math.gcd(channels, min(32, max(1, channels // 4)))


class Norm(nn.GroupNorm):
    """group_norm(x), grouped as all the tokenizer's norms are.

    (B, C, H, W) to the same shape and memory format. The output has autocast's dtype under
    autocast, which is the dtype the next product reads, and the input's otherwise.
    """

    silu: ClassVar[bool] = False  # whether SiLU follows, in the same kernel

    def __init__(self, channels: int) -> None:
        super().__init__(norm_groups(channels), channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        dtype = _output_dtype(x)
        if kernels.serve(x):
            parameters = self.weight, self.bias, self.num_groups, self.eps
            return kernels.fused_norm(x, *parameters, dtype, self.silu)[0]
        y = super().forward(x)
        return (F.silu(y) if self.silu else y).to(dtype)


class NormSiLU(Norm):
    """silu(group_norm(x)), with the parameters of the GroupNorm that it is; else as `Norm`."""

    silu = True


def _output_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    # Tensors without data ("meta") have no autocast, and asking for its state there fails. (So does
    # asking whether a device has one, inside torch.compile.)
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
